r"""The times of a bound: more of them where noise is about to end, so that the estimate has finite moments.

A position with little noise `t` is wrong (or masked) with a small probability, about `t^a`, and then costs about `1/t`.
With uniform times the second moment is the integral of `t^(a - 2)`, which is infinite for `a <= 1`: the standard error
is unreliable. So a share of the times is drawn from the density `t^(1/k - 1) / k`, and each estimate is divided by the
density of its time, which keeps the mean. With `k = 8 / a` the first eight moments are finite. More than two are
needed, since the standard error is itself estimated, from squares. See docs/mathematics.md, section 7.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hdlm.noise_schedule import AbstractNoiseSchedule
from hdlm.process import AbstractNoiseProcess

__all__ = ["Density", "density_of", "place_times"]

_EARLY = (1e-6, 1e-3)
"""Times between which the growth of the noise is measured."""
_CONSTANT = 0.01
"""Power of growth below which noise does not start gradually: it jumps at 0, or begins above 0."""
_POWER = 8.0
"""`k a`: at 2 the second moment is least, up to logarithms; `k` must exceed `(n - 1) / a` for a finite moment `n`."""
_BISECTIONS = 60
"""Halvings of [0, 1]: more than float64 can resolve."""


@final
@dataclass(frozen=True)
class Density:
    """A mixture `1 - share + share * r^(1 / power - 1) / power` on `r` in (0, 1], where `r` is the remaining time.

    Attributes:
        power: Power of at least 1; 1 gives the uniform density.
        share: Share of the second part, in [0, 1].
    """

    power: float = 1.0
    share: float = 1.0

    def quantile(self, level: Float[Tensor, "*b"]) -> tuple[Float[Tensor, "*b"], Float[Tensor, "*b"]]:
        """The remaining times below which shares `level` of the density lie, and the inverse of the density there."""
        if self.power == 1:
            return level, torch.ones_like(level)
        low, high = torch.zeros_like(level), torch.ones_like(level)
        for _ in range(_BISECTIONS):  # for the root `r^(1 / power)`, which is not as small as `r`
            root = (low + high) / 2
            below = (1 - self.share) * root**self.power + self.share * root < level
            low, high = torch.where(below, root, low), torch.where(below, high, root)
        near = self.share / self.power
        rest = high**self.power
        return rest, rest / ((1 - self.share) * rest + near * high)


def density_of(
    process: AbstractNoiseProcess, noise_schedule: AbstractNoiseSchedule, together: float
) -> Density:
    """The density for the onset of a process' noise: `power = 8 / a` if a part of it grows as `t^a` from 0.

    The share of the power is `together^(-1/4)`. The more positions share one time, the less random is their sum at a
    given time, and the more important it is that the weight varies little with the time. This exponent is heuristic;
    every share above 0 gives finite moments and an equal mean.

    Args:
        process: The noise process.
        noise_schedule: Function from time to noise fraction.
        together: Number of positions that share one time.
    """
    times = torch.tensor(_EARLY, dtype=torch.float64)
    weights = process.weights(noise_schedule.fraction(times))
    grows = []
    for first, later in (weights.uniform.tolist(), weights.mask.tolist()):
        if first > 0:
            grows.append(math.log(later / first) / math.log(_EARLY[1] / _EARLY[0]))
    slowest = min((slope for slope in grows if slope > _CONSTANT), default=math.inf)
    return Density(max(_POWER / slowest, 1.0), max(together, 1.0) ** -0.25)


def place_times(
    times: Float[Tensor, "b e"],
    endings: Sequence[Int[Tensor, " _"]],
    cells: int,
    density: Density,
    hair: float,
) -> tuple[Float[Tensor, "b e"], Float[Tensor, "b e"]]:
    """Move uniform times towards the moments at which the noise of some position ends; also return their weights.

    Every time stays between its two endings, and the order is kept, so stratified times stay stratified.

    Args:
        times: Uniform times in [0, 1).
        endings: For each column, the cells in whose last moment noise ends, in rising order.
        cells: Number of cells into which [0, 1) is cut.
        density: Density of the remaining time until the next ending, as a share of the time between the two endings.
        hair: Minimum distance of times from an ending.
    """
    if density.power == 1:
        return times, torch.ones_like(times)
    moved, weight = times.clone(), torch.ones_like(times)
    for column, cells_of_column in enumerate(endings):
        ends = (cells_of_column.to(times.device).double() + 1) / cells
        ends = torch.cat([ends[ends < 1], ends.new_ones(1)])
        begins = torch.cat([ends.new_zeros(1), ends[:-1]])
        at = torch.searchsorted(ends, times[:, column].contiguous(), right=True).clamp_max(len(ends) - 1)
        begin, end = begins[at], ends[at]
        rest, inverse = density.quantile((end - times[:, column]) / (end - begin))
        near = (rest * (end - begin)).clamp_min(hair)
        moved[:, column] = torch.maximum(end - near, begin)
        weight[:, column] = inverse
    return moved, weight
