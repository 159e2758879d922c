"""Covering designs: a few settings of many factors, in which every value, or every pair of values, occurs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import pytest

Factors = dict[str, Sequence[Any]]
STRIDE = 55
"""The distance of two settings in the product of all factors."""


def cases(*factors: Sequence[Any]) -> list[Any]:
    """Every combination, as parameters of a test. In the fast ones, every value of each factor occurs; others are slow.

    With three factors, also every pair of values of the two larger factors occurs in a fast one.
    """
    smallest = min(map(len, factors))
    return [
        pytest.param(
            *(value for _, value in combination),
            marks=[pytest.mark.slow] if sum(place for place, _ in combination) % smallest else [],
        )
        for combination in itertools.product(*map(enumerate, factors))
    ]


def setting_of(factors: Factors, number: int) -> dict[str, Any]:
    """The setting with a number: one value of each factor."""
    places = _places_of(factors, number)
    return {name: values[place] for (name, values), place in zip(factors.items(), places, strict=True)}


def _places_of(factors: Factors, number: int) -> list[int]:
    """The place of each value in its factor: the digits of the number times the stride."""
    rest, places = number * STRIDE, []
    for values in reversed(factors.values()):
        rest, place = divmod(rest, len(values))
        places.insert(0, place)
    return places


def missing_pairs(factors: Factors, numbers: Iterable[int]) -> int:
    """How many pairs of values of two factors do not occur in these settings."""
    rows = [_places_of(factors, number) for number in numbers]
    sizes = [len(values) for values in factors.values()]
    return sum(
        sizes[a] * sizes[b] - len({(row[a], row[b]) for row in rows})
        for a, b in itertools.combinations(range(len(sizes)), 2)
    )


def missing_values(factors: Factors, numbers: Iterable[int]) -> int:
    """How many values of single factors do not occur in these settings."""
    rows = [_places_of(factors, number) for number in numbers]
    return sum(len(values) - len({row[at] for row in rows}) for at, values in enumerate(factors.values()))


def assert_covers(factors: Factors, table: Sequence[Sequence[int]]) -> None:
    """Assert that a table of numbers has every pair of values, and each row and each column every value."""
    numbers = list(itertools.chain.from_iterable(table))
    assert math.gcd(STRIDE, math.prod(map(len, factors.values()))) == 1
    assert missing_pairs(factors, numbers) == 0
    assert not [row for row in table if missing_values(factors, row)]
    assert not [column for column in zip(*table, strict=True) if missing_values(factors, column)]
