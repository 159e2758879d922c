"""Laws of a denoiser: its statements about its inputs are true, so that reused results equal new ones.

The laws generate texts of a few words with several hyperschedules. The words come from random numbers alone, so that
two runs of one seed have equal tokens, and every raw output that is read in one run has its counterpart in the other.
"""

from __future__ import annotations

from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hdlm.denoiser import AbstractDenoiser, ForwardContext, Prediction, resolve_device
from hdlm.hyperschedule import AbstractHyperschedule, Block, Slide, Wave, flat
from hdlm.regime import Regime
from hdlm.sampling import ApproximateCache, Execution, Move, Prompt, sample
from hdlm.verification.finding import Finding, Law, Trial, error

__all__ = ["DENOISER_LAWS"]

LENGTH = 6


def answers_depend_on_the_stated_noise(denoiser: AbstractDenoiser, trial: Trial) -> Finding | None:
    """A raw output depends on no noise that `noise_dependence` excludes."""
    dependence = denoiser.noise_dependence
    if dependence == "sequence":
        return None
    device, process = resolve_device(denoiser, None), denoiser.process
    words = (trial.numbers(1, LENGTH) * process.num_words).long().to(device)
    noise, other = (0.05 + 0.9 * trial.numbers(2, LENGTH)).to(device)
    alone = torch.eye(LENGTH, dtype=torch.bool, device=device)[None]
    gaps = []
    for place in range(denoiser.lookback, LENGTH):
        changed = other.clone()
        seen = None
        if dependence == "position":  # each position sees only itself, and keeps its noise
            seen = alone
            changed[place - denoiser.lookback] = noise[place - denoiser.lookback]
        at = torch.tensor([place], device=device)
        first, second = (_raw(denoiser, words, u[None], seen, at) for u in (noise, changed))
        gaps.append(_gap(first, second))
    return error(torch.stack(gaps), 0.0, 1.0)


def kept_answers_are_those_of_a_new_call(denoiser: AbstractDenoiser, trial: Trial) -> Finding:
    """The outputs that generation reads without a cache are those of a denoiser that is called at every step."""
    return _compared(denoiser, trial, (flat(LENGTH, 4), Slide(LENGTH, 3, 4)), use_cache=False)


def the_exact_cache_changes_no_output(denoiser: AbstractDenoiser, trial: Trial) -> Finding:
    """With the exact cache, if there is one, every raw output is the one without a cache."""
    return _compared(denoiser, trial, (Block(LENGTH, 3, 3), Wave(LENGTH, 3, 2)))


def company_changes_no_output(denoiser: AbstractDenoiser, trial: Trial) -> Finding:
    """In a batch a sequence reads the outputs that it reads alone, each at its own pace."""
    return _compared(
        denoiser, trial, (Block(LENGTH, 2, 2), Slide(LENGTH, 3, 3)), 2, together=not denoiser.packs
    )


def steps_in_common_change_no_output(denoiser: AbstractDenoiser, trial: Trial) -> Finding:
    """In a batch that makes every step together a sequence reads the outputs that it reads alone."""
    return _compared(denoiser, trial, (Block(LENGTH, 3, 3),), 2, together=True)


def a_cache_renewed_at_every_call_is_none(denoiser: AbstractDenoiser, trial: Trial) -> Finding:
    """An approximate cache that is computed again at every call changes no raw output."""
    cache = ApproximateCache(refresh=1, active=True)
    return _compared(denoiser, trial, (Block(LENGTH, 3, 3),), approximate=cache)


DENOISER_LAWS: tuple[Law, ...] = (
    answers_depend_on_the_stated_noise,
    kept_answers_are_those_of_a_new_call,
    the_exact_cache_changes_no_output,
    company_changes_no_output,
    steps_in_common_change_no_output,
    a_cache_renewed_at_every_call_is_none,
)


@final
class _WithoutReuse(AbstractDenoiser):
    """A denoiser whose results are never reused: it has no cache, and states that its outputs depend on all noise."""

    def __init__(self, inner: AbstractDenoiser) -> None:
        self.inner, self.process = inner, inner.process

    @property
    def lookback(self) -> int:
        return self.inner.lookback

    @property
    def device(self) -> torch.device | None:
        return self.inner.device

    def predict(
        self, tokens: Int[Tensor, "b q"], noise: Float[Tensor, "b q"], context: ForwardContext
    ) -> Prediction:
        return self.inner.predict(tokens, noise, context)


@final
class _Record:
    """A step that writes random words, and records the raw outputs that it reads, by sequence, step and position."""

    def __init__(self) -> None:
        self.read: dict[tuple[int, int, int], Tensor] = {}

    def __call__(self, x: Int[Tensor, "b l"], move: Move) -> Int[Tensor, "b l"]:
        where = move.moving & (move.uniform(0) < 0.6)
        if where.any():
            row, column = where.nonzero(as_tuple=True)
            answer = move.reading.answer(where)
            raw = answer.prediction.raw(answer.place[row, column])
            steps = torch.as_tensor(move.step).expand(len(x), 1)[row, 0].tolist()
            names = zip(move.sequence[row].tolist(), steps, column.tolist(), strict=True)
            self.read |= dict(zip(names, raw, strict=True))
        words = (move.uniform(1) * move.process.num_words).long()
        writes = move.moving & ((move.uniform(2) < 0.1) | (move.s == 0))  # few, so that answers are kept
        return torch.where(writes, words, x)


def _compared(
    denoiser: AbstractDenoiser,
    trial: Trial,
    plans: tuple[AbstractHyperschedule, ...],
    num: int = 1,
    **how: Any,
) -> Finding:
    """The difference between the raw outputs of a run and those of calls without reuse, in rounding errors."""
    gaps = []
    prompt = Prompt.prefix([0] * max(denoiser.lookback, 1), LENGTH)
    for plan in plans:
        expected, actual = _Record(), _Record()
        plain, regime = _WithoutReuse(denoiser), Regime(plan)
        same: Any = {"num_sequences": num, "prompt": prompt, "seed": trial.seed}
        sample(plain, regime, expected, **same, execution=Execution(batch_size=1))
        sample(denoiser, regime, actual, **same, execution=Execution(**how))
        gaps += [_gap(actual.read[name], raw) for name, raw in expected.read.items()]
    return error(torch.stack(gaps), 0.0, 1.0)


@torch.no_grad()
def _raw(
    denoiser: AbstractDenoiser,
    words: Int[Tensor, "b q"],
    noise: Float[Tensor, "b q"],
    seen: Tensor | None,
    at: Int[Tensor, " n"],
) -> Float[Tensor, "n v"]:
    return denoiser.predict(words, noise, ForwardContext(attention=seen)).raw(at)


def _gap(actual: Tensor, expected: Tensor) -> Float[Tensor, ""]:
    """The largest difference of two raw outputs, relative to what rounding can explain (at most 1)."""
    gap = torch.where(actual == expected, 0.0, (actual - expected).abs()).double().amax()
    finite = expected[expected.isfinite()].double()
    scale = finite.abs().amax().clamp_min(1.0) if len(finite) else gap.new_ones(())
    rounding: float = torch.finfo(expected.dtype).eps ** 0.5
    return gap / (scale * rounding)
