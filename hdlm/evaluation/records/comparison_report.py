"""Reports of a comparison: a table in the terminal, a page of Markdown, a picture."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hdlm.checkpoint import description_text
from hdlm.evaluation.records.comparison import SIGNIFICANT, Cell, Comparison
from hdlm.view.report import markdown_table, number, write_report

__all__ = ["draw_cells", "print_comparison", "write_comparison"]


def print_comparison(comparison: Comparison) -> None:
    """Print the table and its notes."""
    table = Table()
    for heading in _heading(comparison):
        table.add_column(Text(heading), overflow="fold")
    for metric, *rest in _rows(comparison):
        if metric:
            table.add_section()
        table.add_row(Text(metric, style="bold"), *map(Text, rest))
    console = Console()
    console.print(table)
    for line in _footer(comparison):
        console.print(line, markup=False, highlight=False)


def write_comparison(path: Path, comparison: Comparison, documents: dict[str, dict[str, Any]]) -> None:
    """Write the table, its notes and the protocol as Markdown.

    Args:
        path: The file to write.
        comparison: The comparison to report.
        documents: The results that were compared, by name.
    """
    common = markdown_table(
        [("in common", ""), *((key, str(value)) for key, value in comparison.protocol.items())]
    )
    sections = {
        "Numbers": markdown_table([_heading(comparison), *_rows(comparison)]),
        "Notes": "\n".join(f"- {note}" for note in _footer(comparison)),
        "Results": "\n".join(f"- {name}: {_made(document)}" for name, document in documents.items()),
        "Protocol": common,
    }
    write_report(path, f"Comparison: {comparison.kind}", sections)


def draw_cells(path: Path, comparison: Comparison) -> None:
    """Draw the numbers; the suffix of the file sets the format."""
    from hdlm.view.comparison import Mark, draw_comparison

    task_scores = {
        metric: [
            Mark(cell.value, cell.error, place == 0 or cell.significant) for place, cell in enumerate(cells)
        ]
        for metric, cells in comparison.cells.items()
    }
    draw_comparison(comparison.names, task_scores, path, f"Comparison: {comparison.kind}")


def _heading(comparison: Comparison) -> tuple[str, str, str, str]:
    return comparison.kind, "result", "value ± standard error", "minus the first"


def _rows(comparison: Comparison) -> Iterator[tuple[str, str, str, str]]:
    """Metric, result, number, difference; the metric only in its first row."""
    for metric, cells in comparison.cells.items():
        for place, (name, cell) in enumerate(zip(comparison.names, cells, strict=True)):
            yield ("" if place else metric, name, *_cells(cell))


def _cells(cell: Cell) -> tuple[str, str]:
    """A number, and its difference from the first result."""
    if cell.value is None:
        return "failed", ""
    value = number(cell.value, cell.error)
    if cell.difference is None:
        return value, ""
    star = " *" if cell.significant else ""
    return value, number(cell.difference, cell.difference_error, sign=True) + star


def _footer(comparison: Comparison) -> tuple[str, ...]:
    failures = [
        f"{metric} of {name} failed: {cell.failed}"
        for metric, cells in comparison.cells.items()
        for name, cell in zip(comparison.names, cells, strict=True)
        if cell.value is None
    ]
    legend = f"An asterisk marks differences of more than {SIGNIFICANT:g} standard errors."
    return (legend, *comparison.notes, *failures)


def _made(document: dict[str, Any]) -> str:
    """The model of a result and the settings outside the protocol, in a line."""
    result = document["result"]
    own = {key: document.get(key) for key in ("model", "weights", "weights_sha256", "dtype", "seed")}
    own |= {key: result.get(key) for key in ("hyperschedule", "estimator", "replicates", "num_evaluations")}
    settings = result.get("settings")
    own |= settings if isinstance(settings, dict) else {}
    words = {key: description_text(value) if isinstance(value, dict) else value for key, value in own.items()}
    return ", ".join(f"{key} `{value}`" for key, value in words.items() if value not in (None, ""))
