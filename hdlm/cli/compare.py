"""Put results of `hdlm eval` side by side: numbers with errors, differences, and which of them are more than noise.

A result is a file that `hdlm eval likelihood` or `hdlm eval generation` wrote, or the folder in which it left its
results.json. Differences are to the first; * marks those of more than two standard errors.

Examples:
  hdlm compare results/mdlm results/hdlm
  hdlm compare results/*/results.json --markdown table.md --output table.png
  hdlm compare results/acs results/original --metric entropy "generative perplexity"

Numbers that were made under different protocols (another text, bound, window, judge, number or length of samples) are
not compared: one line says what differs, and the exit status is 2. Between tokenizers, bits per byte alone are.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hdlm.cli._options import add_json, print_json

if TYPE_CHECKING:
    from hdlm.evaluation.comparison import Cell, Comparison

RESULTS = "results.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what to compare, and where the table goes."""
    parser.add_argument(
        "results", nargs="+", type=Path, metavar="RESULT", help=f"a result, or the folder of a {RESULTS}"
    )
    parser.add_argument("--metric", nargs="+", default=[], help="what to compare (default: all they share)")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table as Markdown, too")
    parser.add_argument("--output", type=Path, metavar="FILE", help="draw it: .png, .svg or .pdf")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Compare and print."""
    from hdlm.evaluation.comparison import compare

    comparison = compare(_documents(args.results), tuple(args.metric))
    if args.markdown is not None:
        _write_markdown(args.markdown, comparison)
    if args.output is not None:
        _draw(args.output, comparison)
    if args.json:
        print_json(comparison.to_dict())
    else:
        _print(comparison)
    return 0


def _documents(paths: list[Path]) -> dict[str, dict[str, Any]]:
    """Results by the names that tell them apart."""
    from hdlm.evaluation.protocol import read

    files = [path / RESULTS if path.is_dir() else path for path in paths]
    names = [str(path.parent if path.name == RESULTS and path.parent.name else path) for path in files]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"{twice[0]} is given twice; give each result once.")
    return {name: read(path) for name, path in zip(names, files, strict=True)}


def _cells(cell: Cell) -> tuple[str, str]:
    """A number, and its difference to the first."""
    from hdlm.view.report import number

    if cell.value is None:
        return f"failed: {cell.failed}", ""
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
    from hdlm.evaluation.comparison import SIGNIFICANT

    return (f"An asterisk marks differences of more than {SIGNIFICANT:g} standard errors.", *comparison.notes)


def _write_markdown(path: Path, comparison: Comparison) -> None:
    from hdlm.view.report import markdown_table, write_report

    common = markdown_table(
        [("in common", ""), *((key, str(value)) for key, value in comparison.protocol.items())]
    )
    table = markdown_table([_heading(comparison), *_rows(comparison)])
    sections = {"Numbers": table, "Notes": "\n".join(f"- {note}" for note in _footer(comparison))}
    write_report(path, f"Comparison: {comparison.kind}", sections | {"Protocol": common})


def _draw(path: Path, comparison: Comparison) -> None:
    from hdlm.view.comparison import Mark, draw_comparison

    marks = {
        metric: [
            Mark(cell.value, cell.error, place == 0 or cell.significant) for place, cell in enumerate(cells)
        ]
        for metric, cells in comparison.cells.items()
    }
    draw_comparison(comparison.names, marks, path, f"Comparison: {comparison.kind}")
