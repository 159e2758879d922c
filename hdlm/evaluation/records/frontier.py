"""Join frontiers of several models into one picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hdlm.evaluation.records.comparison import (
    ABSENT,
    ResultDocument,
    check_protocol,
    field_of,
    known_field,
    measured_cell,
    protocol_differences,
    table_of,
    text_fields,
)

__all__ = ["overlay"]


def overlay(documents: Mapping[str, ResultDocument]) -> dict[str, Any]:
    """Merge frontiers into the document of a sweep that measured all their curves.

    Args:
        documents: Documents of `hdlm eval frontier` by name, two or more.

    Raises:
        IncomparableError: If their protocols differ; every field that differs is named.
        ValueError: If there are fewer than two, or one is not a frontier.
    """
    if len(documents) < 2:
        raise ValueError(f"a comparison needs at least two results; got {len(documents)}.")
    check_protocol(
        protocol_differences(
            {name: {"kind": field_of(document, "kind", name)} for name, document in documents.items()}
        )
    )
    check_protocol(
        protocol_differences({name: _swept(document, name) for name, document in documents.items()})
    )
    texts = {
        name: text_fields(frontier, name)
        for name, frontier in documents.items()
        if frontier["reference"] is not None
    }
    check_protocol(protocol_differences(texts) if texts else [])
    every = list(documents.values())
    common = {
        key: value
        for key, value in every[0]["settings"].items()
        if all(frontier["settings"].get(key, ABSENT) == value for frontier in every)
    }
    models: dict[str, Any] = {}
    curves = []
    for name, frontier in documents.items():
        own = {key: value for key, value in frontier["settings"].items() if key not in common}
        called = {
            model: name if len(frontier["models"]) == 1 else f"{name}: {model}"
            for model in frontier["models"]
        }
        models |= {called[model]: {**entry, "settings": own} for model, entry in frontier["models"].items()}
        curves += [{**curve, "model": called[curve["model"]]} for curve in frontier["curves"]]
    with_text = documents[next(iter(texts or documents))]
    return {
        **every[0],
        "settings": common,
        "models": models,
        "curves": curves,
        **{key: with_text[key] for key in ("data", "reference")},
        **{key: _joined([frontier[key] for frontier in every]) for key in ("seed", "device")},
        "wall_seconds": sum(frontier["wall_seconds"] for frontier in every),
        "versions": {
            key: _joined([frontier["versions"].get(key) for frontier in every])
            for key in every[0]["versions"]
        },
    }


def _swept(document: ResultDocument, name: str) -> dict[str, Any]:
    """The fields in which all frontiers of one picture must agree."""
    fields = {key: field_of(document, key, name) for key in ("swept", "num_samples", "prompt", "definitions")}
    for key in ("models", "settings", "versions"):
        table_of(document, key, name)
    for key in ("data", "reference", "seed", "device", "wall_seconds"):
        field_of(document, key, name)
    try:
        points = [point for curve in field_of(document, "curves", name) for point in curve["points"]]
        written = sorted({point["length"] - point["num_given"] for point in points})
        for point in points:
            for measure in ("entropy", "generative perplexity"):
                measured_cell(point[measure], f"{name}: {measure}")
    except (KeyError, TypeError) as error:
        raise ValueError(f"{name} is not a frontier of `hdlm eval`: a point of it lacks {error}.") from error
    return fields | {
        "judge": document.get("judge_sha256", document.get("judge")),
        "tokens written": _joined(written),
        "tokenizer_sha256": known_field(document, "tokenizer_sha256", name),
    }


def _joined(values: list[Any]) -> Any:
    """The common value, or a list of all different values."""
    distinct = list(dict.fromkeys(map(str, values)))
    return values[0] if len(distinct) == 1 else ", ".join(distinct)
