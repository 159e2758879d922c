"""The engine: requests that arrive and finish at different times, frames and stop functions."""

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


def run_to_the_end(engine: Engine) -> list[Finished]:
    done: list[Finished] = []
    with torch.no_grad():
        while len(engine):
            done += engine.advance()
    return done


def test_engine_late_request_gets_same_tokens() -> None:
    """Requests of three lengths arrive while other requests are running."""
    denoiser, schedule = model(), Block(LENGTH, 2, 3)
    engine = Engine(denoiser, Regime(schedule), CORRECTED, seed=4)
    done = []
    with torch.no_grad():
        for sequence, length in enumerate((8, 5, 2)):
            engine.add(torch.tensor([sequence]), length=length)
            for _ in range(3):
                done += engine.advance()
    done += run_to_the_end(engine)
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
def test_stop_ends_sequence_and_keeps_earlier_tokens(schedule: Block, together: bool) -> None:
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
def test_engine_request_tokens_depend_on_own_seed_only(together: bool) -> None:
    """Requests with two sequence indices and three seeds arrive one after the other at one engine."""
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
    done += run_to_the_end(engine)
    found = sorted((one.sequence, one.tokens.tolist()) for one in done)
    wanted = [(0, alone[seed][0].tolist()) for seed in (2**64 - 1, 7)]
    wanted += [(1, alone[seed][1].tolist()) for seed in (2**64 - 1, 5, 5)]
    assert found == sorted(wanted)


def test_engine_rejects_bad_seeds_before_adding_requests() -> None:
    engine = Engine(model(), Regime(flat(LENGTH, 2)), CORRECTED)
    with pytest.raises(ValueError, match=r"or 2, one for each sequence; got shape \(3,\)"):
        engine.add(torch.arange(2), seed=torch.arange(3))
    with pytest.raises(ValueError, match=r"\[0, 2\^64\); got -1"):
        engine.add(torch.arange(2), seed=torch.tensor([0, -1]))
    assert len(engine) == 0


def test_frames_report_settled_tokens_that_stay() -> None:
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


def test_sample_at_own_pace_makes_fewer_calls_with_same_tokens() -> None:
    denoiser, schedule = tiny_denoiser(Absorbing(WORDS)), flat(LENGTH, 24)
    own, step = (
        sample(denoiser, Regime(schedule), Ancestral(), num_sequences=3, execution=Execution(together=how))
        for how in (None, True)
    )
    assert torch.equal(own.tokens, step.tokens)
    assert own.num_evaluations < step.num_evaluations
    assert int(own.evaluations.max()) <= LENGTH < int(step.evaluations.max())


def test_time_independent_network_is_not_called_for_unchanged_tokens() -> None:
    """The analytic step reads every mask at every step and usually unmasks no position."""
    schedule = flat(LENGTH, 40)
    unchanged = sample(tiny_denoiser(Absorbing(WORDS)), Regime(schedule), Analytic(), seed=2)
    assert unchanged.num_evaluations <= LENGTH


@pytest.mark.parametrize(
    ("one_at_a_time", "all_at_once"),
    [(ByThreshold(1.0), ByThreshold(0.0)), (ByEntropy(0.0), ByEntropy(99.0))],
)
def test_adaptive_decoding_calls_network_according_to_threshold(one_at_a_time, all_at_once) -> None:
    denoiser, schedule = tiny_denoiser(Absorbing(WORDS)), Block(LENGTH, 4, 1)
    slow, fast = (
        sample(denoiser, Regime(schedule), step, num_sequences=3) for step in (one_at_a_time, all_at_once)
    )
    assert slow.evaluations.tolist() == [LENGTH] * 3
    assert fast.evaluations.tolist() == [2] * 3
    assert (torch.cat([slow.tokens, fast.tokens]) < WORDS).all()


@pytest.mark.parametrize("step", [ByThreshold(1.0), ByEntropy(0.0)])
def test_adaptive_decoding_passes_share_of_masks_as_noise(step) -> None:
    """Four of eight positions are masks. Given positions have noise 0, and the noise of the others decreases."""
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


def test_by_entropy_unmasks_up_to_its_bound() -> None:
    """The entropies are 0.1, 0.2 and 0.5. A bound of 0.11 unmasks two positions in one call, 0.31 unmasks all three."""
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
def test_engine_of_8192_positions_takes_less_than_420_mib(schedule: str, step: str) -> None:
    """The limit is below one integer per pair of positions (512 MiB) and one number per position and word (1250 MiB).

    The C library returns freed memory at once, so the peak counts only memory in use.
    """
    done = subprocess.run(
        [sys.executable, "-c", _LONG, schedule, step],
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "1000000", "MALLOC_TRIM_THRESHOLD_": "1000000"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(done.stdout) < 420
