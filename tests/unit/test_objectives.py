"""Objectives: weights compared with numbers computed by hand, and the objectives that recipes build."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from hdlm.hyperschedule import Block
from hdlm.noise_schedule import Cosine
from hdlm.objective import (
    NELBO,
    AbstractObjective,
    Canvas,
    Combination,
    Corruption,
    CrossEntropy,
    ScoreEntropy,
    WeightedCrossEntropy,
)
from hdlm.parameterization import Mean
from hdlm.process import EpsilonHybrid
from hdlm.regime import Regime
from hdlm.training import Mixture, Recipe
from tests.tiny import FixedAnswer

PROCESS = EpsilonHybrid(4, 0.2)
MASKED = 0.9
MEASURE = 3.0
P = torch.tensor([0.5, 0.25, 0.125, 0.125])
"""The predicted probabilities of every position."""


def _loss(objective: AbstractObjective, x_t: list[int], masked: float = MASKED) -> Tensor:
    """The loss of positions whose clean word is 1."""
    noise = torch.full((1, len(x_t)), masked, dtype=torch.float64)
    canvas = Canvas(
        torch.ones(1, len(x_t), dtype=torch.long),
        torch.tensor([x_t]),
        noise,
        noise,
        0 * noise + MEASURE,
        noise,
    )
    raw = torch.cat([P.double().log(), torch.zeros(1)]).expand(len(x_t), -1)
    return objective(FixedAnswer(PROCESS, Mean(), raw), canvas)[0]


CASES = [
    (WeightedCrossEntropy(), (1 / 0.9, 0.8 / 0.1, 0.2 / 0.1)),
    (WeightedCrossEntropy(0.5), (1 / 0.9, 0.4 / 0.1, 0.1 / 0.1)),
    (WeightedCrossEntropy(0.0), (1 / 0.9, 0.0, 0.0)),
    (WeightedCrossEntropy(0.5, "published_code"), (1 / 0.9, 0.4, 0.1)),
    (WeightedCrossEntropy(max_weight=5.0), (1 / 0.9, 0.8 * 5, 0.2 * 5)),
    (WeightedCrossEntropy(max_weight=1.1), (1.1, 0.8 * 1.1, 0.2 * 1.1)),
    (CrossEntropy(), (1.0, 1.0, 1.0)),
    (CrossEntropy(kept=0.0), (1.0, 1.0, 0.0)),
    (CrossEntropy(kept=0.25), (1.0, 1.0, 0.25)),
]


@pytest.mark.parametrize(("objective", "weights"), CASES, ids=str)
def test_objective_weights_mask_wrong_word_and_right_word(
    objective: AbstractObjective, weights: tuple[float, ...]
) -> None:
    found = _loss(objective, [PROCESS.mask_id, 0, 1])
    expected = -P[1].double().log() * MEASURE * torch.tensor(weights, dtype=torch.float64)
    torch.testing.assert_close(found, expected)


def test_a_cross_entropy_is_capped_before_it_is_weighed() -> None:
    assert _loss(CrossEntropy(worst=1.0), [PROCESS.mask_id]).item() == pytest.approx(MEASURE)


def test_a_weight_of_kept_words_is_finite_and_not_negative() -> None:
    for kept in (-1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="`kept` must be a finite number of at least 0"):
            CrossEntropy(kept=kept)


def test_a_combination_is_the_weighted_sum() -> None:
    parts = ScoreEntropy(), CrossEntropy()
    both = Combination(((0.5, parts[0]), (2.0, parts[1])))
    canvas = [PROCESS.mask_id, 0, 1]
    first, second = (_loss(part, canvas) for part in parts)
    assert first[0] > 0
    torch.testing.assert_close(_loss(both, canvas), 0.5 * first + 2 * second)


def _mixture(objective: dict[str, Any], **tables: Any) -> Mixture:
    gamma = objective["type"] == "ScoreEntropy"
    table: dict[str, Any] = {
        "data": {"context": 8},
        "process": {"type": "GammaHybrid", "gamma": 0.1} if gamma else {"epsilon": 0.1},
        "network": {"told_noise": gamma},
        "objective": objective,
        "mixture": [{"hyperschedule": {"type": "Block", "width": 4, "num_levels": 2}}],
        "run": {"steps": 1, "batch_size": 6},
    }
    return Mixture.of(Recipe.from_table(table | tables), PROCESS)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"type": "NELBO"}, NELBO()),
        (
            {"type": "WeightedCrossEntropy", "unmasked": 0.7, "max_weight": 50.0},
            WeightedCrossEntropy(0.7, "paper", 50.0),
        ),
        (
            {"type": "WeightedCrossEntropy", "unmasked_weight": "published_code"},
            WeightedCrossEntropy(0.1, "published_code"),
        ),
        (
            {"type": "ScoreEntropy", "max_weight": 1e4, "diffusion": 0.25, "cross_entropy": 0.5},
            Combination(((0.25, ScoreEntropy(1e-4)), (0.5, CrossEntropy()))),
        ),
        (
            {"type": "ScoreEntropy", "score_entropy": "published_code"},
            ScoreEntropy(ratios="published_code"),
        ),
    ],
    ids=str,
)
def test_recipe_options_build_objective(options: dict[str, Any], expected: AbstractObjective) -> None:
    assert _mixture(options).parts[0].objective == expected


def test_recipe_options_build_corruption() -> None:
    mixture = _mixture(
        {"type": "WeightedCrossEntropy"},
        network={"shifted": True, "context": "causal", "active": "causal"},
        process={"epsilon": 0.1, "noise_schedule": {"type": "Cosine"}},
        mixture=[
            {"hyperschedule": {"type": "Block", "width": 4, "num_levels": 2}, "continuous": True},
            {
                "hyperschedule": {"type": "Block", "width": 2, "num_levels": 2},
                "two_stream": False,
                "batch_scale": 2,
            },
        ],
    )
    along = Regime(Block(8, 4, 2), Cosine(), "causal", "causal")
    assert [part.corruption for part in mixture.parts] == [
        Corruption(PROCESS, along, continuous=True, num_given=1),
        Corruption(PROCESS, along.along(Block(8, 2, 2)), two_stream=False, continuous=False, num_given=1),
    ]
    assert [part.batch_size for part in mixture.parts] == [6, 12]
