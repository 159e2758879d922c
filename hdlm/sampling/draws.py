"""Exact categorical draws.

The index is the place of a uniform number of 53 bits in the cumulative sum of the weights. The sum has two levels.
Parts of 256 weights are added in their own precision, with a relative error as small as the rounding of the weights.
Sums over parts, and sums inside the part that contains the number, are float64. So every index, including the tail, has
its exact probability to float32 precision, without a float64 copy of the weights.

The usual Gumbel noise in float32 cannot reach the tail of a large vocabulary and so lowers the temperature unnoticed
(arXiv 2409.02908).
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["draw_checked", "draw_index", "draw_word"]

_PART = 256
"""Number of weights that are added in their own precision."""
_ZERO = torch.zeros((), dtype=torch.float64)


def draw_index(weights: Float[Tensor, "n v"], uniform: Float[Tensor, " n"]) -> Int[Tensor, " n"]:
    """One index per row, with probability proportional to its weight.

    Args:
        weights: Weights that are not negative, and not all zero.
        uniform: A number in [0, 1) for each row, float64.

    Raises:
        ValueError: If the weights of a row have no positive finite sum. On an accelerator the program waits for this
            check once per call; `draw_checked` leaves the check to the caller.
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
    """`draw_index`, with the sum of each row instead of an error: an index is valid only if its sum is positive.

    Every index lies in `[0, v)`, for any weights.
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
    """A word from a number in [0, 1); all words are equally likely."""
    return (uniform * num_words).long().clamp_max(num_words - 1)


def _hit(
    weights: Float[Tensor, "n k"], uniform: Float[Tensor, " n"]
) -> tuple[Int[Tensor, "n 1"], Float[Tensor, "n 1"], Float[Tensor, "n k"], Float[Tensor, "n 1"]]:
    """The number's place in the cumulative sum of each row, as index and as sum; the sums; and the total.

    No place lies outside the row. If the sum is NaN, the search would return an index behind the row, which on CUDA is
    a device assertion that ends the process.
    """
    cumulative = weights.cumsum(-1, dtype=torch.float64)
    total = cumulative[:, -1:]
    point = torch.minimum(uniform[:, None] * total, torch.nextafter(total, _ZERO))
    place = torch.searchsorted(cumulative, point, right=True).clamp_max(weights.shape[1] - 1)
    return place, point, cumulative, total
