"""KVCache: what settled positions leave behind for those that come after them.

The keys and values of a position that nobody later can change are functions of the past alone, so they are
kept instead of being computed again. The cache is exact: it changes no logit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["KVCache", "Store"]

Store: TypeAlias = int | Int[Tensor, " n"] | Bool[Tensor, " q"]
"""Which of the current positions to keep: how many leading ones, their indices, or a mask."""


@final
class KVCache:
    """Keys (already turned to their positions) and values of every layer, `[b heads len(cache) d]` each.

    A pass writes its keys and values behind the kept ones and attends to both without copying either;
    afterwards `keep` says which of them stay. Memory doubles when it runs out.

    Args:
        capacity: Number of positions to reserve memory for at first use.

    Raises:
        ValueError: If the capacity is negative.
    """

    def __init__(self, capacity: int = 0) -> None:
        if capacity < 0:
            raise ValueError(f"`capacity` must be at least 0; got {capacity}.")
        self._capacity = capacity
        self._length = 0
        self._layers: list[tuple[Tensor, Tensor]] = []

    def __len__(self) -> int:
        """Number of positions kept."""
        return self._length

    @property
    def num_rows(self) -> int | None:
        """Sequences of the batch; `None` before the first pass."""
        return self._layers[0][0].shape[0] if self._layers else None

    def lies_in(self, memory: Tensor) -> bool:
        """Whether its keys and values are a part of that memory."""
        own = [keys.untyped_storage().data_ptr() for keys, _ in self._layers[:1]]
        return own == [memory.untyped_storage().data_ptr()]

    def move(
        self, layers: Sequence[tuple[Float[Tensor, "b heads c d"], Float[Tensor, "b heads c d"]]]
    ) -> None:
        """Use other memory from now on, with what is kept.

        Args:
            layers: Memory for the keys and values of each layer, of at least as many positions as are kept.
        """
        for old, new in zip(self._layers, layers, strict=bool(self._layers)):
            for source, target in zip(old, new, strict=True):
                target[:, :, : self._length] = source[:, :, : self._length]
        self._layers = list(layers)

    def write(
        self, layer: int, key: Float[Tensor, "b heads q d"], value: Float[Tensor, "b heads q d"]
    ) -> tuple[Float[Tensor, "b heads k d"], Float[Tensor, "b heads k d"]]:
        """Put a layer's current keys and values behind the kept ones and return both together.

        Args:
            layer: Index of the layer; layers come in order in the first pass.
            key: Current keys.
            value: Current values.

        Raises:
            ValueError: If gradients are asked for, or the batch is not that of the kept positions.
        """
        if key.requires_grad:
            raise ValueError("A cache is for generation only: call the network under `torch.no_grad()`.")
        end = self._length + key.shape[2]
        if layer == len(self._layers):
            self._layers.append((self._reserve(key, end), self._reserve(value, end)))
        elif self._layers[layer][0].shape[0] != key.shape[0]:
            raise ValueError(
                f"The cache holds {self._layers[layer][0].shape[0]} sequences and the pass {key.shape[0]}; "
                "call `cache.select(rows)` when sequences leave or change places."
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

    def keep(self, store: Store, num_current: int) -> None:
        """Keep positions of the pass that was just written, in the order given; the others are forgotten.

        Args:
            store: Which of the current positions.
            num_current: Number of positions in that pass.

        Raises:
            ValueError: If more positions are asked for than the pass had.
        """
        if isinstance(store, int):
            if not 0 <= store <= num_current:
                raise ValueError(
                    f"`store` must lie in [0, {num_current}], the positions of this pass; got {store}."
                )
            self._length += store
            return
        chosen = store.nonzero()[:, 0] if store.dtype == torch.bool else store
        start, end = self._length, self._length + chosen.shape[0]
        for tensor in (tensor for pair in self._layers for tensor in pair):
            tensor[:, :, start:end] = tensor[:, :, start : start + num_current][:, :, chosen]
        self._length = end

    def retain(self, places: Int[Tensor, " n"]) -> None:
        """Keep only these of the kept positions, in this order; what stays in its place is not copied.

        Args:
            places: Indices into the kept positions, each at most once.
        """
        moved = (places != torch.arange(len(places), device=places.device)).nonzero()[:, 0]
        for tensor in (tensor for pair in self._layers for tensor in pair):
            tensor[:, :, moved] = tensor[:, :, places[moved]]
        self._length = len(places)

    def select(self, rows: Int[Tensor, " n"] | Bool[Tensor, " b"]) -> None:
        """Keep only these sequences of the batch, in this order (an index may repeat)."""
        self._layers = [(keys[rows], values[rows]) for keys, values in self._layers]

    def clear(self) -> None:
        """Forget every position; the memory stays reserved for the same batch."""
        self._length = 0

    def _reserve(self, like: Tensor, length: int) -> Tensor:
        batch, heads, _, dim = like.shape
        return like.new_empty(batch, heads, max(self._capacity, length), dim)

    def _grow(self, full: Tensor, length: int) -> Tensor:
        batch, heads, capacity, dim = full.shape
        grown = full.new_empty(batch, heads, max(2 * capacity, length), dim)
        grown[:, :, : self._length] = full[:, :, : self._length]
        return grown
