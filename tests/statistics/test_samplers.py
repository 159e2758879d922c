"""Samplers reproduce the law they should: exact denoisers in, counted sequences out, chi-square p-values.

A sampler of finitely many steps has a law of its own, which `hdlm.verification.chain` sums up over all canvases. So
what is drawn is held against what must be drawn at any number of steps, and that law against the world, without luck.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from hdlm.denoiser import ForwardContext
from hdlm.hyperschedule import Block, PublishedSlide, Slide, Wave, autoregressive, flat
from hdlm.noise_schedule import LINEAR, Cosine, LogLinear
from hdlm.process import GIDD, Absorbing, EpsilonHybrid, GammaHybrid, Uniform
from hdlm.randomness import Randomness
from hdlm.regime import Regime
from hdlm.sampling import (
    AdaptiveCorrection,
    Analytic,
    Ancestral,
    Answer,
    ByEntropy,
    ByFactor,
    ByThreshold,
    Cap,
    Chain,
    EntropyRenoising,
    Euler,
    FirstHitting,
    GibbsCorrection,
    JointThreshold,
    Move,
    Reading,
    Remask,
    ReMDM,
    Rescale,
    sample,
)
from hdlm.verification import (
    FAILURE_RATE,
    ExactDenoiser,
    Trial,
    agreeing_world,
    ancestral_law,
    built_in,
    chain,
    chi_square,
    corrected_law,
    laws_of,
    mean_p_value,
    text_law,
)
from hdlm.verification.enumeration import generator_matrix, state_law, states
from tests.along import regime_of, sample_along
from tests.tiny import with_few_passes

WORDS, LENGTH = 3, 3
WORLD = agreeing_world(WORDS, LENGTH)
MANY = 100_000
HYPERSCHEDULES = [
    flat(LENGTH, 3),
    Block(LENGTH, 2, 2),
    Slide(LENGTH, 2, 2),
    Wave(LENGTH, 2, 2),
    PublishedSlide(LENGTH, 2, 2),
]
PROCESSES = [
    Absorbing(WORDS),
    Uniform(WORDS),
    EpsilonHybrid(WORDS, 0.2),
    GammaHybrid(WORDS, 0.4),
    GIDD(WORDS, 0.3),
]
COUNTS = [pytest.param(4_000, id="few"), pytest.param(MANY, id="many", marks=pytest.mark.slow)]

# --- every algorithm by name: the laws of samplers ---------------------------------------------------------------
SAMPLERS = {
    name: replace(subject, step=with_few_passes(subject.step))
    for name, subject in built_in().items()
    if name.startswith("sampling")
}


@pytest.mark.parametrize("law", laws_of(next(iter(SAMPLERS.values()))), ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", SAMPLERS)
def test_sampler_obeys_law(name, law):
    assert_law_holds(law, name, Trial(seed=2, samples=4_000))


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLERS)
def test_sampler_obeys_laws_with_many_samples(name):
    for law in laws_of(SAMPLERS[name]):
        assert_law_holds(law, name, Trial(seed=3, samples=MANY))


def assert_law_holds(law, name, trial):
    """Assert a law. Only the mask-schedule law does not apply to samplers with adaptive steps."""
    subject = SAMPLERS[name]
    finding = law(subject, trial)
    if finding is None:
        adaptive = ByEntropy | ByFactor | ByThreshold | JointThreshold | EntropyRenoising
        assert isinstance(subject.step, adaptive)
        assert law.__name__ == "masks_follow_the_schedule"
    else:
        assert finding.ok, f"{law.__doc__.splitlines()[0]} {finding}"


# --- samples against enumerated chains ---------------------------------------------------------------------------
def final_law(denoiser, schedule, step=ancestral_law, **options):
    *_, law = chain(denoiser, regime_of(schedule, options), step)
    return text_law(law, WORDS, schedule.length)


def p_value_of_samples(tokens, law):
    return chi_square(WORLD.count(tokens), law)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize("schedule", HYPERSCHEDULES, ids=repr)
def test_ancestral_samples_follow_enumerated_chain(schedule, process, count):
    denoiser = ExactDenoiser(WORLD, process)
    tokens = sample(denoiser, Regime(schedule), Ancestral(), num_sequences=count, seed=5).tokens
    law = final_law(denoiser, schedule)
    assert float(law.sum()) == pytest.approx(1, abs=1e-12)  # nothing is left masked
    assert p_value_of_samples(tokens, law) > FAILURE_RATE


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize(
    "process", [Absorbing(WORDS), EpsilonHybrid(WORDS, 0.2), GammaHybrid(WORDS, 0.4)], ids=repr
)
@pytest.mark.parametrize("schedule", [flat(LENGTH, 4), Slide(LENGTH, 3, 4)], ids=repr)
def test_acs_samples_follow_enumerated_chain(schedule, process, count):
    """MATH, proof 3; with a strong `eta`, so that the plain sampler's law would not do."""
    eta, denoiser = 0.9, ExactDenoiser(WORLD, process)
    step = Chain((Ancestral(), AdaptiveCorrection(eta)))
    tokens = sample(denoiser, Regime(schedule), step, num_sequences=count, seed=6).tokens
    law = final_law(denoiser, schedule, corrected_law(eta))
    assert p_value_of_samples(tokens, law) > FAILURE_RATE
    if count == MANY and isinstance(process, EpsilonHybrid | GammaHybrid):
        assert p_value_of_samples(tokens, final_law(denoiser, schedule)) < FAILURE_RATE


def remdm_law(strength):
    """ReMDM (arXiv 2503.00307): mask each word with probability `sigma`, and unmask so that the mask share is kept."""

    def law(board):
        mask_s, mask_t = board.process.weights(board.s).mask, board.process.weights(board.t).mask
        largest = (mask_s / (1 - mask_t).clamp_min(1e-300)).clamp_max(1)
        sigma = strength(largest, mask_s)
        lift = ((1 - mask_s) - (1 - sigma) * (1 - mask_t)) / mask_t
        one_hot = torch.nn.functional.one_hot(board.x, WORDS + 1).double()
        gone = torch.zeros_like(one_hot)
        gone[..., -1] = 1
        of_word = sigma[..., None] * gone + (1 - sigma[..., None]) * one_hot
        of_mask = lift[..., None] * board.clean + (1 - lift[..., None]) * gone
        return torch.where((board.x == board.process.mask_id)[..., None], of_mask, of_word)

    return law


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize(
    ("step", "strength"),
    [
        (ReMDM(Cap(0.3)), lambda largest, _: largest.clamp_max(0.3)),
        (ReMDM(Rescale(0.7)), lambda largest, _: 0.7 * largest),
        (Remask(), lambda largest, mask_s: torch.minimum(mask_s, largest)),
        (Remask(0.5), lambda largest, mask_s: 0.5 * torch.minimum(mask_s, largest)),
    ],
    ids=["cap", "rescale", "remask", "remask half"],
)
def test_remasking_samples_follow_enumerated_chain(step, strength, count):
    denoiser = ExactDenoiser(WORLD, Absorbing(WORDS))
    for schedule in (flat(LENGTH, 5), Slide(LENGTH, 3, 4)):
        tokens = sample(denoiser, Regime(schedule), step, num_sequences=count, seed=14).tokens
        assert p_value_of_samples(tokens, final_law(denoiser, schedule, remdm_law(strength))) > FAILURE_RATE


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("reading", ["mean", "score"])
@pytest.mark.parametrize(
    "process", [EpsilonHybrid(WORDS, 0.2), GammaHybrid(WORDS, 0.4), GIDD(WORDS, 0.3)], ids=repr
)
def test_analytic_samples_follow_ancestral_chain(process, reading, count):
    """FAULTS 2: with the exact inverse of the kernel, the step along the score is the ancestral one."""
    denoiser, schedule = ExactDenoiser(WORLD, process, reading), flat(LENGTH, 3)
    options = {"noise_schedule": LogLinear(1e-4)}
    tokens = sample_along(denoiser, schedule, Analytic(), num_sequences=count, seed=7, **options).tokens
    assert (
        p_value_of_samples(tokens, final_law(ExactDenoiser(WORLD, process), schedule, **options))
        > FAILURE_RATE
    )


def euler_law(board):
    """`delta(x_t) + (t - s) R(y -> x_t) p_t(y) / p_t(x_t)`, written with the generator's matrix."""
    process, floor = board.process, Euler().floor
    t = torch.maximum(board.t.clamp_max(1 - floor), board.s)
    score = process.score_from_clean(board.x, board.clean, t)
    rate = generator_matrix(process, process.rates(t)).gather(
        -2, board.x[..., None, None].expand(*board.x.shape, 1, process.num_words + 1)
    )[..., 0, :]
    jump = ((t - board.s)[..., None] * rate * score).scatter(-1, board.x[..., None], 0.0)
    stay = (1 - jump.sum(-1, keepdim=True)).clamp_min(0)
    euler = jump.scatter(-1, board.x[..., None], stay)
    law = torch.where((board.s == 0)[..., None], process.tweedie(board.x, score, board.s, t), euler)
    return law / law.sum(-1, keepdim=True)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("process", [Absorbing(WORDS), GammaHybrid(WORDS, 0.4)], ids=repr)
def test_euler_samples_follow_enumerated_chain(process, count):
    denoiser, schedule = ExactDenoiser(WORLD, process), flat(LENGTH, 5)
    tokens = sample(denoiser, Regime(schedule), Euler(), num_sequences=count, seed=8).tokens
    assert p_value_of_samples(tokens, final_law(denoiser, schedule, euler_law)) > FAILURE_RATE


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("schedule", HYPERSCHEDULES, ids=repr)
def test_first_hitting_samples_follow_world_in_any_number_of_steps(schedule, count):
    """Masks are removed one at a time, so each word is drawn given all earlier words."""
    denoiser = ExactDenoiser(WORLD, Absorbing(WORDS))
    tokens = sample(denoiser, Regime(schedule), FirstHitting(), num_sequences=count, seed=9).tokens
    assert p_value_of_samples(tokens, WORLD.law) > FAILURE_RATE


@pytest.mark.slow
@pytest.mark.parametrize(
    ("process", "schedule", "step"),
    [
        (Absorbing(WORDS), flat(LENGTH, 100), Ancestral()),
        (Uniform(WORDS), flat(LENGTH, 100), Ancestral()),
        (GammaHybrid(WORDS, 0.4), Slide(LENGTH, 3, 100), Ancestral()),
        (GammaHybrid(WORDS, 0.4), flat(LENGTH, 100), Analytic()),
    ],
    ids=repr,
)
def test_samples_with_many_steps_follow_world(process, schedule, step):
    """MATH, proof 3: with 100 steps the deviation is too small for 1e5 samples to detect."""
    tokens = sample(ExactDenoiser(WORLD, process), Regime(schedule), step, num_sequences=MANY, seed=10).tokens
    assert p_value_of_samples(tokens, WORLD.law) > FAILURE_RATE


# --- the chains themselves, without a sample ---------------------------------------------------------------------
def distance(law, other):
    """Total variation."""
    return float((law - other).abs().sum() / 2)


@pytest.mark.parametrize(
    ("process", "step"),
    [
        (Absorbing(WORDS), ancestral_law),
        (Uniform(WORDS), ancestral_law),
        (GammaHybrid(WORDS, 0.4), ancestral_law),
        (GammaHybrid(WORDS, 0.4), euler_law),
    ],
    ids=lambda piece: getattr(piece, "__name__", repr(piece)),
)
def test_chains_converge_to_the_world(process, step):
    """First order at least: twice the steps, about half the distance or less."""
    denoiser = ExactDenoiser(WORLD, process)
    gaps = [distance(final_law(denoiser, flat(LENGTH, steps), step), WORLD.law) for steps in (8, 16, 32)]
    assert gaps[0] > 1e-3
    for coarse, fine in pairwise(gaps):
        assert fine < 0.75 * coarse


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_autoregressive_chain_equals_world(process):
    law = final_law(ExactDenoiser(WORLD, process), autoregressive(LENGTH))
    torch.testing.assert_close(law, WORLD.law, atol=1e-12, rtol=0)


def test_epsilon_hybrid_chain_does_not_converge_to_world():
    """All uniform noise is at `u = 0+`, so more steps do not bring the law to the world without corrections."""
    denoiser = ExactDenoiser(WORLD, EpsilonHybrid(WORDS, 0.5))
    gaps = [distance(final_law(denoiser, flat(LENGTH, steps)), WORLD.law) for steps in (8, 32)]
    assert gaps[1] > 0.8 * gaps[0] > 0.01


# --- masks per step ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "step",
    [Ancestral(), Chain((Ancestral(), AdaptiveCorrection(0.5))), Remask(), ReMDM(Rescale(0.7)), Analytic()],
    ids=repr,
)
@pytest.mark.parametrize("schedule", [Slide(LENGTH, 2, 4), Wave(LENGTH, 2, 3)], ids=repr)
def test_mask_frequency_of_each_position_follows_schedule(schedule, step):
    """FAULTS 3 and 4: each position has the scheduled mask frequency at each step, also with remasking."""
    process = GammaHybrid(WORDS, 0.2)
    denoiser, fits = ExactDenoiser(WORLD, process), []

    def watch(frame):
        u = Cosine().fraction(schedule.noise(frame.step + 1))
        expected = process.weights(u).mask
        masked = (frame.after == process.mask_id).double()
        for i in ((expected > 0) & (expected < 1)).nonzero()[:, 0].tolist():
            fits.append(mean_p_value(masked[:, i], float(expected[i])))
        certain = (expected == 0) | (expected == 1)
        assert torch.equal(masked[:, certain], expected[certain].expand(len(masked), -1))

    sample(
        denoiser, Regime(schedule, noise_schedule=Cosine()), step, num_sequences=4000, seed=11, watch=watch
    )
    assert len(fits) > 4
    assert min(fits) * len(fits) > FAILURE_RATE


# --- Gibbs: invariance -------------------------------------------------------------------------------------------
def move_at(denoiser, x, u, seed=0):
    """A move at noise `u` with all positions active."""
    noise = torch.full(x.shape, u, dtype=torch.float64)

    def ask(tokens, at, previous=None):
        answer = Answer(denoiser.predict(tokens, at, ForwardContext()), torch.arange(x.numel()).view(x.shape))
        return Reading(lambda where: answer, tokens, at, ())

    every = torch.ones_like(x, dtype=torch.bool)
    return Move(denoiser.process, x, noise, noise, every, ask, Randomness(seed), torch.arange(len(x)), 0)


def gibbs_law(denoiser, x, u):
    """The transition matrix of redrawing one visible position, chosen uniformly, by the formula of MATH 5."""
    process, canvases = denoiser.process, len(x)
    noise = torch.full(x.shape, u, dtype=torch.float64)
    asked = denoiser.predict(x, noise, ForwardContext())
    clean = asked.log_clean(asked.everywhere()).exp().view(*x.shape, -1)[..., :-1]
    w = process.weights(noise)
    own = (
        w.uniform[..., None] / process.num_words
        + w.clean[..., None] * torch.nn.functional.one_hot(x, process.num_words + 1)[..., :-1]
    )
    rest = clean / own
    rest = rest / rest.sum(-1, keepdim=True)
    keep = (w.clean / (w.clean + w.uniform))[..., None]
    redraw = keep * rest + (1 - keep) / process.num_words
    place = (process.num_words + 1) ** torch.arange(LENGTH - 1, -1, -1)
    matrix = torch.zeros(canvases, canvases, dtype=torch.float64)
    visible = x != process.mask_id
    for z in range(canvases):
        if not visible[z].any():
            matrix[z, z] = 1
        for i in visible[z].nonzero()[:, 0].tolist():
            for word in range(process.num_words):
                to = z + (word - int(x[z, i])) * int(place[i])
                matrix[z, to] += redraw[z, i, word] / visible[z].sum()
    return matrix


@pytest.mark.parametrize("u", [0.05, 0.5, 0.9])
@pytest.mark.parametrize(
    "process", [EpsilonHybrid(WORDS, 0.2), GammaHybrid(WORDS, 0.4), GIDD(WORDS, 0.3)], ids=repr
)
def test_gibbs_correction_is_invariant_at_every_noise_level(process, u):
    """MATH 5, to 1e-12, one position at a time; and the step draws from that matrix."""
    denoiser, x = ExactDenoiser(WORLD, process), states(WORDS, LENGTH)
    noise = torch.full(WORLD.sequences.shape, u, dtype=torch.float64)
    law = WORLD.law @ state_law(process, WORLD.sequences, noise, x)
    matrix = gibbs_law(denoiser, x, u)
    torch.testing.assert_close(matrix.sum(-1), torch.ones(len(x), dtype=torch.float64))
    torch.testing.assert_close(law @ matrix, law, atol=1e-12, rtol=0)
    assert float((matrix.diagonal() < 0.9).double().mean()) > 0.5  # it does move
    copies = 100
    start = x.repeat_interleave(copies, 0)
    end = GibbsCorrection()(start, move_at(denoiser, start, u))
    place = 4 ** torch.arange(LENGTH - 1, -1, -1)
    cells = (torch.arange(len(x)).repeat_interleave(copies) * len(x) + (end * place).sum(-1)).bincount(
        minlength=len(x) ** 2
    )
    assert chi_square(cells.view(len(x), len(x)), matrix) > FAILURE_RATE


def test_acs_is_not_invariant():
    """Redrawing from `p(x_0 | x_t)`, which depends on the current word, changes the law (MATH 5)."""
    process, u = EpsilonHybrid(WORDS, 0.2), 0.3
    denoiser, x = ExactDenoiser(WORLD, process), states(WORDS, LENGTH)
    noise = torch.full(WORLD.sequences.shape, u, dtype=torch.float64)
    law = WORLD.law @ state_law(process, WORLD.sequences, noise, x)
    draws = Randomness(1).uniform(torch.arange(40_000), 0, torch.zeros(40_000, dtype=torch.long))
    start = x[torch.searchsorted(law.cumsum(0), draws, right=True).clamp_max(len(x) - 1)]
    move = move_at(denoiser, start, u)
    end = AdaptiveCorrection(1.0)(start, replace(move, t=move.t))
    place = 4 ** torch.arange(LENGTH - 1, -1, -1)
    assert chi_square((start * place).sum(-1).bincount(minlength=len(x)), law) > FAILURE_RATE
    assert chi_square((end * place).sum(-1).bincount(minlength=len(x)), law) < FAILURE_RATE


@pytest.mark.parametrize("count", COUNTS)
def test_gibbs_correction_in_the_loop_is_as_close_to_world(count):
    """With a process whose words keep moving, corrected generation comes as close to the world as its steps allow."""
    process, schedule = GammaHybrid(WORDS, 0.6), flat(LENGTH, 12)
    denoiser = ExactDenoiser(WORLD, process)
    step = Chain((Ancestral(), GibbsCorrection()))
    tokens = sample(denoiser, Regime(schedule), step, num_sequences=min(count, 50_000), seed=12).tokens
    plain, corrected = (
        distance(law, WORLD.law)
        for law in (final_law(denoiser, schedule), WORLD.count(tokens).double() / len(tokens))
    )
    assert corrected < plain + 3 * (len(WORLD.law) / len(tokens)) ** 0.5


# --- the context a sampler may use -------------------------------------------------------------------------------
@pytest.mark.parametrize("use_cache", [False, True], ids=["uncached", "cached"])
@pytest.mark.parametrize("context", ["causal", "block_causal", "full"])
@pytest.mark.parametrize("active", ["full", "causal"])
def test_samples_follow_chain_of_same_visibility(context, active, use_cache):
    """Samples agree with the chain of the same visibility, with and without a cache."""
    process, schedule, noise = GammaHybrid(WORDS, 0.4), Block(LENGTH, 2, 2), LINEAR
    denoiser = ExactDenoiser(WORLD, process)
    views = {"context": context, "active": active, "noise_schedule": noise}
    tokens = sample_along(
        denoiser, schedule, Ancestral(), num_sequences=4000, seed=13, use_cache=use_cache, **views
    ).tokens
    assert p_value_of_samples(tokens, final_law(denoiser, schedule, **views)) > FAILURE_RATE
