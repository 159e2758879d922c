"""Draws are exact: every index has the measure of its weight, down to the tail."""

from __future__ import annotations

import pytest
import torch

from hdlm.sampling import draw_index, draw_word


def test_each_index_gets_the_measure_of_its_weight() -> None:
    weights = torch.tensor([[0.5, 0.0, 2.0, 1.5]])
    grid = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    drawn = draw_index(weights.expand(4000, -1), grid)
    counts = torch.bincount(drawn, minlength=4)
    assert counts.tolist() == [500, 0, 2000, 1500]


def test_the_tail_of_a_large_vocabulary_is_reached_where_float32_gumbel_noise_cannot() -> None:
    weights = torch.full((1, 50_000), 1e-12, dtype=torch.float64)
    weights[0, 0] = 1.0
    tail = weights[0, 1:].sum() / weights.sum()
    inside = 1 - tail / 2
    assert draw_index(weights, inside[None]).item() > 0
    assert draw_index(weights, (1 - 1.5 * tail)[None]).item() == 0


@pytest.mark.parametrize("uniform", [0.0, 1 - 2.0**-53])
def test_the_ends_never_fall_on_a_word_without_weight(uniform: float) -> None:
    weights = torch.tensor([[0.0, 3.0, 1e-300, 0.0]], dtype=torch.float64)
    assert draw_index(weights, torch.tensor([uniform], dtype=torch.float64)).item() in {1, 2}


def test_words_are_equally_likely() -> None:
    grid = (torch.arange(700, dtype=torch.float64) + 0.5) / 700
    assert torch.bincount(draw_word(7, grid)).tolist() == [100] * 7
    assert draw_word(7, torch.tensor([1 - 2.0**-53], dtype=torch.float64)).item() == 6
