"""Goodness of fit: p-values of counts, and the one rate at which tests of true laws may fail.

A statistical test of a true statement fails with the probability of its threshold. `FAILURE_RATE` is that threshold for
every test of this project: with about a thousand p-values in the whole suite, a run with new seeds fails by accident
about once in fifty runs; with fixed seeds, results are repeatable. A wrong law is found nevertheless: a chi-square
statistic grows with the number of samples, so a visible error moves its p-value below any fixed threshold.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["FAILURE_RATE", "chi_square", "mean_p_value"]

FAILURE_RATE = 2e-5
"""Probability that a test of a true law fails, for the whole project."""

_FEW = 5.0
"""Cells with fewer expected counts are pooled, because the statistic is not chi-square distributed there."""


def chi_square(counts: Int[Tensor, "*groups cells"], probabilities: Float[Tensor, "*groups cells"]) -> float:
    """p-value of Pearson's test that each group of counts was drawn from its row of probabilities.

    Cells with few expected counts are pooled within their group. An impossible event that happened gives 0.

    Args:
        counts: Number of draws of each cell.
        probabilities: The law of each group; rows sum to 1.

    Returns:
        The probability, in [0, 1], of a worse fit than this one if the law is true.
    """
    observed = counts.double().flatten(0, -2) if counts.ndim > 1 else counts.double()[None]
    law = probabilities.double().reshape(observed.shape)
    if bool(((law <= 0) & (observed > 0)).any()):
        return 0.0
    expected = law * observed.sum(-1, keepdim=True)
    few = expected < _FEW
    observed, expected = (_pool(cells, few) for cells in (observed, expected))
    used = expected > 0
    statistic = torch.where(used, (observed - expected) ** 2 / expected.clamp_min(1e-300), 0.0).sum()
    freedom = (used.sum(-1) - 1).clamp_min(0).sum().double()
    return float(torch.special.gammaincc(freedom / 2, statistic / 2)) if freedom > 0 else 1.0


def _pool(cells: Tensor, few: Tensor) -> Tensor:
    """Replace the cells of each row where `few` is true by one cell with their sum."""
    return torch.cat([cells.masked_fill(few, 0), (cells * few).sum(-1, keepdim=True)], -1)


def mean_p_value(samples: Float[Tensor, " n"], mean: float) -> float:
    """Two-sided p-value of the statement that independent samples have this mean, by the central limit theorem.

    Args:
        samples: At least two numbers.
        mean: The expectation that is tested.
    """
    error = samples.double().std() / len(samples) ** 0.5
    return float(torch.special.erfc((samples.double().mean() - mean).abs() / error / 2**0.5))
