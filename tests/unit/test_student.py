"""Student's t: quantiles as published, and those of scipy."""

from __future__ import annotations

import itertools

import pytest
import scipy.stats

from hdlm.student import student_quantile

LEVELS = [1e-3, 0.5, 0.9, 0.95, 0.99, 0.9999]
DEGREES = [1, 2, 3, 4, 7, 8, 31, 100, 1023, 5000]


@pytest.mark.parametrize(("level", "degrees"), list(itertools.product(LEVELS, DEGREES)))
def test_student_quantile_equals_scipy(level: float, degrees: int) -> None:
    expected = scipy.stats.t.ppf((1 + level) / 2, degrees)
    assert student_quantile(level, degrees) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize(("degrees", "expected"), [(1, 12.706), (3, 3.182), (7, 2.365), (30, 2.042)])
def test_student_quantile_equals_printed_tables(degrees: int, expected: float) -> None:
    assert student_quantile(0.95, degrees) == pytest.approx(expected, abs=5e-4)


@pytest.mark.parametrize("level", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_student_quantile_rejects_level_outside_0_and_1(level: float) -> None:
    with pytest.raises(ValueError, match=r"between 0 and 1; got"):
        student_quantile(level, 3)


def test_student_quantile_rejects_zero_degrees_of_freedom() -> None:
    with pytest.raises(ValueError, match="at least one degree of freedom; got 0"):
        student_quantile(0.95, 0)
