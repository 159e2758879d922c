"""Traces as JSON documents: the changes of a generation, the texts of its tokens and its hyperschedule.

`docs/trace.md` describes the format, and `trace.schema.json` beside this file is its JSON Schema.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, final

import torch

from hdlm.atomic import replacing
from hdlm.checkpoint import Checkpoint
from hdlm.data.tokenizer import Tokenizer
from hdlm.generation.settings import Settings
from hdlm.generation.text import Passage
from hdlm.generation.write import canvas_of, write
from hdlm.hyperschedule import AbstractHyperschedule
from hdlm.sampling import Change, Frame, Trace

__all__ = [
    "LevelCurves",
    "TraceDocument",
    "TracedSequence",
    "change_columns",
    "document_of",
    "frame_of",
    "record",
    "token_pieces",
]

_NUMBERS = ("step", "sequence", "position", "old", "new", "evaluations", "computed")
_TEXTS = ("reason",)
_SHARES = ("noise", "p_old", "p_new", "entropy")
_PLAIN = ("title", "seed", "settings", "mask_id", "alternatives", "transformed", "num_steps")
_FORMAT, _VERSION = "hdlm-trace", 1


@final
@dataclass(frozen=True)
class LevelCurves:
    """The levels of a hyperschedule in few numbers: positions that open at different steps share a curve.

    Attributes:
        num_levels: The level of pure noise.
        opens: The first step at which each position may change; before it the level is `num_levels`.
        curve: For each position the index of its curve.
        curves: Levels from the opening step on; the last one, 0, remains.
    """

    num_levels: int
    opens: tuple[int, ...]
    curve: tuple[int, ...]
    curves: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, hyperschedule: AbstractHyperschedule) -> LevelCurves:
        """The curves of a hyperschedule."""
        levels = hyperschedule.levels(torch.arange(hyperschedule.num_steps + 1)).T
        opens = ((levels == hyperschedule.num_levels).sum(1) - 1).clamp_min(0).tolist()
        ends = (levels > 0).sum(1).tolist()
        index: dict[tuple[int, ...], int] = {}
        curve = []
        for row, begin, end in zip(levels, opens, ends, strict=True):
            curve.append(index.setdefault(tuple(row[begin : end + 1].tolist()), len(index)))
        return cls(hyperschedule.num_levels, tuple(opens), tuple(curve), tuple(index))

    def level(self, position: int, step: int) -> int:
        """The level of a position after `step` steps."""
        after = step - self.opens[position]
        curve = self.curves[self.curve[position]]
        return self.num_levels if after < 0 else curve[min(after, len(curve) - 1)]


@final
@dataclass(frozen=True)
class TracedSequence:
    """A sequence of a traced run.

    Attributes:
        index: Index of the sequence in the run.
        start: Tokens before the first step.
        given: Positions whose tokens were given.
        text: The finished text; empty while the sequence is being written.
        evaluations: Number of network calls that included the sequence.
        computed: Number of positions that these calls have computed in total.
    """

    index: int
    start: tuple[int, ...]
    given: tuple[int, ...]
    text: str = ""
    evaluations: int = 0
    computed: int = 0


@final
@dataclass(frozen=True)
class TraceDocument:
    """A trace with everything that a reader of it needs: it can be shown without the model and its tokenizer.

    Attributes:
        title: Name of the run for people.
        seed: Seed of the run.
        settings: Settings of the run.
        mask_id: Token id of the mask.
        alternatives: Number of likeliest words that each change keeps; None if probabilities were not recorded.
        transformed: Whether the probabilities are those after temperature and the other transforms.
        num_steps: Number of generation steps.
        levels: Noise levels of the positions.
        pieces: Text of each token that occurs, with the space before it; None for the mask.
        sequences: The sequences of the run.
        changes: All changes, in order of steps, then sequences, then positions.
    """

    title: str
    seed: int
    settings: Mapping[str, Any]
    mask_id: int
    alternatives: int | None
    transformed: bool
    num_steps: int
    levels: LevelCurves
    pieces: Mapping[int, str]
    sequences: tuple[TracedSequence, ...]
    changes: tuple[Change, ...]

    def to_dict(self) -> dict[str, Any]:
        """The document as plain values, ready for `json.dumps`."""
        return {
            "format": _FORMAT,
            "version": _VERSION,
            **{name: getattr(self, name) for name in _PLAIN},
            "settings": dict(self.settings),
            "levels": asdict(self.levels),
            "pieces": {str(token): text for token, text in self.pieces.items()},
            "sequences": [asdict(sequence) for sequence in self.sequences],
            "changes": change_columns(self.changes),
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any], origin: str = "this document") -> TraceDocument:
        """Read plain values that `to_dict` returned.

        Args:
            document: The plain values.
            origin: Name of the document for messages.

        Raises:
            ValueError: If it is not a trace, or has another version.
        """
        if not isinstance(document, Mapping) or document.get("format") != _FORMAT:
            raise ValueError(f"{origin} is not a trace; `hdlm sample --trace FILE` writes one.")
        if document.get("version") != _VERSION:
            raise ValueError(
                f"{origin} is a trace of version {document.get('version')!r}; this hdlm reads version {_VERSION}."
            )
        try:
            return cls._read(document)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{origin} is a damaged trace: {type(error).__name__} {error}.") from error

    def save(self, path: str | Path) -> None:
        """Write the document as a JSON file, completely or not at all."""
        with replacing(Path(path)) as temporary:
            temporary.write_text(self.to_json(), encoding="utf-8")

    def to_json(self) -> str:
        """The document as JSON text."""
        return json.dumps(self.to_dict(), ensure_ascii=False, separators=(",", ":"), allow_nan=False)

    @classmethod
    def load(cls, path: str | Path) -> TraceDocument:
        """Read a JSON file.

        Raises:
            FileNotFoundError: If the file does not exist; the message names the command that writes traces.
            ValueError: If the file is not a trace.
        """
        try:
            document = json.loads(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"there is no file {path}: give a trace, which `hdlm sample --trace FILE` writes."
            ) from error
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"{path} is not a trace, because it is not JSON: {error}.") from error
        return cls.from_dict(document, str(path))

    def of_sequence(self, index: int) -> list[Change]:
        """The changes of one sequence, by its index in the run."""
        return [change for change in self.changes if change.sequence == index]

    @classmethod
    def _read(cls, document: Mapping[str, Any]) -> TraceDocument:
        levels = document["levels"]
        curves = LevelCurves(
            int(levels["num_levels"]),
            tuple(map(int, levels["opens"])),
            tuple(map(int, levels["curve"])),
            tuple(tuple(map(int, curve)) for curve in levels["curves"]),
        )
        sequences = tuple(
            TracedSequence(**{**one, "start": tuple(one["start"]), "given": tuple(one["given"])})
            for one in document["sequences"]
        )
        whole = cls(
            **{name: document[name] for name in _PLAIN},
            levels=curves,
            pieces={int(token): str(text) for token, text in document["pieces"].items()},
            sequences=sequences,
            changes=tuple(_changes(document["changes"])),
        )
        whole._check()
        return whole

    def _check(self) -> None:
        """Check that all indices of the document point to something."""
        lengths = {one.index: len(one.start) for one in self.sequences}
        if any(length != len(self.levels.opens) for length in lengths.values()):
            raise ValueError("sequences and levels differ in length")
        if {len(self.levels.opens)} != {len(self.levels.curve)} or any(not c for c in self.levels.curves):
            raise ValueError("a position has no levels")
        if any(not 0 <= curve < len(self.levels.curves) for curve in self.levels.curve):
            raise ValueError("a position has a curve that is not there")
        for change in self.changes:
            if not 0 <= change.position < lengths[change.sequence] or not 0 <= change.step < self.num_steps:
                raise ValueError(f"{change} lies outside the run")
        used = {token for one in self.sequences for token in one.start} | _tokens(self.changes)
        if missing := used - set(self.pieces) - {self.mask_id}:
            raise ValueError(f"the text of token {min(missing)} is missing")


def change_columns(changes: Iterable[Change]) -> dict[str, list[Any]]:
    """Changes as columns of plain values; probabilities keep four significant digits."""
    rows = list(changes)
    columns: dict[str, list[Any]] = {
        name: [getattr(change, name) for change in rows] for name in (*_NUMBERS, *_TEXTS)
    }
    for name in _SHARES:
        columns[name] = [_short(getattr(change, name)) for change in rows]
    columns["alternatives"] = [
        change.alternatives and [number for token, p in change.alternatives for number in (token, _short(p))]
        for change in rows
    ]
    return columns


def token_pieces(tokens: Iterable[int], read: Callable[[int], str | None]) -> dict[int, str]:
    """The text of each token; tokens without a text, such as the mask, are left out."""
    texts = {token: read(token) for token in sorted(set(tokens))}
    return {token: text for token, text in texts.items() if text is not None}


def frame_of(
    changes: Sequence[Change],
    read: Callable[[int], str | None],
    *,
    step: int,
    evaluations: int,
    computed: int,
) -> dict[str, Any]:
    """The changes of one step as plain values: a frame for `appendFrame` of `hdlm/view/static/replay.js`.

    Args:
        changes: The changes of the step, as `Trace.record` returns them.
        read: Returns the text of a token, or None for the mask; see `Tokenizer.piece`.
        step: Index of the generation step, from 0.
        evaluations: Number of network calls so far that included the sequence.
        computed: Number of positions of the sequence that these calls have computed in total.
    """
    pieces = token_pieces(_tokens(changes), read)
    return {
        "step": step,
        "evaluations": evaluations,
        "computed": computed,
        "changes": change_columns(changes),
        "pieces": {str(token): text for token, text in pieces.items()},
    }


def record(
    checkpoint: Checkpoint,
    prompt: str = "",
    settings: Settings = Settings(),
    *,
    seed: int = 0,
    title: str | None = None,
    alternatives: int = 5,
    transformed: bool = False,
    watch: Callable[[Frame], None] | None = None,
    noise: float | None = None,
    **how: Any,
) -> tuple[list[Passage], TraceDocument]:
    """Generate passages, as `write` does, with their trace.

    Args:
        checkpoint: Checkpoint of the model.
        prompt: Text to begin with, a text with gaps, or a text to correct.
        settings: The settings of generation.
        seed: Seed of all random numbers.
        title: Name of the run for people; by default the algorithm and the seed.
        alternatives: Number of likeliest words to keep for each change.
        transformed: Whether to record the probabilities after temperature and the other transforms.
        watch: Called after every generation step.
        noise: Noise fraction at which a text to correct begins, as in `write`.
        **how: Other arguments of `write`.

    Raises:
        ValueError: If a setting is out of range, or the prompt does not fit the canvas.
    """
    trace = Trace(checkpoint.vocabulary.mask_id, alternatives=alternatives, transformed=transformed)

    def seen(frame: Frame) -> None:
        trace(frame)
        if watch is not None:
            watch(frame)

    _, regime = canvas_of(checkpoint, prompt, settings, noise)
    passages = write(checkpoint, prompt, settings, seed=seed, watch=seen, noise=noise, **how)
    name = f"{settings.algorithm}, seed {seed}" if title is None else title
    document = document_of(
        trace,
        regime.hyperschedule,
        checkpoint.tokenizer,
        title=name,
        seed=seed,
        settings=asdict(settings),
        noise=noise,
    )
    texts = dict(zip((one.index for one in document.sequences), passages, strict=True))
    sequences = tuple(replace(one, text=texts[one.index].text) for one in document.sequences)
    return passages, replace(document, sequences=sequences)


def document_of(
    trace: Trace,
    hyperschedule: AbstractHyperschedule,
    tokenizer: Tokenizer,
    *,
    title: str = "",
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    noise: float | None = None,
) -> TraceDocument:
    """The document of a trace.

    Args:
        trace: The trace of a run; it may have only begun.
        hyperschedule: The hyperschedule of the run.
        tokenizer: Tokenizer of the model.
        title: Name of the run for people.
        seed: Seed of the run.
        settings: Settings of the run as plain values.
        noise: Noise fraction at which a text to correct began; the document has it in its settings.
    """
    changes = tuple(trace.changes)
    sequences = tuple(
        TracedSequence(
            index,
            tuple(start),
            tuple(trace.given[index]),
            evaluations=trace.evaluations[index],
            computed=trace.computed[index],
        )
        for index, start in sorted(trace.start.items())
    )
    used = _tokens(changes).union(*(one.start for one in sequences)) - {trace.mask_id}
    return TraceDocument(
        title,
        seed,
        {**(settings or {}), **({} if noise is None else {"noise": noise})},
        trace.mask_id,
        trace.alternatives,
        trace.transformed,
        hyperschedule.num_steps,
        LevelCurves.of(hyperschedule),
        token_pieces(used, tokenizer.piece),
        sequences,
        changes,
    )


def _tokens(changes: Iterable[Change]) -> set[int]:
    """All tokens that changes name."""
    tokens: set[int] = set()
    for change in changes:
        tokens |= {change.old, change.new, *(token for token, _ in change.alternatives or ())}
    return tokens


def _short(number: float | None) -> float | None:
    return None if number is None else float(f"{number:.4g}")


def _changes(columns: Mapping[str, Sequence[Any]]) -> list[Change]:
    """The changes that `change_columns` has written."""
    pairs = [
        None if flat is None else tuple(zip(map(int, flat[::2]), map(float, flat[1::2]), strict=True))
        for flat in columns["alternatives"]
    ]
    names = (*_NUMBERS, *_TEXTS, *_SHARES)
    shares = [[None if share is None else float(share) for share in columns[name]] for name in _SHARES]
    rows = zip(*(columns[name] for name in (*_NUMBERS, *_TEXTS)), *shares, pairs, strict=True)
    return [Change(**dict(zip((*names, "alternatives"), row, strict=True))) for row in rows]
