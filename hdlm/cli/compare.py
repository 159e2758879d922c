"""Put results of `hdlm eval` side by side: numbers with errors, differences, and which of them are more than noise.

A result is a file that `hdlm eval likelihood`, `generation`, `harness` or `frontier` wrote, or the folder in which it
left its results.json. Differences are to the first; * marks those of more than two standard errors. Frontiers become
one table and one picture, a curve for each.

Examples:
  hdlm compare results/mdlm results/hdlm
  hdlm compare results/*/results.json --markdown table.md --output table.png
  hdlm compare results/acs results/original --metric entropy "generative perplexity"
  hdlm compare frontiers/mdlm frontiers/hdlm --output both.png

Numbers that were made under different protocols (another text, bound, window, judge, number or length of samples) are
not compared: one line says what differs, and the exit status is 2. Between tokenizers, bits per byte alone are.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hdlm.cli._options import add_json, print_json
from hdlm.cli._outputs import FILE, PICTURE

if TYPE_CHECKING:
    from hdlm.evaluation.records.comparison import Cell, Comparison


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what to compare, and where the table goes."""
    parser.add_argument(
        "results",
        nargs="+",
        metavar="RESULT",
        help="a result, or the folder of a results.json; RESULT:NAME is one data set of several",
    )
    parser.add_argument("--metric", nargs="+", default=[], help="what to compare (default: all they share)")
    parser.add_argument("--markdown", type=FILE, metavar="FILE", help="write the table as Markdown, too")
    parser.add_argument("--output", type=PICTURE, metavar="FILE", help="draw it: .png, .svg or .pdf")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Compare and print."""
    from hdlm.evaluation.records.compare import compare, read_results

    documents = read_results(args.results)
    if any(document.get("kind") == "frontier" for document in documents.values()):
        return _overlay(args, documents)
    comparison = compare(documents, tuple(args.metric))
    if args.json:
        print_json(comparison.to_dict())
    else:
        _print(comparison)
    if args.markdown is not None:
        _write_markdown(args.markdown, comparison, documents)
    if args.output is not None:
        _draw(args.output, comparison)
    return 0


def _overlay(args: argparse.Namespace, documents: dict[str, dict[str, Any]]) -> int:
    """Frontiers in one table and one picture."""
    from hdlm.evaluation.records.frontier import overlay
    from hdlm.view.frontier import draw_document, frontier_table, write_frontier_report

    if args.metric:
        raise ValueError("--metric is of no use for frontiers: each is of its two metrics.")
    document = overlay(documents)
    if args.json:
        print_json(document)
    else:
        print(frontier_table(document))
    if args.output is not None:
        draw_document(document, args.output)
    if args.markdown is not None:
        write_frontier_report(args.markdown, document)
    return 0


def _cells(cell: Cell) -> tuple[str, str]:
    """A number, and its difference to the first."""
    from hdlm.view.report import number

    if cell.value is None:
        return "failed", ""
    value = number(cell.value, cell.error)
    if cell.difference is None:
        return value, ""
    star = " *" if cell.significant else ""
    return value, number(cell.difference, cell.difference_error, sign=True) + star


def _rows(comparison: Comparison) -> Iterator[tuple[str, str, str, str]]:
    """Metric, result, number, difference; the metric once only."""
    for metric, cells in comparison.cells.items():
        for place, (name, cell) in enumerate(zip(comparison.names, cells, strict=True)):
            yield ("" if place else metric, name, *_cells(cell))


def _heading(comparison: Comparison) -> tuple[str, str, str, str]:
    return comparison.kind, "result", "value ± standard error", "minus the first"


def _print(comparison: Comparison) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

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


def _footer(comparison: Comparison) -> tuple[str, ...]:
    from hdlm.evaluation.records.comparison import SIGNIFICANT

    failures = [
        f"{metric} of {name} failed: {cell.failed}"
        for metric, cells in comparison.cells.items()
        for name, cell in zip(comparison.names, cells, strict=True)
        if cell.value is None
    ]
    legend = f"An asterisk marks differences of more than {SIGNIFICANT:g} standard errors."
    return (legend, *comparison.notes, *failures)


def _write_markdown(path: Path, comparison: Comparison, documents: dict[str, dict[str, Any]]) -> None:
    from hdlm.view.report import markdown_table, write_report

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


def _made(document: dict[str, Any]) -> str:
    """What one result is of, and what it was made with beside the protocol, in a line."""
    from hdlm.checkpoint import description_text

    result = document["result"]
    own = {key: document.get(key) for key in ("model", "weights", "weights_sha256", "dtype", "seed")}
    own |= {key: result.get(key) for key in ("hyperschedule", "estimator", "replicates", "num_evaluations")}
    settings = result.get("settings")
    own |= settings if isinstance(settings, dict) else {}
    words = {key: description_text(value) if isinstance(value, dict) else value for key, value in own.items()}
    return ", ".join(f"{key} `{value}`" for key, value in words.items() if value not in (None, ""))


def _draw(path: Path, comparison: Comparison) -> None:
    from hdlm.view.comparison import Mark, draw_comparison

    task_scores = {
        metric: [
            Mark(cell.value, cell.error, place == 0 or cell.significant) for place, cell in enumerate(cells)
        ]
        for metric, cells in comparison.cells.items()
    }
    draw_comparison(comparison.names, task_scores, path, f"Comparison: {comparison.kind}")
