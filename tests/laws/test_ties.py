"""For equal predictions the seed decides which word is written first, and rounding does not.

On a canvas of masks a network without time input gives all positions one distribution up to rounding, which depends
on how many sequences share a call.
"""

from __future__ import annotations

import pytest
import torch

from hdlm.denoiser import Denoiser
from hdlm.hyperschedule import flat
from hdlm.parameterization import Mean
from hdlm.process import Absorbing
from hdlm.regime import Regime
from hdlm.sampling import (
    ByConfidence,
    ByEntropy,
    ByFactor,
    ByThreshold,
    EntropyRenoising,
    Execution,
    Frame,
    InParts,
    JointThreshold,
    Step,
    sample,
)
from hdlm.sampling.ties import ROUNDING, ascending, least
from tests.tiny import FixedAnswer, tiny_denoiser

WORDS = 11
STEPS: list[Step] = [
    ByThreshold(0.9),
    ByThreshold(1.0),
    ByEntropy(0.0),
    ByEntropy(0.5),
    ByFactor(0.5),
    JointThreshold(0.5, 0.5, passes=3),
    EntropyRenoising(0.5, passes=3),
    InParts(ByThreshold(0.9), 2),
    ByConfidence("probability"),
    ByConfidence("margin"),
    ByConfidence("entropy"),
]


def float32_denoiser(seed: int) -> Denoiser:
    denoiser = tiny_denoiser(Absorbing(WORDS), seed=seed).eval()
    denoiser.backbone.float()
    return denoiser


@pytest.mark.parametrize("length", [2, *(pytest.param(n, marks=pytest.mark.slow) for n in (3, 6))])
@pytest.mark.parametrize("step", STEPS, ids=repr)
def test_tied_positions_give_same_tokens_in_any_batch(step: Step, length: int) -> None:
    denoiser, schedule, count = float32_denoiser(1), flat(length, 2), 17
    whole = sample(
        denoiser, Regime(schedule), step, num_sequences=count, execution=Execution(together=True)
    ).tokens
    for size, together in ((1, True), (2, True), (5, True), (17, False)):
        found = sample(
            denoiser,
            Regime(schedule),
            step,
            num_sequences=count,
            execution=Execution(batch_size=size, together=together),
        ).tokens
        assert torch.equal(found, whole), (size, together)
    alone = sample(denoiser, Regime(schedule), step, execution=Execution(first_sequence=count - 1)).tokens
    assert torch.equal(alone, whole[-1:])


class RoundingNoise:
    """Random rounding noise that differs at every call."""

    def __init__(self, size: float) -> None:
        self.generator, self.size = torch.Generator().manual_seed(0), size

    def __call__(self, shape: tuple[int, ...]) -> torch.Tensor:
        return self.size * torch.randn(shape, generator=self.generator, dtype=torch.float64)


@pytest.mark.parametrize("step", STEPS, ids=repr)
def test_ties_do_not_depend_on_rounding(step: Step) -> None:
    """Twenty runs, whose equal logits differ by 1e-6 each time."""
    logits = torch.tensor([2.0, 0.5, 0.0, -1.0, 0.3, 0.0], dtype=torch.float64)
    jitter, texts = RoundingNoise(1e-6), []
    for _ in range(20):
        raw = logits + jitter((5, 6))
        denoiser = FixedAnswer(Absorbing(5), Mean(), raw)
        texts.append(sample(denoiser, Regime(flat(5, 2)), step, seed=3).tokens)
    assert all(torch.equal(text, texts[0]) for text in texts)


def test_tied_positions_are_first_equally_often() -> None:
    """With equal predictions each position is written first about equally often."""
    denoiser = FixedAnswer(Absorbing(5), Mean(), torch.zeros(4, 6, dtype=torch.float64).repeat(200, 1))
    frames: list[Frame] = []
    together = Execution(together=True)
    step = ByConfidence("entropy")
    sample(denoiser, Regime(flat(4, 4)), step, num_sequences=200, watch=frames.append, execution=together)
    written = torch.stack([frame.after < 5 for frame in frames])
    assert written.shape[1:] == (200, 4)
    first = written[written.any(-1).int().argmax(0), torch.arange(200)]
    share = (first / first.sum(-1, keepdim=True)).sum(0)
    assert (share > 25).all()


def test_ascending_sorts_by_value_and_breaks_ties() -> None:
    value = torch.tensor(
        [[0.3, 0.1, 0.1 + ROUNDING / 10, torch.inf, torch.inf, 0.1 - ROUNDING / 10]]
    ).double()
    tie = torch.tensor([[0.5, 0.6, 0.2, 0.9, 0.1, 0.4]]).double()
    assert ascending(value, tie).tolist() == [[2, 5, 1, 0, 4, 3]]
    assert least(value, tie, torch.tensor([[True, True, False, True, False, True]])).tolist() == [
        [False, False, False, False, False, True]
    ]
    assert not least(value, tie, torch.zeros(1, 6, dtype=torch.bool)).any()
