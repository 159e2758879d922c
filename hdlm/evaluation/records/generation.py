"""Compare samples of several models, which agree in number, length, prompt and scoring."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from hdlm.evaluation.records.comparison import (
    Comparison,
    ResultDocument,
    check_protocol,
    chosen_metrics,
    independent_rows,
    is_number,
    known_field,
    measured_cell,
    model_notes,
    protocol_differences,
    table_of,
)

__all__ = ["compare_generations"]

_AGAINST_TEXT = frozenset({"MAUVE", "mauve"})
"""Metrics of samples against a text, which must be equal for all results."""
_ORDER = re.compile(r"-\d+$")
_NUMBERS = frozenset({"value", "error"})


def compare_generations(documents: Mapping[str, ResultDocument], metrics: tuple[str, ...]) -> Comparison:
    """Compare documents of this kind; see `hdlm.evaluation.records.compare.compare`."""
    measured = {name: _metrics(document, name) for name, document in documents.items()}
    chosen = chosen_metrics(measured, metrics)
    drawn = {name: _drawn(document, name) for name, document in documents.items()}
    apart, protocol = protocol_differences(drawn), dict(next(iter(drawn.values())))
    for metric in chosen:
        scored = {
            name: _scored(document, measured[name][metric], metric, name)
            for name, document in documents.items()
            if "failed" not in measured[name][metric]
        }
        apart += protocol_differences(scored) if scored else []
        protocol |= next(iter(scored.values()), {})
    check_protocol(apart)
    cells_by_name = {
        name: {metric: measured_cell(numbers[metric], f"{name}: {metric}") for metric in chosen}
        for name, numbers in measured.items()
    }
    cells = independent_rows(cells_by_name, chosen)
    notes = tuple(_sampling_notes(documents) + model_notes(documents))
    return Comparison("generation", tuple(documents), cells, protocol, notes)


def _metrics(document: ResultDocument, name: str) -> Mapping[str, ResultDocument]:
    """Numbers by metric."""
    metrics = table_of(table_of(document, "result", name), "metrics", f"{name}: result")
    for metric in metrics:
        table_of(metrics, metric, f"{name}: metrics")
    return metrics


def _drawn(document: ResultDocument, name: str) -> dict[str, Any]:
    """The fields in which all samples must agree."""
    result = table_of(document, "result", name)
    length, given = known_field(result, "length", f"{name}: result"), result.get("num_given", 0)
    if not is_number(length) or not is_number(given):
        raise ValueError(f"{name}: length and num_given must be numbers; got {length!r} and {given!r}.")
    fields = {
        "num_samples": known_field(result, "num_samples", f"{name}: result"),
        "tokens written": length - given,
    }
    settings = result.get("settings")
    if isinstance(settings, Mapping):
        fields["prompt"] = settings.get("prompt") or ""
    return fields | {"tokenizer_sha256": known_field(document, "tokenizer_sha256", name)}


def _scored(document: ResultDocument, entry: ResultDocument, metric: str, name: str) -> dict[str, Any]:
    """The protocol of one metric: its judge, by its weights, and all other fields beside the number."""
    definitions = document["result"].get("definitions")
    called = {"judge"} if "judge_sha256" in entry else set()
    fields = {f"{metric}: {key}": entry[key] for key in entry if key not in _NUMBERS | called}
    if metric in _AGAINST_TEXT:
        data = table_of(document, "data", name)
        fields |= {f"{metric}: data.sha256": known_field(data, "sha256", f"{name}: data")}
    if isinstance(definitions, Mapping):
        family = _ORDER.sub("-n", metric)
        definition = definitions.get(metric, definitions.get(family))
        fields |= {} if definition is None else {f"{metric}: definition": definition}
    return fields


def _sampling_notes(documents: Mapping[str, ResultDocument]) -> list[str]:
    evaluations = sorted({str(document["result"].get("num_evaluations")) for document in documents.values()})
    notes = []
    if len(evaluations) > 1:
        notes.append(f"network evaluations differ: {', '.join(evaluations)}.")
    if len({str(document.get("seed")) for document in documents.values()}) < len(documents):
        notes.append("a seed is shared; errors of differences are those of independent samples all the same.")
    return notes
