"""Generate passages with a checkpoint: `write` for a prompt or a text with gaps, `complete` for many prompts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from hdlm.checkpoint import Checkpoint
from hdlm.data.tokenizer import Tokenizer
from hdlm.denoiser import AbstractDenoiser, Guided, resolve_device
from hdlm.generation.passages import Ending, PassageStreamer, Reader, text_of
from hdlm.generation.settings import Settings, planned
from hdlm.generation.text import (
    BLANK,
    Passage,
    _piece,
    blanks,
)
from hdlm.regime import Regime
from hdlm.sampling import (
    ApproximateCache,
    Execution,
    Frame,
    Generation,
    Prompt,
    Stop,
    algorithm,
    sample,
)

__all__ = ["complete", "write"]

_FULL_CANVAS, _EXACT = Ending(), Execution()


def write(
    checkpoint: Checkpoint,
    prompt: str = "",
    settings: Settings = Settings(),
    *,
    num: int = 1,
    batch_size: int | None = None,
    seed: int = 0,
    first_sequence: int = 0,
    ending: Ending = _FULL_CANVAS,
    approximate: ApproximateCache | None = None,
    device: torch.device | str | None = None,
    watch: Callable[[Frame], None] | None = None,
    stream: Callable[[int, str], None] | None = None,
) -> list[Passage]:
    """Continue a prompt, or fill in its blanks.

    Args:
        checkpoint: The model.
        prompt: Text to begin with; if it contains `[MASK]`, a text whose blanks are to be filled in.
        settings: How.
        num: Number of passages, at least 1.
        batch_size: Number of passages that are written at a time, which changes none of them; all by default.
        seed: Seed of all randomness.
        first_sequence: Index of the first: with 5, what a longer run has as its sixth.
        ending: Where passages may end before the canvas is full.
        approximate: See `hdlm.sampling.ApproximateCache`.
        device: That of the model by default, and no other.
        watch: Called after every generation step; a `Trace`, say.
        stream: Called with the index of a passage in the run and the next piece of its text, as soon as that is
            certain. The pieces of a passage, joined, are its text.

    Raises:
        ValueError: If a setting is out of range, or the prompt does not fit the canvas.
    """
    tokenizer = checkpoint.tokenizer
    given, regime = _given(checkpoint, tokenizer, prompt, settings)
    num_given = int(given.fixed.sum())
    gaps = BLANK.search(prompt) is not None
    ends = ending.at_end_of_text or bool(ending.strings)
    if ends and gaps:
        raise ValueError("A text with gaps ends where it ends: leave out where to stop.")
    start = [] if gaps else given.tokens[0, :num_given].tolist()
    reader = Reader(tokenizer, ending, start, regime.length)
    streaming = None if stream is None else PassageStreamer(reader, stream)

    def seen(frame: Frame) -> None:
        if watch is not None:
            watch(frame)
        if streaming is not None:
            for sequence, row, settled in zip(frame.sequence, frame.after, frame.settled, strict=True):
                streaming.read(int(sequence), row[: int(settled)].tolist())

    done = complete(
        checkpoint,
        given,
        regime,
        settings,
        num=num,
        seed=seed,
        execution=Execution(batch_size, first_sequence, approximate=approximate, device=device),
        stop=reader if ends else None,
        watch=None if watch is None and streaming is None else seen,
    )
    passages = []
    prices = zip(done.evaluations.tolist(), done.computed.tolist(), strict=True)
    for sequence, (tokens, length, price) in enumerate(
        zip(done.tokens, done.lengths, prices, strict=True), start=first_sequence
    ):
        ids = tokens[: int(length)].tolist()
        text = reader.texts[sequence] if sequence in reader.texts else text_of(ids, tokenizer)
        if streaming is not None:
            streaming.finish(sequence, text)
        passages.append(Passage(text, tuple(ids), num_given, done.num_evaluations, *price))
    return passages


def complete(
    checkpoint: Checkpoint,
    given: Prompt,
    regime: Regime,
    settings: Settings,
    *,
    num: int = 1,
    seed: int = 0,
    execution: Execution = _EXACT,
    stop: Stop | None = None,
    watch: Callable[[Frame], None] | None = None,
) -> Generation:
    """Write the free positions of a canvas: `write` without words.

    Args:
        checkpoint: The model.
        given: What is given, on the whole canvas: one row, or `num`.
        regime: What is written along; see `planned`.
        settings: Algorithm, guidance, and changes of the distribution.
        num: How many sequences, at least 1.
        seed: Of all randomness.
        execution: How many sequences are computed at a time, and what is remembered between calls of the network.
        stop: Where sequences may end before the canvas is full.
        watch: Called after every generation step.

    Raises:
        ValueError: If a setting is out of range, or what is given does not fit.
    """
    denoiser: AbstractDenoiser = checkpoint.denoiser
    device = resolve_device(denoiser, execution.device)
    if settings.guidance:
        if (given.fixed != given.fixed[:1]).any():
            raise ValueError("Guidance needs the same given positions in every row; got rows that differ.")
        denoiser = Guided(denoiser, given.fixed[:1].to(device), settings.guidance)
    return sample(
        denoiser,
        regime,
        algorithm(settings.algorithm, denoiser.process, settings.eta),
        num_sequences=num,
        seed=seed,
        prompt=given if given.fixed.any() else None,
        transforms=settings.transforms(),
        execution=execution,
        stop=stop,
        watch=watch,
    )


def _given(
    checkpoint: Checkpoint, tokenizer: Tokenizer, prompt: str, settings: Settings
) -> tuple[Prompt, Regime]:
    """What is given, and the regime along which the rest is written."""
    if BLANK.search(prompt):
        ids = blanks(prompt, tokenizer, checkpoint.vocabulary.mask_id, checkpoint.length)
        if settings.length is not None:
            raise ValueError(
                f"The canvas of a text with gaps is the text, {len(ids)} tokens: leave `length` out."
            )
        regime = planned(checkpoint, settings, len(ids), infilling=True)
        return Prompt.infill(ids, checkpoint.vocabulary.mask_id), regime
    length = checkpoint.length if settings.length is None else settings.length
    regime = planned(checkpoint, settings, length, infilling=False)
    start: list[Any] = [] if tokenizer.vocabulary.bos is None else [tokenizer.vocabulary.bos]
    words = _piece(prompt.strip(), tokenizer, first=True)
    return Prompt.prefix(start + words, length), regime
