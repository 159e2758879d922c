"""Draw the curves of training runs in one picture, and print a table with the state of each run.

A RUN is the folder of `hdlm train` or of the published trainer, finished or not, or a file of metrics (JSON lines).

Examples:
  hdlm plot runs/book
  hdlm plot runs/block runs/slide runs/wave --output curves.png
  hdlm plot runs/*/ --output curves.svg --over tokens

The picture shows the training loss (smoothed, with the raw loss in a faint colour) and the bound on validation text
with two standard errors. Small pictures show the learning rate, gradient norm, speed and measurements of samples.
Without --output only the table is printed. The suffix of --output names the format: .png, .svg or .pdf.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from hdlm.cli._options import Options, add_json, print_json
from hdlm.cli._outputs import PICTURE

CURVES = Options(
    "hdlm.view.curves:draw_curves",
    runs="they are the positional RUN",
    output="it is --output",
    title="it follows from the runs",
    panels="all that a run has are drawn",
    levels="a table of runs has no baseline",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the runs, the horizontal axis and the output."""
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="folder of a metrics.jsonl, or a file"
    )
    parser.add_argument(
        "-o", "--output", type=PICTURE, metavar="FILE", help="the picture: .png, .svg or .pdf"
    )
    CURVES.add(parser, "axis", flags=("--over",))
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Draw the curves, and print the table."""
    from hdlm.view.curves import draw_curves
    from hdlm.view.runs import print_runs, read_runs, run_summary

    runs = read_runs(args.runs)
    if args.json:
        print_json({run.name: run_summary(run) for run in runs})
    else:
        print_runs(runs)
    if args.output is not None:
        draw_curves(
            runs, args.output, title="Training" if len(runs) > 1 else runs[0].name, **CURVES.values(args)
        )
    if args.output is not None and not args.json:
        print(f"wrote {args.output}")
    return 0
