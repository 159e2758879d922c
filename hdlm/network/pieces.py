"""Masks with large empty regions, cut into pieces so that the kernel of a CPU does not compute these regions.

FlexAttention skips the empty blocks of a mask, but has no backward pass on a CPU; the dense kernel multiplies every
query with every key. In two-stream training three quarters of the pairs are empty. Here the queries are cut into groups
of neighbours, and each group attends to the keys that any of its queries may attend to. Forward and backward, numbers
change only by rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias, final

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

__all__ = ["Pieces", "cut"]

_SIZE = 256
"""Queries of a piece, and keys of a block."""
_WORTH_WHILE = 0.75
"""Largest share of a mask that may remain for it to be cut."""

AttentionKernel: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""Attention of queries to keys and values under a mask."""


@final
class _Piece(NamedTuple):
    """Neighbouring queries, and the ranges of their keys."""

    queries: tuple[int, int]
    keys: tuple[tuple[int, int], ...]
    mask: Bool[Tensor, "#b 1 q k"] | None

    def of(self, values: Float[Tensor, "b heads k d"]) -> Float[Tensor, "b heads n d"]:
        """The keys or values of these ranges."""
        if len(self.keys) == 1:
            return values[:, :, slice(*self.keys[0])]
        return torch.cat([values[:, :, slice(*part)] for part in self.keys], 2)


@final
class Pieces(NamedTuple):
    """A mask that is cut into pieces."""

    pieces: tuple[_Piece, ...]

    def attend(
        self,
        query: Float[Tensor, "b heads q d"],
        key: Float[Tensor, "b kv_heads k d"],
        value: Float[Tensor, "b kv_heads k d"],
        kernel: AttentionKernel,
    ) -> Float[Tensor, "b heads q d"]:
        """Attend piece by piece."""
        return torch.cat(
            [
                kernel(query[:, :, slice(*piece.queries)], piece.of(key), piece.of(value), piece.mask)
                for piece in self.pieces
            ],
            2,
        )


def cut(mask: Bool[Tensor, "#b 1 q k"]) -> Bool[Tensor, "#b 1 q k"] | Pieces:
    """The mask in pieces, if enough of it is empty; otherwise unchanged.

    Args:
        mask: The keys that each query may attend to, on a CPU, without empty rows.
    """
    num_queries, num_keys = mask.shape[-2:]
    if min(num_queries, num_keys) <= _SIZE:
        return mask
    pieces, area = [], 0
    for begin in range(0, num_queries, _SIZE):
        rows = mask[:, :, begin : begin + _SIZE]
        blocks = F.pad(rows.any(2).any(0)[0], (0, -num_keys % _SIZE)).view(-1, _SIZE).any(1)
        keys = _ranges(blocks.tolist(), num_keys)
        part = torch.cat([rows[..., slice(*bounds)] for bounds in keys], -1)
        pieces.append(_Piece((begin, begin + rows.shape[2]), keys, None if part.all() else part))
        area += part.shape[-2] * part.shape[-1]
    return Pieces(tuple(pieces)) if area <= _WORTH_WHILE * num_queries * num_keys else mask


def _ranges(used: list[bool], num_keys: int) -> tuple[tuple[int, int], ...]:
    """Runs of used blocks, as ranges of keys."""
    ranges: list[tuple[int, int]] = []
    for number, is_used in enumerate(used):
        begin, end = number * _SIZE, min((number + 1) * _SIZE, num_keys)
        if is_used and ranges and ranges[-1][1] == begin:
            ranges[-1] = ranges[-1][0], end
        elif is_used:
            ranges.append((begin, end))
    return tuple(ranges)
