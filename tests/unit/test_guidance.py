"""Guidance by the prompt of each sequence: a batch of different prompts gives what each prompt gives alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hdlm.denoiser import Denoiser, ForwardContext, Guided
from hdlm.generation import Settings, complete
from hdlm.generation.settings import planned
from hdlm.hyperschedule import Block, autoregressive, flat
from hdlm.parameterization import Shifted
from hdlm.process import Absorbing, EpsilonHybrid
from hdlm.regime import Regime
from hdlm.sampling import (
    AdaptiveCorrection,
    Ancestral,
    Chain,
    Execution,
    Prompt,
    Speculative,
    sample,
    sample_plainly,
)
from tests.serving import small_checkpoint
from tests.tiny import tiny_denoiser

WORDS, NEW = 7, 6
PROMPTS = ([1], [1, 4, 2, 6], [3, 0])
CORRECTED = Chain((Ancestral(), AdaptiveCorrection(0.5)))


def models() -> tuple[Denoiser, Denoiser]:
    """An aligned network, and the same weights with shifted outputs."""
    aligned = tiny_denoiser(EpsilonHybrid(WORDS, 0.1))
    return aligned, Denoiser(aligned.backbone, Absorbing(WORDS), Shifted(aligned.parameterization))


WAYS: dict[str, tuple[int, Any, Any]] = {
    "blocks": (0, CORRECTED, lambda length: Regime(Block(length, 3, 2))),
    "full": (0, Ancestral(), lambda length: Regime(flat(length, 4), context="full")),
    "shifted": (1, Ancestral(), lambda length: Regime(Block(length, 2, 2), context="causal")),
    "speculative": (1, Speculative(3), lambda length: Regime(autoregressive(length), context="causal")),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("batch_size", [None, 2])
def test_guided_ragged_prompts_give_what_each_gives_alone(way: str, batch_size: int | None) -> None:
    shifted, step, regime = WAYS[way]
    denoiser = models()[shifted]
    prompt = Prompt.ragged(PROMPTS, NEW)
    together = sample(
        Guided(denoiser, None, 1.5),
        regime(prompt.tokens.shape[1]),
        step,
        num_sequences=len(PROMPTS),
        prompt=prompt,
        seed=2,
        execution=Execution(batch_size),
    )
    for index, given in enumerate(PROMPTS):
        length = len(given) + NEW
        own, how = Prompt.prefix(given, length), Execution(first_sequence=index)
        for condition in (None, own.fixed):
            alone = sample(
                Guided(denoiser, condition, 1.5), regime(length), step, prompt=own, seed=2, execution=how
            )
            assert together.tokens[index, :length].tolist() == alone.tokens[0].tolist()
    unguided = sample(denoiser, regime(prompt.tokens.shape[1]), step, num_sequences=3, prompt=prompt, seed=2)
    assert unguided.tokens.tolist() != together.tokens.tolist()


@pytest.mark.parametrize("plainly", [False, True])
def test_guided_rows_with_different_gaps_in_step_give_what_each_gives_alone(plainly: bool) -> None:
    denoiser, regime = models()[0], Regime(flat(5, 4))
    fixed = torch.tensor([[True, False, True, False, False], [True, True, False, False, True]])
    tokens = torch.tensor([[1, 0, 3, 0, 0], [2, 5, 0, 0, 4]])
    run: Any = (
        (lambda **how: sample_plainly(**how))
        if plainly
        else lambda **how: sample(**how, execution=Execution(together=True)).tokens
    )
    both: dict[str, Any] = {"denoiser": Guided(denoiser, None, 2.0), "regime": regime, "step": CORRECTED}
    together = run(**both, num_sequences=2, prompt=Prompt(tokens, fixed))
    for row in range(2):
        own = Prompt(tokens[row : row + 1], fixed[row : row + 1])
        alone = run(**both, num_sequences=2, prompt=own)
        assert together[row].tolist() == alone[row].tolist()


def test_complete_guides_rows_with_different_prompts() -> None:
    checkpoint, settings = small_checkpoint(), Settings("original", guidance=1.0)
    regime = planned(checkpoint, settings, 12, infilling=False)
    tokens, columns = torch.full((2, 12), 3), torch.arange(12)
    fixed = columns < torch.tensor([[2], [5]])
    both = complete(checkpoint, Prompt(tokens, fixed), regime, settings, num=2).tokens
    for row in range(2):
        own = Prompt(tokens[:1], fixed[row : row + 1])
        assert complete(checkpoint, own, regime, settings, num=2).tokens[row].tolist() == both[row].tolist()


def test_the_condition_must_be_known_and_have_one_row() -> None:
    denoiser, tokens = models()[0], torch.zeros(2, 3, dtype=torch.long)
    with pytest.raises(ValueError, match="one row for all sequences; got 2"):
        Guided(denoiser, torch.ones(2, 3, dtype=torch.bool), 1.0)
    with pytest.raises(ValueError, match="which tokens are given"):
        Guided(denoiser, None, 1.0).predict(tokens, torch.zeros(2, 3), ForwardContext())
