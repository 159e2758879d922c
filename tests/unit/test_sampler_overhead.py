"""What the sampler computes beside the network does not grow, and steps at which nothing happens are skipped."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from benchmarks.overhead import outside
from hdlm.hyperschedule import Block, flat
from hdlm.process import Absorbing, EpsilonHybrid
from hdlm.regime import Regime
from hdlm.sampling import Ancestral, Chain, Move, sample
from tests.tiny import tiny_denoiser

WORDS = 50


def operations(length: int, width: int, num_levels: int, name: str = "original") -> float:
    """Operations beside the network, for a call of it."""
    denoiser = tiny_denoiser(EpsilonHybrid(WORDS, 0.1))
    step = Ancestral(Absorbing(WORDS))
    return outside(denoiser, lambda: sample(denoiser, Regime(Block(length, width, num_levels)), step))


def test_a_call_of_the_network_takes_at_most_eighty_operations_of_the_sampler() -> None:
    assert operations(64, 16, 16) <= 80


@pytest.mark.parametrize(("length", "num_levels"), [(192, 16), (64, 64)], ids=["length", "steps"])
def test_operations_of_the_sampler_do_not_grow(length: int, num_levels: int) -> None:
    assert operations(length, 16, num_levels) <= 1.02 * operations(64, 16, 16)


def test_a_planned_step_is_called_only_where_a_mask_falls() -> None:
    """Along 200 steps for 8 positions, at most 8 calls; each lifts a mask."""
    denoiser = tiny_denoiser(Absorbing(WORDS))
    lifted: list[int] = []

    class Counting:
        remasks = False
        events = Ancestral().events

        def __call__(self, x: Tensor, move: Move) -> Tensor:
            new = Ancestral()(x, move)
            lifted.append(int((new != x).sum()))
            return new

    sample(denoiser, Regime(flat(8, 200)), Counting())
    assert sum(lifted) == 8
    assert min(lifted) >= 1


def test_a_chain_with_a_step_that_is_not_planned_acts_at_every_step() -> None:
    steps: list[int] = []

    def record(x: Tensor, move: Move) -> Tensor:
        steps.append(int(torch.as_tensor(move.step).max()))
        return x

    sample(tiny_denoiser(Absorbing(WORDS)), Regime(flat(8, 30)), Chain((Ancestral(), record)))
    assert steps == list(range(30))
