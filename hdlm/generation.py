"""From words to words: a checkpoint, its tokenizer and a sampler behind one function.

checkpoint = load_checkpoint(Path("my-model"))
for passage in write(checkpoint, "In the beginning", Settings(algorithm="acs", steps=16)):
    print(passage.text)
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, cast, final

import torch

from hdlm.checkpoint import Checkpoint
from hdlm.data.tokenizer import Place, Tokenizer
from hdlm.denoiser import AbstractDenoiser, Guided, placed
from hdlm.hyperschedule import AbstractHyperschedule, Block, Slide, Wave, autoregressive, flat
from hdlm.noise_schedule import AbstractNoiseSchedule, Composed, Interpolated, time_grid
from hdlm.passages import Ending, Reader, Stream, text_of
from hdlm.sampling import (
    ApproximateCache,
    Frame,
    Generation,
    MinP,
    Prompt,
    RepetitionPenalty,
    Stop,
    Temperature,
    TopK,
    TopP,
    Transform,
    algorithm,
    sample,
)

__all__ = ["BLANK", "Ending", "Passage", "Settings", "blanks", "complete", "planned", "tokenizer_of", "write"]

BLANK = re.compile(r"\[MASK(?::([0-9]+))?\]")
"""What stands in a text where something is to be written: `[MASK]` for one token, `[MASK:5]` for five."""
_FULL_CANVAS = Ending()
_LONGEST_SHOWN = 40
"""Characters of a gap that an error repeats."""
_FAMILIES: dict[str, type[Block | Slide | Wave]] = {"block": Block, "slide": Slide, "wave": Wave}


@final
@dataclass(frozen=True)
class Settings:
    """How to write. None leaves a choice to the checkpoint.

    Attributes:
        algorithm: Name of the sampler; see `hdlm.sampling.ALGORITHMS`.
        eta: Strength of corrections and remasking, in [0, 1].
        hyperschedule: `"autoregressive"`, `"flat"`, `"block"`, `"slide"` or `"wave"`; by default the one that the
            checkpoint lists first, or the widest one for infilling.
        width: Positions that are written together.
        steps: Steps that each position takes from noise to word; by default as many as the grid lists.
        grid: When they are; see `hdlm.noise_schedule.time_grid`. Evenly spread by default.
        length: Positions on the canvas, at most the context of the network.
        temperature: See `Temperature`; 1 leaves the model as it is.
        top_k: See `TopK`.
        top_p: See `TopP`.
        min_p: See `MinP`.
        repetition_penalty: See `RepetitionPenalty`; 1 is off.
        guidance: Scale of classifier-free guidance by the prompt; 0 is off.
    """

    algorithm: str = "acs"
    eta: float = 0.05
    hyperschedule: str | None = None
    width: int | None = None
    steps: int | None = None
    grid: str | None = None
    length: int | None = None
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    guidance: float = 0.0

    def transforms(self) -> tuple[Transform, ...]:
        """What is done to the model's distribution, in order: penalty, temperature, then truncation."""
        chosen: list[Transform] = []
        if self.repetition_penalty != 1:
            chosen.append(RepetitionPenalty(self.repetition_penalty))
        if self.temperature != 1:
            chosen.append(Temperature(self.temperature))
        if self.top_k is not None:
            chosen.append(TopK(self.top_k))
        if self.top_p is not None:
            chosen.append(TopP(self.top_p))
        if self.min_p is not None:
            chosen.append(MinP(self.min_p))
        return tuple(chosen)

    def noise(self, trained: AbstractNoiseSchedule) -> AbstractNoiseSchedule:
        """The noise schedule to write along: the trained one, at the times of the grid."""
        return trained if self.grid is None else Composed(trained, time_grid(self.grid))

    def plan(self, trained: tuple[AbstractHyperschedule, ...], length: int) -> AbstractHyperschedule:
        """The hyperschedule to write along.

        Args:
            trained: What the checkpoint was trained on, the best first.
            length: Positions on the canvas.

        Raises:
            ValueError: If the name is unknown, or a width or a number of steps is out of range.
        """
        unused = {"autoregressive": ("width", "steps", "grid"), "flat": ("width",)}.get(
            self.hyperschedule or "", ()
        )
        for name in unused:
            if getattr(self, name) is not None:
                raise ValueError(
                    f"`{name}` means nothing to the hyperschedule {self.hyperschedule!r}; leave it out."
                )
        if self.hyperschedule == "autoregressive":
            return autoregressive(length)
        if self.hyperschedule not in (None, "flat", *_FAMILIES):
            known = ", ".join(["autoregressive", "flat", *_FAMILIES])
            raise ValueError(f"Unknown hyperschedule {self.hyperschedule!r}; known are {known}.")
        model = trained[0] if trained else None
        grid = None if self.grid is None else time_grid(self.grid)
        listed = len(grid.values) if isinstance(grid, Interpolated) else getattr(model, "num_levels", None)
        steps = self.steps if self.steps is not None else listed
        if steps is None or (model is None and self.hyperschedule is None):
            raise ValueError("The checkpoint lists no hyperschedule: say which one, and in how many steps.")
        if self.hyperschedule == "flat":
            return flat(length, steps)
        if self.hyperschedule is None and model is not None:
            return _resized(model, length, self.width, steps)
        width = self.width if self.width is not None else min(getattr(model, "width", length), length)
        assert self.hyperschedule is not None
        return _FAMILIES[self.hyperschedule](length, width, steps)


def _resized(
    model: AbstractHyperschedule, length: int, width: int | None, steps: int
) -> AbstractHyperschedule:
    """A hyperschedule with other sizes, if its class has them.

    Raises:
        ValueError: If it has not.
    """
    options: set[str] = {option.name for option in fields(model)} if is_dataclass(model) else set()
    sizes = {"length": length, "width": width, "num_levels": steps}
    wanted = {name: size for name, size in sizes.items() if size not in (None, getattr(model, name, None))}
    if not wanted:
        return model
    fixed = ["steps" if name == "num_levels" else name for name in wanted if not {name, "length"} <= options]
    if fixed:
        raise ValueError(
            f"The checkpoint's hyperschedule, {model!r}, has no other {', '.join(fixed)}: leave that out, or name "
            "another hyperschedule."
        )
    if "width" in options and width is None:
        wanted["width"] = min(getattr(model, "width", length), length)
    made: AbstractHyperschedule = replace(cast("Any", model), **wanted)
    return made


@final
@dataclass(frozen=True)
class Passage:
    """A text that was written.

    Attributes:
        text: The words, the prompt included; documents are separated by a newline.
        tokens: Their ids, the special ones included. Where the text ends at a string, the fewest that have all of it.
        given: How many tokens of it were given.
        num_evaluations: Calls of the network for all passages that were written with it.
        evaluations: Those that this passage took part in.
        computed: Positions of it that these have computed in all.
    """

    text: str
    tokens: tuple[int, ...]
    given: int
    num_evaluations: int
    evaluations: int
    computed: int


def tokenizer_of(checkpoint: Checkpoint) -> Tokenizer:
    """The tokenizer of a checkpoint.

    Raises:
        ValueError: If it has none, or one of another size.
    """
    if checkpoint.tokenizer is None:
        raise ValueError(
            "The checkpoint has no tokenizer, so its ids cannot be turned into text. Put the tokenizer.json it was "
            "trained with into its folder, or say where one is: hdlm.load(..., tokenizer=FILE, FOLDER or name)."
        )
    return Tokenizer.from_json(
        checkpoint.tokenizer, "the checkpoint's tokenizer.json", checkpoint.vocabulary.num_words
    )


def blanks(text: str, tokenizer: Tokenizer, mask_id: int, most: int | None = None) -> list[int]:
    """Tokens of a text in which `[MASK]` (or `[MASK:n]`) stands for masks, as a whole document.

    Args:
        text: The text.
        tokenizer: What makes tokens of it.
        mask_id: The mask.
        most: How many masks there may be at most; None for any number.

    Raises:
        ValueError: If there is nothing to fill in, a gap has no token, or there are more masks than `most`.
    """
    text = text.strip()
    _check_gaps(text, most)
    ids: list[int] = [] if tokenizer.vocabulary.bos is None else [tokenizer.vocabulary.bos]
    end = 0
    for found in BLANK.finditer(text):
        ids += _piece(text[end : found.start()], tokenizer, first=end == 0) + [mask_id] * _width(found)
        end = found.end()
    ids += _piece(text[end:], tokenizer, first=end == 0)
    if mask_id not in ids:
        raise ValueError("Nothing to fill in: the text has no [MASK] (one token) or [MASK:n] (n tokens).")
    return ids if tokenizer.vocabulary.eos is None else [*ids, tokenizer.vocabulary.eos]


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
        num: How many passages, at least 1.
        batch_size: How many at a time; it changes no passage.
        seed: Of all randomness.
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
    tokenizer = tokenizer_of(checkpoint)
    given, plan = _given(checkpoint, tokenizer, prompt, settings)
    num_given = int(given.fixed.sum())
    gaps = BLANK.search(prompt) is not None
    ends = ending.at_end_of_text or bool(ending.strings)
    if ends and gaps:
        raise ValueError("A text with gaps ends where it ends: leave out where to stop.")
    start = [] if gaps else given.tokens[0, :num_given].tolist()
    reader = Reader(tokenizer, ending, start, plan.length)
    streaming = None if stream is None else Stream(reader, stream)

    def seen(frame: Frame) -> None:
        if watch is not None:
            watch(frame)
        if streaming is not None:
            for sequence, row, settled in zip(frame.sequence, frame.after, frame.settled, strict=True):
                streaming.read(int(sequence), row[: int(settled)].tolist())

    done = complete(
        checkpoint,
        given,
        plan,
        settings,
        num=num,
        batch_size=batch_size,
        seed=seed,
        first_sequence=first_sequence,
        stop=reader if ends else None,
        approximate=approximate,
        device=device,
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
    plan: AbstractHyperschedule,
    settings: Settings,
    *,
    num: int = 1,
    batch_size: int | None = None,
    seed: int = 0,
    first_sequence: int = 0,
    stop: Stop | None = None,
    approximate: ApproximateCache | None = None,
    device: torch.device | str | None = None,
    watch: Callable[[Frame], None] | None = None,
) -> Generation:
    """Write the free positions of a canvas: `write` without words.

    Args:
        checkpoint: The model.
        given: What is given, on the whole canvas: one row, or `num`.
        plan: The hyperschedule to write along; see `planned`.
        settings: How.
        num: How many sequences, at least 1.
        batch_size: How many at a time; it changes no sequence.
        seed: Of all randomness.
        first_sequence: Index of the first: with 5, what a longer run has as its sixth.
        stop: Where sequences may end before the canvas is full.
        approximate: See `hdlm.sampling.ApproximateCache`.
        device: That of the model by default, and no other.
        watch: Called after every generation step.

    Raises:
        ValueError: If a setting is out of range, or what is given does not fit.
    """
    denoiser: AbstractDenoiser = checkpoint.denoiser
    device = placed(denoiser, device)
    if settings.guidance:
        if (given.fixed != given.fixed[:1]).any():
            raise ValueError("Guidance needs the same given positions in every row; got rows that differ.")
        denoiser = Guided(denoiser, given.fixed[:1].to(device), settings.guidance)
    return sample(
        denoiser,
        plan,
        algorithm(settings.algorithm, denoiser.process, settings.eta),
        num_sequences=num,
        batch_size=batch_size,
        seed=seed,
        first_sequence=first_sequence,
        prompt=given if given.fixed.any() else None,
        transforms=settings.transforms(),
        noise_schedule=settings.noise(checkpoint.noise_schedule),
        context=checkpoint.context,
        active=checkpoint.active,
        approximate=approximate,
        stop=stop,
        device=device,
        watch=watch,
    )


def planned(
    checkpoint: Checkpoint, settings: Settings, length: int, *, infilling: bool
) -> AbstractHyperschedule:
    """The hyperschedule that settings and checkpoint agree on.

    Args:
        checkpoint: The model.
        settings: How to write.
        length: Positions on the canvas.
        infilling: Whether gaps stand between given words: then all positions are written together unless `settings`
            say otherwise.

    Raises:
        ValueError: If the canvas does not fit the network, or the settings do not fit the checkpoint.
    """
    trained = checkpoint.hyperschedules
    if not infilling:
        _check_length("canvas", length, checkpoint.length)
        return settings.plan(trained, length)
    _check_length("text with its gaps", length, checkpoint.length)
    widest = tuple(sorted(trained, key=lambda schedule: -getattr(schedule, "width", 0)))
    whole = settings.hyperschedule is None and settings.width is None
    return (replace(settings, width=length) if whole else settings).plan(widest, length)


def _width(gap: re.Match[str]) -> int:
    """How many tokens a gap has."""
    return int((gap[1] or "1").lstrip("0"))


def _check_gaps(text: str, most: int | None) -> None:
    """Gaps must have tokens, and not more than there is room for; checked before any list is made of them."""
    room = most
    for found in BLANK.finditer(text):
        digits = (found[1] or "1").lstrip("0")
        if not digits:
            raise ValueError(
                f"The gap {found[0]} has no token: write [MASK] for one token, [MASK:n] for n tokens, at least 1."
            )
        if room is None:
            continue
        if len(digits) > len(str(room)) or int(digits) > room:
            shown = found[0] if len(found[0]) <= _LONGEST_SHOWN else f"{found[0][:_LONGEST_SHOWN]}...]"
            raise ValueError(
                f"The gap {shown} does not fit: the canvas has {most} positions, the network's context, for the text "
                "and all of its gaps."
            )
        room -= int(digits)


def _given(
    checkpoint: Checkpoint, tokenizer: Tokenizer, prompt: str, settings: Settings
) -> tuple[Prompt, AbstractHyperschedule]:
    """What is given, and the hyperschedule to write the rest along."""
    if BLANK.search(prompt):
        ids = blanks(prompt, tokenizer, checkpoint.vocabulary.mask_id, checkpoint.length)
        if settings.length is not None:
            raise ValueError(
                f"The canvas of a text with gaps is the text, {len(ids)} tokens: leave `length` out."
            )
        plan = planned(checkpoint, settings, len(ids), infilling=True)
        return Prompt.infill(ids, checkpoint.vocabulary.mask_id), plan
    length = checkpoint.length if settings.length is None else settings.length
    plan = planned(checkpoint, settings, length, infilling=False)
    start: list[Any] = [] if tokenizer.vocabulary.bos is None else [tokenizer.vocabulary.bos]
    words = _piece(prompt.strip(), tokenizer, first=True)
    return Prompt.prefix(start + words, length), plan


def _check_length(what: str, length: int, context: int) -> None:
    if not 1 <= length <= context:
        raise ValueError(
            f"The {what} must have between 1 and {context} positions, the network's context; got {length}."
        )


def _piece(text: str, tokenizer: Tokenizer, *, first: bool) -> list[int]:
    """Tokens of the text before, between or behind gaps; a space beside a gap belongs to the word behind it."""
    place: Place = "start" if first else "spaced" if text.startswith(" ") else "glued"
    words = (text if first else text.removeprefix(" ")).removesuffix(" ")
    return tokenizer.encode(words, place) if words else []
