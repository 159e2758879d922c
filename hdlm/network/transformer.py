"""What all transformers of this package share: passes over tokens, caches, masks, packing, recomputation.

A subclass says how tokens become vectors, which blocks follow, and how hidden states become logits. It gets shared
visibility, an exact cache, several passes in one, static buffers and recomputation from here.
"""

from __future__ import annotations

import abc
import functools
import os
import shutil
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hdlm.network import recomputation
from hdlm.network.attention import Attention, SharedMask, attend, prepare_mask
from hdlm.network.cache import KVCache
from hdlm.network.config import NetworkShape
from hdlm.network.layers import AbstractBlock, See
from hdlm.network.packed import PackedLinear
from hdlm.network.passes import Pass
from hdlm.network.recomputation import Recomputation
from hdlm.network.rotary import Rotary, Rotation
from hdlm.network.static import StaticBatch

__all__ = ["AbstractTransformer", "has_compiler"]


class AbstractTransformer(nn.Module, abc.ABC):
    """A transformer that sees both ways, or as `attention` says.

    Attributes:
        config: Sizes and switches.
        checkpoint_activations: What the backward pass computes again instead of keeping it; see
            `hdlm.network.recomputation`.
        static: What makes the passes that fit into static buffers, if `speed_up` reserved some.
        rotary_emb: Positions to rotations.
        vocab_embed: Tokens to vectors.
        blocks: The blocks, in order.
        token_rows: Names of the parameters with one row for each token.
    """

    config: NetworkShape
    checkpoint_activations: Recomputation
    rotary_emb: Rotary
    vocab_embed: nn.Module
    blocks: nn.ModuleList
    static: StaticBatch | None = None
    token_rows: ClassVar[tuple[str, ...]]

    def forward(
        self,
        tokens: Int[Tensor, "b q"],
        *,
        positions: Int[Tensor, "#b q"] | None = None,
        condition: Float[Tensor, "#b #q"] | None = None,
        blend: Float[Tensor, "#b #q"] | None = None,
        attention: Attention = None,
        cache: KVCache | None = None,
        store: Int[Tensor, " n"] | None = None,
    ) -> Float[Tensor, "b q v"]:
        """`head(features(...))`: see `features` for the arguments."""
        hidden = self.features(
            tokens,
            positions=positions,
            condition=condition,
            blend=blend,
            attention=attention,
            cache=cache,
            store=store,
        )
        return self.head(hidden)

    def features(
        self,
        tokens: Int[Tensor, "b q"],
        *,
        positions: Int[Tensor, "#b q"] | None = None,
        condition: Float[Tensor, "#b #q"] | None = None,
        blend: Float[Tensor, "#b #q"] | None = None,
        attention: Attention = None,
        cache: KVCache | None = None,
        store: Int[Tensor, " n"] | None = None,
    ) -> Float[Tensor, "b q h"]:
        """All but the vocabulary projection, so that it need run on chosen positions only.

        Args:
            tokens: Rows of the embedding, in `[0, vocab_size)`.
            positions: Where each token stands, any integers; by default those that follow the cached ones.
            condition: What the network is told at each position (the total noise sigma of gamma-hybrid, SEDD,
                MDLM; the time of GIDD); required if and only if `config.timestep_embedding`.
            blend: Share in `[0, 1]` of the last embedding row in every
                input: `(1 - blend) E[x] + blend E[last]`.
            attention: Who may attend whom (True = may; keys are the cached positions, then the current ones);
                `None` if all attend all. A query that may attend nobody attends all keys equally.
            cache: Keys and values of earlier positions, attended to besides the current ones.
            store: Indices of the current positions that the cache keeps after this pass; by default none.

        Returns:
            Hidden states after the final norm.

        Raises:
            ValueError: If `condition` does not fit the network, `store` comes without `cache`, or `attention`
                or `cache` do not fit the tokens.
        """
        if store is not None and cache is None:
            raise ValueError(
                "`store` says what a cache keeps, but there is no `cache`: pass one, or leave `store` out."
            )
        one = Pass(tokens, positions, condition, blend, attention, cache, store)
        if self.static is not None and self.static.takes([one]):
            return self.static([one])[0]
        num_queries = tokens.shape[1]
        mask, rotation = prepare_mask(attention, self.rotary_emb(one.places), num_queries, one.num_keys)
        cond = self._conditioning(condition)
        x = self._embed(tokens, blend, one.places)
        for index, block in enumerate(self.blocks):
            if cache is not None:
                x = block(x, cond, rotation, mask, functools.partial(_see, index, cache, mask))
            else:
                x = recomputation.run_block(
                    self.checkpoint_activations, cast("AbstractBlock", block), x, cond, rotation, mask
                )
        if cache is not None and store is not None:
            cache.keep(store, num_queries)
        return self._normalise(x, cond)

    def features_of_many(self, passes: Sequence[Pass]) -> list[Tensor]:
        """Several passes in one: every weight is read once; each pass sees itself and its own cache only.

        Args:
            passes: The arguments of `features` for each. They may differ in all their sizes.

        Returns:
            What `features` says of each, `[b q h]`.
        """
        if self.static is not None and self.static.takes(passes):
            return self.static(passes)
        shapes = [(one.tokens.shape[0], one.tokens.shape[1]) for one in passes]
        parts, rotations = [], []
        for one, (rows, width) in zip(passes, shapes, strict=True):
            mask, rotation = prepare_mask(one.attention, self.rotary_emb(one.places), width, one.num_keys)
            parts.append(_Part(rows, width, one.cache, mask))
            rotations.append(rotation)
        cond = self._conditioning_of_many(passes, shapes)
        x = torch.cat([self._embed(one.tokens, one.blend, one.places).flatten(0, 1) for one in passes])[None]
        rotation = Rotation.join(rotations, shapes)
        hidden = self._through(x, cond, rotation, lambda layer: functools.partial(_see_apart, layer, parts))
        for one, (_, width) in zip(passes, shapes, strict=True):
            if one.cache is not None and one.store is not None:
                one.cache.keep(one.store, width)
        split = hidden[0].split([rows * width for rows, width in shapes])
        return [vectors.unflatten(0, shape) for vectors, shape in zip(split, shapes, strict=True)]

    def head(self, hidden: Float[Tensor, "*n h"]) -> Float[Tensor, "*n v"]:
        """Project hidden states, of any selection of positions, onto the vocabulary."""
        matrix, bias = self.projection()
        return nn.functional.linear(hidden, matrix, bias)

    @abc.abstractmethod
    def projection(self) -> tuple[Float[Tensor, "v h"], Float[Tensor, " v"] | None]:
        """The matrix and the bias of `head`, for losses that never hold all of its output."""

    def speed_up(self, *, compiled: bool = False, slots: int = 0) -> None:
        """Make ready for generation, there and as precise as it is now; it changes no number but by rounding.

        On a CPU every weight that multiplies is kept a second time, in a layout that few rows read faster: see
        `hdlm.network.packed`.

        Args:
            compiled: Compile the blocks, all but attention, which takes up to a minute at the first passes.
            slots: For how many sequences at a time to reserve static buffers, in which short passes behind caches are
                one pass of fixed shape, recorded as CUDA graphs where there is CUDA; 0 for none. For accelerators,
                which pay for every kernel; see `hdlm.network.static`.

        Raises:
            ValueError: If they are to be compiled and there is no compiler, or `slots` is negative.
        """
        self.static = (
            StaticBatch(self.config, lambda: self.projection()[0], slots, self.rotary_emb, self._body)
            if slots
            else None
        )
        in_blocks = set(self.blocks.modules())
        for layer in self.modules():
            if isinstance(layer, PackedLinear) and not (compiled and layer in in_blocks):
                layer.pack()
        if not compiled:
            return
        if not has_compiler(self.projection()[0].device):
            raise ValueError(
                "There is no C++ compiler (g++, or what the environment variable CXX names) to compile the network "
                "with: install one, or leave compilation out."
            )
        for block in self.blocks:
            cast("AbstractBlock", block).compile_parts()

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the static buffers, which are bound to these very weights."""
        return {name: value for name, value in self.__dict__.items() if name != "static"}

    def new_cache(self) -> KVCache:
        """An empty cache for `features`."""
        return KVCache()

    def _body(
        self,
        one: Pass,
        rotation: Rotation,
        see: Callable[[int], See],
    ) -> Tensor:
        """All but rotations and `head`; layer `i` attends by `see(i)`."""
        x = self._embed(one.tokens, one.blend, one.places)
        return self._through(x, self._conditioning(one.condition), rotation, see)

    def _through(
        self, x: Tensor, cond: Tensor | None, rotation: Rotation, see: Callable[[int], See]
    ) -> Tensor:
        for index, block in enumerate(self.blocks):
            x = block(x, cond, rotation, None, see(index))
        return self._normalise(x, cond)

    def _conditioning_of_many(self, passes: Sequence[Pass], shapes: list[tuple[int, int]]) -> Tensor | None:
        """The conditioning vectors of several passes, end to end in one row."""
        cond = [self._conditioning(one.condition) for one in passes]
        flat = [
            one.expand(*shape, -1).flatten(0, 1)
            for one, shape in zip(cond, shapes, strict=True)
            if one is not None
        ]
        return torch.cat(flat)[None] if flat else None

    @abc.abstractmethod
    def new_rotary(self) -> Rotary:
        """The rotary positions of the config, computed on the default device."""

    @abc.abstractmethod
    def reset_parameters(self) -> None:
        """Draw new weights."""

    @abc.abstractmethod
    def _embed(self, tokens: Tensor, blend: Tensor | None, places: Tensor) -> Tensor:
        """Vectors of tokens at some positions, `[b q h]`."""

    @abc.abstractmethod
    def _conditioning(self, condition: Tensor | None) -> Tensor | None:
        """The conditioning vectors, or None for a network without conditioning.

        Raises:
            ValueError: If the network needs a condition and gets none, or gets one and needs none.
        """

    @abc.abstractmethod
    def _normalise(self, x: Tensor, cond: Tensor | None) -> Tensor:
        """Hidden states for `head`, from the output of the last block."""


def has_compiler(device: torch.device) -> bool:
    """Whether `torch.compile` has what it needs: on a CPU, a C++ compiler."""
    return device.type != "cpu" or shutil.which(os.environ.get("CXX", "g++")) is not None


class _Part(NamedTuple):
    """What one of several passes sees: `rows` sequences of `width` positions."""

    rows: int
    width: int
    cache: KVCache | None
    mask: SharedMask

    def see(self, index: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend, in layer `index`, to what the cache holds and to one another; `[heads, rows width, d]` each."""
        q, k, v = (one.unflatten(1, (self.rows, self.width)).transpose(0, 1) for one in (query, key, value))
        if self.cache is not None:
            k, v = self.cache.write(index, k, v)
        return attend(q, k, v, self.mask).transpose(0, 1).flatten(1, 2)


def _see(index: int, cache: KVCache, mask: SharedMask, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attend to what the cache holds and to one another."""
    return attend(query, *cache.write(index, key, value), mask)


def _see_apart(index: int, parts: list[_Part], query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The same for passes that lie end to end in one row."""
    sizes = [part.rows * part.width for part in parts]
    heads = zip(*(one[0].split(sizes, 1) for one in (query, key, value)), strict=True)
    return torch.cat([part.see(index, *own) for part, own in zip(parts, heads, strict=True)], 1)[None]
