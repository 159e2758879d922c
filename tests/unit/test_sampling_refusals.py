"""Invalid options are refused by name, and nonfinite network outputs with their position."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from hdlm.denoiser import AbstractDenoiser, ForwardContext, Guided, Prediction
from hdlm.hyperschedule import Block, flat
from hdlm.noise_schedule import ConstantRate, CosinePower, Geometric, Power
from hdlm.parameterization import AbstractParameterization, LeaveOneOut, LogScore, Mean
from hdlm.process import GIDD, Absorbing, AbstractNoiseProcess, EpsilonHybrid, GammaHybrid, Uniform
from hdlm.regime import Regime
from hdlm.sampling import (
    ALGORITHMS,
    AdaptiveCorrection,
    Analytic,
    ByEntropy,
    ByThreshold,
    Cap,
    DoubtCorrection,
    Euler,
    Execution,
    GibbsCorrection,
    MinP,
    Remask,
    RepetitionPenalty,
    Rescale,
    Temperature,
    TopK,
    TopP,
    Transform,
    algorithm,
    draw_index,
    sample,
)
from hdlm.sampling.draws import draw_checked
from tests.tiny import FixedAnswer, tiny_denoiser

WORDS, LENGTH = 5, 6
NAMED: list[tuple[Callable[[Any], Any], str]] = [
    (Temperature, "temperature"),
    (TopP, "`p` of top-p"),
    (MinP, "`p` of min-p"),
    (RepetitionPenalty, "`penalty` for repetitions"),
    (lambda eta: algorithm("acs", Absorbing(WORDS), eta), "eta"),
    (AdaptiveCorrection, "eta"),
    (DoubtCorrection, "doubt"),
    (Cap, "eta"),
    (Rescale, "eta"),
    (Remask, "strength"),
    (ByThreshold, "threshold"),
    (ByEntropy, "bound"),
    (GibbsCorrection, "share"),
    (Analytic, "floor"),
    (Euler, "floor"),
    (
        lambda scale: Guided(tiny_denoiser(Absorbing(WORDS)), torch.ones(1, 1).bool(), scale),
        "`scale` of guidance",
    ),
    (lambda p: GIDD(WORDS, p), "p_uniform"),
    (lambda exponent: GIDD(WORDS, 0.1, exponent), "exponent"),
    (lambda epsilon: EpsilonHybrid(WORDS, epsilon), "epsilon"),
    (lambda gamma: GammaHybrid(WORDS, gamma), "gamma"),
    (CosinePower, "exponent"),
    (Power, "exponent"),
    (lambda most: ConstantRate(0.0, most), "sigma_max"),
    (lambda most: Geometric(1e-4, most), "sigma_max"),
]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1.0])
@pytest.mark.parametrize(("build", "name"), NAMED, ids=[name for _, name in NAMED])
def test_constructors_reject_nonfinite_and_negative_numbers(
    build: Callable[[Any], Any], name: str, value: float
) -> None:
    with pytest.raises(ValueError, match=name) as refused:
        build(value)
    assert str(value) in str(refused.value)


@pytest.mark.parametrize("temperature", [1e-39, 1e39, 1e-300])
def test_temperature_outside_float32_range_is_refused(temperature: float) -> None:
    with pytest.raises(
        ValueError, match=r"`temperature` must be 0, or lie in \[1.2e-38, 3.4e38\]|3.4e\+38"
    ) as refused:
        Temperature(temperature)
    assert str(temperature) in str(refused.value)


FLOATS = torch.finfo(torch.float32)
EXTREME: list[Transform] = [
    Temperature(0.0),
    Temperature(FLOATS.tiny),
    Temperature(1e-6),
    Temperature(1e6),
    Temperature(FLOATS.max),
    TopK(1),
    TopK(10**9),
    TopP(5e-324),
    TopP(1e-30),
    TopP(1.0),
    MinP(0.0),
    MinP(1e-300),
    MinP(1.0),
    RepetitionPenalty(1.0),
    RepetitionPenalty(1e6),
]


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4, 1e30])
@pytest.mark.parametrize("transform", EXTREME, ids=repr)
def test_extreme_transforms_give_distributions(transform: Transform, scale: float) -> None:
    """The test covers sharp, flat and partly impossible distributions. The mask keeps probability zero."""
    raw = scale * torch.randn(40, WORDS, generator=torch.Generator().manual_seed(1))
    raw[:8, :3] = -torch.inf
    log_p = torch.nn.functional.pad(raw.log_softmax(-1), (0, 1), value=-torch.inf)
    tokens, row = torch.tensor([[0, 1, 2, 3, 4], [WORDS, 3, 3, 4, 4]]), torch.arange(40) % 2
    p = transform(log_p, tokens, row).softmax(-1)
    torch.testing.assert_close(p.sum(-1), torch.ones(40))
    assert not p[log_p == -torch.inf].any()


# --- networks that answer with no number -----------------------------------------------------------------------------
class NonFiniteDenoiser(AbstractDenoiser):
    """Returns `value` at position 4 where the noise is below `below`."""

    def __init__(
        self,
        process: AbstractNoiseProcess,
        reading: AbstractParameterization,
        value: float,
        below: float = 2.0,
    ) -> None:
        self.process, self.parameterization = process, reading
        self.value, self.below = value, below

    def predict(self, tokens: Tensor, noise: Tensor, context: ForwardContext) -> Prediction:
        raw = torch.zeros(*tokens.shape, WORDS + 1, dtype=torch.float64)
        assert context.positions is not None
        bad = (context.positions.expand(tokens.shape) == 4) & (noise < self.below)
        raw[bad] = self.value
        rows = raw.flatten(0, 1)
        return Prediction(self.process, self.parameterization, tokens, noise, lambda at: rows[at])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_sample_names_position_of_nonfinite_output(name: str, value: float) -> None:
    process = EpsilonHybrid(WORDS, 0.2)
    with pytest.raises(ValueError, match=r"position 4 of sequence 7 in step 0 is not finite"):
        sample(
            NonFiniteDenoiser(process, Mean(), value),
            Regime(flat(LENGTH, 1)),
            algorithm(name, process, 0.5),
            execution=Execution(first_sequence=7),
        )


@pytest.mark.parametrize("reading", [LeaveOneOut(), LogScore()], ids=repr)
@pytest.mark.parametrize("name", ["exact", "analytic", "euler", "gibbs"])
@pytest.mark.parametrize("process", [Uniform(WORDS), GammaHybrid(WORDS, 0.5)], ids=repr)
def test_sample_names_nonfinite_output_at_written_words(
    name: str, process: AbstractNoiseProcess, reading: AbstractParameterization
) -> None:
    """Regression: a word of uniform noise was never replaced."""
    with pytest.raises(ValueError, match=r"position 4 of sequence [01] in step \d is not finite"):
        sample(
            NonFiniteDenoiser(process, reading, math.nan),
            Regime(flat(LENGTH, 3)),
            algorithm(name, process, 0.5),
            num_sequences=2,
        )


def test_nonfinite_output_error_names_step_of_sequence() -> None:
    process = Absorbing(WORDS)
    with pytest.raises(ValueError, match=r"position 4 of sequence \d in step 3"):
        sample(
            NonFiniteDenoiser(process, Mean(), math.nan),
            Regime(Block(LENGTH, 3, 3)),
            algorithm("analytic", process),
            num_sequences=3,
        )


# --- draws -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("size", [1, 5, 256, 257, 700])
@pytest.mark.parametrize("bad", [0.0, math.nan, math.inf])
def test_draw_index_names_row_without_weight(size: int, bad: float) -> None:
    weights = torch.ones(3, size)
    weights[1] = bad
    uniform = torch.tensor([0.0, 0.999, 1 - 2.0**-53], dtype=torch.float64)
    with pytest.raises(ValueError, match=r"from row 1 of 3.*positive, finite sum; got (0|nan|inf)"):
        draw_index(weights, uniform)


@pytest.mark.parametrize("size", [1, 5, 255, 256, 257, 700])
@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf, -math.inf])
def test_draw_checked_index_lies_in_row_for_bad_weights(size: int, bad: float) -> None:
    """On CUDA an index outside the row is a device assertion, which ends the process."""
    generator = torch.Generator().manual_seed(size)
    weights = torch.rand(200, size, generator=generator)
    weights[::2] = bad
    weights[1::4, size // 2] = bad
    index, total = draw_checked(weights, torch.rand(200, generator=generator, dtype=torch.float64))
    assert ((index >= 0) & (index < size)).all()
    assert len(total) == 200


# --- scores that no distribution has ---------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["analytic", "euler"])
@pytest.mark.parametrize("mask", [-3.0, 0.0, 8.0])
def test_gidd_sample_of_any_score_gives_words(name: str, mask: float) -> None:
    """Regression: a large score of the mask left no word at `s = 0`."""
    process = GIDD(WORDS, 0.3)
    raw = torch.randn(LENGTH, WORDS + 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    raw[:, -1] = mask
    denoiser = FixedAnswer(process, LogScore(scale_by_sigma=False), raw)
    tokens = sample(
        denoiser, Regime(flat(LENGTH, 4)), algorithm(name, process), num_sequences=1, seed=2
    ).tokens
    assert ((tokens >= 0) & (tokens < WORDS)).all()


@pytest.mark.parametrize(
    "process",
    [Absorbing(WORDS), Uniform(WORDS), EpsilonHybrid(WORDS, 0.2), GammaHybrid(WORDS, 0.4), GIDD(WORDS, 0.3)],
    ids=repr,
)
def test_tweedie_at_time_zero_is_distribution_over_words(process: AbstractNoiseProcess) -> None:
    """For every positive score; for a true one it is `p(x_0 | x_t)`."""
    generator = torch.Generator().manual_seed(3)
    score = (3 * torch.randn(400, WORDS + 1, generator=generator, dtype=torch.float64)).exp()
    if float(process.weights(torch.ones(1, dtype=torch.float64)).mask) == 0:
        score[:, -1] = 0.0
    x = torch.randint(WORDS + (score[0, -1] > 0).long().item(), (400,), generator=generator)
    t = 0.01 + 0.98 * torch.rand(400, generator=generator, dtype=torch.float64)
    p = process.tweedie(x, score, torch.zeros_like(t), t)
    torch.testing.assert_close(p[:, :-1].sum(-1), torch.ones_like(t))
    torch.testing.assert_close(p, process.clean_from_score(x, score, t))
