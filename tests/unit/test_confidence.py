"""Decoding by confidence: blocks on a flat canvas and the number of words in a step."""

from __future__ import annotations

import itertools

import pytest

from hdlm.hyperschedule import Slide, flat
from hdlm.process import Absorbing
from hdlm.regime import Regime
from hdlm.sampling import ByConfidence, Execution, Frame, sample
from tests.tiny import tiny_denoiser

WORDS = 7


def written(length: int, steps: int, step: ByConfidence) -> list[list[int]]:
    """The positions that each step writes."""
    frames: list[Frame] = []
    sample(
        tiny_denoiser(Absorbing(WORDS)),
        Regime(flat(length, steps), context="full"),
        step,
        execution=Execution(together=True),
        watch=frames.append,
    )
    return [(frame.before != frame.after)[0].nonzero().flatten().tolist() for frame in frames]


NUM_STEPS, WIDTHS, QUOTAS = (
    (1, 2, 3, 4, 5, 8, 12, 20),
    (1, 3, 4, 5, 12, 30),
    ("random", "even", "truncated", "nearest"),
)
DESIGN = [
    (steps, block, QUOTAS[(row + column + half) % 4])
    for row, steps in enumerate(NUM_STEPS)
    for column, block in enumerate(WIDTHS)
    for half in (0, 2)
]
"""Each number of steps with each width, and two of the four quotas, so that every pair of two factors occurs."""


@pytest.mark.parametrize(("steps", "block", "quota"), DESIGN)
def test_every_number_of_steps_writes_every_block_once_and_in_order(
    steps: int, block: int, quota: str
) -> None:
    """Fewer steps than blocks write several blocks in one step."""
    places = written(12, steps, ByConfidence(quota=quota, greedy=True, block=block))
    assert sorted(place for step in places for place in step) == list(range(12))
    blocks = [sorted(place // block for place in step) for step in places if step]
    assert all(before[-1] <= after[0] for before, after in itertools.pairwise(blocks))


def test_blocks_need_one_noise_for_all_free_positions() -> None:
    with pytest.raises(ValueError, match="flat hyperschedule"):
        sample(
            tiny_denoiser(Absorbing(WORDS)),
            Regime(Slide(8, 4, 4), context="full"),
            ByConfidence(block=2),
            execution=Execution(together=True),
        )


def test_even_quota_writes_one_word_more_in_the_first_steps() -> None:
    assert [len(step) for step in written(12, 5, ByConfidence(quota="even"))] == [3, 3, 2, 2, 2]
