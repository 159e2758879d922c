"""Comparison of results: numbers, their differences, and whether the differences exceed the noise."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hdlm.evaluation.records.comparison import (
    Comparison,
    ResultDocument,
    check_protocol,
    field_of,
    protocol_differences,
)
from hdlm.evaluation.records.correction import compare_corrections
from hdlm.evaluation.records.generation import compare_generations
from hdlm.evaluation.records.likelihood import compare_likelihoods
from hdlm.evaluation.records.protocol import read_result, with_descriptions
from hdlm.evaluation.records.tasks import compare_tasks

__all__ = ["compare", "read_results"]

RESULTS = "results.json"
"""Name of the result file in a folder."""


_KINDS: Mapping[str, Callable[[Mapping[str, ResultDocument], tuple[str, ...]], Comparison]] = {
    "likelihood": compare_likelihoods,
    "generation": compare_generations,
    "calibration": compare_corrections,
    "repair": compare_corrections,
    "harness": compare_tasks,
}


def compare(
    documents: Mapping[str, ResultDocument] | Sequence[str | Path], metrics: tuple[str, ...] = ()
) -> Comparison:
    """Compare results.

    Args:
        documents: Two or more results; the others are compared with the first. Files or folders, as for `read_results`,
            or documents by name.
        metrics: Metrics to compare; by default all that the results share. The protocol of other metrics is then
            ignored.

    Raises:
        IncomparableError: If their protocols differ; every field that differs is named.
        ValueError: If there are fewer than two, one is not a result document, or lacks a requested metric.
    """
    if not isinstance(documents, Mapping):
        documents = read_results(documents)
    documents = {name: with_descriptions(document) for name, document in documents.items()}
    if len(documents) < 2:
        raise ValueError(f"a comparison needs at least two results; got {len(documents)}.")
    kinds = {name: field_of(document, "kind", name) for name, document in documents.items()}
    for name, kind in kinds.items():
        if not isinstance(kind, str) or kind not in _KINDS:
            raise ValueError(
                f"{name} is of kind {kind!r}; only these kinds can be compared: {' or '.join(_KINDS)}."
            )
    check_protocol(protocol_differences({name: {"kind": kind} for name, kind in kinds.items()}))
    return _KINDS[next(iter(kinds.values()))](documents, metrics)


def read_results(places: Sequence[str | Path]) -> dict[str, dict[str, Any]]:
    """Read results; their names are the shortest that distinguish them.

    Args:
        places: Each a result file, or a folder with a `results.json`; `PLACE:NAME` is one data set of several.

    Raises:
        ValueError: If one is given twice, is not a result, or holds several data sets and none is named.
    """
    documents: dict[str, dict[str, Any]] = {}
    for word in map(str, places):
        file, _, part = (word, "", "") if Path(word).exists() else word.rpartition(":")
        path = Path(file or word)
        name = str(path.parent if path.name == RESULTS and path.parent.name else path)
        name += f":{part}" if file and part else ""
        if name in documents:
            raise ValueError(f"{name} is given twice; give each result once.")
        documents[name] = _document(path / RESULTS if path.is_dir() else path, part if file else "")
    return documents


def _document(path: Path, part: str) -> dict[str, Any]:
    """Read one result; a file of the published command holds one result per data set."""
    document = read_result(path)
    parts = document.get("datasets")
    if not isinstance(parts, dict):
        if part:
            raise ValueError(f"{path} is one result; leave :{part} out.")
        return document
    chosen = part or (next(iter(parts)) if len(parts) == 1 else "")
    if not isinstance(parts.get(chosen), dict):
        raise ValueError(
            f"{path} holds several data sets: write {path}:NAME, where NAME is one of {', '.join(parts)}."
        )
    chosen_document: dict[str, Any] = parts[chosen]
    if "failed" in chosen_document:
        raise ValueError(f"{path}: {chosen} was not measured: {chosen_document['failed']}")
    return chosen_document
