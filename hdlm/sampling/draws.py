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

__all__ = ["draw_checked", "draw_index", "draw_word"]

_PART = 256
"""Weights that are added up in their own precision."""
_ZERO = torch.zeros((), dtype=torch.float64)


def draw_index(weights: Float[Tensor, "n v"], uniform: Float[Tensor, " n"]) -> Int[Tensor, " n"]:
    """One index a row, with probability proportional to its weight.

    Args:
        weights: Not negative, not all zero.
        uniform: A number in [0, 1) for each row, float64.

    Raises:
        ValueError: If the weights of a row have no positive finite sum. On an accelerator the program waits for this
            check, once a call; `draw_checked` leaves it to the caller.
    """
    index, total = draw_checked(weights, uniform)
    fine = (total > 0) & total.isfinite()
    if not fine.all():
        row = int((~fine).nonzero()[0, 0])
        raise ValueError(
            f"Nothing can be drawn from row {row} of {len(weights)}: a row of weights needs a positive, finite sum; "
            f"got {float(total[row])}."
        )
    return index


def draw_checked(
    weights: Float[Tensor, "n v"], uniform: Float[Tensor, " n"]
) -> tuple[Int[Tensor, " n"], Float[Tensor, " n"]]:
    """`draw_index`, with the sum of each row instead of an error: an index counts only where its sum is positive.

    Every index lies in `[0, v)`, whatever the weights are.
    """
    size = weights.shape[1]
    parts = torch.nn.functional.pad(weights, (0, -size % _PART)).unflatten(1, (-1, _PART))
    sums = parts.sum(-1)
    part, point, cumulative, total = _hit(sums, uniform)
    mass = sums.gather(1, part)
    share = (1 - (cumulative.gather(1, part) - point) / mass).clamp(0, 1)
    inside = parts.gather(1, part[..., None].expand(-1, -1, _PART))[:, 0]
    place, *_ = _hit(inside, share[:, 0])
    return torch.add(place, part, alpha=_PART)[:, 0].clamp_max(size - 1), total[:, 0]


def draw_word(num_words: int, uniform: Float[Tensor, "*b"]) -> Int[Tensor, "*b"]:
    """A word, each as likely as any other, from a number in [0, 1)."""
    return (uniform * num_words).long().clamp_max(num_words - 1)


def _hit(
    weights: Float[Tensor, "n k"], uniform: Float[Tensor, " n"]
) -> tuple[Int[Tensor, "n 1"], Float[Tensor, "n 1"], Float[Tensor, "n k"], Float[Tensor, "n 1"]]:
    """Where the number falls in the cumulative sum of each row, as a place and as a sum; the sums, and the whole one.

    No place lies outside the row. Where the sum is not a number, the search would return one behind the row, which is
    an assertion of the device, and the end of the process, on CUDA.
    """
    cumulative = weights.cumsum(-1, dtype=torch.float64)
    total = cumulative[:, -1:]
    point = torch.minimum(uniform[:, None] * total, torch.nextafter(total, _ZERO))
    place = torch.searchsorted(cumulative, point, right=True).clamp_max(weights.shape[1] - 1)
    return place, point, cumulative, total
