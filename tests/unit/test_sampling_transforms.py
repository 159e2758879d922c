"""Transforms compared with their definitions."""

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


def probabilities_after(transform: Transform) -> Tensor:
    return transform(LOG_P, TOKENS, ROW).softmax(-1)


def indices_kept(transform: Transform) -> list[list[int]]:
    return [row.nonzero()[:, 0].tolist() for row in probabilities_after(transform)]


def test_temperature_raises_probabilities_to_power() -> None:
    power = LOG_P.exp() ** 2
    torch.testing.assert_close(probabilities_after(Temperature(0.5)), power / power.sum(-1, keepdim=True))


def test_temperature_zero_keeps_argmax() -> None:
    assert indices_kept(Temperature(0.0)) == [[0], [3], [2]]


def test_top_k_keeps_most_probable_words() -> None:
    assert indices_kept(TopK(2)) == [[0, 1], [2, 3], [2, 3]]
    torch.testing.assert_close(probabilities_after(TopK(100)), LOG_P.exp())


def test_top_p_keeps_the_fewest_words_that_reach_p() -> None:
    assert indices_kept(TopP(0.65)) == [[0, 1], [2, 3], [2, 3]]
    assert indices_kept(TopP(1e-9)) == [[0], [3], [2]]
    torch.testing.assert_close(probabilities_after(TopP(1.0)), LOG_P.exp())


def test_min_p_is_relative_to_greatest_probability() -> None:
    assert indices_kept(MinP(0.6)) == [[0, 1], [2, 3], [2]]
    torch.testing.assert_close(probabilities_after(MinP(0.0)), LOG_P.exp())


def test_repetition_penalty_lowers_words_of_own_sequence() -> None:
    new = probabilities_after(RepetitionPenalty(1.5))
    ratio = new / LOG_P.exp()
    assert (ratio[0, :2] < 1).all()
    assert (ratio[0, 2:4] > 1).all()
    torch.testing.assert_close(new[1:], LOG_P[1:].exp())


def test_transforms_keep_probability_zero() -> None:
    for transform in (Temperature(2.0), TopK(3), TopP(0.9), MinP(0.1), RepetitionPenalty(2.0)):
        assert (probabilities_after(transform)[:, 4] == 0).all(), transform


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
def test_transforms_reject_values_out_of_range(build: Callable[[float], Transform], value: float) -> None:
    with pytest.raises(ValueError, match=str(value).replace(".", r"\.")):
        build(value)
