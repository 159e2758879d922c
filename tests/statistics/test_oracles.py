"""Losses equal entropies: with the exact denoiser of an enumerable world, every bound is a number known beforehand.

Expectations over data, noise and times are sums and quadratures: only the tests with p-values draw anything.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from scipy import stats

from hdlm.denoiser import ForwardContext
from hdlm.hyperschedule import (
    Block,
    PublishedSlide,
    PublishedWave,
    Slide,
    Table,
    Wave,
    autoregressive,
    flat,
)
from hdlm.noise_schedule import Cosine, LogLinear
from hdlm.objective import (
    NELBO,
    Corruption,
    ScoreEntropy,
    WeightedCrossEntropy,
    prior_divergence,
    stratified_times,
)
from hdlm.process import GIDD, Absorbing, EpsilonHybrid, GammaHybrid, Uniform
from hdlm.randomness import Randomness
from hdlm.regime import Regime
from hdlm.verification import (
    FAILURE_RATE,
    ExactDenoiser,
    agreeing_world,
    chi_square,
    expected_loss,
    mean_p_value,
    nelbo_by_hand,
    quadrature,
    random_world,
)
from hdlm.verification.enumeration import state_law, states

WORLD = random_world(num_words=2, length=3, seed=5)
COUNTDOWNS = [flat(3, 2), Block(3, 2, 2), Slide(3, 3, 2), Wave(3, 2, 2), autoregressive(3)]
TABLES = [
    PublishedSlide(3, 2, 2),
    PublishedSlide(3, 3, 4),
    Table(torch.tensor([[3, 3, 3], [2, 3, 3], [2, 1, 3], [0, 1, 2], [0, 0, 0]])),
]
PROCESSES = [
    Absorbing(2),
    Uniform(2),
    EpsilonHybrid(2, 0.2),
    GammaHybrid(2, 0.3),
    GIDD(2, 0.3),
]


@pytest.mark.parametrize("reading", ["mean", "score"])
@pytest.mark.parametrize("gamma", [0.0, 0.1, 0.5, 1.0])
def test_score_entropy_of_the_gamma_hybrid_is_the_entropy(gamma, reading):
    """MATH, proof 2, for both forms of the exact answer."""
    process = GammaHybrid(2, gamma)
    corruption = Corruption(process, Regime(flat(3, 1)), two_stream=False)
    denoiser = ExactDenoiser(WORLD, process, reading)
    objective, tolerance = (ScoreEntropy(floor=1e-14), 1e-8) if reading == "mean" else (ScoreEntropy(), 1e-4)
    found = expected_loss(objective, denoiser, corruption, WORLD, nodes=40).sum()
    assert float(found) == pytest.approx(WORLD.entropy, abs=tolerance)


@pytest.mark.parametrize("schedule", [LogLinear(5e-3), Cosine()], ids=repr)
def test_finite_noise_with_prior_divergence_bounds_entropy(schedule):
    """MATH 3: where noise ends before 1 the bound needs `KL(q_1 || prior)`, and is then above the entropy, barely."""
    process = GammaHybrid(2, 0.1)
    corruption = Corruption(process, Regime(flat(3, 1), schedule), two_stream=False)
    path = expected_loss(
        ScoreEntropy(floor=1e-14), ExactDenoiser(WORLD, process), corruption, WORLD, nodes=40
    )
    excess = float(path.sum()) + 3 * prior_divergence(process, schedule) - WORLD.entropy
    assert -1e-8 < excess < 0.01


@pytest.mark.parametrize("two_stream", [False, True])
@pytest.mark.parametrize("hyperschedule", [*COUNTDOWNS, *TABLES], ids=repr)
def test_the_absorbing_bound_is_the_entropy(hyperschedule, two_stream):
    """MATH, proof 2, in continuous time on every hyperschedule, by steps of many levels too, and in both layouts."""
    process = Absorbing(2)
    corruption = Corruption(process, Regime(hyperschedule), two_stream=two_stream)
    nodes = 12 if corruption.num_times == 1 else 5
    exact = 1e-4 if nodes == 5 else 1e-9
    found = expected_loss(
        WeightedCrossEntropy(unmasked=0.0), ExactDenoiser(WORLD, process), corruption, WORLD, nodes
    )
    assert float(found.sum()) == pytest.approx(WORLD.entropy, abs=exact)


@pytest.mark.parametrize("epsilon", [0.0, 0.01, 0.2, 0.5])
def test_the_hybrid_bound_is_the_entropy_plus_the_total_correlation(epsilon):
    """MATH 2: the path of masks, and the reconstruction `-log p(x_0 | y)` of each word on its own."""
    process = EpsilonHybrid(2, epsilon)
    denoiser = ExactDenoiser(WORLD, process)
    corruption = Corruption(process, Regime(flat(3, 1)), two_stream=False)
    path = expected_loss(ScoreEntropy(floor=1e-14), denoiser, corruption, WORLD, nodes=16).sum()
    hair = torch.full((8, 3), 1e-15, dtype=torch.float64)
    y = states(2, 3)
    joint = WORLD.law[:, None] * state_law(process, WORLD.sequences, hair, y)  # p(x_0, y)
    of_y = joint.sum(0)
    seen = of_y > 1e-14
    joint, of_y, y = joint[:, seen], of_y[seen], y[seen]
    asked = denoiser.predict(y, hair[:1].expand(len(y), -1), ForwardContext())
    log_p = asked.log_clean(asked.everywhere()).view(len(y), 3, -1)
    at_x = log_p.gather(-1, WORLD.sequences.T.expand(len(y), -1, -1))  # [y l x_0]
    reconstruction = -(joint.T[:, None] * torch.where(joint.T[:, None] > 0, at_x, 0.0)).sum()
    posterior = joint / of_y
    correlation = reconstruction + torch.xlogy(joint, posterior).sum()  # sum of entropies minus the joint one
    assert float(path + reconstruction) == pytest.approx(WORLD.entropy + float(correlation), abs=1e-7)
    assert (float(correlation) > 1e-6) == (epsilon > 0)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize("hyperschedule", [*COUNTDOWNS, *TABLES], ids=repr)
def test_nelbo_is_the_sum_of_all_steps(hyperschedule, process):
    """The unbiased estimator's mean is the sum over steps and positions, computed by hand from the joint law."""
    by_hand = nelbo_by_hand(process, hyperschedule, WORLD)
    assert by_hand >= WORLD.entropy - 1e-12
    for two_stream in (False, True):
        corruption = Corruption(process, Regime(hyperschedule), two_stream=two_stream, continuous=False)
        found = expected_loss(NELBO(), ExactDenoiser(WORLD, process), corruption, WORLD).sum()
        assert float(found) == pytest.approx(by_hand, abs=1e-12)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_autoregressive_nelbo_equals_entropy(process):
    """Chain rule: one position a step, each from pure noise, whatever the noise."""
    assert nelbo_by_hand(process, autoregressive(3), WORLD) == pytest.approx(WORLD.entropy, abs=1e-12)


@pytest.mark.parametrize("process", [Absorbing(2), GammaHybrid(2, 0.5), Uniform(2)], ids=repr)
def test_nelbo_excess_halves_with_twice_the_steps(process):
    """First order: twice the steps, half the excess."""
    excess = [nelbo_by_hand(process, flat(3, steps), WORLD) - WORLD.entropy for steps in (4, 8, 16)]
    assert excess[2] > 0
    for coarse, fine in pairwise(excess):
        assert coarse / fine == pytest.approx(2.0, abs=0.5)


def test_published_wave_nelbo_needs_prior_of_first_block():
    """The first block starts at level `T - 1`, so the cost of the steps alone is less than the entropy."""
    schedule, process = PublishedWave(3, 2, 3), Absorbing(2)
    assert nelbo_by_hand(process, schedule, WORLD) < WORLD.entropy


def test_paper_loss_optimum_is_a_tilted_posterior():
    """With lambda > 0 a visible word is weighed by whether it is wrong, so the minimum is not `p(x_0 | x_t)`.

    Weights `1 - e` for a wrong word and `e` for a right one make the best answer `w(x_0) p(x_0 | x_t)`, normalised:
    so the optimum overestimates the probability that a visible word is wrong.
    """
    epsilon, world = 0.2, random_world(num_words=2, length=1, seed=1)
    process = EpsilonHybrid(2, epsilon)
    u = torch.full((2, 1), 0.4, dtype=torch.float64)
    joint = world.law[:, None] * state_law(process, world.sequences, u, states(2, 1))  # [x_0, x_t]
    right = torch.eye(2, dtype=torch.float64)
    weight = (epsilon * right + (1 - epsilon) * (1 - right)) / 0.6
    weighed = weight * joint[:, :2]
    best = weighed / weighed.sum(0)
    least = -(weighed * best.log()).sum()
    exact = joint[:, :2] / joint[:, :2].sum(0)
    truth = -(weighed * exact.log()).sum()
    corruption = Corruption(process, Regime(flat(1, 5)), two_stream=False, continuous=False)
    objective = WeightedCrossEntropy(unmasked=1.0)
    canvas = corruption(
        torch.tensor([[0], [0], [1], [1]]),
        torch.full((4, 1), 0.7, dtype=torch.float64),
        torch.zeros(4, 1, dtype=torch.float64),
    )
    assert canvas.t[0, 0] == pytest.approx(0.4)
    canvas = replace(canvas, x_t=torch.tensor([[0], [1], [0], [1]]))
    found = objective.weights(process, canvas).view(2, 2)
    torch.testing.assert_close(found, weight)
    assert float(least) < float(truth) - 1e-3


@pytest.mark.parametrize("two_stream", [False, True])
def test_nelbo_of_random_draws_has_mean_of_enumerated_bound(two_stream):
    """Uses random draws and random times, and compares the average with a p-value."""
    process, hyperschedule, size = GammaHybrid(2, 0.3), Slide(3, 2, 4), 8000
    denoiser, randomness = ExactDenoiser(WORLD, process), Randomness(11)
    corruption = Corruption(process, Regime(hyperschedule), two_stream=two_stream, continuous=False)
    rows, columns = torch.arange(size)[:, None], torch.arange(3)[None]
    which = torch.searchsorted(
        WORLD.law.cumsum(0), randomness.uniform(rows[:, 0], 0, rows[:, 0], 9), right=True
    )
    times = randomness.uniform(rows, 1, torch.arange(corruption.num_times)[None])
    canvas = corruption(WORLD.sequences[which.clamp_max(7)], times, randomness.uniform(rows, 2, columns))
    nats = NELBO()(denoiser, canvas).sum(-1)
    assert mean_p_value(nats, nelbo_by_hand(process, hyperschedule, WORLD)) > FAILURE_RATE


def test_stratified_times_cover_the_unit_interval_evenly():
    times = stratified_times(Randomness(2), step=7, num_sequences=60, num_times=4)
    assert times.shape == (60, 4)
    gaps = times.flatten().sort().values.diff()
    torch.testing.assert_close(gaps, torch.full_like(gaps, 1 / 240))
    parts = [stratified_times(Randomness(2), 7, 60, 4, start=k, stop=k + 15) for k in range(0, 60, 15)]
    assert torch.equal(torch.cat(parts), times)
    assert not torch.equal(stratified_times(Randomness(2), 8, 60, 4), times)
    firsts = torch.stack([stratified_times(Randomness(2), step, 8)[0, 0] for step in range(160)])
    assert chi_square((firsts * 8).long().bincount(minlength=8), torch.full((8,), 1 / 8)) > FAILURE_RATE


def test_stratified_times_reduce_variance():
    """Averages over a batch of a smooth function vary less than with independent times."""

    def spread(draw):
        return torch.stack([torch.exp(-3 * draw(step)).mean() for step in range(60)]).std()

    stratified = spread(lambda step: stratified_times(Randomness(0), step, 16))
    independent = spread(lambda step: Randomness(0).uniform(torch.arange(16), step, torch.zeros(16).long()))
    assert stratified < independent / 3


def test_chi_square_and_mean_p_value_agree_with_scipy():
    generator = torch.Generator().manual_seed(0)
    law = torch.softmax(torch.randn(3, 9, generator=generator, dtype=torch.float64), -1)
    counts = torch.stack([p.multinomial(4000, True, generator=generator).bincount(minlength=9) for p in law])
    expected = law * 4000
    assert (expected > 5).all()
    statistic = float(((counts - expected) ** 2 / expected).sum())
    assert chi_square(counts, law) == pytest.approx(stats.chi2.sf(statistic, 3 * 8), rel=1e-9)
    samples = torch.randn(500, generator=generator, dtype=torch.float64) + 0.1
    z = float(samples.mean() / (samples.std() / 500**0.5))
    assert mean_p_value(samples, 0.0) == pytest.approx(2 * stats.norm.sf(abs(z)), rel=1e-9)


def test_chi_square_detects_wrong_counts():
    law = torch.tensor([0.5, 0.3, 0.2, 0.0], dtype=torch.float64)
    assert chi_square(torch.tensor([5000, 3000, 2000, 0]), law) == 1.0
    assert chi_square(torch.tensor([5000, 3000, 1999, 1]), law) == 0.0
    assert chi_square(torch.tensor([5300, 2700, 2000, 0]), law) < FAILURE_RATE


def test_quadrature_is_exact_for_polynomials_and_handles_infinite_ends():
    places, weights = quadrature(32)
    for power in range(7):
        assert float(weights @ places**power) == pytest.approx(1 / (power + 1), abs=1e-12)
    assert float(weights @ -places.log()) == pytest.approx(1, abs=1e-6)
    assert float(weights @ (1 - places) ** -0.5) == pytest.approx(2, abs=1e-3)


def test_world_has_stated_law_and_entropy():
    for world in (WORLD, agreeing_world(3, 3), random_world(4, 2, 1)):
        assert float(world.law.sum()) == pytest.approx(1)
        assert torch.equal(world.index(world.sequences), torch.arange(len(world.law)))
        assert world.entropy == pytest.approx(stats.entropy(world.law.numpy()))
    assert torch.equal(random_world(2, 2, 7).law, random_world(2, 2, 7).law)
    with pytest.raises(ValueError, match="sum to 1"):
        type(WORLD)(torch.tensor([0.5, 0.6], dtype=torch.float64))
    with pytest.raises(ValueError, match="axis of equal size"):
        type(WORLD)(torch.ones(2, 3, dtype=torch.float64) / 6)
    with pytest.raises(ValueError, match="Only words"):
        WORLD.count(torch.tensor([[0, 1, 2]]))
