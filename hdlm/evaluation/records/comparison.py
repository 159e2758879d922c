"""Common parts of all comparisons: numbers, their differences, and the check that protocols agree.

With independent estimates `a ± s` and `b ± r` the difference is

    (b - a) ± sqrt(s^2 + r^2)

A difference is called significant if it exceeds two standard errors; among twenty true zeros about one will do so.
Results with different protocols are refused: every field that differs is named.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, final

__all__ = [
    "ABSENT",
    "EXACT",
    "SIGNIFICANT",
    "Cell",
    "Comparison",
    "IncomparableError",
    "ResultDocument",
    "check_protocol",
    "chosen_metrics",
    "difference_row",
    "field_of",
    "independent_rows",
    "is_number",
    "known_field",
    "measured_cell",
    "model_notes",
    "protocol_differences",
    "table_of",
    "text_fields",
]

ResultDocument = Mapping[str, Any]

SIGNIFICANT = 2.0
"""Number of standard errors that a significant difference exceeds."""
EXACT = "exact"
"""Name of the estimator that needs no replicates."""
ABSENT = object()
"""Placeholder for a field that a document lacks."""
_HASH = re.compile(r"[0-9a-f]{64}")


class IncomparableError(ValueError):
    """Two results have different protocols."""


@final
@dataclass(frozen=True)
class Cell:
    """One number of one result, and its difference from the first result.

    Attributes:
        value: The number; None if the measurement failed.
        error: Its standard error; None if unknown.
        failed: Why there is no number; empty if there is one.
        difference: Number minus the first result's; None for the first result, and if one of the two is missing.
        difference_error: Standard error of the difference; None if unknown.
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
    """Results with one protocol, side by side.

    Attributes:
        kind: Kind of all results, such as `"likelihood"`; see `hdlm.evaluation.records.protocol`.
        names: Names of the results; the others are compared with the first.
        cells: Cells by metric, one for each result.
        protocol: The fields that all results share.
        notes: Remarks for the reader.
    """

    kind: str
    names: tuple[str, ...]
    cells: Mapping[str, tuple[Cell, ...]]
    protocol: Mapping[str, Any]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """All fields, ready for JSON."""
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


def protocol_differences(fields: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Fields in which results differ from the first one, as text; a field that only some results have differs too."""
    first, *others = fields
    return [
        f"{other}: {key} is {_said(fields[other].get(key))}, and {_said(fields[first].get(key))} in {first}"
        for other in others
        for key in {**fields[first], **fields[other]}
        if fields[first].get(key, ABSENT) != fields[other].get(key, ABSENT)
    ]


def check_protocol(apart: list[str]) -> None:
    """Refuse results whose protocols differ.

    Raises:
        IncomparableError: If there is any difference.
    """
    if apart:
        raise IncomparableError(f"the protocols differ, so the results are not compared: {'; '.join(apart)}.")


def _said(value: object) -> str:
    if value is None:
        return "none"
    text = str(value)
    return f"{text[:12]}…" if _HASH.fullmatch(text) else text


def model_notes(documents: Mapping[str, ResultDocument]) -> list[str]:
    """Remarks on differences between results that the protocol does not cover."""
    notes = []
    for key, what in (("weights", "weights"), ("dtype", "types of numbers")):
        values = sorted({str(document.get(key)) for document in documents.values()} - {"only"})
        if len(values) > 1:
            notes.append(f"{what} differ: {', '.join(values)}.")
    used = [document.get("versions") for document in documents.values()]
    versions = {
        str(packages.get("hdlm")) if isinstance(packages, Mapping) else "unknown" for packages in used
    }
    if len(versions) > 1:
        notes.append(f"versions of hdlm differ: {', '.join(sorted(versions))}.")
    return notes


def chosen_metrics(found: Mapping[str, Mapping[str, Any]], metrics: tuple[str, ...]) -> tuple[str, ...]:
    """The requested metrics, or all metrics that every result has.

    Raises:
        ValueError: If a metric is missing, or there is none.
    """
    first, *others = found.values()
    common = [metric for metric in first if all(metric in other for other in others)]
    missing = [metric for metric in metrics if metric not in common]
    if missing or not common:
        raise ValueError(
            f"not every result has {', '.join(missing) or 'any of the same metrics'}; "
            f"the metrics that all have are: {', '.join(common) or 'none'}."
        )
    return metrics or tuple(common)


def independent_rows(
    measured: Mapping[str, Mapping[str, Cell]], metrics: tuple[str, ...]
) -> dict[str, tuple[Cell, ...]]:
    """The cells of each metric with their differences from the first result, as if all results were independent."""
    rows = {}
    for metric in metrics:
        ours = [cells[metric] for cells in measured.values()]
        errors = [
            None if ours[0].error is None or cell.error is None else math.hypot(ours[0].error, cell.error)
            for cell in ours
        ]
        rows[metric] = difference_row(ours, errors)
    return rows


def difference_row(cells: list[Cell], errors: list[float | None]) -> tuple[Cell, ...]:
    """Cells with their differences from the first cell."""
    first, *others = cells
    row = [first]
    for cell, error in zip(others, errors[1:], strict=True):
        known = cell.value is not None and first.value is not None
        difference = cell.value - first.value if cell.value is not None and first.value is not None else None
        row.append(replace(cell, difference=difference, difference_error=error if known else None))
    return tuple(row)


def measured_cell(entry: ResultDocument, place: str) -> Cell:
    """The cell of a number with its error, or of a failed measurement.

    Raises:
        ValueError: If the number or its error is not finite.
    """
    if "failed" in entry:
        return Cell(None, None, str(entry["failed"]))
    value, error = field_of(entry, "value", place), field_of(entry, "error", place)
    if not is_number(value) or not (error is None or (is_number(error) and error >= 0)):
        raise ValueError(
            f"{place} must be a finite number with an error of at least 0, or null; got {value!r} ± {error!r}."
        )
    return Cell(float(value), None if error is None else float(error))


def is_number(value: object) -> bool:
    """Whether a value of a document is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def text_fields(document: ResultDocument, name: str) -> dict[str, Any]:
    """The fields that identify the text."""
    data = table_of(document, "data", name)
    place = f"{name}: data"
    return {
        "data.sha256": known_field(data, "sha256", place),
        "data.bytes": field_of(data, "bytes", place),
        "data.detokenizer": field_of(data, "detokenizer", place),
    }


def table_of(values: ResultDocument, key: str, place: str) -> ResultDocument:
    """A field of a document that must be a table.

    Raises:
        ValueError: If the field is missing or is not a table.
    """
    table = field_of(values, key, place)
    if not isinstance(table, Mapping):
        raise ValueError(f"{place}: {key} must be a table; got {table!r}.")
    return table


def field_of(values: ResultDocument, key: str, place: str) -> Any:
    """A field that every document must have.

    Raises:
        ValueError: If the field is missing.
    """
    if key not in values:
        raise ValueError(f"{place} is not a result document of `hdlm eval`: it lacks {key!r}.")
    return values[key]


def known_field(values: ResultDocument, key: str, place: str) -> Any:
    """A field that a comparison requires.

    Raises:
        ValueError: If the field is missing or null.
    """
    value = field_of(values, key, place)
    if value is None:
        raise ValueError(f"{place}: {key} is not known, so the results cannot be compared.")
    return value
