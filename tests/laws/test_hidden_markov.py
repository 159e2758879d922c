"""A hidden Markov world agrees with the enumerated world of its joint law, under every process and view."""

from __future__ import annotations

import pytest
import torch

from hdlm.denoiser import ForwardContext
from hdlm.hyperschedule import Block, Slide, flat
from hdlm.process import GIDD, Absorbing, EpsilonHybrid, GammaHybrid, Uniform
from hdlm.regime import Regime
from hdlm.sampling import Ancestral, sample
from hdlm.verification import ExactDenoiser, HiddenMarkov, World, mean_p_value, phrases
from hdlm.verification.enumeration import states
from hdlm.verification.statistics import FAILURE_RATE

WORDS, LENGTH = 4, 4
CHAIN = phrases(LENGTH, WORDS, order=0.8, topic=0.1)
TABLE = World(CHAIN.law_of_run(LENGTH).view([WORDS] * LENGTH))
PROCESSES = [
    Absorbing(WORDS),
    Uniform(WORDS),
    EpsilonHybrid(WORDS, 0.2),
    GammaHybrid(WORDS, 0.4),
    GIDD(WORDS, 0.3),
]


@pytest.mark.parametrize("reading", ["mean", "score"])
@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_forward_backward_equals_enumeration(process, reading):
    """At different noise in each position; with the evidence of the word itself, and without it."""
    x = states(WORDS if process.makes_masks else WORDS - 1, LENGTH)[::3]
    noise = torch.tensor([0.2, 0.9, 0.4, 0.6], dtype=torch.float64).expand(x.shape)
    ours, theirs = (
        ExactDenoiser(world, process, reading).predict(x, noise, ForwardContext()) for world in (CHAIN, TABLE)
    )
    at = ours.everywhere()
    torch.testing.assert_close(ours.raw(at), theirs.raw(at), atol=1e-9, rtol=1e-9)
    clean, other = (one.log_clean(at).exp() for one in (ours, theirs))
    without, again = (process.origin(x.flatten(), p, noise.flatten()) for p in (clean, other))
    torch.testing.assert_close(without, again, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("plan", [flat(LENGTH, 3), Block(LENGTH, 2, 2), Slide(LENGTH, 2, 2)], ids=repr)
def test_samples_equal_those_of_the_enumerated_world(plan):
    """The views of a hyperschedule, and the cache."""
    process = EpsilonHybrid(WORDS, 0.2)
    ours, theirs = (
        sample(ExactDenoiser(world, process), Regime(plan), Ancestral(), num_sequences=50, seed=1).tokens
        for world in (CHAIN, TABLE)
    )
    assert torch.equal(ours, theirs)


def test_probabilities_and_draws_follow_the_law():
    torch.testing.assert_close(CHAIN.log_probability(TABLE.sequences).exp(), TABLE.law, atol=1e-12, rtol=0)
    drawn = CHAIN.log_probability(CHAIN.draw(4000, seed=1))
    assert mean_p_value(-drawn, TABLE.entropy) > FAILURE_RATE
    torch.testing.assert_close(CHAIN.law_of_run(2).sum(), torch.ones((), dtype=torch.float64))


def test_rows_that_are_no_distribution_are_refused():
    with pytest.raises(ValueError, match="Rows of `emission`"):
        HiddenMarkov(CHAIN.transition, CHAIN.emission * 2, 3)
    with pytest.raises(ValueError, match="needs a row and a column"):
        HiddenMarkov(CHAIN.transition, CHAIN.emission, 0)
