"""Compare results of `hdlm eval`: numbers with errors, and which differences are larger than their errors.

A result is a file that `hdlm eval likelihood`, `generation`, `harness` or `frontier` wrote, or the folder that holds
its results.json. Each result is compared with the first. A * marks differences of more than two standard errors.
Frontiers are drawn as curves in one picture, above one table.

Examples:
  hdlm compare results/mdlm results/hdlm
  hdlm compare results/*/results.json --markdown table.md --output table.png
  hdlm compare results/acs results/original --metric entropy "generative perplexity"
  hdlm compare frontiers/mdlm frontiers/hdlm --output both.png

Results are only compared if they have the same protocol: text, bound, window, judge, number and length of samples.
Otherwise one line names the difference, and the exit status is 2. Between tokenizers only bits per byte are compared.
"""

from __future__ import annotations

import argparse
from typing import Any

from hdlm.cli._options import add_json, print_json
from hdlm.cli._outputs import FILE, PICTURE


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the results to compare, and the outputs."""
    parser.add_argument(
        "results",
        nargs="+",
        metavar="RESULT",
        help="a result, or the folder of a results.json; RESULT:NAME is one data set of several",
    )
    parser.add_argument(
        "--metric", nargs="+", default=[], help="metrics to compare (default: all that every result has)"
    )
    parser.add_argument("--markdown", type=FILE, metavar="FILE", help="write the table as Markdown as well")
    parser.add_argument("--output", type=PICTURE, metavar="FILE", help="draw the table: .png, .svg or .pdf")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Compare and print."""
    from hdlm.evaluation.records.compare import compare, read_results
    from hdlm.evaluation.records.comparison_report import draw_cells, print_comparison, write_comparison

    documents = read_results(args.results)
    if any(document.get("kind") == "frontier" for document in documents.values()):
        return _overlay(args, documents)
    comparison = compare(documents, tuple(args.metric))
    if args.json:
        print_json(comparison.to_dict())
    else:
        print_comparison(comparison)
    if args.markdown is not None:
        write_comparison(args.markdown, comparison, documents)
    if args.output is not None:
        draw_cells(args.output, comparison)
    return 0


def _overlay(args: argparse.Namespace, documents: dict[str, dict[str, Any]]) -> int:
    """Join frontiers in one table and one picture."""
    from hdlm.evaluation.records.frontier import overlay
    from hdlm.view.frontier import draw_document, frontier_table, write_frontier_report

    if args.metric:
        raise ValueError("--metric has no effect on frontiers, which have two fixed metrics: leave it out.")
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
