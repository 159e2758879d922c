"""An order of floating-point numbers that does not depend on rounding.

On a canvas of masks a network without noise conditioning gives all positions equal distributions, up to rounding. The
rounding depends on the number of rows in a matrix product. So numbers count as equal if they differ only by rounding,
and random numbers of the run decide between them.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["ROUNDING", "ascending", "least"]

ROUNDING = 1e-4
"""Largest difference that rounding causes, for probabilities and nats computed in float32."""


def ascending(value: Float[Tensor, "b l"], tie: Float[Tensor, "b l"]) -> Int[Tensor, "b l"]:
    """Places of each row from the least number to the greatest; numbers in a chain of small gaps are ordered by `tie`.

    Args:
        value: The numbers to sort; infinite ones are equal to one another.
        tie: A number in [0, 1) for each place, which orders equal values.
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
