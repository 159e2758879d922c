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
from hdlm.network.packed import PackedLinear, block_rows, in_blocks
from hdlm.network.passes import Pass
from hdlm.network.recomputation import Recomputation
from hdlm.network.rotary import Rotary, Rotation
from hdlm.network.static import StaticBatch

__all__ = ["AbstractNetwork", "AbstractTransformer", "has_compiler"]


class AbstractNetwork(nn.Module, abc.ABC):
    """A network over tokens: hidden states, and their projection onto the vocabulary.

    Attributes:
        config: Sizes and switches.
        token_rows: Names of the parameters with one row for each token.
        vocab_embed: Tokens to vectors.
        blocks: The blocks, in order.
        checkpoint_activations: What the backward pass computes again instead of keeping it; see
            `hdlm.network.recomputation`.
        self_conditioned: Whether a pass reads the distributions of the call before; see `Pass.previous`.
        shards: Whether FSDP may divide its blocks among processes.
        static: What makes the passes that fit into static buffers, if `speed_up` reserved some.
    """

    config: NetworkShape
    token_rows: ClassVar[tuple[str, ...]]
    vocab_embed: nn.Module
    blocks: nn.ModuleList
    checkpoint_activations: Recomputation = "none"
    self_conditioned: ClassVar[bool] = False
    shards: ClassVar[bool] = True
    static: StaticBatch | None = None

    @abc.abstractmethod
    def features(
        self,
        tokens: Int[Tensor, "b q"],
        *,
        positions: Int[Tensor, "#b q"] | None = None,
        condition: Float[Tensor, "#b #q"] | None = None,
        blend: Float[Tensor, "#b #q"] | None = None,
        attention: Attention = None,
        cache: Any = None,
        store: Int[Tensor, " n"] | None = None,
    ) -> Float[Tensor, "b q h"]:
        """The hidden states before the vocabulary projection; see `AbstractTransformer.features`."""

    @abc.abstractmethod
    def features_of_many(self, passes: Sequence[Pass]) -> list[Tensor]:
        """The result of `features` for each of several independent passes."""

    @abc.abstractmethod
    def head(self, hidden: Float[Tensor, "*n h"]) -> Float[Tensor, "*n v"]:
        """Project hidden states, of any selection of positions, onto the vocabulary."""

    @abc.abstractmethod
    def projection(self) -> tuple[Float[Tensor, "v h"], Float[Tensor, " v"] | None] | None:
        """The matrix and the bias of `head`, or None if `head` is not a linear layer."""

    @abc.abstractmethod
    def speed_up(self, *, compiled: bool = False, slots: int = 0, batch_invariant: bool = False) -> None:
        """Prepare the network for generation; see `AbstractTransformer.speed_up`."""

    @abc.abstractmethod
    def new_cache(self) -> Any:
        """An empty cache for `features`."""

    def new_rotary(self) -> Rotary | None:
        """The rotary positions of the config, whose frequencies a file may hold; None if no file holds them."""
        return None

    def compute_buffers(self) -> None:
        """Compute buffers that no file holds, in a network that was made without memory and now has its weights."""


class AbstractTransformer(AbstractNetwork):
    """A transformer that sees both ways, or as `attention` says.

    Attributes:
        batch_invariant: Whether no digit of a sequence depends on other sequences; see `speed_up`.
        rotary_emb: Positions to rotations.
    """

    rotary_emb: Rotary
    batch_invariant: bool = False
    _largest: int | None = None

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
        """The hidden states before the vocabulary projection, which then need run at chosen positions only.

        Args:
            tokens: Rows of the embedding, in `[0, vocab_size)`.
            positions: Position of each token, any integers; by default those after the cached ones.
            condition: Conditioning number of each position (the total noise sigma of gamma-hybrid, SEDD, MDLM; the
                time of GIDD); required if and only if `config.timestep_embedding`.
            blend: Share in `[0, 1]` of the last embedding row in every
                input: `(1 - blend) E[x] + blend E[last]`.
            attention: Which keys each query may attend to (True = may; keys are the cached positions, then the current
                ones); `None` if all attend to all. A query that may attend to no key attends to all keys equally.
            cache: Keys and values of earlier positions, which are attended to as well.
            store: Indices of the current positions that the cache keeps after this pass; by default none.

        Returns:
            Hidden states after the final norm.

        Raises:
            ValueError: If `condition` does not fit the network, `store` is given without `cache`, or `attention` or
                `cache` do not fit the tokens.
        """
        if store is not None and cache is None:
            raise ValueError(
                "`store` selects what a cache keeps, but there is no `cache`: pass one, or leave `store` out."
            )
        arguments = Pass(tokens, positions, condition, blend, attention, cache, store)
        if self.static is not None and self.static.takes([arguments]):
            return self.static([arguments])[0]
        num_queries = tokens.shape[1]
        rotation = self.rotary_emb(arguments.places)
        mask, rotation = prepare_mask(attention, rotation, num_queries, arguments.num_keys)
        cond = self._conditioning(condition)
        x = self._embed(tokens, blend, arguments.places)
        for index, block in enumerate(self.blocks):
            if cache is not None:
                x = block(x, cond, rotation, mask, functools.partial(_attend, index, cache, mask))
            else:
                x = recomputation.run_block(
                    self.checkpoint_activations, cast("AbstractBlock", block), x, cond, rotation, mask
                )
        if cache is not None and store is not None:
            cache.keep(store, num_queries)
        return self._normalise(x, cond)

    def features_of_many(self, passes: Sequence[Pass]) -> list[Tensor]:
        """Run several passes in one, so that every weight is read once; each attends to itself and its cache only.

        Args:
            passes: The arguments of `features` for each. They may differ in all their sizes.

        Returns:
            The result of `features` for each, `[b q h]`.
        """
        if self.static is not None and self.static.takes(passes):
            return self.static(passes)
        shapes = [(arguments.tokens.shape[0], arguments.tokens.shape[1]) for arguments in passes]
        parts, rotations = [], []
        for arguments, (rows, width) in zip(passes, shapes, strict=True):
            rotation = self.rotary_emb(arguments.places)
            mask, rotation = prepare_mask(arguments.attention, rotation, width, arguments.num_keys)
            parts.append(_Part(rows, width, arguments.cache, mask))
            rotations.append(rotation)
        cond = self._conditioning_of_many(passes, shapes)
        embedded = [
            self._embed(arguments.tokens, arguments.blend, arguments.places).flatten(0, 1)
            for arguments in passes
        ]
        rotation = Rotation.join(rotations, shapes)
        hidden = self._through(
            torch.cat(embedded)[None],
            cond,
            rotation,
            lambda layer: functools.partial(_attend_separately, layer, parts),
        )
        for arguments, (_, width) in zip(passes, shapes, strict=True):
            if arguments.cache is not None and arguments.store is not None:
                arguments.cache.keep(arguments.store, width)
        split = hidden[0].split([rows * width for rows, width in shapes])
        return [vectors.unflatten(0, shape) for vectors, shape in zip(split, shapes, strict=True)]

    def head(self, hidden: Float[Tensor, "*n h"]) -> Float[Tensor, "*n v"]:
        """Project hidden states, of any selection of positions, onto the vocabulary."""
        matrix, bias = self.projection()
        product = functools.partial(nn.functional.linear, weight=matrix, bias=bias)
        if not self.batch_invariant or torch.is_grad_enabled():
            return product(hidden)
        if self._largest is None:
            self._largest = block_rows(product, matrix.shape[1], matrix)
        return in_blocks(product, hidden, self._largest)

    @abc.abstractmethod
    def projection(self) -> tuple[Float[Tensor, "v h"], Float[Tensor, " v"] | None]:
        """The matrix and the bias of `head`, for losses that never hold all of its output."""

    def speed_up(self, *, compiled: bool = False, slots: int = 0, batch_invariant: bool = False) -> None:
        """Prepare the network for generation on its current device and in its current precision.

        It changes numbers only by rounding. On a CPU every weight matrix is stored a second time, in a layout that is
        faster for few rows: see `hdlm.network.packed`.

        Args:
            compiled: Compile the blocks without attention, which takes up to a minute at the first passes.
            slots: Number of sequences to reserve static buffers for. Short passes with caches are then one pass of
                fixed shape, recorded as CUDA graphs on CUDA; 0 for none. For accelerators, where every kernel has a
                cost; see `hdlm.network.static`.
            batch_invariant: Compute each sequence so that no digit depends on other sequences of the call; see
                `hdlm.network.packed`. It costs time for few rows, and excludes the other two.

        Raises:
            ValueError: If there is no compiler and `compiled` is true, `slots` is negative, or options exclude each
                other.
        """
        if batch_invariant and (compiled or slots):
            raise ValueError(
                "A batch-invariant network is neither compiled nor has static buffers: choose one."
            )
        self.static = (
            StaticBatch(self.config, lambda: self.projection()[0], slots, self.rotary_emb, self._body)
            if slots
            else None
        )
        in_blocks = set(self.blocks.modules())
        for layer in self.modules():
            if isinstance(layer, PackedLinear) and not (compiled and layer in in_blocks):
                layer.pack()
                if batch_invariant:
                    layer.make_batch_invariant()
        self.batch_invariant = batch_invariant
        if not compiled:
            return
        if not has_compiler(self.projection()[0].device):
            raise ValueError(
                "There is no C++ compiler (g++, or the one that the environment variable CXX names) to compile the "
                "network: install one, or leave compilation out."
            )
        for block in self.blocks:
            cast("AbstractBlock", block).compile_parts()

    def __getstate__(self) -> dict[str, Any]:
        """The state without the static buffers, which belong to these weights."""
        return {name: value for name, value in self.__dict__.items() if name != "static"}

    def new_cache(self) -> KVCache:
        """An empty cache for `features`."""
        return KVCache()

    def _body(self, arguments: Pass, rotation: Rotation, see: Callable[[int], See]) -> Tensor:
        """All but rotations and `head`; layer `i` attends by `see(i)`."""
        x = self._embed(arguments.tokens, arguments.blend, arguments.places)
        return self._through(x, self._conditioning(arguments.condition), rotation, see)

    def _through(
        self, x: Tensor, cond: Tensor | None, rotation: Rotation, see: Callable[[int], See]
    ) -> Tensor:
        for index, block in enumerate(self.blocks):
            x = block(x, cond, rotation, None, see(index))
        return self._normalise(x, cond)

    def _conditioning_of_many(self, passes: Sequence[Pass], shapes: list[tuple[int, int]]) -> Tensor | None:
        """The conditioning vectors of several passes, one after another in one row."""
        vectors = [self._conditioning(arguments.condition) for arguments in passes]
        flat = [
            vector.expand(*shape, -1).flatten(0, 1)
            for vector, shape in zip(vectors, shapes, strict=True)
            if vector is not None
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
    """Whether `torch.compile` can work: on a CPU, whether there is a C++ compiler."""
    return device.type != "cpu" or shutil.which(os.environ.get("CXX", "g++")) is not None


class _Part(NamedTuple):
    """One of several passes: `rows` sequences of `width` positions, with their cache and mask."""

    rows: int
    width: int
    cache: KVCache | None
    mask: SharedMask

    def attend(self, index: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend to the cache and to the pass itself in layer `index`; tensors are `[heads, rows width, d]`."""
        q, k, v = (
            tensor.unflatten(1, (self.rows, self.width)).transpose(0, 1) for tensor in (query, key, value)
        )
        if self.cache is not None:
            k, v = self.cache.write(index, k, v)
        return attend(q, k, v, self.mask).transpose(0, 1).flatten(1, 2)


def _attend(
    index: int, cache: KVCache, mask: SharedMask, query: Tensor, key: Tensor, value: Tensor
) -> Tensor:
    """Attend to the cache and to the pass itself."""
    return attend(query, *cache.write(index, key, value), mask)


def _attend_separately(index: int, parts: list[_Part], query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attend within each of several passes that lie one after another in one row."""
    sizes = [part.rows * part.width for part in parts]
    heads = zip(*(tensor[0].split(sizes, 1) for tensor in (query, key, value)), strict=True)
    return torch.cat([part.attend(index, *own) for part, own in zip(parts, heads, strict=True)], 1)[None]
