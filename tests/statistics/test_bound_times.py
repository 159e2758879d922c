"""The times of a bound: finite moments of its estimates, the right mean, and intervals that hold the truth."""

from __future__ import annotations

import itertools
import math

import pytest
import scipy.stats
import torch
from torch import Tensor

from hdlm.evaluation import AbsorbingBound, AbstractBound, HybridBound, evaluate
from hdlm.evaluation.likelihood.times import Density, density_of, placed
from hdlm.hyperschedule import AbstractHyperschedule, Block, Slide, Table, Wave, autoregressive, flat
from hdlm.noise_schedule import (
    LINEAR,
    AbstractNoiseSchedule,
    Cosine,
    CosinePower,
    Geometric,
    LogLinear,
    Power,
)
from hdlm.objective import ScoreEntropy
from hdlm.process import GIDD, Absorbing, AbstractNoiseProcess, EpsilonHybrid, GammaHybrid, Uniform
from hdlm.verification.exact import ExactDenoiser
from hdlm.verification.expectation import every_canvas
from hdlm.verification.statistics import FAILURE_RATE, mean_p_value
from hdlm.verification.world import random_world

WORLD = random_world(2, 3, seed=5, temperature=2.0)
TEXT = WORLD.sequences.repeat_interleave((200 * WORLD.law).round().long(), 0).flatten()
TRUTH = -float(WORLD.law[WORLD.index(TEXT.view(-1, 3))].log().sum())
REPLICATES = 8
"""In each interval: few, so that it is Student's t that decides."""

SMALL = random_world(2, 2, seed=3)
DECADES = 14
GRADUAL = [Absorbing(2), Uniform(2), GammaHybrid(2, 0.4), GIDD(2, 0.2), GIDD(2, 0.2, exponent=2.0)]


def as_table(schedule: AbstractHyperschedule) -> Table:
    return Table(schedule.levels(torch.arange(schedule.num_steps + 1)))


def moments(bound: AbstractBound, noise: Tensor, order: int) -> Tensor:
    """`E[cost^order]` of a window at each noise fraction, over all texts and all noise, times weighed alike.

    A flat hyperschedule of one level has `u = 1 - time`, so times are noise fractions here.
    """
    canvas, probability = every_canvas(
        bound.corruption, SMALL, 1 - noise[:, None], torch.ones(len(noise), dtype=torch.float64)
    )
    if isinstance(bound, HybridBound):
        nats = ScoreEntropy(1e-15)(bound.denoiser, canvas).sum(-1)
    else:
        prediction = canvas.predict(bound.denoiser)
        log_p = prediction.log_clean(prediction.everywhere()).view(*canvas.x_0.shape, -1)
        cost = -log_p.gather(-1, canvas.x_0[..., None])[..., 0] * canvas.measure / canvas.t
        nats = torch.where(canvas.x_t == bound.denoiser.process.mask_id, cost, 0.0).sum(-1)
    _, at = canvas.t[:, 0].unique(return_inverse=True)  # rising
    found = torch.zeros(len(noise), dtype=torch.float64).index_add(0, at, probability * nats**order)
    return found[noise.argsort().argsort()]


def by_decade(bound: AbstractBound, order: int, density: Density | None) -> Tensor:
    """The integral of `E[cost^order] / density^(order - 1)` over each decade of small noise, from 0.1 downwards."""
    points = 10.0 ** -(torch.arange(4 * DECADES, dtype=torch.float64) / 4 + 1.125)
    values = moments(bound, points, order) * points * math.log(10) / 4
    if density is not None:
        near = density.share / density.power * points ** (1 / density.power - 1)
        values = values / (1 - density.share + near) ** (order - 1)
    return values.view(DECADES, 4).sum(-1)


def bound_of(process: AbstractNoiseProcess, name: str) -> AbstractBound:
    denoiser = ExactDenoiser(SMALL, process)
    kind = AbsorbingBound if name == "absorbing" else HybridBound
    return kind(denoiser, flat(2, 1), "random")


@pytest.mark.parametrize(
    ("process", "name"), [*((process, "hybrid") for process in GRADUAL), (Absorbing(2), "absorbing")], ids=str
)
def test_even_times_have_an_infinite_second_moment_and_ours_have_finite_ones(
    process: AbstractNoiseProcess, name: str
) -> None:
    """Each decade of smaller noise adds as much or more under even times, and less by a constant factor under ours."""
    bound = bound_of(process, name)
    last = slice(4, 11)
    even = by_decade(bound, 2, None)[last]
    assert (even[1:] > 0.99 * even[:-1]).all()
    for order in (1, 2, 3, 4):
        ours = by_decade(bound, order, bound.density)[last]
        assert (ours[1:] < 0.95 * ours[:-1]).all()


@pytest.mark.parametrize("process", [GammaHybrid(2, 0.4), GIDD(2, 0.2)], ids=repr)
def test_the_second_moment_of_the_estimate_is_the_enumerated_integral(process: AbstractNoiseProcess) -> None:
    bound = bound_of(process, "hybrid")
    level = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    rest, inverse = bound.density.quantile(level)
    keep = rest > 1e-13
    points = rest[keep][::16]
    integral = float((moments(bound, points, 2) * inverse[keep][::16] ** 2).sum()) * 16 / 4000
    generator = torch.Generator().manual_seed(1)
    rows = SMALL.sequences[torch.multinomial(SMALL.law, 40_000, replacement=True, generator=generator)]
    times, draw = (torch.rand(40_000, n, generator=generator, dtype=torch.float64) for n in (1, 2))
    squares = bound(rows, times, draw) ** 2
    assert mean_p_value(squares, integral) > FAILURE_RATE


@pytest.mark.parametrize(
    ("process", "schedule", "power"),
    [
        (Absorbing(5), LINEAR, 8),
        (Uniform(5), LogLinear(), 8),
        (GammaHybrid(5, 0.1), Cosine(), 8),
        (GIDD(5, 0.1), LINEAR, 16),
        (GIDD(5, 0.1, exponent=0.5), LINEAR, 32),
        (EpsilonHybrid(5, 0.1), LINEAR, 8),
        (GammaHybrid(5, 0.1), CosinePower(), 4),
        (GammaHybrid(5, 0.1), Power(40.0), 1),
        (GammaHybrid(5, 0.1), Geometric(), 1),
    ],
    ids=str,
)
def test_the_power_follows_from_how_noise_begins(
    process: AbstractNoiseProcess, schedule: AbstractNoiseSchedule, power: float
) -> None:
    assert density_of(process, schedule, 16.0).power == pytest.approx(power, rel=0.05)  # the hump has an end
    assert density_of(process, schedule, 16.0).share == 0.5


@pytest.mark.parametrize("power", [1.0, 2.0, 8.0, 16.0, 32.0])
@pytest.mark.parametrize("share", [0.2, 1.0])
@pytest.mark.parametrize("cells", [[0], [3], [0, 1, 2, 3], [1, 2]], ids=str)
def test_moved_times_are_even_times_with_weights(power: float, share: float, cells: list[int]) -> None:
    """They integrate every function as even times do, keep their order, and never reach an ending."""
    count = 200_000
    times = (torch.arange(count, dtype=torch.float64)[:, None] + 0.5) / count
    moved, weight = placed(times, [torch.tensor(cells)], 4, Density(power, share), 1e-12)
    ends = [0.0, *((cell + 1) / 4 for cell in cells), 1.0]
    for low, high in itertools.pairwise(ends):
        inside = (times >= low) & (times < high)
        assert ((moved[inside] >= low) & (moved[inside] < high)).all()
    assert (moved.diff(dim=0) >= 0).all()
    for degree in range(4):
        total = float((weight * moved**degree).mean())
        assert total == pytest.approx(1 / (degree + 1), abs=1e-4)


def intervals(
    process: AbstractNoiseProcess,
    bound: str,
    estimator: str,
    schedule: AbstractHyperschedule,
    count: int,
    text: Tensor = TEXT,
) -> Tensor:
    """Independent groups of replicates of the exact model."""
    found = evaluate(
        ExactDenoiser(WORLD, process),
        text,
        schedule,
        bound=bound,
        estimator=estimator,
        replicates=count * REPLICATES,
        batch_size=1 << 14,
    )
    return torch.tensor(found.estimates, dtype=torch.float64).view(count, REPLICATES)


def check_coverage(groups: Tensor, level: float = 0.95) -> None:
    """The mean is the truth, and Student's interval holds it at the stated rate."""
    assert mean_p_value(groups.flatten(), TRUTH) > FAILURE_RATE
    error = groups.std(1) / groups.shape[1] ** 0.5
    reach = float(scipy.stats.t.ppf((1 + level) / 2, groups.shape[1] - 1))
    hits = int(((groups.mean(1) - TRUTH).abs() <= reach * error).sum())
    assert scipy.stats.binomtest(hits, len(groups), level).pvalue > FAILURE_RATE


PLANS = [
    flat(3, 4),
    Block(3, 2, 3),
    Slide(3, 2, 2),
    Wave(3, 2, 2),
    as_table(Wave(3, 2, 2)),
    autoregressive(3),
]
CASES = [
    *((process, "hybrid", each) for process in GRADUAL[:4] for each in ("random", "stratified")),
    *((Absorbing(2), "absorbing", each) for each in ("random", "stratified", "count")),
    (GammaHybrid(2, 0.4), "absorbing", "stratified"),
    (EpsilonHybrid(2, 0.3), "absorbing", "stratified"),
]


@pytest.mark.parametrize(("process", "bound", "estimator"), CASES[1:8:2], ids=str)
def test_intervals_hold_the_truth(process: AbstractNoiseProcess, bound: str, estimator: str) -> None:
    """Under even times GIDD's hold it two times in three."""
    check_coverage(intervals(process, bound, estimator, flat(3, 4), 40))


@pytest.mark.slow
@pytest.mark.parametrize("schedule", PLANS, ids=repr)
@pytest.mark.parametrize(("process", "bound", "estimator"), CASES, ids=str)
def test_intervals_hold_the_truth_along_every_hyperschedule(
    process: AbstractNoiseProcess, bound: str, estimator: str, schedule: AbstractHyperschedule
) -> None:
    if estimator == "count" and schedule not in (PLANS[0], PLANS[1]):
        pytest.skip("masks are counted where positions start together")
    if bound == "absorbing" and schedule == PLANS[-1]:
        pytest.skip("it is exact")
    check_coverage(intervals(process, bound, estimator, schedule, 150))
