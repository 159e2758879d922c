"""Draws are exact: every index has a probability proportional to its weight, also in the tail."""

from __future__ import annotations

import pytest
import torch

from hdlm.randomness import Randomness
from hdlm.sampling import draw_index, draw_word


def test_draw_index_gives_each_index_its_weight() -> None:
    weights = torch.tensor([[0.5, 0.0, 2.0, 1.5]])
    grid = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    drawn = draw_index(weights.expand(4000, -1), grid)
    counts = torch.bincount(drawn, minlength=4)
    assert counts.tolist() == [500, 0, 2000, 1500]


def test_draw_index_reaches_tail_of_float64_weights() -> None:
    weights = torch.full((1, 50_000), 1e-12, dtype=torch.float64)
    weights[0, 0] = 1.0
    tail = weights[0, 1:].sum() / weights.sum()
    inside = 1 - tail / 2
    assert draw_index(weights, inside[None]).item() > 0
    assert draw_index(weights, (1 - 1.5 * tail)[None]).item() == 0


def test_draw_index_gives_tail_of_float32_weights_its_probability() -> None:
    """50,000 words that are together drawn once in 10,000 times: half of the numbers of the last 1/5,000 hit them."""
    words = 50_000
    weights = torch.full((words + 1,), 2.0**-29, dtype=torch.float32)
    weights[7] = 1.0
    tail = (words * 2.0**-29) / (1 + words * 2.0**-29)
    assert 9e-5 < tail < 1e-4
    rows = torch.arange(4000)
    last = 1 - 2 * tail * (1 - Randomness(3).uniform(rows, 0, torch.zeros_like(rows)))
    order = torch.cat([torch.arange(7), torch.arange(8, words + 1), torch.tensor([7])]).flip(0)
    drawn = order[draw_index(weights[order].expand(len(rows), -1), last)]
    hits = drawn[drawn != 7]
    assert abs(len(hits) - 2000) < 5 * 1000**0.5
    expected = len(hits) / 20
    chi_square = ((torch.histc(hits.double(), 20, 0, words) - expected) ** 2 / expected).sum()
    assert chi_square < 60  # 19 degrees of freedom: p < 1e-5


@pytest.mark.parametrize("size", [1, 5, 255, 256, 257, 600, 1024])
def test_draw_index_equals_search_in_cumulative_sum(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    weights = torch.rand(500, size, generator=generator, dtype=torch.float64)
    weights[:, ::3] = 0.0
    weights[:, -1] = 1.0
    uniform = torch.rand(500, generator=generator, dtype=torch.float64)
    cumulative = weights.cumsum(1)
    direct = torch.searchsorted(cumulative, uniform[:, None] * cumulative[:, -1:], right=True)[:, 0]
    assert torch.equal(draw_index(weights, uniform), direct)


@pytest.mark.parametrize("uniform", [0.0, 1 - 2.0**-53])
def test_draw_index_never_draws_index_of_weight_zero(uniform: float) -> None:
    weights = torch.tensor([[0.0, 3.0, 1e-300, 0.0]], dtype=torch.float64)
    assert draw_index(weights, torch.tensor([uniform], dtype=torch.float64)).item() in {1, 2}


def test_draw_word_is_uniform() -> None:
    grid = (torch.arange(700, dtype=torch.float64) + 0.5) / 700
    assert torch.bincount(draw_word(7, grid)).tolist() == [100] * 7
    assert draw_word(7, torch.tensor([1 - 2.0**-53], dtype=torch.float64)).item() == 6
