"""The cost of the sampler itself does not grow with the canvas, and steps without a change are skipped."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.overhead import outside
from hdlm.hyperschedule import Block, flat
from hdlm.process import Absorbing, EpsilonHybrid
from hdlm.regime import Regime
from hdlm.sampling import AdaptiveCorrection, Ancestral, Chain, Move, algorithm, sample
from tests.tiny import tiny_denoiser

WORDS = 50


def sampler_operations_per_call(length: int, width: int, num_levels: int, name: str = "original") -> float:
    """The number of operators outside the network per network call."""
    denoiser = tiny_denoiser(EpsilonHybrid(WORDS, 0.1))
    step = algorithm(name, denoiser.process)
    return outside(denoiser, lambda: sample(denoiser, Regime(Block(length, width, num_levels)), step))


@pytest.mark.parametrize("name", ["original", "acs"])
def test_sampler_makes_at_most_80_operations_per_network_call(name: str) -> None:
    assert sampler_operations_per_call(64, 16, 16, name) <= 80


@pytest.mark.parametrize(("length", "num_levels"), [(192, 16), (64, 64)], ids=["length", "steps"])
def test_sampler_operations_do_not_grow_with_length_and_steps(length: int, num_levels: int) -> None:
    assert sampler_operations_per_call(length, 16, num_levels) <= 1.02 * sampler_operations_per_call(
        64, 16, 16
    )


def test_planned_step_is_called_only_when_it_unmasks() -> None:
    """A schedule of 200 steps for 8 positions calls the step at most 8 times, and each call unmasks a position."""
    denoiser = tiny_denoiser(Absorbing(WORDS))
    lifted: list[int] = []

    class CountingStep:
        remasks = False
        events = Ancestral().events

        def __call__(self, x: Tensor, move: Move) -> Tensor:
            new = Ancestral()(x, move)
            lifted.append(int((new != x).sum()))
            return new

    sample(denoiser, Regime(flat(8, 200)), CountingStep())
    assert sum(lifted) == 8
    assert min(lifted) >= 1


def test_planned_part_of_a_chain_is_called_only_when_it_acts() -> None:
    """The plan of a chain has the events of each part, and a part reads them from there."""
    events = Counter[str]()

    class Watched:
        remasks = False

        def __init__(self, name: str, step: Any) -> None:
            self.name, self.step = name, step

        def events(self, move: Move) -> Tensor:
            events[f"{self.name} is planned"] += 1
            here: Tensor = self.step.events(move)
            return here

        def __call__(self, x: Tensor, move: Move) -> Tensor:
            assert bool(move.events_of(self).any())
            events[f"{self.name} acts"] += 1
            new: Tensor = self.step(x, move)
            return new

    denoiser = tiny_denoiser(EpsilonHybrid(WORDS, 0.1))
    steps = {"walk": Ancestral(Absorbing(WORDS)), "correction": AdaptiveCorrection(0.05)}
    watched = Chain(tuple(Watched(name, step) for name, step in steps.items()))
    regime = Regime(flat(8, 200))
    done = sample(denoiser, regime, watched, num_sequences=3)
    plain = sample(denoiser, regime, Chain(tuple(steps.values())), num_sequences=3)
    assert torch.equal(done.tokens, plain.tokens)
    assert events["walk is planned"] == events["correction is planned"] == 3
    assert 0 < events["walk acts"] <= 24
    assert 0 < events["correction acts"] < 150


def test_chain_with_unplanned_step_is_called_at_every_step() -> None:
    steps: list[int] = []

    def record(x: Tensor, move: Move) -> Tensor:
        steps.append(int(torch.as_tensor(move.step).max()))
        return x

    sample(tiny_denoiser(Absorbing(WORDS)), Regime(flat(8, 30)), Chain((Ancestral(), record)))
    assert steps == list(range(30))
