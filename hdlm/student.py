"""Student's t distribution, for intervals around a mean whose standard error is estimated from few numbers."""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist

__all__ = ["student_quantile"]

_STEPS = 100
"""Largest number of Newton steps; about ten are needed."""


@lru_cache(maxsize=4096)
def student_quantile(level: float, degrees: int) -> float:
    """The number `q` such that `|t| <= q` has the probability `level`.

    Newton's method starts at the quantile of the normal distribution, which is below `q`. The probability is a concave
    function of `q`, so every step increases `q` and none exceeds it.

    Args:
        level: Probability of the interval from `-q` to `q`, in (0, 1).
        degrees: Degrees of freedom, at least 1: the number of values behind the standard error, minus one.

    Raises:
        ValueError: If an argument is out of range.
    """
    if not 0 < level < 1:
        raise ValueError(f"the probability of an interval must lie between 0 and 1; got {level}.")
    if degrees < 1:
        raise ValueError(f"an interval needs at least one degree of freedom; got {degrees}.")
    scale = math.exp(math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)) / math.sqrt(degrees * math.pi)
    quantile = NormalDist().inv_cdf((1 + level) / 2)
    for _ in range(_STEPS):
        slope = 2 * scale * (1 + quantile**2 / degrees) ** (-(degrees + 1) / 2)
        step = (level - _probability(quantile, degrees)) / slope
        if step <= 1e-12 * quantile:
            break
        quantile += step
    return quantile


def _probability(reach: float, degrees: int) -> float:
    """Probability of `|t| <= reach`: a finite sum (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    angle = math.atan(reach / math.sqrt(degrees))
    square = math.cos(angle) ** 2
    odd = degrees % 2
    term = math.cos(angle) if odd else 1.0
    total = 0.0
    for number in range(degrees // 2):
        total += term
        term *= square * (2 * number + 1 + odd) / (2 * number + 2 + odd)
    total *= math.sin(angle)
    return 2 / math.pi * (angle + total) if odd else total
