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
    """Frontiers as one: the document of a sweep that measured all their curves.

    Args:
        documents: Documents of `hdlm eval frontier` by name, two or more.

    Raises:
        IncomparableError: If they were made under different protocols; every field that differs is named.
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
    texts = {name: text_fields(one, name) for name, one in documents.items() if one["reference"] is not None}
    check_protocol(protocol_differences(texts) if texts else [])
    every = list(documents.values())
    common = {
        key: value
        for key, value in every[0]["settings"].items()
        if all(one["settings"].get(key, ABSENT) == value for one in every)
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
        raise ValueError(f"{name} is no frontier of `hdlm eval`: a point of it lacks {error}.") from error
    return fields | {
        "judge": document.get("judge_sha256", document.get("judge")),
        "tokens written": _joined(written),
        "tokenizer_sha256": known_field(document, "tokenizer_sha256", name),
    }


def _joined(values: list[Any]) -> Any:
    """What all say, or all that they say."""
    told = list(dict.fromkeys(map(str, values)))
    return values[0] if len(told) == 1 else ", ".join(told)
