"""Exact categorical draws.

The index is the place at which a uniform number of 53 bits falls in the cumulative sum of the weights. The sum has two
levels: parts of 256 weights are added up as they are, which errs by no more than the weights themselves are rounded,
in relative terms; what is accumulated over parts, and inside the one part that is hit, is float64. So every index, down
to the tail, has its own probability to float32 precision, and no float64 copy of the weights is ever made.

Gumbel noise in float32, the field's habit, cannot reach the tail of a large vocabulary and so lowers the temperature in
silence (arXiv 2409.02908).
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["draw_index", "draw_word"]

_PART = 256
"""Weights that are added up in their own precision."""


def draw_index(weights: Float[Tensor, "n v"], uniform: Float[Tensor, " n"]) -> Int[Tensor, " n"]:
    """One index a row, with probability proportional to its weight.

    Args:
        weights: Not negative, not all zero.
        uniform: A number in [0, 1) for each row, float64.
    """
    size = weights.shape[1]
    whole = size - size % _PART
    parts = [weights[:, :whole].unflatten(1, (-1, _PART)).sum(-1), weights[:, whole:].sum(-1, keepdim=True)]
    part, share = _hit(torch.cat(parts, 1), uniform)
    index = part[:, None] * _PART + torch.arange(min(_PART, size), device=weights.device)
    inside = weights.gather(1, index.clamp_max(size - 1)).masked_fill(index >= size, 0.0)
    place, _ = _hit(inside, share)
    return part * _PART + place


def draw_word(num_words: int, uniform: Float[Tensor, "*b"]) -> Int[Tensor, "*b"]:
    """A word, each as likely as any other, from a number in [0, 1)."""
    return (uniform * num_words).long().clamp_max(num_words - 1)


def _hit(
    weights: Float[Tensor, "n k"], uniform: Float[Tensor, " n"]
) -> tuple[Int[Tensor, " n"], Float[Tensor, " n"]]:
    """Where the number falls in the cumulative sum of each row, and how far into that weight, in [0, 1]."""
    cumulative = weights.cumsum(-1, dtype=torch.float64)
    total = cumulative[:, -1:]
    point = torch.minimum(uniform[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    place = torch.searchsorted(cumulative, point, right=True)
    end = cumulative.gather(1, place)
    mass = weights.gather(1, place).to(end.dtype)
    return place[:, 0], (1 - (end - point) / mass).clamp(0, 1)[:, 0]
