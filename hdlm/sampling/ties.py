"""An order of numbers that were computed in floating point, in which rounding decides nothing.

On a canvas of masks a network that is told no time gives all positions one distribution, up to rounding; and rounding
depends on how many rows share a product of matrices. So equal numbers are those that differ by no more than rounding,
and random numbers of the run decide between them.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["ROUNDING", "ascending", "least"]

ROUNDING = 1e-4
"""Differences up to this are those of rounding, for probabilities and nats computed in float32."""


def ascending(value: Float[Tensor, "b l"], tie: Float[Tensor, "b l"]) -> Int[Tensor, "b l"]:
    """Places of each row from the least number to the greatest; numbers in a chain of small gaps go by `tie`.

    Args:
        value: The numbers; infinite ones are equal to one another.
        tie: A number in [0, 1) for each place.
    """
    ordered, place = value.sort(dim=1, stable=True)
    gaps = (ordered[:, 1:] - ordered[:, :-1] > ROUNDING).long()
    chain = torch.nn.functional.pad(gaps, (1, 0)).cumsum(1)
    by_tie = (chain + tie.gather(1, place)).argsort(dim=1, stable=True)
    return place.gather(1, by_tie)


def least(
    value: Float[Tensor, "b l"], tie: Float[Tensor, "b l"], among: Bool[Tensor, "b l"]
) -> Bool[Tensor, "b l"]:
    """The place of the least number among some of each row that has any, as `ascending` orders them."""
    first = ascending(value.masked_fill(~among, torch.inf), tie)[:, :1]
    return among & torch.zeros_like(among).scatter(1, first, True)
