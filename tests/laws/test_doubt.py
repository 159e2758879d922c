"""Correction by doubt: its chain, its invariance, and what it is worth in worlds that can be enumerated."""

from __future__ import annotations

import pytest
import torch

from hdlm.denoiser import ForwardContext
from hdlm.hyperschedule import Slide, flat
from hdlm.process import GIDD, Absorbing, EpsilonHybrid, GammaHybrid, Uniform
from hdlm.regime import Regime
from hdlm.sampling import Ancestral, Chain, DoubtCorrection, algorithm, sample
from hdlm.verification import (
    FAILURE_RATE,
    ExactDenoiser,
    agreeing_world,
    chain,
    chi_square,
    mirrored_world,
    position_law,
    random_world,
    text_law,
)
from hdlm.verification.enumeration import state_law, states, transition_matrix

WORDS, LENGTH = 3, 4
PROCESSES = [
    Absorbing(WORDS),
    Uniform(WORDS),
    EpsilonHybrid(WORDS, 0.2),
    GammaHybrid(WORDS, 0.4),
    GIDD(WORDS, 0.3),
]
WORLDS = {
    "chain": agreeing_world(WORDS, LENGTH, 3.0),
    "random": random_world(WORDS, LENGTH, temperature=0.5),
    "mirrored": mirrored_world(WORDS, LENGTH),
}


def final_law(world, process, plan, step):
    law = position_law(step)
    assert law is not None
    *_, last = chain(ExactDenoiser(world, process), Regime(plan), law)
    return text_law(last, WORDS, world.length)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize("plan", [flat(3, 4), Slide(3, 3, 4)], ids=repr)
@pytest.mark.parametrize("count", [4_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_samples_follow_enumerated_chain(process, plan, count):
    world = agreeing_world(WORDS, 3)
    step = Chain((Ancestral(), DoubtCorrection(2.0, 3.0)))
    tokens = sample(ExactDenoiser(world, process), Regime(plan), step, num_sequences=count, seed=4).tokens
    assert chi_square(world.count(tokens), final_law(world, process, plan, step)) > FAILURE_RATE


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize("own", [True, False], ids=["masks too", "words only"])
def test_redraw_and_renoise_is_invariant_at_every_noise_level(process, own):
    """Draw `x_0` of one position from the prediction, noise it again at its level: no law of the canvas changes."""
    world, u = agreeing_world(WORDS, 3), torch.tensor(0.4, dtype=torch.float64)
    x = states(WORDS, 3)
    noise = u.expand(x.shape)
    law = world.law @ state_law(process, world.sequences, u.expand(world.sequences.shape), x)
    asked = ExactDenoiser(world, process).predict(x, noise, ForwardContext())
    clean = asked.log_clean(asked.everywhere()).exp().view(*x.shape, -1)
    again = transition_matrix(process, process.between(torch.zeros_like(u), u))
    for i in range(3):
        new = torch.where(law[:, None] > 0, clean[:, i] @ again.T, 0.0)
        if not own:  # the place of the masks stays
            words = new[:, :-1] / new[:, :-1].sum(-1, keepdim=True).clamp_min(1e-300)
            itself = torch.nn.functional.one_hot(x[:, i], WORDS + 1).double()
            new = torch.where(
                (x[:, i] == WORDS)[:, None], itself, torch.nn.functional.pad(words, (0, 1)).nan_to_num(0.0)
            )
        weight = (law[:, None] * new).view(*[WORDS + 1] * 3, WORDS + 1).sum(i).movedim(-1, i)
        torch.testing.assert_close(weight.flatten(), law, atol=1e-12, rtol=0)


def test_without_noise_nothing_is_redrawn():
    """Absorbing noise never makes a wrong word, so the prediction is certain of every visible word."""
    process, world = Absorbing(WORDS), WORLDS["chain"]
    plain, doubted = (
        final_law(world, process, flat(LENGTH, 3), step)
        for step in (Ancestral(), Chain((Ancestral(), DoubtCorrection())))
    )
    torch.testing.assert_close(plain, doubted, atol=1e-12, rtol=0)


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
@pytest.mark.parametrize("steps", [2, 3, 4, 8])
def test_doubt_is_nearer_to_the_world_than_acs_and_ancestral_sampling(world, steps):
    """The claim of docs/samplers.md, at the noise of the published models: one strength for all numbers of steps."""
    process = EpsilonHybrid(WORDS, 0.01)
    doubted, *others = (
        float(
            (final_law(world, process, flat(LENGTH, steps), algorithm(name, process, eta)) - world.law)
            .abs()
            .sum()
        )
        for name, eta in (("doubt", 0.5), ("original", 0.0), ("acs", 0.1), ("acs", 0.5), ("acs", 1.0))
    )
    assert doubted < min(others)
