"""Generation: `sample` runs an `Engine` over all sequences that are wanted. `hdlm.sampling.loop` is the plain loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Int
from torch import Tensor

from hdlm.denoiser import AbstractDenoiser, resolve_device
from hdlm.regime import Regime
from hdlm.sampling.base import Step, Transform
from hdlm.sampling.engine.engine import Engine, Finished, Frame, Stop
from hdlm.sampling.engine.window import Execution
from hdlm.sampling.prompt import Prompt, check_prompt, prompt_rows

__all__ = ["Generation", "sample"]

_EXACT = Execution()


@final
@dataclass(frozen=True)
class Generation:
    """What `sample` returns.

    Attributes:
        tokens: Finished sequences; words only. What lies behind a stop repeats the last token before it.
        num_evaluations: Calls of the network, each for a batch (NFE).
        lengths: How many tokens of each sequence count; all, if nothing stopped it.
        evaluations: Calls that each sequence took part in (NFE of a sequence).
        computed: Positions of each sequence that these calls have computed in all.
    """

    tokens: Int[Tensor, "n l"]
    num_evaluations: int
    lengths: Int[Tensor, " n"]
    evaluations: Int[Tensor, " n"]
    computed: Int[Tensor, " n"]


def sample(
    denoiser: AbstractDenoiser,
    regime: Regime,
    step: Step,
    *,
    num_sequences: int = 1,
    seed: int = 0,
    prompt: Prompt | None = None,
    transforms: Sequence[Transform] = (),
    execution: Execution = _EXACT,
    stop: Stop | None = None,
    watch: Callable[[Frame], None] | None = None,
) -> Generation:
    """Generate sequences.

    Args:
        denoiser: Knows `p(x_0 | x_t)`.
        regime: When positions are noisy, how fast noise comes, and who sees whom; see `Checkpoint.regime`.
        step: How to walk back; see `hdlm.sampling` for the choice.
        num_sequences: How many sequences, at least 1.
        seed: Of all random numbers.
        prompt: Given tokens, which are kept.
        transforms: Temperature and the like, applied in order before draws.
        execution: How many sequences are computed at a time, and what is remembered between calls of the network.
        stop: Where sequences may end before the canvas is full.
        watch: Called with a `Frame` after every step of any sequences.

    Raises:
        ValueError: If the prompt does not fit the canvas or the vocabulary, a shifted network is given no first token
            or a hyperschedule that does not run from left to right, or the denoiser is on another device.
    """
    if num_sequences < 1:
        raise ValueError(f"`num_sequences` must be at least 1; got {num_sequences}.")
    check_prompt(prompt, denoiser.process.num_words, regime.length, num_sequences)
    engine = Engine(
        denoiser,
        regime,
        step,
        seed=seed,
        transforms=transforms,
        execution=execution,
        stop=stop,
        watch=watch,
    )
    size = execution.batch_size or num_sequences
    together = not denoiser.packs if execution.together is None else execution.together
    rows = torch.arange(num_sequences, device=resolve_device(denoiser, execution.device))
    with torch.no_grad():
        done = _drive(engine, rows, execution.first_sequence, prompt, size, together)
    return _in_order(done, engine.num_evaluations)


def _drive(
    engine: Engine, rows: Int[Tensor, " n"], first: int, prompt: Prompt | None, size: int, together: bool
) -> list[Finished]:
    """Keep the engine full until all sequences are finished."""
    done: list[Finished] = []
    while len(rows) or len(engine):
        room = (0 if len(engine) else size) if together else size - len(engine)
        batch, rows = rows[:room], rows[room:]
        if len(batch):
            tokens, fixed = prompt_rows(prompt, batch)
            engine.add(batch + first, tokens=tokens, fixed=fixed, together=together)
            engine.awaited = len(rows)
        done += engine.advance()
    return done


def _in_order(done: list[Finished], num_evaluations: int) -> Generation:
    """Finished sequences by their index."""
    done = sorted(done, key=lambda one: one.sequence)
    lengths = torch.tensor([one.length for one in done])
    tokens = torch.stack([one.tokens for one in done])
    last = torch.minimum(torch.arange(tokens.shape[1]), lengths[:, None] - 1).clamp_min(0)
    return Generation(
        tokens.gather(1, last.to(tokens.device)),
        num_evaluations,
        lengths,
        torch.tensor([one.num_evaluations for one in done]),
        torch.tensor([one.num_computed for one in done]),
    )
