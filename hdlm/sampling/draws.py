"""Exact categorical draws.

The index is the place at which a uniform number falls in the cumulative sum of the weights, in float64. Gumbel noise in
float32, the field's habit, cannot reach the tail of a large vocabulary and so lowers the temperature in silence
(arXiv 2409.02908).
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["draw_index", "draw_word"]


def draw_index(weights: Float[Tensor, "n v"], uniform: Float[Tensor, " n"]) -> Int[Tensor, " n"]:
    """One index a row, with probability proportional to its weight.

    Args:
        weights: Not negative, not all zero; summed in float64.
        uniform: A number in [0, 1) for each row, float64.
    """
    cumulative = weights.cumsum(-1, dtype=torch.float64)
    total = cumulative[:, -1:]
    point = torch.minimum(uniform[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, point, right=True)[:, 0]


def draw_word(num_words: int, uniform: Float[Tensor, "*b"]) -> Int[Tensor, "*b"]:
    """A word, each as likely as any other, from a number in [0, 1)."""
    return (uniform * num_words).long().clamp_max(num_words - 1)
