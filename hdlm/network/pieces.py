"""Masks with large empty regions, cut up so that the kernel of a CPU never computes them.

FlexAttention skips the empty blocks of a mask, but has no backward pass on a CPU; the dense kernel multiplies every
query with every key. Two-stream training leaves three quarters of the pairs empty. Here the queries are cut into
groups of neighbours, each of which is given the keys that any of them sees: the same numbers but for rounding,
forward and backward.
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
"""Queries of a piece, and the grain of its keys."""
_WORTH_WHILE = 0.75
"""A mask is cut if at most this share of it is left."""

AttentionKernel: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""Attention of queries to keys and values under a mask."""


@final
class _Piece(NamedTuple):
    """Neighbouring queries, and the ranges of keys that they see."""

    queries: tuple[int, int]
    keys: tuple[tuple[int, int], ...]
    mask: Bool[Tensor, "#b 1 q k"] | None

    def of(self, values: Float[Tensor, "b heads k d"]) -> Float[Tensor, "b heads n d"]:
        """The seen ones of all keys, or of all values."""
        if len(self.keys) == 1:
            return values[:, :, slice(*self.keys[0])]
        return torch.cat([values[:, :, slice(*part)] for part in self.keys], 2)


@final
class Pieces(NamedTuple):
    """A mask, cut up."""

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
    """The mask in pieces, if enough of it is empty; else as it is.

    Args:
        mask: Who may attend whom; on a CPU. No row is empty.
    """
    num_queries, num_keys = mask.shape[-2:]
    if min(num_queries, num_keys) <= _SIZE:
        return mask
    pieces, area = [], 0
    for begin in range(0, num_queries, _SIZE):
        rows = mask[:, :, begin : begin + _SIZE]
        seen = F.pad(rows.any(2).any(0)[0], (0, -num_keys % _SIZE)).view(-1, _SIZE).any(1)
        keys = _ranges(seen.tolist(), num_keys)
        part = torch.cat([rows[..., slice(*one)] for one in keys], -1)
        pieces.append(_Piece((begin, begin + rows.shape[2]), keys, None if part.all() else part))
        area += part.shape[-2] * part.shape[-1]
    return Pieces(tuple(pieces)) if area <= _WORTH_WHILE * num_queries * num_keys else mask


def _ranges(seen: list[bool], num_keys: int) -> tuple[tuple[int, int], ...]:
    """Runs of seen grains, as ranges of keys."""
    found: list[tuple[int, int]] = []
    for number, one in enumerate(seen):
        begin, end = number * _SIZE, min((number + 1) * _SIZE, num_keys)
        if one and found and found[-1][1] == begin:
            found[-1] = found[-1][0], end
        elif one:
            found.append((begin, end))
    return tuple(found)
