"""Results side by side, where that means something: numbers, their differences, and whether these are more than noise.

With independent estimates `a ± s` and `b ± r` the difference is

    (b - a) ± sqrt(s^2 + r^2)

Likelihoods that were estimated with the same random numbers (same seed, estimator and replicates) are not independent.
They are compared replicate by replicate: the error is that of the mean of the differences. A difference is called
significant when it is more than two standard errors; among twenty true zeros one or so will be.

Numbers are refused that were made under different protocols: what differs is named, and nothing is computed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, final

from hdlm.evaluation.likelihood.result import LikelihoodResult
from hdlm.evaluation.records.protocol import read_result

__all__ = [
    "SIGNIFICANT",
    "Cell",
    "Comparison",
    "IncomparableError",
    "compare",
    "overlay",
    "read_results",
    "task_scores",
]

ResultDocument = Mapping[str, Any]

RESULTS = "results.json"
"""Name of the file that holds a result in a folder."""
SIGNIFICANT = 2.0
"""Standard errors that a difference must exceed to be marked."""
_AGAINST_TEXT = frozenset({"MAUVE", "mauve"})
"""Metrics of samples against a text, which must then be the same."""
_ABSENT = object()
_EXACT = "exact"
"""The estimator that needs no replicates."""


class IncomparableError(ValueError):
    """Two results were made under different protocols."""


@final
@dataclass(frozen=True)
class Cell:
    """One number of one result, and its difference to that of the first.

    Attributes:
        value: The number; None if it could not be measured.
        error: Its standard error; None if unknown.
        failed: Why there is no number; empty if there is one.
        difference: Number minus the first result's; None for the first itself, and where one of both is missing.
        difference_error: Standard error of that; None if unknown.
    """

    value: float | None
    error: float | None
    failed: str = ""
    difference: float | None = None
    difference_error: float | None = None

    @property
    def significant(self) -> bool:
        """Whether the difference is more than `SIGNIFICANT` standard errors."""
        if self.difference is None or self.difference_error is None:
            return False
        return abs(self.difference) > SIGNIFICANT * self.difference_error


@final
@dataclass(frozen=True)
class Comparison:
    """Results that were made under one protocol.

    Attributes:
        kind: `"likelihood"`, `"generation"` or `"harness"`.
        names: The results, the first is the one that the others are compared with.
        cells: By metric, one for each result.
        protocol: What they have in common.
        notes: What to bear in mind.
    """

    kind: str
    names: tuple[str, ...]
    cells: Mapping[str, tuple[Cell, ...]]
    protocol: Mapping[str, Any]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        rows = {
            metric: {
                name: asdict(cell) | {"significant": cell.significant}
                for name, cell in zip(self.names, cells, strict=True)
            }
            for metric, cells in self.cells.items()
        }
        return {
            "kind": self.kind,
            "results": list(self.names),
            "metrics": rows,
            "protocol": dict(self.protocol),
            "notes": list(self.notes),
        }


def compare(
    documents: Mapping[str, ResultDocument] | Sequence[str | Path], metrics: tuple[str, ...] = ()
) -> Comparison:
    """Put results side by side.

    Args:
        documents: Two or more results; the others are compared with the first. Files or folders, as for
            `read_results`, or documents by name.
        metrics: Metrics to compare; all that the results have in common by default. What the others were made with
            then does not matter.

    Raises:
        IncomparableError: If they were made under different protocols; every field that differs is named.
        ValueError: If there are fewer than two, one is not a result document, or lacks a metric that is asked for.
    """
    if not isinstance(documents, Mapping):
        documents = read_results(documents)
    if len(documents) < 2:
        raise ValueError(f"a comparison needs at least two results; got {len(documents)}.")
    kinds = {name: _field(document, "kind", name) for name, document in documents.items()}
    for name, kind in kinds.items():
        if not isinstance(kind, str) or kind not in _KINDS:
            raise ValueError(f"{name} is of kind {kind!r}; what can be compared is {' or '.join(_KINDS)}.")
    _check(_protocol_differences({name: {"kind": kind} for name, kind in kinds.items()}))
    return _KINDS[next(iter(kinds.values()))](documents, metrics)


def read_results(places: Sequence[str | Path]) -> dict[str, dict[str, Any]]:
    """Results by the names that tell them apart.

    Args:
        places: Each a result, or the folder of a `results.json`; `PLACE:NAME` is one data set of several.

    Raises:
        ValueError: If one is given twice, is not a result, or holds several of which none is named.
    """
    found: dict[str, dict[str, Any]] = {}
    for word in map(str, places):
        file, _, part = (word, "", "") if Path(word).exists() else word.rpartition(":")
        path = Path(file or word)
        name = str(path.parent if path.name == RESULTS and path.parent.name else path)
        name += f":{part}" if file and part else ""
        if name in found:
            raise ValueError(f"{name} is given twice; give each result once.")
        found[name] = _document(path / RESULTS if path.is_dir() else path, part if file else "")
    return found


def _document(path: Path, part: str) -> dict[str, Any]:
    """One result; a file of the published command holds one for each data set."""
    document = read_result(path)
    parts = document.get("datasets")
    if not isinstance(parts, dict):
        if part:
            raise ValueError(f"{path} is one result; leave :{part} out.")
        return document
    chosen = part or (next(iter(parts)) if len(parts) == 1 else "")
    if not isinstance(parts.get(chosen), dict):
        raise ValueError(
            f"{path} holds several data sets: write {path}:NAME, with NAME of {', '.join(parts)}."
        )
    found: dict[str, Any] = parts[chosen]
    if "failed" in found:
        raise ValueError(f"{path}: {chosen} was not measured: {found['failed']}")
    return found


# === Likelihood ===

_PER_TOKEN = ("bits per token", "perplexity")
_LENGTH = re.compile(r"\blength=(\d+)")
"""How a hyperschedule says how long its canvas, a window, is."""


def _likelihoods(documents: Mapping[str, ResultDocument], metrics: tuple[str, ...]) -> Comparison:
    results = {name: _likelihood(document, name) for name, document in documents.items()}
    tokenizers = [_field(document, "tokenizer_sha256", name) for name, document in documents.items()]
    one = tokenizers[0] is not None and tokenizers.count(tokenizers[0]) == len(tokenizers)
    fields = {
        name: _text(document, name) | _windows(result, counted=one)
        for (name, document), result in zip(documents.items(), results.values(), strict=True)
    }
    _check(_protocol_differences(fields))
    notes = _likelihood_notes(documents, results)
    found = {name: _bits(result) for name, result in results.items()}
    if not one:
        if any(result.num_bytes is None for result in results.values()):
            raise IncomparableError(
                "tokenizer_sha256 differs, or is unknown, and the bytes of the text are not known: perplexity and bits "
                "per token mean something for one tokenizer only. Measure again with the bytes counted."
            )
        found = {
            name: {key: cell for key, cell in bits.items() if key not in _PER_TOKEN}
            for name, bits in found.items()
        }
        notes.insert(
            0,
            "tokenizers differ, so bits per byte alone are compared: perplexity and bits per token are per token.",
        )
    chosen = _chosen(found, metrics)
    first = next(iter(results.values()))
    cells = {}
    for metric in chosen:
        ours = [bits[metric] for bits in found.values()]
        errors = [
            _difference_error(first, result, metric, ours[0], cell)
            for result, cell in zip(results.values(), ours, strict=True)
        ]
        cells[metric] = _row(ours, errors)
    return Comparison("likelihood", tuple(documents), cells, next(iter(fields.values())), tuple(notes))


def _likelihood(document: ResultDocument, name: str) -> LikelihoodResult:
    try:
        result = LikelihoodResult.from_dict(_mapping(document, "result", name))
        _bits(result)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{name}: {error}") from error
    return result


def _text(document: ResultDocument, name: str) -> dict[str, Any]:
    """Which text."""
    data = _mapping(document, "data", name)
    place = f"{name}: data"
    return {
        "data.sha256": _known(data, "sha256", place),
        "data.bytes": _field(data, "bytes", place),
        "data.detokenizer": _field(data, "detokenizer", place),
    }


def _windows(result: LikelihoodResult, *, counted: bool) -> dict[str, Any]:
    """Under which bound, in which windows; tokens and windows are counted alike by one tokenizer only."""
    length = _LENGTH.search(str(result.hyperschedule))
    return (
        {"bound": result.bound, "stride": result.stride, "within_documents": result.within_documents}
        | ({"window": int(length[1])} if length else {})
        | ({"num_tokens": result.num_tokens, "num_windows": result.num_windows} if counted else {})
    )


def _bits(result: LikelihoodResult) -> dict[str, Cell]:
    cells = {
        "bits per token": Cell(result.bits_per_token, result.bits_per_token_error),
        "perplexity": Cell(result.perplexity, result.perplexity_error),
    }
    if result.bits_per_byte is None:
        return cells
    return {"bits per byte": Cell(result.bits_per_byte, result.bits_per_byte_error)} | cells


def _likelihood_notes(
    documents: Mapping[str, ResultDocument], results: Mapping[str, LikelihoodResult]
) -> list[str]:
    exact = [name for name, result in results.items() if result.estimator == _EXACT]
    notes = []
    if 0 < len(exact) < len(results):
        notes.append(f"exact, where the others are upper bounds: {', '.join(exact)}.")
    single = [name for name, result in results.items() if result.standard_error is None]
    if single:
        notes.append(f"one replicate has no error, so nothing is marked: {', '.join(single)}.")
    return notes + _model_notes(documents)


def _difference_error(
    first: LikelihoodResult, second: LikelihoodResult, metric: str, a: Cell, b: Cell
) -> float | None:
    """Standard error of a difference; by replicates where both saw the same noise."""
    if a.error is None or b.error is None:
        return None
    paired = ("seed", "estimator", "replicates", "hyperschedule", "num_tokens")
    if first.replicates < 2 or any(getattr(first, key) != getattr(second, key) for key in paired):
        return math.hypot(a.error, b.error)
    slopes = [
        cell.error / result.standard_error if cell.error and result.standard_error else 0.0
        for cell, result in ((a, first), (b, second))
    ]
    apart = [
        slopes[1] * theirs - slopes[0] * ours
        for ours, theirs in zip(first.estimates, second.estimates, strict=True)
    ]
    middle = math.fsum(apart) / len(apart)
    squares = math.fsum((one - middle) ** 2 for one in apart)
    return math.sqrt(squares / (len(apart) - 1) / len(apart))


# === Generation ===


def _generations(documents: Mapping[str, ResultDocument], metrics: tuple[str, ...]) -> Comparison:
    measured = {name: _metrics(document, name) for name, document in documents.items()}
    chosen = _chosen(measured, metrics)
    drawn = {name: _drawn(document, name) for name, document in documents.items()}
    apart, protocol = _protocol_differences(drawn), dict(next(iter(drawn.values())))
    for metric in chosen:
        scored = {
            name: _scored(document, measured[name][metric], metric, name)
            for name, document in documents.items()
            if "failed" not in measured[name][metric]
        }
        apart += _protocol_differences(scored) if scored else []
        protocol |= next(iter(scored.values()), {})
    _check(apart)
    cells = {}
    for metric in chosen:
        ours = [_measurement(numbers[metric], f"{name}: {metric}") for name, numbers in measured.items()]
        errors = [
            None if ours[0].error is None or cell.error is None else math.hypot(ours[0].error, cell.error)
            for cell in ours
        ]
        cells[metric] = _row(ours, errors)
    notes = tuple(_sampling_notes(documents) + _model_notes(documents))
    return Comparison("generation", tuple(documents), cells, protocol, notes)


def _metrics(document: ResultDocument, name: str) -> Mapping[str, ResultDocument]:
    """Numbers by metric."""
    metrics = _mapping(_mapping(document, "result", name), "metrics", f"{name}: result")
    for metric in metrics:
        _mapping(metrics, metric, f"{name}: metrics")
    return metrics


def _drawn(document: ResultDocument, name: str) -> dict[str, Any]:
    """What samples have to have in common."""
    result = _mapping(document, "result", name)
    length, given = _known(result, "length", f"{name}: result"), result.get("num_given", 0)
    if not _is_number(length) or not _is_number(given):
        raise ValueError(f"{name}: length and num_given must be numbers; got {length!r} and {given!r}.")
    fields = {
        "num_samples": _known(result, "num_samples", f"{name}: result"),
        "tokens written": length - given,
    }
    settings = result.get("settings")
    if isinstance(settings, Mapping):
        fields["prompt"] = settings.get("prompt") or ""
    return fields | {"tokenizer_sha256": _known(document, "tokenizer_sha256", name)}


def _scored(document: ResultDocument, entry: ResultDocument, metric: str, name: str) -> dict[str, Any]:
    """What one metric was measured with: its judge, by its weights, and whatever else stands beside the number."""
    definitions = document["result"].get("definitions")
    called = {"judge"} if "judge_sha256" in entry else set()
    fields = {f"{metric}: {key}": entry[key] for key in entry if key not in _NUMBERS | called}
    if metric in _AGAINST_TEXT:
        data = _mapping(document, "data", name)
        fields |= {f"{metric}: data.sha256": _known(data, "sha256", f"{name}: data")}
    if isinstance(definitions, Mapping):
        family = _ORDER.sub("-n", metric)
        found = definitions.get(metric, definitions.get(family))
        fields |= {} if found is None else {f"{metric}: definition": found}
    return fields


def _measurement(entry: ResultDocument, place: str) -> Cell:
    if "failed" in entry:
        return Cell(None, None, str(entry["failed"]))
    value, error = _field(entry, "value", place), _field(entry, "error", place)
    if not _is_number(value) or not (error is None or (_is_number(error) and error >= 0)):
        raise ValueError(
            f"{place} must be a finite number with an error of at least 0, or null; got {value!r} ± {error!r}."
        )
    return Cell(float(value), None if error is None else float(error))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _sampling_notes(documents: Mapping[str, ResultDocument]) -> list[str]:
    evaluations = sorted({str(document["result"].get("num_evaluations")) for document in documents.values()})
    notes = []
    if len(evaluations) > 1:
        notes.append(f"network evaluations differ: {', '.join(evaluations)}.")
    if len({str(document.get("seed")) for document in documents.values()}) < len(documents):
        notes.append("a seed is shared; errors of differences are those of independent samples all the same.")
    return notes


# === Tasks of lm_eval ===


def _compare_harness(documents: Mapping[str, ResultDocument], metrics: tuple[str, ...]) -> Comparison:
    measured = {name: task_scores(document, name) for name, document in documents.items()}
    chosen = _chosen(measured, metrics)
    tasks = sorted({metric.split(": ")[0] for metric in chosen})
    asked = {name: _asked(document, tasks, name) for name, document in documents.items()}
    exact = [name for name, one in asked.items() if one["replicates"] == _EXACT]
    noisy = {name: one for name, one in asked.items() if name not in exact}
    some = {name: {**one, "replicates": "any"} for name, one in asked.items()} if exact else asked
    _check(_protocol_differences(some) + (_protocol_differences(noisy) if exact and noisy else []))
    cells = {}
    for metric in chosen:
        ours = [cells_of[metric] for cells_of in measured.values()]
        errors = [
            None if ours[0].error is None or cell.error is None else math.hypot(ours[0].error, cell.error)
            for cell in ours
        ]
        cells[metric] = _row(ours, errors)
    same = "questions are the same, so errors of differences, as if they were not, are too large rather than too small."
    notes = [same, *_model_notes(documents)]
    if exact and noisy:
        notes.insert(0, f"exact, where the others are bounds: {', '.join(exact)}.")
    return Comparison("harness", tuple(documents), cells, next(iter(some.values())), tuple(notes))


def task_scores(document: ResultDocument, name: str) -> dict[str, Cell]:
    """Numbers by `task: metric`, each with the standard error that `lm_eval` writes beside it.

    Args:
        document: What `hdlm eval harness` wrote.
        name: What to call it.

    Raises:
        ValueError: If it is something else.
    """
    tasks = _mapping(_mapping(document, "result", name), "results", f"{name}: result")
    found = {}
    for task in tasks:
        numbers = _mapping(tasks, task, f"{name}: results")
        for key, value in numbers.items():
            metric, comma, kept = key.partition(",")
            if not comma or metric.endswith("_stderr"):
                continue
            label = f"{task}: {metric}" + ("" if kept == "none" else f" ({kept})")
            if isinstance(value, Mapping):
                found[label] = _measurement(value, f"{name}: {task}")
            elif _is_number(value):
                error = numbers.get(f"{metric}_stderr,{kept}")
                known = float(error) if _is_number(error) and error is not None else None
                found[label] = Cell(float(value), known)
    return found


def _asked(document: ResultDocument, tasks: list[str], name: str) -> dict[str, Any]:
    """What tests of two models have to have in common; how each writes and along which plan is its own."""
    result = _mapping(document, "result", name)
    how = _mapping(result, "protocol", f"{name}: result")
    fields = {
        "bound": how.get("bound"),
        "replicates": _EXACT if how.get("estimator") == _EXACT else how.get("replicates"),
        "limit": result.get("limit"),
        "versions.lm_eval": _mapping(document, "versions", name).get("lm_eval"),
    }
    for key in ("versions", "n-shot", "n-samples", "higher_is_better", "questions_sha256"):
        told = result.get(key)
        fields |= {f"{task}: {key}": told.get(task) for task in tasks} if isinstance(told, Mapping) else {}
    return fields


# === Frontiers ===


def overlay(documents: Mapping[str, ResultDocument]) -> dict[str, Any]:
    """Frontiers as one: the document of a sweep that measured all their curves.

    Args:
        documents: Documents of `hdlm eval frontier` by name, two or more.

    Raises:
        IncomparableError: If they were made under different protocols; every field that differs is named.
        ValueError: If there are fewer than two, or one is not a frontier.
    """
    if len(documents) < 2:
        raise ValueError(f"a comparison needs at least two results; got {len(documents)}.")
    _check(
        _protocol_differences(
            {name: {"kind": _field(document, "kind", name)} for name, document in documents.items()}
        )
    )
    _check(_protocol_differences({name: _swept(document, name) for name, document in documents.items()}))
    texts = {name: _text(one, name) for name, one in documents.items() if one["reference"] is not None}
    _check(_protocol_differences(texts) if texts else [])
    every = list(documents.values())
    common = {
        key: value
        for key, value in every[0]["settings"].items()
        if all(one["settings"].get(key, _ABSENT) == value for one in every)
    }
    models: dict[str, Any] = {}
    curves = []
    for name, one in documents.items():
        own = {key: value for key, value in one["settings"].items() if key not in common}
        called = {model: name if len(one["models"]) == 1 else f"{name}: {model}" for model in one["models"]}
        models |= {called[model]: {**entry, "settings": own} for model, entry in one["models"].items()}
        curves += [{**curve, "model": called[curve["model"]]} for curve in one["curves"]]
    with_text = documents[next(iter(texts or documents))]
    return {
        **every[0],
        "settings": common,
        "models": models,
        "curves": curves,
        **{key: with_text[key] for key in ("data", "reference")},
        **{key: _joined([one[key] for one in every]) for key in ("seed", "device")},
        "wall_seconds": sum(one["wall_seconds"] for one in every),
        "versions": {
            key: _joined([one["versions"].get(key) for one in every]) for key in every[0]["versions"]
        },
    }


def _swept(document: ResultDocument, name: str) -> dict[str, Any]:
    """What frontiers have to have in common to be in one picture."""
    fields = {key: _field(document, key, name) for key in ("swept", "num_samples", "prompt", "definitions")}
    for key in ("models", "settings", "versions"):
        _mapping(document, key, name)
    for key in ("data", "reference", "seed", "device", "wall_seconds"):
        _field(document, key, name)
    try:
        points = [point for curve in _field(document, "curves", name) for point in curve["points"]]
        written = sorted({point["length"] - point["num_given"] for point in points})
        for point in points:
            for measure in ("entropy", "generative perplexity"):
                _measurement(point[measure], f"{name}: {measure}")
    except (KeyError, TypeError) as error:
        raise ValueError(f"{name} is no frontier of `hdlm eval`: a point of it lacks {error}.") from error
    return fields | {
        "judge": document.get("judge_sha256", document.get("judge")),
        "tokens written": _joined(written),
        "tokenizer_sha256": _known(document, "tokenizer_sha256", name),
    }


def _joined(values: list[Any]) -> Any:
    """What all say, or all that they say."""
    told = list(dict.fromkeys(map(str, values)))
    return values[0] if len(told) == 1 else ", ".join(told)


# === All ===


def _protocol_differences(fields: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Where results say something else than the first of them, in words; what only some say differs too."""
    first, *others = fields
    return [
        f"{other}: {key} is {_said(fields[other].get(key))}, and {_said(fields[first].get(key))} in {first}"
        for other in others
        for key in {**fields[first], **fields[other]}
        if fields[first].get(key, _ABSENT) != fields[other].get(key, _ABSENT)
    ]


def _check(apart: list[str]) -> None:
    """Refuse.

    Raises:
        IncomparableError: If there is anything in which results differ.
    """
    if apart:
        raise IncomparableError(f"made under different protocols, so not compared: {'; '.join(apart)}.")


def _said(value: object) -> str:
    if value is None:
        return "none"
    text = str(value)
    return f"{text[:12]}…" if _HASH.fullmatch(text) else text


def _model_notes(documents: Mapping[str, ResultDocument]) -> list[str]:
    """What two results of one protocol may still differ in without being noticed."""
    notes = []
    for key, what in (("weights", "weights"), ("dtype", "types of numbers")):
        values = sorted({str(document.get(key)) for document in documents.values()} - {"only"})
        if len(values) > 1:
            notes.append(f"{what} differ: {', '.join(values)}.")
    used = [document.get("versions") for document in documents.values()]
    versions = {str(one.get("hdlm")) if isinstance(one, Mapping) else "unknown" for one in used}
    if len(versions) > 1:
        notes.append(f"versions of hdlm differ: {', '.join(sorted(versions))}.")
    return notes


def _chosen(found: Mapping[str, Mapping[str, Any]], metrics: tuple[str, ...]) -> tuple[str, ...]:
    """The metrics that are asked for, or all that every result has.

    Raises:
        ValueError: If one is missing, or there is none.
    """
    first, *others = found.values()
    common = [metric for metric in first if all(metric in other for other in others)]
    missing = [metric for metric in metrics if metric not in common]
    if missing or not common:
        raise ValueError(
            f"not every result has {', '.join(missing) or 'any of the same metrics'}; "
            f"all have {', '.join(common) or 'nothing'}."
        )
    return metrics or tuple(common)


def _row(cells: list[Cell], errors: list[float | None]) -> tuple[Cell, ...]:
    """Cells with their differences to the first."""
    first, *others = cells
    row = [first]
    for cell, error in zip(others, errors[1:], strict=True):
        known = cell.value is not None and first.value is not None
        difference = cell.value - first.value if cell.value is not None and first.value is not None else None
        row.append(replace(cell, difference=difference, difference_error=error if known else None))
    return tuple(row)


def _mapping(values: ResultDocument, key: str, place: str) -> ResultDocument:
    found = _field(values, key, place)
    if not isinstance(found, Mapping):
        raise ValueError(f"{place}: {key} must be a table; got {found!r}.")
    return found


def _field(values: ResultDocument, key: str, place: str) -> Any:
    if key not in values:
        raise ValueError(f"{place} is no result document of `hdlm eval`: it lacks {key!r}.")
    return values[key]


def _known(values: ResultDocument, key: str, place: str) -> Any:
    found = _field(values, key, place)
    if found is None:
        raise ValueError(f"{place}: {key} is not known, so nothing can be compared with it.")
    return found


_ORDER = re.compile(r"-\d+$")
_NUMBERS = frozenset({"value", "error"})
_HASH = re.compile(r"[0-9a-f]{64}")
_KINDS: Mapping[str, Callable[[Mapping[str, ResultDocument], tuple[str, ...]], Comparison]] = {
    "likelihood": _likelihoods,
    "generation": _generations,
    "harness": _compare_harness,
}
