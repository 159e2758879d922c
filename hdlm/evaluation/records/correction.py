"""Compare how well models know their errors (`hdlm eval calibration`) and repair them (`hdlm eval repair`)."""

from __future__ import annotations

from collections.abc import Mapping

from hdlm.evaluation.records.comparison import (
    Comparison,
    ResultDocument,
    check_protocol,
    chosen_metrics,
    independent_rows,
    known_field,
    measured_cell,
    model_notes,
    protocol_differences,
    table_of,
    text_fields,
)

__all__ = ["compare_corrections"]


def compare_corrections(documents: Mapping[str, ResultDocument], metrics: tuple[str, ...]) -> Comparison:
    """Compare documents of one of these kinds; see `hdlm.evaluation.records.compare.compare`."""
    results = {name: table_of(document, "result", name) for name, document in documents.items()}
    measured = {
        name: {
            metric: measured_cell(entry, f"{name}: {metric}")
            for metric, entry in table_of(result, "metrics", f"{name}: result").items()
        }
        for name, result in results.items()
    }
    chosen = chosen_metrics(measured, metrics)
    fields = {
        name: {
            **table_of(results[name], "protocol", f"{name}: result"),
            **text_fields(document, name),
            "tokenizer_sha256": known_field(document, "tokenizer_sha256", name),
        }
        for name, document in documents.items()
    }
    check_protocol(protocol_differences(fields))
    kind = str(next(iter(documents.values()))["kind"])
    note = (
        "texts and noise may be equal; errors of differences are those of independent results all the same."
    )
    cells = independent_rows(measured, chosen)
    return Comparison(
        kind, tuple(documents), cells, next(iter(fields.values())), (note, *model_notes(documents))
    )
