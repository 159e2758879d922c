"""DDiT, the diffusion transformer over tokens: tokens in, one vector of `v` numbers per position out.

The network does not depend on noise or on the meaning of its outputs. It may get a number per position (`condition`)
and the share of the last embedding row that is blended into each token (`blend`). Lou et al., "Discrete Diffusion
Modeling by Estimating the Ratios of the Data Distribution", https://arxiv.org/abs/2310.16834.
"""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hdlm.network import recomputation
from hdlm.network.attention import Attention, SharedMask, attend, prepare_mask
from hdlm.network.cache import KVCache
from hdlm.network.config import DDiTConfig
from hdlm.network.layers import Embedding, OutputLayer, See, TimestepEmbedding, TransformerBlock
from hdlm.network.packed import PackedLinear
from hdlm.network.passes import Pass
from hdlm.network.recomputation import Recomputation
from hdlm.network.rotary import Rotary, Rotation
from hdlm.network.static import StaticBatch

__all__ = ["DDiT", "has_compiler"]


@final
class DDiT(nn.Module):
    """A transformer with bidirectional attention, or with the mask `attention`.

    The parameter names are those of the published weights, whose state dict loads strictly.

    Args:
        config: Sizes and switches.

    Attributes:
        config: Configuration of the network.
        checkpoint_activations: What the backward pass recomputes; see `hdlm.network.recomputation`.
        static: Runs the passes that fit into static buffers, once `speed_up` has made them.
    """

    static: StaticBatch | None = None

    def __init__(self, config: DDiTConfig) -> None:
        super().__init__()
        self.config = config
        self.checkpoint_activations: Recomputation = "none"
        self.vocab_embed = Embedding(config.vocab_size, config.hidden_size)
        self.rotary_emb = Rotary(config.head_dim)
        self.blocks = nn.ModuleList(TransformerBlock(config) for _ in range(config.num_blocks))
        self.output_layer = OutputLayer(config)
        self.sigma_map = TimestepEmbedding(config.cond_dim) if config.timestep_embedding else None

    def reset_parameters(self) -> None:
        """Draw all weights again, as the published code does: output layer and adaLN are zero."""
        for layer in (self.vocab_embed, *self.blocks, self.output_layer, self.sigma_map):
            if layer is not None:
                layer.reset_parameters()

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
        x = self.vocab_embed(tokens, blend)
        for index, block in enumerate(self.blocks):
            if cache is not None:
                x = block(x, cond, rotation, mask, functools.partial(_attend, index, cache, mask))
            else:
                x = recomputation.run_block(
                    self.checkpoint_activations, cast("TransformerBlock", block), x, cond, rotation, mask
                )
        if cache is not None and store is not None:
            cache.keep(store, num_queries)
        return self.output_layer.normalise(x, cond)

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
        embedded = [self.vocab_embed(arguments.tokens, arguments.blend).flatten(0, 1) for arguments in passes]
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
        projected: Tensor = self.output_layer.linear(hidden)
        return projected

    def projection(self) -> tuple[Float[Tensor, "v h"], Float[Tensor, " v"]]:
        """The matrix and the bias of `head`, for losses that never hold all of its output."""
        linear = self.output_layer.linear
        return linear.weight, linear.bias

    def speed_up(self, *, compiled: bool = False, slots: int = 0) -> None:
        """Prepare the network for generation on its current device and in its current precision.

        It changes numbers only by rounding. On a CPU every weight matrix is stored a second time, in a layout that is
        faster for few rows: see `hdlm.network.packed`.

        Args:
            compiled: Compile the blocks without attention, which takes up to a minute at the first passes.
            slots: Number of sequences to reserve static buffers for. Short passes with caches are then one pass of
                fixed shape, recorded as CUDA graphs on CUDA; 0 for none. For accelerators, where every kernel has a
                cost; see `hdlm.network.static`.

        Raises:
            ValueError: If there is no compiler and `compiled` is true, or `slots` is negative.
        """
        linear = self.output_layer.linear
        self.static = (
            StaticBatch(self.config, lambda: linear.weight, slots, self.rotary_emb, self._body)
            if slots
            else None
        )
        for layer in self.output_layer.modules() if compiled else self.modules():
            if isinstance(layer, PackedLinear):
                layer.pack()
        if not compiled:
            return
        if not has_compiler(linear.weight.device):
            raise ValueError(
                "There is no C++ compiler (g++, or the one that the environment variable CXX names) to compile the "
                "network: install one, or leave compilation out."
            )
        for block in self.blocks:
            cast("TransformerBlock", block).compile_parts()

    def __getstate__(self) -> dict[str, Any]:
        """The state without the static buffers, which belong to these weights."""
        return {name: value for name, value in self.__dict__.items() if name != "static"}

    def new_cache(self) -> KVCache:
        """An empty cache for `features`."""
        return KVCache()

    def _body(
        self,
        tokens: Tensor,
        rotation: Rotation,
        condition: Tensor | None,
        blend: Tensor | None,
        see: Callable[[int], See],
    ) -> Tensor:
        """All but positions and `head`; layer `i` attends by `see(i)`."""
        return self._through(self.vocab_embed(tokens, blend), self._conditioning(condition), rotation, see)

    def _through(
        self, x: Tensor, cond: Tensor | None, rotation: Rotation, see: Callable[[int], See]
    ) -> Tensor:
        for index, block in enumerate(self.blocks):
            x = block(x, cond, rotation, None, see(index))
        return self.output_layer.normalise(x, cond)

    def _conditioning_of_many(self, passes: Sequence[Pass], shapes: list[tuple[int, int]]) -> Tensor | None:
        """The conditioning vectors of several passes, one after another in one row."""
        vectors = [self._conditioning(arguments.condition) for arguments in passes]
        if self.sigma_map is None:
            return None
        flat = [
            vector.expand(*shape, -1).flatten(0, 1)
            for vector, shape in zip(vectors, shapes, strict=True)
            if vector is not None
        ]
        return torch.cat(flat)[None]

    def _conditioning(self, condition: Tensor | None) -> Tensor | None:
        """The conditioning vectors, or None for a network without conditioning."""
        if (condition is None) != (self.sigma_map is None):
            raise ValueError(
                "This network has no input for the noise: leave `condition` out."
                if self.sigma_map is None
                else "This network needs the noise: pass `condition`, one number per position."
            )
        return None if self.sigma_map is None or condition is None else self.sigma_map(condition)


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
