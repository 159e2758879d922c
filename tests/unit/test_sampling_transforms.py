"""Transforms against what their definitions say, word by word."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hdlm.sampling import MinP, RepetitionPenalty, Temperature, TopK, TopP, Transform

TOKENS = torch.tensor([[0, 1, 1], [4, 4, 4]])
ROW = torch.tensor([0, 1, 1])
LOG_P = torch.tensor(
    [[0.4, 0.3, 0.2, 0.1, 0.0], [0.1, 0.2, 0.3, 0.4, 0.0], [0.05, 0.05, 0.6, 0.3, 0.0]]
).log()


def after(transform: Transform) -> Tensor:
    return transform(LOG_P, TOKENS, ROW).softmax(-1)


def kept(transform: Transform) -> list[list[int]]:
    return [row.nonzero()[:, 0].tolist() for row in after(transform)]


def test_temperature_is_a_power() -> None:
    power = LOG_P.exp() ** 2
    torch.testing.assert_close(after(Temperature(0.5)), power / power.sum(-1, keepdim=True))


def test_temperature_zero_takes_the_likeliest() -> None:
    assert kept(Temperature(0.0)) == [[0], [3], [2]]


def test_top_k() -> None:
    assert kept(TopK(2)) == [[0, 1], [2, 3], [2, 3]]
    torch.testing.assert_close(after(TopK(100)), LOG_P.exp())


def test_top_p_keeps_the_fewest_words_that_reach_p() -> None:
    assert kept(TopP(0.65)) == [[0, 1], [2, 3], [2, 3]]
    assert kept(TopP(1e-9)) == [[0], [3], [2]]
    torch.testing.assert_close(after(TopP(1.0)), LOG_P.exp())


def test_min_p_is_relative_to_the_likeliest() -> None:
    assert kept(MinP(0.6)) == [[0, 1], [2, 3], [2]]
    torch.testing.assert_close(after(MinP(0.0)), LOG_P.exp())


def test_repetition_penalty_knows_only_its_own_sequence_and_lowers_what_it_should() -> None:
    new = after(RepetitionPenalty(1.5))
    ratio = new / LOG_P.exp()
    assert (ratio[0, :2] < 1).all()
    assert (ratio[0, 2:4] > 1).all()
    torch.testing.assert_close(new[1:], LOG_P[1:].exp())


def test_impossible_words_stay_impossible() -> None:
    for transform in (Temperature(2.0), TopK(3), TopP(0.9), MinP(0.1), RepetitionPenalty(2.0)):
        assert (after(transform)[:, 4] == 0).all(), transform


@pytest.mark.parametrize(
    ("build", "value"),
    [
        (Temperature, -0.1),
        (TopK, 0),
        (TopP, 0.0),
        (TopP, 1.1),
        (MinP, -0.1),
        (MinP, 2.0),
        (RepetitionPenalty, 0.5),
    ],
)
def test_values_out_of_range_are_refused_with_their_value(
    build: Callable[[float], Transform], value: float
) -> None:
    with pytest.raises(ValueError, match=str(value).replace(".", r"\.")):
        build(value)
