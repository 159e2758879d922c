"""Likelihood until it is precise enough."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from hdlm.evaluation import Likelihood, LikelihoodResult, WindowedText
from hdlm.evaluation.likelihood.precision import until_precise
from hdlm.hyperschedule import autoregressive, flat
from hdlm.process import Absorbing
from hdlm.regime import Regime
from hdlm.verification.exact import ExactDenoiser
from hdlm.verification.world import random_world

WORLD = random_world(3, 4, seed=2)
TEXT = torch.tensor([0, 1, 2, 2, 1, 0, 0, 2, 1, 1])


def measure(first: int, count: int, **options: object) -> LikelihoodResult:
    denoiser = ExactDenoiser(WORLD, Absorbing(3))
    likelihood = Likelihood(denoiser, Regime(flat(4, 2)), **{"estimator": "random", **options})
    return likelihood.of_text(WindowedText(TEXT, 4), count, first_replicate=first)


@pytest.mark.parametrize("estimator", ["random", "stratified", "count"])
def test_joined_replicates_equal_one_measurement(estimator: str) -> None:
    pieces = measure(0, 3, estimator=estimator).with_replicates_of(measure(3, 5, estimator=estimator))
    assert pieces.estimates == pytest.approx(measure(0, 8, estimator=estimator).estimates, abs=1e-12)


def test_until_precise_reaches_target_and_keeps_each_result() -> None:
    kept = []
    found = until_precise(measure, 0.2, keep=kept.append)
    assert found.bits_per_token_error <= 0.2
    assert kept[-1] == found
    assert [one.replicates for one in kept] == sorted({one.replicates for one in kept})
    assert found.estimates == pytest.approx(measure(0, found.replicates).estimates)


def test_until_precise_resumes_from_known_result() -> None:
    kept: list[LikelihoodResult] = []

    def die(result: LikelihoodResult) -> None:
        kept.append(LikelihoodResult.from_dict(result.to_dict()))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        until_precise(measure, 0.2, keep=die)
    assert until_precise(measure, 0.2, known=kept[0]) == until_precise(measure, 0.2)


def test_until_precise_estimates_replicates_for_unreached_target() -> None:
    with pytest.raises(ValueError, match=r"after 8 replicates .* about \d+ would be enough"):
        until_precise(measure, 1e-3, most=8)
    with pytest.raises(ValueError, match="positive"):
        until_precise(measure, 0.0)


def test_until_precise_measures_exact_likelihood_once() -> None:
    def exact(first: int, count: int) -> LikelihoodResult:
        likelihood = Likelihood(ExactDenoiser(WORLD, Absorbing(3)), Regime(autoregressive(4)))
        return likelihood.of_text(WindowedText(TEXT, 4), first_replicate=first)

    assert until_precise(exact, 1e-9).replicates == 1


def test_with_replicates_of_rejects_other_protocol() -> None:
    result = measure(0, 2)
    with pytest.raises(ValueError, match="num_bytes, seed differ"):
        result.with_replicates_of(replace(result, seed=1, num_bytes=3))
    with pytest.raises(ValueError, match="lacks estimates"):
        LikelihoodResult.from_dict({"num_tokens": 3})
