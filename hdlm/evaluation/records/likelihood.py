"""Compare likelihoods of one text under one bound.

Likelihoods that were estimated with equal random numbers (equal seed, estimator and replicates) are not independent.
They are compared replicate by replicate: the error is that of the mean of the differences.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from hdlm.evaluation.likelihood.result import LikelihoodResult
from hdlm.evaluation.records.comparison import (
    EXACT,
    Cell,
    Comparison,
    IncomparableError,
    ResultDocument,
    check_protocol,
    chosen_metrics,
    difference_row,
    field_of,
    model_notes,
    protocol_differences,
    table_of,
    text_fields,
)

__all__ = ["compare_likelihoods"]

_PER_TOKEN = ("bits per token", "perplexity")


def compare_likelihoods(documents: Mapping[str, ResultDocument], metrics: tuple[str, ...]) -> Comparison:
    """Compare documents of this kind; see `hdlm.evaluation.records.compare.compare`."""
    results = {name: _likelihood(document, name) for name, document in documents.items()}
    tokenizers = [field_of(document, "tokenizer_sha256", name) for name, document in documents.items()]
    same_tokenizer = tokenizers[0] is not None and tokenizers.count(tokenizers[0]) == len(tokenizers)
    fields = {
        name: text_fields(document, name) | _windows(result, counted=same_tokenizer)
        for (name, document), result in zip(documents.items(), results.values(), strict=True)
    }
    check_protocol(protocol_differences(fields))
    notes = _likelihood_notes(documents, results)
    cells_by_name = {name: _bits(result) for name, result in results.items()}
    if not same_tokenizer:
        if any(result.num_bytes is None for result in results.values()):
            raise IncomparableError(
                "tokenizer_sha256 differs, or is unknown, and the bytes of the text are not known: perplexity and bits "
                "per token of different tokenizers cannot be compared. Measure again with the bytes counted."
            )
        cells_by_name = {
            name: {key: cell for key, cell in bits.items() if key not in _PER_TOKEN}
            for name, bits in cells_by_name.items()
        }
        notes.insert(
            0,
            "tokenizers differ, so bits per byte alone are compared: perplexity and bits per token are per token.",
        )
    chosen = chosen_metrics(cells_by_name, metrics)
    first = next(iter(results.values()))
    cells = {}
    for metric in chosen:
        ours = [bits[metric] for bits in cells_by_name.values()]
        errors = [
            _difference_error(first, result, metric, ours[0], cell)
            for result, cell in zip(results.values(), ours, strict=True)
        ]
        cells[metric] = difference_row(ours, errors)
    return Comparison("likelihood", tuple(documents), cells, next(iter(fields.values())), tuple(notes))


def _likelihood(document: ResultDocument, name: str) -> LikelihoodResult:
    try:
        result = LikelihoodResult.from_dict(table_of(document, "result", name))
        _bits(result)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{name}: {error}") from error
    return result


def _windows(result: LikelihoodResult, *, counted: bool) -> dict[str, Any]:
    """The bound and the windows; numbers of tokens and windows are compared only under one tokenizer."""
    return (
        {"bound": result.bound, "stride": result.stride, "within_documents": result.within_documents}
        | {"window": result.hyperschedule["length"]}
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
    exact = [name for name, result in results.items() if result.estimator == EXACT]
    notes = []
    if 0 < len(exact) < len(results):
        notes.append(f"exact, where the others are upper bounds: {', '.join(exact)}.")
    single = [name for name, result in results.items() if result.standard_error is None]
    if single:
        notes.append(f"one replicate has no error, so nothing is marked: {', '.join(single)}.")
    return notes + model_notes(documents)


def _difference_error(
    first: LikelihoodResult, second: LikelihoodResult, metric: str, a: Cell, b: Cell
) -> float | None:
    """Standard error of a difference; computed by replicates where both results have equal noise."""
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
    squares = math.fsum((difference - middle) ** 2 for difference in apart)
    return math.sqrt(squares / (len(apart) - 1) / len(apart))
