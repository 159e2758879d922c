"""Every estimator of a bound has the right mean and a correct standard error in enumerable worlds."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import scipy.stats
import torch
from torch import Tensor

from hdlm.evaluation import LikelihoodResult, estimate_likelihood
from hdlm.evaluation.likelihood import bounds
from hdlm.hyperschedule import AbstractHyperschedule, Block, Slide, Table, Wave, flat
from hdlm.noise_schedule import CosinePower, Geometric, Power
from hdlm.objective import Canvas, WeightedCrossEntropy
from hdlm.parameterization import LeaveOneOut
from hdlm.process import GIDD, Absorbing, AbstractNoiseProcess, EpsilonHybrid, GammaHybrid, Uniform
from hdlm.verification.enumeration import state_law
from hdlm.verification.exact import ExactDenoiser
from hdlm.verification.statistics import FAILURE_RATE, mean_p_value
from hdlm.verification.world import World, all_sequences, random_world
from tests.along import regime_of

WORLD = random_world(2, 3, seed=5, temperature=0.7)
TEXT = WORLD.sequences.repeat_interleave((100 * WORLD.law).round().long(), 0).flatten()
"""About a hundred windows, as often as the world has them."""
REPLICATES = 60

SCHEDULES: list[AbstractHyperschedule] = [flat(3, 4), Block(3, 2, 2), Slide(3, 2, 2), Wave(3, 2, 2)]
ESTIMATORS = ["random", "stratified", "count"]


def as_table(schedule: AbstractHyperschedule) -> Table:
    """The same levels with nothing said of a countdown: it is measured one canvas at a time."""
    return Table(schedule.levels(torch.arange(schedule.num_steps + 1)))


def measure(
    process: AbstractNoiseProcess, schedule: AbstractHyperschedule, **options: object
) -> LikelihoodResult:
    sharpness = options.pop("sharpness", 1.0)
    denoiser = ExactDenoiser(WORLD, process, options.pop("reading", "mean"), sharpness)
    return estimate_likelihood(
        denoiser,
        TEXT,
        regime_of(schedule, options),
        **{"replicates": REPLICATES, "batch_size": 2048} | options,
    )


def truth(world: World = WORLD) -> float:
    return -float(world.law[world.index(TEXT.view(-1, 3))].log().sum())


def p_value(result: LikelihoodResult, expected: float) -> float:
    samples = torch.tensor(result.estimates)
    if samples.std() < 1e-9 * abs(expected):
        return float(abs(result.nats - expected) < 1e-9 * abs(expected))
    return mean_p_value(samples, expected)


def p_value_of_equal_means(a: LikelihoodResult, b: LikelihoodResult) -> float:
    error = math.hypot(a.standard_error, b.standard_error)
    return math.erfc(abs(a.nats - b.nats) / error / math.sqrt(2))


@pytest.mark.parametrize(
    ("schedule", "estimator"),
    [*itertools.product(SCHEDULES, ["random", "stratified"]), *itertools.product(SCHEDULES[:2], ["count"])],
    ids=str,
)
def test_the_absorbing_bound_of_the_exact_model_is_the_likelihood(
    schedule: AbstractHyperschedule, estimator: str
) -> None:
    """Unmasking one by one in any order is the chain rule, so the bound is tight for every text."""
    assert p_value(measure(Absorbing(2), schedule, estimator=estimator), truth()) > FAILURE_RATE


@pytest.mark.parametrize("process", [EpsilonHybrid(2, 0.3), GammaHybrid(2, 0.4), GIDD(2, 0.2)], ids=repr)
@pytest.mark.parametrize("estimator", ["count", "exact"])
def test_bound_with_width_1_has_no_error(process: AbstractNoiseProcess, estimator: str) -> None:
    """The position is always masked and sees only settled words, so process and noise have no effect."""
    result = measure(process, Block(3, 1, 3), estimator=estimator, replicates=3)
    assert result.nats == pytest.approx(truth(), rel=1e-9)
    assert result.standard_error == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES[:2], ids=repr)
@pytest.mark.parametrize("process", [EpsilonHybrid(2, 0.3), GammaHybrid(2, 0.4)], ids=repr)
def test_estimators_agree_for_wrong_model_that_depends_on_noise(
    process: AbstractNoiseProcess, schedule: AbstractHyperschedule
) -> None:
    """The predictions depend on the noise fraction, so each estimator must pass the right one."""
    results = [measure(process, schedule, estimator=each, sharpness=0.5) for each in ESTIMATORS]
    assert results[2].nats > 1.05 * truth()
    assert p_value_of_equal_means(results[0], results[2]) > FAILURE_RATE
    assert p_value_of_equal_means(results[1], results[2]) > FAILURE_RATE


def test_count_estimator_has_least_variance() -> None:
    errors = [
        measure(Absorbing(2), flat(3, 4), estimator=each, sharpness=0.5).standard_error for each in ESTIMATORS
    ]
    assert errors[2] < errors[1] < errors[0]


@pytest.mark.parametrize("schedule", [flat(3, 4), Block(3, 2, 2), Slide(3, 2, 2)], ids=repr)
@pytest.mark.parametrize("process", [Absorbing(2), GammaHybrid(2, 0.4), Uniform(2), GIDD(2, 0.2)], ids=repr)
@pytest.mark.parametrize("reading", ["mean", "score"])
def test_hybrid_bound_of_exact_model_equals_likelihood(
    process: AbstractNoiseProcess, schedule: AbstractHyperschedule, reading: str
) -> None:
    """Where noise comes gradually and one token at a time, the reverse process is exact."""
    result = measure(process, schedule, bound="hybrid", reading=reading)
    assert p_value(result, truth()) > FAILURE_RATE


def replaced_text_bound(
    blocks: list[list[int]], process: EpsilonHybrid, world: World = WORLD, text: Tensor = TEXT
) -> float:
    """The bound that first recovers `y` (words replaced, none masked) exactly, then each word by itself given `y`.

    `sum over blocks of E_y[ log q(y | x) - log p(y | before) - sum_i log p(x_i | y, before) ]`, by enumeration.
    """
    x, law = world.sequences, world.law
    hair = torch.full(x.shape, 1e-12, dtype=torch.float64)
    total = torch.zeros(len(x), dtype=torch.float64)
    for at in blocks:
        y = world.sequences[:, at].unique(dim=0)
        q = state_law(process, x[:, at], hair[:, at], y)
        q = q / q.sum(-1, keepdim=True)
        same_past = (x[:, None, : at[0]] == x[None, :, : at[0]]).all(-1).double()
        past = same_past @ law
        joint = same_past[:, :, None] * (law[:, None] * q)[None]
        evidence = joint.sum(1)
        cost = q.log() - (evidence / past[:, None]).log()
        for i in at:
            same_word = (x[:, None, i] == x[None, :, i]).double()
            cost = cost - (torch.einsum("st,sty->sy", same_word, joint) / evidence).log()
        total += (q * cost).sum(-1)
    return float(total[world.index(text.view(-1, world.length))].sum())


@pytest.mark.parametrize(
    ("schedule", "blocks"),
    [(flat(3, 4), [[0, 1, 2]]), (Block(3, 2, 3), [[0, 1], [2]]), (as_table(Block(3, 2, 3)), [[0, 1], [2]])],
    ids=repr,
)
@pytest.mark.parametrize(
    "options",
    [{"estimator": "random"}, {}, {"noise_schedule": CosinePower()}, {"noise_schedule": Power(40.0)}],
    ids=str,
)
def test_hybrid_bound_equals_enumerated_bound_with_replaced_words(
    schedule: AbstractHyperschedule, blocks: list[list[int]], options: dict[str, object]
) -> None:
    """The result also holds for noise schedules with slow or late masking."""
    process = EpsilonHybrid(2, 0.3)
    expected = replaced_text_bound(blocks, process)
    assert expected > truth() + 0.01
    assert p_value(measure(process, schedule, bound="hybrid", **options), expected) > FAILURE_RATE


def reconstruction(schedule: AbstractHyperschedule, process: AbstractNoiseProcess) -> float:
    """`sum over i of E_y[ -log p(x_i | y) ]`, `y` the canvas when the noise of `i` ends, by enumeration."""
    x, law, states = WORLD.sequences, WORLD.law, all_sequences(3, 3)
    total = torch.zeros(len(x), dtype=torch.float64)
    for i, settles in enumerate(schedule.settles.tolist()):
        end = (schedule.noise(settles) + 1e-12).clamp(max=1.0)
        u = torch.where(schedule.levels(settles - 1) == 0, 0.0, end).expand(x.shape)
        q = state_law(process, x, u, states)
        joint = law[:, None] * q
        same_word = (x[:, None, i] == x[None, :, i]).double()
        right = (same_word @ joint) / joint.sum(0).clamp(min=1e-300)
        total -= torch.xlogy(q, right).sum(-1)
    return float(total[WORLD.index(TEXT.view(-1, 3))].sum())


@pytest.mark.parametrize("passes", [1, 4])
@pytest.mark.parametrize("schedule", [Slide(3, 3, 6), as_table(Slide(3, 3, 6)), Wave(3, 2, 2)], ids=repr)
def test_reconstruction_term_equals_enumeration(
    schedule: AbstractHyperschedule, passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The result holds for any number of passes. With all passes only `y` is random."""
    process = EpsilonHybrid(2, 0.3)
    monkeypatch.setattr(bounds, "_PASSES", passes)
    both = measure(process, schedule, bound="hybrid", replicates=24)
    monkeypatch.setattr(bounds.HybridBound, "_jumps", False)
    path = measure(process, schedule, bound="hybrid", replicates=24)
    apart = tuple(one - other for one, other in zip(both.estimates, path.estimates, strict=True))
    result = replace(both, estimates=apart)
    assert p_value(result, reconstruction(schedule, process)) > FAILURE_RATE
    assert passes == 1 or result.standard_error < path.standard_error


@pytest.mark.parametrize("schedule", [Slide(3, 2, 2), Wave(3, 2, 2)], ids=repr)
@pytest.mark.parametrize("options", [{"bound": "hybrid"}, {"bound": "absorbing", "sharpness": 0.5}], ids=str)
def test_two_stream_and_one_canvas_bounds_have_equal_mean(
    schedule: AbstractHyperschedule, options: dict[str, object]
) -> None:
    packed, single = (
        measure(EpsilonHybrid(2, 0.3), each, **options) for each in (schedule, as_table(schedule))
    )
    assert p_value_of_equal_means(packed, single) > FAILURE_RATE


def test_hybrid_bound_with_partial_noise_range_bounds_likelihood() -> None:
    """With a schedule from 20 % to 90 % noise the result is still an upper bound and less than twice as large."""
    schedule = Geometric(0.22, 2.3)
    result = measure(GammaHybrid(2, 0.4), flat(3, 4), bound="hybrid", noise_schedule=schedule)
    assert truth() + 3 * result.standard_error < result.nats < 2 * truth()


@pytest.mark.parametrize(
    ("process", "options"),
    [
        (Absorbing(2), {"estimator": "random", "sharpness": 0.5}),
        (Absorbing(2), {"estimator": "stratified", "sharpness": 0.5}),
        (Absorbing(2), {"estimator": "count", "sharpness": 0.5}),
        (GammaHybrid(2, 0.4), {"bound": "hybrid", "estimator": "stratified"}),
        (EpsilonHybrid(2, 0.3), {"bound": "hybrid", "estimator": "stratified"}),
        pytest.param(
            EpsilonHybrid(2, 0.3), {"bound": "hybrid", "schedule": Slide(3, 3, 6)}, marks=pytest.mark.slow
        ),
    ],
    ids=str,
)
def test_standard_error_interval_has_nominal_coverage(
    process: AbstractNoiseProcess, options: dict[str, object]
) -> None:
    """Of many small evaluations, Student's 90% interval of five replicates holds the truth about 90% of the time."""
    size, level = 5, 0.9
    schedule = options.get("schedule", SCHEDULES[0])
    rest = {key: value for key, value in options.items() if key != "schedule"}
    big = measure(process, schedule, replicates=400, **rest)
    groups = torch.tensor(big.estimates).view(-1, size).tolist()
    small = [replace(big, estimates=tuple(group)) for group in groups]
    reach = scipy.stats.t.ppf((1 + level) / 2, size - 1)
    hits = sum(abs(one.nats - big.nats) < reach * one.standard_error for one in small)
    assert scipy.stats.binomtest(hits, len(small), level).pvalue > FAILURE_RATE


@pytest.mark.parametrize("noise", [0.001, 0.3, 0.9])
def test_paper_loss_optimum_for_visible_words_equals_epsilon_one_half(noise: float) -> None:
    """The optimum of the paper's loss is not `p(x_0 | x_t)`, for any epsilon. The optimum of the bound is."""
    words, epsilon, seen = 50, 0.01, 7
    process = EpsilonHybrid(words, epsilon)
    x_0, t = torch.arange(words)[:, None], torch.full((words, 1), noise, dtype=torch.float64)
    canvas = Canvas(x_0, torch.full_like(x_0, seen), t, t, torch.ones_like(t), torch.ones_like(t))
    prior = torch.rand(words, generator=torch.Generator().manual_seed(0), dtype=torch.float64).log_softmax(0)

    def posterior(of: EpsilonHybrid) -> torch.Tensor:
        raw = torch.cat([prior, prior.new_full((1,), -torch.inf)])
        return LeaveOneOut().log_clean(of, raw, torch.tensor(seen), t[0, 0]).exp()[:words]

    happens = posterior(process)
    weighted = happens * WeightedCrossEntropy().weights(process, canvas)[:, 0]
    least = weighted / weighted.sum()
    torch.testing.assert_close(least, posterior(EpsilonHybrid(words, 0.5)), atol=0.01, rtol=0)
    assert least[seen] < 0.6 < 0.98 < happens[seen]
