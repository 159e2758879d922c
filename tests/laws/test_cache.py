"""MATH, proof 5: a cache changes no logit and no token, on any hyperschedule, with aligned and shifted outputs."""

from __future__ import annotations

from typing import final

import torch
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st

from hdlm.denoiser import AbstractDenoiser
from hdlm.hyperschedule import (
    Block,
    PublishedSlide,
    Slide,
    Table,
    Wave,
    autoregressive,
    flat,
    opens_left_to_right,
)
from hdlm.parameterization import Mean, Shifted
from hdlm.process import EpsilonHybrid, GammaHybrid
from hdlm.regime import Regime
from hdlm.sampling import (
    AdaptiveCorrection,
    Analytic,
    Ancestral,
    Chain,
    Execution,
    GibbsCorrection,
    Prompt,
    sample,
)
from hdlm.verification import ExactDenoiser, agreeing_world
from tests.along import sample_along
from tests.tiny import tiny_denoiser

WORDS = 5


@final
class RecordingDenoiser(AbstractDenoiser):
    """Forwards every call and records the raw outputs by position."""

    def __init__(self, inner: AbstractDenoiser) -> None:
        self.inner, self.process = inner, inner.process
        self.answers = []
        self.num_queries = 0

    @property
    def lookback(self):
        return self.inner.lookback

    @property
    def noise_dependence(self):
        return self.inner.noise_dependence

    def new_cache(self):
        return self.inner.new_cache()

    def predict(self, tokens, noise, context):
        prediction = self.inner.predict(tokens, noise, context)
        raw = prediction.raw(prediction.everywhere()).view(*tokens.shape, -1)
        readable = range(
            self.lookback, tokens.shape[1]
        )  # a shifted window does not predict its first position
        places = context.positions[0].tolist()
        self.answers.append(
            {places[i]: raw[:, i] for i in readable if places[i] - places[i - self.lookback] == self.lookback}
        )
        self.num_queries += tokens.shape[1]
        return prediction


@st.composite
def schedules(draw, longest=8):
    length = draw(st.integers(2, longest))
    width, levels = draw(st.integers(1, length)), draw(st.integers(1, 4))
    family = draw(st.sampled_from((Block, Slide, Wave, "flat", "ar", "published", "table")))
    if family == "flat":
        return flat(length, levels)
    if family == "ar":
        return autoregressive(length)
    if family == "published":
        return PublishedSlide(length, max(width, 2), levels)
    if family == "table":
        drops = torch.tensor(draw(st.lists(st.integers(0, 2), min_size=3 * length, max_size=3 * length)))
        rows = drops.view(3, length).cumsum(0).flip(0)
        return Table(torch.cat([rows + 1, torch.zeros(1, length, dtype=torch.long)]))
    return family(length, width, levels)


STEPS = st.sampled_from(
    (
        Ancestral(),
        Chain((Ancestral(), AdaptiveCorrection(0.5))),
        Chain((Ancestral(), GibbsCorrection(0.5))),
        Analytic(),
    )
)


@settings(max_examples=8, deadline=None)
@given(
    schedules(),
    STEPS,
    st.sampled_from(("causal", "block_causal")),
    st.sampled_from(("full", "causal")),
    st.booleans(),
)
def test_network_cache_keeps_tokens_and_logits(schedule, step, context, active, shifted):
    assume(not shifted or opens_left_to_right(schedule))  # others are refused
    process = GammaHybrid(WORDS, 0.3)
    inner = tiny_denoiser(process, Shifted(Mean()) if shifted else Mean())
    prompt = Prompt.prefix([1], schedule.length) if shifted else None
    runs = []
    for use_cache in (False, True):
        recording = RecordingDenoiser(inner)
        done = sample(
            recording,
            Regime(schedule, context=context, active=active),
            step,
            num_sequences=3,
            prompt=prompt,
            execution=Execution(use_cache=use_cache),
        )
        runs.append((done, recording))
    (plain, asked), (cached, answered) = runs
    assert torch.equal(plain.tokens, cached.tokens)
    assert plain.num_evaluations == cached.num_evaluations == len(asked.answers)
    assert answered.num_queries <= asked.num_queries
    for whole, window in zip(asked.answers, answered.answers, strict=True):
        assert set(window) <= set(whole)
        for place, raw in window.items():
            torch.testing.assert_close(raw, whole[place], atol=1e-10, rtol=1e-10)


@settings(max_examples=5, deadline=None)
@given(schedules(longest=4), st.sampled_from(("causal", "block_causal")))
def test_exact_denoiser_cache_keeps_tokens(schedule, context):
    denoiser = ExactDenoiser(agreeing_world(3, schedule.length), EpsilonHybrid(3, 0.2))
    plain, cached = (
        sample(
            denoiser,
            Regime(schedule, context=context),
            Ancestral(),
            num_sequences=5,
            execution=Execution(use_cache=use_cache),
        ).tokens
        for use_cache in (False, True)
    )
    assert torch.equal(plain, cached)


@settings(max_examples=3, deadline=None)
@given(schedules(longest=5), st.integers(0, 2**63))
def test_sample_tokens_depend_on_seed_and_not_on_batch(schedule, seed):
    """A seed gives equal tokens in any batches, and another seed gives other tokens."""
    denoiser = tiny_denoiser(EpsilonHybrid(WORDS, 0.2))

    def draw(seed, size, first=0, count=6):
        return sample(
            denoiser,
            Regime(schedule),
            Chain((Ancestral(), AdaptiveCorrection(0.5))),
            num_sequences=count,
            seed=seed,
            execution=Execution(batch_size=size, first_sequence=first),
        ).tokens

    whole = draw(seed, 6)
    assert torch.equal(whole, draw(seed, 4))
    assert torch.equal(whole[4:], draw(seed, 2, first=4, count=2))
    assert len(whole.unique(dim=0)) > 1
    assert not torch.equal(whole, draw(seed + 1, 6))


@settings(max_examples=4, deadline=None, phases=(Phase.generate,))
@given(
    schedules(longest=6),
    STEPS,
    st.sampled_from(("causal", "block_causal", "full")),
    st.sampled_from(("full", "causal")),
    st.booleans(),
)
def test_packed_sequences_at_own_pace_keep_tokens(schedule, step, context, active, shifted):
    """Sequences packed into one call with caches of different lengths equal single sequences without a cache."""
    assume(not shifted or opens_left_to_right(schedule))  # others are refused
    denoiser = tiny_denoiser(EpsilonHybrid(WORDS, 0.2), Shifted(Mean()) if shifted else Mean())
    prompt = Prompt.prefix([1], schedule.length) if shifted else None
    options = {"num_sequences": 4, "prompt": prompt, "context": context, "active": active}
    alone = sample_along(denoiser, schedule, step, batch_size=1, use_cache=False, **options)
    packed = sample_along(denoiser, schedule, step, batch_size=3, **options)
    assert torch.equal(alone.tokens, packed.tokens)
    assert torch.equal(alone.evaluations, packed.evaluations)
    assert packed.num_evaluations <= alone.num_evaluations == int(alone.evaluations.sum())
