"""Generate passages with a checkpoint: `write` for a prompt or a text with gaps, `complete` for many prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hdlm.checkpoint import Checkpoint
from hdlm.data.tokenizer import Tokenizer
from hdlm.denoiser import AbstractDenoiser, Guided
from hdlm.generation.correction import correction_regime, draft_of
from hdlm.generation.passages import Ending, PassageStreamer, Reader, text_of
from hdlm.generation.settings import Settings, planned
from hdlm.generation.text import Passage, _piece, blanks, has_gaps
from hdlm.hyperschedule import AbstractHyperschedule
from hdlm.regime import Regime
from hdlm.sampling import (
    ApproximateCache,
    Execution,
    Frame,
    Generation,
    Prompt,
    Stop,
    sample,
)

__all__ = ["canvas_of", "check_ending", "complete", "prompt_ids", "write"]

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
    watch: Callable[[Frame], None] | None = None,
    stream: Callable[[int, str], None] | None = None,
    noise: float | None = None,
) -> list[Passage]:
    """Continue a prompt, fill in its gaps, or correct it.

    Args:
        checkpoint: Checkpoint of the model.
        prompt: Text to begin with; if it contains `[MASK]`, a text whose gaps are to be filled in.
        settings: The settings of generation.
        num: Number of passages, at least 1.
        batch_size: Number of passages at a time; it changes no passage.
        seed: Seed of all random numbers.
        first_sequence: Index of the first passage: with 5, it is the sixth passage of a longer run.
        ending: Where passages may end before the canvas is full.
        approximate: Approximate cache; see `hdlm.sampling.ApproximateCache`.
        watch: Called after every generation step; for example a `Trace`.
        stream: Called with the index of a passage in the run and the next piece of its text, as soon as that is
            certain. The pieces of a passage, joined, are its text.
        noise: With a noise fraction in (0, 1], the prompt is a whole text that is corrected: a draft at this noise.

    Raises:
        ValueError: If a setting is out of range, or the prompt does not fit the canvas.
    """
    tokenizer = checkpoint.tokenizer
    given, regime = canvas_of(checkpoint, prompt, settings, noise)
    num_given = int(given.fixed.sum())
    gaps = noise is not None or has_gaps(prompt)
    ends = ending.at_end_of_text or bool(ending.strings)
    check_ending(ending, whole=gaps)
    start = [] if gaps else given.tokens[0, :num_given].tolist()
    reader = Reader(tokenizer, ending, start, regime.length)
    streaming = None if stream is None else PassageStreamer(reader, stream)

    def after_step(frame: Frame) -> None:
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
        execution=Execution(batch_size, first_sequence, approximate=approximate),
        stop=reader if ends else None,
        watch=None if watch is None and streaming is None else after_step,
    )
    passages = []
    costs = zip(done.evaluations.tolist(), done.computed.tolist(), strict=True)
    for sequence, (tokens, length, cost) in enumerate(
        zip(done.tokens, done.lengths, costs, strict=True), start=first_sequence
    ):
        ids = tokens[: int(length)].tolist()
        text = reader.texts[sequence] if sequence in reader.texts else text_of(ids, tokenizer)
        if streaming is not None:
            streaming.finish(sequence, text)
        passages.append(Passage(text, tuple(ids), num_given, done.num_evaluations, *cost))
    return passages


def check_ending(ending: Ending, *, whole: bool) -> None:
    """Refuse stop strings, and the token that ends a text, if the prompt is a whole text.

    Raises:
        ValueError: If a whole text has an ending of its own.
    """
    if whole and (ending.at_end_of_text or ending.strings):
        raise ValueError(
            "A text with gaps, or one that is corrected, ends at its own end: leave out stop strings and the end of a "
            "text."
        )


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
    """Generate the free positions of a canvas: `write` with tokens instead of text.

    Args:
        checkpoint: Checkpoint of the model.
        given: The given tokens on the whole canvas: one row, or `num`.
        regime: The regime of generation; see `planned`.
        settings: The settings of generation.
        num: Number of sequences, at least 1.
        seed: Seed of all random numbers.
        execution: Number of sequences in a pass, and what is kept between calls of the network.
        stop: Where sequences may end before the canvas is full.
        watch: Called after every generation step.

    Raises:
        ValueError: If a setting is out of range, or the given tokens do not fit.
    """
    if num < 1:
        raise ValueError(f"`num` must be at least 1; got {num}.")
    _check_prompts(regime.hyperschedule, given)
    denoiser: AbstractDenoiser = checkpoint.denoiser
    if settings.guidance:
        denoiser = Guided(denoiser, None, settings.guidance)
    return sample(
        denoiser,
        regime,
        settings.step(checkpoint, regime.hyperschedule),
        num_sequences=num,
        seed=seed,
        prompt=given if given.is_draft or given.fixed.any() else None,
        transforms=settings.transforms(),
        execution=execution,
        stop=stop,
        watch=watch,
    )


def _check_prompts(plan: AbstractHyperschedule, given: Prompt) -> None:
    """Refuse prompts at whose end no block begins, along a hyperschedule whose blocks begin behind the prompt."""
    leading = given.fixed.long().cumprod(1).sum(1)
    if not bool((leading == given.fixed.sum(1)).all()):
        return  # a text with gaps
    lengths = leading.unique().tolist()
    if any(plan.behind(length) != plan for length in lengths):
        raise ValueError(
            f"The blocks of {plan!r} begin behind the prompt, and the prompts have {lengths} tokens. Give prompts of "
            "one length in a call, and the regime for it: `planned(..., given=LENGTH)`."
        )


def canvas_of(
    checkpoint: Checkpoint,
    prompt: str | Sequence[int | None],
    settings: Settings,
    noise: float | None = None,
) -> tuple[Prompt, Regime]:
    """The given tokens, and the regime for the others; the arguments are those of `write`."""
    tokenizer, mask_id = checkpoint.tokenizer, checkpoint.vocabulary.mask_id
    if noise is not None:
        if has_gaps(prompt):
            raise ValueError("A text that is corrected has no gaps: replace each [MASK] by a word.")
        assert isinstance(prompt, str)
        if not prompt.strip():
            raise ValueError("The text to correct is empty: give a text of at least one word.")
        ids = prompt_ids(tokenizer, prompt)
        _refuse_length(settings, f"a text that is corrected is the text, {len(ids)} tokens")
        return draft_of(ids), correction_regime(checkpoint, settings, len(ids), noise)
    if has_gaps(prompt):
        if isinstance(prompt, str):
            ids = blanks(prompt, tokenizer, mask_id, checkpoint.length)
        else:
            ids = [mask_id if token is None else token for token in prompt]
        _refuse_length(settings, f"a text with gaps is the text, {len(ids)} tokens")
        regime = planned(checkpoint, settings, len(ids), infilling=True)
        return Prompt.infill(ids, mask_id), regime
    assert isinstance(prompt, str)
    ids = prompt_ids(tokenizer, prompt)
    length = settings.canvas(len(ids), checkpoint.length)
    prompt_and_room = Prompt.prefix(ids, length)
    return prompt_and_room, planned(checkpoint, settings, length, infilling=False, given=len(ids))


def _refuse_length(settings: Settings, reason: str) -> None:
    if settings.length is not None or settings.new_tokens is not None:
        raise ValueError(f"The canvas of {reason}: leave `length` and `new_tokens` out.")


def prompt_ids(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """The tokens of a prompt without gaps, with those that begin a text."""
    return tokenizer.vocabulary.text_start + _piece(prompt.strip(), tokenizer, first=True)
