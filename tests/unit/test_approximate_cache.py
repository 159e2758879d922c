"""Approximate caches: exact where they must be, small windows, and a deviation that is measured."""

from __future__ import annotations

from typing import final

import pytest
import torch
from torch import Tensor

from benchmarks.quality import MODEL, Bench
from hdlm import load
from hdlm.denoiser import AbstractDenoiser, Denoiser, Guided, Prediction, Question
from hdlm.hyperschedule import Block, Slide, flat
from hdlm.package_data import pretrained
from hdlm.parameterization import LogScore, Mean, Shifted
from hdlm.process import Absorbing, EpsilonHybrid, GammaHybrid
from hdlm.regime import Regime
from hdlm.sampling import (
    Ancestral,
    ApproximateCache,
    Execution,
    FirstHitting,
    Move,
    Prompt,
    algorithm,
    sample,
)
from tests.along import sample_along
from tests.tiny import tiny_denoiser

WORDS, LENGTH = 5, 8
FAMILIES = [EpsilonHybrid(WORDS, 0.2), GammaHybrid(WORDS, 0.3)]
EVERYTHING = ApproximateCache(refresh=None, active=True)


@final
class RecordingDenoiser(AbstractDenoiser):
    """Notes what each call computes: positions and tokens of every question."""

    def __init__(self, inner: Denoiser) -> None:
        self.inner, self.process = inner, inner.process
        self.windows: list[list[int]] = []

    lookback = property(lambda self: self.inner.lookback)
    packs = property(lambda self: self.inner.packs)
    noise_dependence = property(lambda self: self.inner.noise_dependence)

    def new_cache(self):
        return self.inner.new_cache()

    def predict(self, tokens, noise, context):
        return self.predict_many([Question(tokens, noise, context)])

    def predict_many(self, questions) -> Prediction:
        self.windows += [one.context.positions[0].tolist() for one in questions]
        return self.inner.predict_many(questions)


@pytest.mark.parametrize("process", FAMILIES, ids=lambda process: type(process).__name__)
@pytest.mark.parametrize("name", ["gibbs", "remask_adhoc_shuffle", "analytic"])
def test_approximate_cache_refreshed_at_every_call_equals_no_cache(name: str, process) -> None:
    """The tokens are equal bit for bit, also when written words change."""
    told = isinstance(process, GammaHybrid)
    denoiser = tiny_denoiser(process, LogScore() if told else Mean(), conditioned=told)
    options = {"num_sequences": 2, "context": "full"}
    for schedule, active in (
        (flat(LENGTH, 3), True),
        (Block(LENGTH, 4, 2), True),
        (Block(LENGTH, 4, 2), False),
    ):
        cache, step = ApproximateCache(refresh=1, active=active), algorithm(name, process, 0.4)
        plain, fresh = (
            sample_along(denoiser, schedule, step, approximate=how, **options) for how in (None, cache)
        )
        assert torch.equal(plain.tokens, fresh.tokens)
        assert plain.num_evaluations == fresh.num_evaluations
        assert torch.equal(plain.computed, fresh.computed)


@final
class RandomRewriteStep:
    """A step that writes and removes random words and records the predictions that it reads."""

    def __init__(self) -> None:
        self.said: dict[tuple[int, int, int], Tensor] = {}

    def __call__(self, x: Tensor, move: Move) -> Tensor:
        for turn in range(2):  # two reads of one state
            where = move.moving & (move.uniform(turn) < 0.3)
            if where.any():
                log_p = move.reading.log_clean(where).split(where.sum(1).tolist())
                steps = torch.as_tensor(move.step).expand(len(x), 1)[:, 0].tolist()
                for sequence, step, rows in zip(move.sequence.tolist(), steps, log_p, strict=True):
                    if len(rows):
                        self.said[sequence, step, turn] = rows
        writes = move.moving & ((move.uniform(2) < 0.3) | (move.s == 0))
        words = (move.uniform(3) * (WORDS + (move.s > 0))).long()  # the mask among them
        return torch.where(writes, words, x)


@pytest.mark.parametrize("context", ["causal", "block_causal", "full"])
@pytest.mark.parametrize(("shifted", "together"), [(False, True), (True, False)])
def test_approximate_cache_is_exact_for_network_of_one_block(context, shifted: bool, together: bool) -> None:
    """Keys and values depend on the token and its position only, so the cache changes no prediction."""
    denoiser = tiny_denoiser(EpsilonHybrid(WORDS, 0.2), Shifted(Mean()) if shifted else Mean(), num_blocks=1)
    prompt = Prompt.prefix([1], LENGTH) if shifted else None
    options = {"num_sequences": 2, "prompt": prompt, "context": context}
    cases = (
        (flat(LENGTH, 6), "causal", None),
        (Block(LENGTH, 4, 4), "full", 3),
        (Slide(LENGTH, 3, 4), "full", None),
    )
    for schedule, active, refresh in cases:
        plain, script = RandomRewriteStep(), RandomRewriteStep()
        sample_along(denoiser, schedule, plain, active=active, use_cache=False, **options)
        cache = ApproximateCache(refresh, active=True)
        sample_along(
            denoiser, schedule, script, active=active, together=together, approximate=cache, **options
        )
        assert len(plain.said) == len(script.said) > 8
        for key, log_p in plain.said.items():
            torch.testing.assert_close(script.said[key], log_p, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("together", [False, True])
def test_approximate_cache_adds_no_network_call_for_chain_of_two_reads(together: bool) -> None:
    """ACS declares which words it may redraw, so tokens and evaluations equal those without a cache.

    With this seed no word is replaced by itself. Otherwise a full prediction is reused and a partial one is not.
    """
    process = EpsilonHybrid(WORDS, 0.2)
    denoiser, step = tiny_denoiser(process, num_blocks=1), algorithm("acs", process, 0.6)
    plain, cached = (
        sample(
            denoiser,
            Regime(flat(LENGTH, 6)),
            step,
            seed=1,
            num_sequences=3,
            execution=Execution(together=together, approximate=how),
        )
        for how in (None, EVERYTHING)
    )
    assert torch.equal(plain.tokens, cached.tokens)
    assert torch.equal(plain.evaluations, cached.evaluations)
    assert (cached.computed < plain.computed).all()


@pytest.mark.parametrize("context", ["causal", "block_causal"])
@pytest.mark.parametrize("shifted", [False, True])
def test_approximate_cache_is_exact_at_first_call_of_later_block(context, shifted: bool) -> None:
    """The first call of a block computes all its positions after exact text. Only later calls deviate."""
    denoiser = tiny_denoiser(EpsilonHybrid(WORDS, 0.2), Shifted(Mean()) if shifted else Mean())
    schedule, exact, script = Block(LENGTH, 4, 4), RandomRewriteStep(), RandomRewriteStep()
    options = {"prompt": Prompt.prefix([1], LENGTH), "context": context}
    sample_along(denoiser, schedule, exact, **options)
    done = sample_along(denoiser, schedule, script, approximate=EVERYTHING, **options)
    off = {key: float((script.said[key] - exact.said[key])[:, :-1].abs().max()) for key in exact.said}
    first = min(key for key in off if key[1] >= 4)
    assert off[first] < 1e-10
    assert max(off.values()) > 1e-6
    assert int(done.computed) < LENGTH * int(done.evaluations)


@pytest.mark.parametrize("together", [False, True])
def test_approximate_call_computes_only_read_and_changed_positions(together: bool) -> None:
    """Infilling, one mask at a time: the given words are computed once, each other one as a mask, then as a word."""
    spy, blank = RecordingDenoiser(tiny_denoiser(Absorbing(WORDS))), WORDS
    prompt = Prompt.infill([1, 2, blank, blank, 3, blank, 4, 0], blank=blank)
    done = sample(
        spy,
        Regime(flat(LENGTH, 1)),
        FirstHitting(),
        prompt=prompt,
        execution=Execution(together=together, approximate=EVERYTHING),
    )
    first, *others = spy.windows
    assert first == list(range(LENGTH))
    assert len(others) == 2
    written = {2, 3, 5}
    for window in others:
        assert len(window) == 2
        assert set(window) <= written
    assert {place for window in others for place in window} == written
    assert done.computed.tolist() == [LENGTH + 4]


def test_approximate_refresh_computes_all_positions_and_other_calls_few() -> None:
    process = EpsilonHybrid(WORDS, 0.2)
    denoiser, step = tiny_denoiser(process), algorithm("original", process)
    shares = []
    for refresh in (1, 4, None):
        spy = RecordingDenoiser(denoiser)
        done = sample(
            spy,
            Regime(flat(24, 24)),
            step,
            num_sequences=2,
            execution=Execution(approximate=ApproximateCache(refresh, active=True)),
        )
        assert int(done.computed.sum()) == sum(map(len, spy.windows))
        assert (done.tokens < WORDS).all()
        calls = done.evaluations.tolist()
        whole = [1 if refresh is None else -(-count // refresh) for count in calls]
        assert sum(len(window) == 24 for window in spy.windows) == sum(whole)
        shares.append(float(done.computed.sum() / (24 * done.evaluations.sum())))
    assert shares[0] == 1
    assert shares[0] > 2 * shares[1] > 2 * shares[2]


def test_guided_denoiser_with_approximate_cache_gets_same_tokens() -> None:
    process = EpsilonHybrid(WORDS, 0.2)
    inner, prompt = tiny_denoiser(process, num_blocks=1), Prompt.prefix([1, 2], LENGTH)
    guided = Guided(inner, prompt.fixed, 1.5)
    options = {"num_sequences": 2, "prompt": prompt}
    plain, cached = (
        sample_along(guided, flat(LENGTH, 4), Ancestral(), approximate=how, **options)
        for how in (None, EVERYTHING)
    )
    assert torch.equal(plain.tokens, cached.tokens)
    assert int(cached.computed.sum()) < int(plain.computed.sum())


def test_approximate_settled_cache_deviates_unless_refreshed_at_every_call() -> None:
    """Refreshed at every call it is exact; else logits deviate."""
    denoiser, schedule = tiny_denoiser(EpsilonHybrid(WORDS, 0.2)), Block(LENGTH, 2, 2)
    prompt = Prompt.prefix([1, 2, 3], LENGTH)
    exact, fresh, stale = (
        _log_p(denoiser, schedule, prompt, how)
        for how in (None, ApproximateCache(refresh=1), ApproximateCache())
    )
    torch.testing.assert_close(fresh, exact, atol=1e-10, rtol=0)
    divergence = (exact.exp() * (exact - stale))[..., :-1].sum(-1)
    assert divergence.min() > -1e-12
    assert divergence.max() > 1e-6


def _log_p(denoiser: Denoiser, schedule: Block, prompt: Prompt, how: ApproximateCache | None) -> Tensor:
    """The predictions for the last block after a step has written fixed words."""
    said = []

    def step(x: Tensor, move) -> Tensor:
        log_p = move.reading.log_clean(move.moving)
        if int(move.step.max()) >= schedule.num_steps - 2:
            said.append(log_p)
        masked = move.moving & (move.x == WORDS) & (move.s == 0)
        return torch.where(masked, torch.arange(LENGTH) % WORDS, x)

    sample(
        denoiser, Regime(schedule, context="full"), step, prompt=prompt, execution=Execution(approximate=how)
    )
    return torch.stack(said)


def test_view_rejects_invalid_approximate_cache_options() -> None:
    with pytest.raises(ValueError, match="context='full'"):
        Execution(approximate=ApproximateCache()).check_cache(Regime(flat(LENGTH, 2)), "none")
    with pytest.raises(ValueError, match="leave `use_cache` on"):
        Execution(use_cache=False, approximate=EVERYTHING)
    with pytest.raises(ValueError, match="at least 1; got 0"):
        ApproximateCache(refresh=0)


def test_bench_deviation_grows_with_refresh_interval() -> None:
    """The deviation is zero if every call computes all positions, and it grows with the refresh interval."""
    bench = Bench(load(pretrained() / MODEL), num=2, length=24, seed=0)
    exact, fresh, stale = bench.deviations(12, (1, 2, None))
    assert exact.most == 0
    assert exact.share == 1 > fresh.share > stale.share > 0.1
    assert 1e-6 < fresh.divergence.value < stale.divergence.value < 1
    assert stale.largest > stale.divergence.value
    assert stale.most > stale.difference > 0
