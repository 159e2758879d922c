"""KVCache: keys and values of settled positions, for the positions that are generated after them.

The keys and values of a position that no later position can change depend on the past only, so they are stored and not
computed again. The cache is exact: it changes no logit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["KVCache"]


@final
class KVCache:
    """Keys (already rotated to their positions) and values of every layer, `[b heads len(cache) d]` each.

    A pass writes its keys and values after the stored ones and attends to both without a copy; then `keep` selects the
    positions that stay. The memory is doubled when it is full.
    """

    def __init__(self) -> None:
        self._length = 0
        self._layers: list[tuple[Tensor, Tensor]] = []

    def __len__(self) -> int:
        """Number of stored positions."""
        return self._length

    @property
    def num_layers(self) -> int:
        """Number of layers that have written."""
        return len(self._layers)

    @property
    def num_rows(self) -> int | None:
        """Sequences of the batch; None before the first pass."""
        return self._layers[0][0].shape[0] if self._layers else None

    def lies_in(self, memory: Tensor) -> bool:
        """Whether the keys and values are a part of this memory."""
        own = [keys.untyped_storage().data_ptr() for keys, _ in self._layers[:1]]
        return own == [memory.untyped_storage().data_ptr()]

    def move(
        self, layers: Sequence[tuple[Float[Tensor, "b heads c d"], Float[Tensor, "b heads c d"]]]
    ) -> None:
        """Use other memory from now on; the stored positions are copied.

        Args:
            layers: Memory for the keys and values of each layer, with room for the stored positions.
        """
        for old, new in zip(self._layers, layers, strict=bool(self._layers)):
            for source, target in zip(old, new, strict=True):
                target[:, :, : self._length] = source[:, :, : self._length]
        self._layers = list(layers)

    def write(
        self, layer: int, key: Float[Tensor, "b heads q d"], value: Float[Tensor, "b heads q d"]
    ) -> tuple[Float[Tensor, "b heads k d"], Float[Tensor, "b heads k d"]]:
        """Write a layer's current keys and values after the stored ones, and return both together.

        Args:
            layer: Index of the layer; in the first pass layers come in order.
            key: Keys of current positions.
            value: Values of current positions.

        Raises:
            ValueError: If gradients are needed, or the batch size differs from that of the stored positions.
        """
        if key.requires_grad:
            raise ValueError("A cache is for generation only: call the network under `torch.no_grad()`.")
        end = self._length + key.shape[2]
        if layer == len(self._layers):
            self._layers.append((self._reserve(key, end), self._reserve(value, end)))
        elif self._layers[layer][0].shape[0] != key.shape[0]:
            raise ValueError(
                f"The cache holds {self._layers[layer][0].shape[0]} sequences and the pass {key.shape[0]}; "
                "use a cache only for the sequences that it was filled with."
            )
        elif self._layers[layer][0].shape[2] < end:
            self._layers[layer] = (
                self._grow(self._layers[layer][0], end),
                self._grow(self._layers[layer][1], end),
            )
        keys, values = self._layers[layer]
        keys[:, :, self._length : end] = key
        values[:, :, self._length : end] = value
        return keys[:, :, :end], values[:, :, :end]

    def read(self, layer: int) -> tuple[Float[Tensor, "b heads c d"], Float[Tensor, "b heads c d"]]:
        """The stored keys and values of a layer."""
        keys, values = self._layers[layer]
        return keys[:, :, : self._length], values[:, :, : self._length]

    def keep(self, store: Int[Tensor, " n"], num_current: int) -> None:
        """Keep positions of the last pass, in the given order; the others are dropped.

        Raises:
            ValueError: If there are more indices than the pass had positions.
        """
        start = self._length
        self.extend(len(store), num_current)
        for tensor in (tensor for pair in self._layers for tensor in pair):
            tensor[:, :, start : self._length] = tensor[:, :, start : start + num_current][:, :, store]

    def extend(self, count: int, num_current: int) -> None:
        """Keep the first positions of the last pass.

        Raises:
            ValueError: If the pass had fewer positions.
        """
        if count > num_current:
            raise ValueError(
                f"`store` must have at most {num_current} indices, the positions of this pass; got {count}."
            )
        self._length += count

    def retain(self, places: Int[Tensor, " n"]) -> None:
        """Keep some of the stored positions, in the given order; those whose place does not change are not copied.

        Args:
            places: Indices of stored positions, each at most once.
        """
        moved = (places != torch.arange(len(places), device=places.device)).nonzero()[:, 0]
        for tensor in (tensor for pair in self._layers for tensor in pair):
            tensor[:, :, moved] = tensor[:, :, places[moved]]
        self._length = len(places)

    def _reserve(self, like: Tensor, length: int) -> Tensor:
        batch, heads, _, dim = like.shape
        return like.new_empty(batch, heads, length, dim)

    def _grow(self, full: Tensor, length: int) -> Tensor:
        batch, heads, capacity, dim = full.shape
        grown = full.new_empty(batch, heads, max(2 * capacity, length), dim)
        grown[:, :, : self._length] = full[:, :, : self._length]
        return grown
