"""Generation: `sample` runs an `Engine` over all sequences. `hdlm.sampling.loop` is the plain loop."""

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
from hdlm.sampling.engine.engine import Engine, Finished, Stop
from hdlm.sampling.engine.speculative import Speculative, SpeculativeEngine, new_engine
from hdlm.sampling.engine.window import Execution
from hdlm.sampling.frame import Frame
from hdlm.sampling.prompt import Prompt, check_prompt, prompt_rows

__all__ = ["Generation", "sample"]

_EXACT = Execution()


@final
@dataclass(frozen=True)
class Generation:
    """The result of `sample`.

    Attributes:
        tokens: Finished sequences, without masks. Positions after a stop repeat the last token before it.
        num_evaluations: Number of network calls, each for a batch (NFE).
        lengths: Number of valid tokens of each sequence; all tokens, if it was not stopped.
        evaluations: Number of calls that included each sequence (NFE of a sequence).
        computed: Number of positions of each sequence that these calls have computed in total.
    """

    tokens: Int[Tensor, "n l"]
    num_evaluations: int
    lengths: Int[Tensor, " n"]
    evaluations: Int[Tensor, " n"]
    computed: Int[Tensor, " n"]


def sample(
    denoiser: AbstractDenoiser,
    regime: Regime,
    step: Step | Speculative,
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
        denoiser: Model of `p(x_0 | x_t)`.
        regime: When positions are noisy, how fast noise grows, and the attention; see `Checkpoint.regime`.
        step: The sampling step, or `Speculative`; see `hdlm.sampling` for the choice.
        num_sequences: Number of sequences, at least 1.
        seed: Seed of all random numbers.
        prompt: Given tokens, which do not change, or a draft.
        transforms: Temperature and similar changes of the distribution, in order, before draws.
        execution: Number of sequences that are computed at a time, and the cache.
        stop: Where sequences may end before the canvas is full.
        watch: Called with a `Frame` after every step of any sequences.

    Raises:
        ValueError: If the prompt does not fit the canvas or the vocabulary, a shifted network gets no first token or a
            hyperschedule that does not run from left to right, or the denoiser is on another device.
    """
    if num_sequences < 1:
        raise ValueError(f"`num_sequences` must be at least 1; got {num_sequences}.")
    check_prompt(prompt, denoiser.process.num_words, regime.length, num_sequences)
    engine = new_engine(
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
    together = together and not isinstance(step, Speculative)
    rows = torch.arange(num_sequences, device=resolve_device(denoiser, execution.device))
    with torch.no_grad():
        done = _drive(engine, rows, execution.first_sequence, prompt, size, together)
    return _in_order(done, engine.num_evaluations)


def _drive(
    engine: Engine | SpeculativeEngine,
    rows: Int[Tensor, " n"],
    first: int,
    prompt: Prompt | None,
    size: int,
    together: bool,
) -> list[Finished]:
    """Keep the engine full until all sequences are finished."""
    done: list[Finished] = []
    while len(rows) or len(engine):
        room = (0 if len(engine) else size) if together else size - len(engine)
        batch, rows = rows[:room], rows[room:]
        if len(batch):
            _add(engine, batch, first, prompt, together)
            engine.awaited = len(rows)
        done += engine.advance()
    return done


def _add(
    engine: Engine | SpeculativeEngine,
    batch: Int[Tensor, " b"],
    first: int,
    prompt: Prompt | None,
    together: bool,
) -> None:
    """Add sequences; those of different lengths go one by one."""
    lengths = None if prompt is None else prompt.lengths
    for rows in [batch] if lengths is None else batch.split(1):
        tokens, fixed = prompt_rows(prompt, rows)
        length = None if lengths is None else int(lengths[rows if len(lengths) > 1 else 0])
        engine.add(
            rows + first,
            tokens=tokens,
            fixed=fixed,
            is_draft=prompt is not None and prompt.is_draft,
            length=length,
            together=together,
        )


def _in_order(done: list[Finished], num_evaluations: int) -> Generation:
    """Finished sequences by their index."""
    done = sorted(done, key=lambda finished: finished.sequence)
    lengths = torch.tensor([finished.length for finished in done])
    tokens = torch.nn.utils.rnn.pad_sequence([finished.tokens for finished in done], batch_first=True)
    last = torch.minimum(torch.arange(tokens.shape[1]), lengths[:, None] - 1).clamp_min(0)
    return Generation(
        tokens.gather(1, last.to(tokens.device)),
        num_evaluations,
        lengths,
        torch.tensor([finished.num_evaluations for finished in done]),
        torch.tensor([finished.num_computed for finished in done]),
    )
