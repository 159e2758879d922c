"""The engine: sequences that come and go, each at its own pace, and what a watcher and a stop see of them."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import final

import pytest
import torch
from torch import Tensor

from hdlm.denoiser import AbstractDenoiser, Denoiser, ForwardContext, Prediction
from hdlm.hyperschedule import Block, Slide, autoregressive, flat
from hdlm.parameterization import Mean
from hdlm.process import Absorbing, EpsilonHybrid
from hdlm.regime import Regime
from hdlm.sampling import (
    AdaptiveCorrection,
    Analytic,
    Ancestral,
    ByEntropy,
    ByThreshold,
    Chain,
    Engine,
    Execution,
    Finished,
    Frame,
    Prompt,
    sample,
)
from tests.tiny import FixedAnswer, tiny_denoiser

WORDS, LENGTH = 7, 8
CORRECTED = Chain((Ancestral(), AdaptiveCorrection(0.5)))


def model() -> Denoiser:
    return tiny_denoiser(EpsilonHybrid(WORDS, 0.2))


def drain(engine: Engine) -> list[Finished]:
    done: list[Finished] = []
    with torch.no_grad():
        while len(engine):
            done += engine.advance()
    return done


def test_who_comes_later_is_none_the_worse() -> None:
    """A server's view: requests of three lengths arrive while others are under way."""
    denoiser, schedule = model(), Block(LENGTH, 2, 3)
    engine = Engine(denoiser, Regime(schedule), CORRECTED, seed=4)
    done = []
    with torch.no_grad():
        for sequence, length in enumerate((8, 5, 2)):
            engine.add(torch.tensor([sequence]), length=length)
            for _ in range(3):
                done += engine.advance()
    done += drain(engine)
    assert sorted(len(one.tokens) for one in done) == [2, 5, 8]
    for one in done:
        alone = sample(
            denoiser,
            Regime(Block(one.length, 2, 3)),
            CORRECTED,
            seed=4,
            execution=Execution(first_sequence=one.sequence),
        )
        assert torch.equal(one.tokens, alone.tokens[0])
    with pytest.raises(ValueError, match=r"lie in \[1, 8\]"):
        engine.add(torch.tensor([0]), length=9)


@pytest.mark.parametrize("schedule", [Block(LENGTH, 2, 3), autoregressive(LENGTH)], ids=str)
@pytest.mark.parametrize("together", [False, True])
def test_a_stop_ends_sequences_and_changes_no_token_before_it(schedule: Block, together: bool) -> None:
    asked: set[int] = set()

    def stop(sequence: int, tokens: Tensor) -> int | None:
        asked.add(sequence)
        found = (tokens == 5).nonzero()
        return int(found[0]) + 1 if len(found) else None

    whole, ended = (
        sample(
            model(),
            Regime(schedule),
            CORRECTED,
            num_sequences=5,
            seed=1,
            stop=how,
            execution=Execution(first_sequence=3, together=together),
        )
        for how in (None, stop)
    )
    assert asked == set(range(3, 8))
    for tokens, cut, length in zip(whole.tokens, ended.tokens, ended.lengths.tolist(), strict=True):
        assert length == (stop(0, tokens) or LENGTH)
        assert torch.equal(cut[:length], tokens[:length])
        assert (cut[length:] == cut[length - 1]).all()
    assert int(ended.lengths.min()) < LENGTH
    assert int(ended.evaluations.sum()) < int(whole.evaluations.sum()) or together


@pytest.mark.parametrize("together", [False, True])
def test_a_request_has_the_tokens_of_its_own_run_whatever_its_seed_and_company(together: bool) -> None:
    """Requests come one after the other into an engine of another seed: two indices under three seeds."""
    denoiser, schedule = model(), Slide(LENGTH, 4, 2)
    seeds = (5, 7, 2**64 - 1)
    alone = {
        seed: sample(denoiser, Regime(schedule), CORRECTED, num_sequences=2, seed=seed).tokens
        for seed in seeds
    }
    assert len(torch.cat(list(alone.values())).unique(dim=0)) > 4
    engine, done = Engine(denoiser, Regime(schedule), CORRECTED, seed=5), []
    with torch.no_grad():
        engine.add(torch.arange(2), seed=2**64 - 1, together=together)
        done += engine.advance()
        engine.add(torch.arange(2), seed=torch.tensor([7, 5]), together=together)
        engine.add(torch.tensor([1]), together=together)
    done += drain(engine)
    found = sorted((one.sequence, one.tokens.tolist()) for one in done)
    wanted = [(0, alone[seed][0].tolist()) for seed in (2**64 - 1, 7)]
    wanted += [(1, alone[seed][1].tolist()) for seed in (2**64 - 1, 5, 5)]
    assert found == sorted(wanted)


def test_seeds_that_do_not_fit_are_refused_before_anything_is_let_in() -> None:
    engine = Engine(model(), Regime(flat(LENGTH, 2)), CORRECTED)
    with pytest.raises(ValueError, match=r"or 2, one for each sequence; got shape \(3,\)"):
        engine.add(torch.arange(2), seed=torch.arange(3))
    with pytest.raises(ValueError, match=r"\[0, 2\^64\); got -1"):
        engine.add(torch.arange(2), seed=torch.tensor([0, -1]))
    assert len(engine) == 0


def test_what_a_watcher_is_told_is_settled_stays() -> None:
    frames: list[Frame] = []
    done = sample(
        model(),
        Regime(Slide(LENGTH, 3, 4)),
        CORRECTED,
        num_sequences=3,
        watch=frames.append,
        execution=Execution(batch_size=2),
    )
    for frame in frames:
        for sequence, tokens, settled in zip(frame.sequence, frame.after, frame.settled, strict=True):
            assert torch.equal(tokens[:settled], done.tokens[sequence, :settled])
    shares = [frame.share for frame in frames]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert {int(settled) for frame in frames for settled in frame.settled} > {1, LENGTH}


def test_own_pace_saves_calls() -> None:
    denoiser, schedule = tiny_denoiser(Absorbing(WORDS)), flat(LENGTH, 24)
    own, step = (
        sample(denoiser, Regime(schedule), Ancestral(), num_sequences=3, execution=Execution(together=how))
        for how in (None, True)
    )
    assert torch.equal(own.tokens, step.tokens)
    assert own.num_evaluations < step.num_evaluations
    assert int(own.evaluations.max()) <= LENGTH < int(step.evaluations.max())


def test_a_network_told_no_time_is_not_asked_about_the_same_tokens_twice() -> None:
    """The analytic step reads every mask at every step, and mostly lifts none of them."""
    schedule = flat(LENGTH, 40)
    unchanged = sample(tiny_denoiser(Absorbing(WORDS)), Regime(schedule), Analytic(), seed=2)
    assert unchanged.num_evaluations <= LENGTH


@pytest.mark.parametrize(
    ("one_at_a_time", "all_at_once"),
    [(ByThreshold(1.0), ByThreshold(0.0)), (ByEntropy(0.0), ByEntropy(99.0))],
)
def test_adaptive_decoding_asks_as_often_as_it_is_unsure(one_at_a_time, all_at_once) -> None:
    denoiser, schedule = tiny_denoiser(Absorbing(WORDS)), Block(LENGTH, 4, 1)
    slow, fast = (
        sample(denoiser, Regime(schedule), step, num_sequences=3) for step in (one_at_a_time, all_at_once)
    )
    assert slow.evaluations.tolist() == [LENGTH] * 3
    assert fast.evaluations.tolist() == [2] * 3
    assert (torch.cat([slow.tokens, fast.tokens]) < WORDS).all()


@pytest.mark.parametrize("step", [ByThreshold(1.0), ByEntropy(0.0)])
def test_adaptive_decoding_tells_the_network_how_many_masks_are_left(step) -> None:
    """Four masks of eight positions, one at a time: what is given has no noise, the rest less and less."""
    told: list[list[float]] = []

    @final
    class Listening(AbstractDenoiser):
        process = Absorbing(WORDS)

        def predict(self, tokens: Tensor, noise: Tensor, context: ForwardContext) -> Prediction:
            told.append(noise[0].tolist())
            raw = torch.zeros(tokens.numel(), WORDS + 1, dtype=torch.float64)
            return Prediction(self.process, Mean(), tokens, noise, lambda at: raw[at])

    sample(Listening(), Regime(flat(LENGTH, 1)), step, prompt=Prompt.prefix([1, 2, 3, 4], LENGTH))
    assert told == [[0.0] * 4 + [share] * 4 for share in (1.0, 0.75, 0.5, 0.25)]


def test_a_bound_on_entropy_is_kept() -> None:
    """Entropies 0.1, 0.2 and 0.5: with a bound of 0.1 the second goes with the first, with 0.3 all go."""
    coins = {0.1: 0.0203, 0.2: 0.0492, 0.5: 0.1997}
    odds = torch.tensor([[share, 1 - share] for share in coins.values()], dtype=torch.float64)
    raw = torch.cat([odds.log(), torch.full((3, 1), -torch.inf)], 1)
    for bound, calls in ((0.05, 3), (0.11, 2), (0.31, 1)):
        told = FixedAnswer(Absorbing(2), Mean(), raw)
        assert sample(told, Regime(flat(3, 1)), ByEntropy(bound)).num_evaluations == calls


_LONG = """
import sys
import torch
from hdlm import Block, DDiT, DDiTConfig, Denoiser, EpsilonHybrid, Mean, Regime, flat
from hdlm.sampling import AdaptiveCorrection, Ancestral, ByEntropy, Chain, Engine

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024

length, words, split = 8192, 40_000, 4096
network = DDiT(DDiTConfig(words + 1, 64, 2, 4, max_length=length)).eval()
denoiser = Denoiser(network, EpsilonHybrid(words, epsilon=0.01), Mean())
schedule = flat(length, 4) if sys.argv[1] == "flat" else Block(length, 64, 4)
engine = Engine(denoiser, Regime(schedule), eval(sys.argv[2]))
given = (torch.arange(length) < split)[None] if sys.argv[1] == "block" else torch.zeros(1, length, dtype=torch.bool)
before = peak()
with torch.no_grad():
    engine.add(torch.arange(1), tokens=torch.ones(1, length, dtype=torch.long), fixed=given)
    while engine.num_evaluations < 4 and len(engine):
        engine.advance()
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("schedule", "step"),
    [
        ("flat", "Chain((Ancestral(), AdaptiveCorrection(0.05)))"),
        ("flat", "ByEntropy(9e9)"),
        ("block", "Ancestral()"),
    ],
)
def test_eight_thousand_positions_in_bounded_memory(schedule: str, step: str) -> None:
    """Below one integer a pair of positions (512 MiB), far below one number a position and word (1250 MiB).

    What is freed goes back at once, so that what is measured is what lives, and not what the C library hoards.
    """
    done = subprocess.run(
        [sys.executable, "-c", _LONG, schedule, step],
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "1000000", "MALLOC_TRIM_THRESHOLD_": "1000000"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(done.stdout) < 420
