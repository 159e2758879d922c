"""Draw the curves of training runs, one over the other, and say in a table where each of them is.

A RUN is the folder of `hdlm train` or of the published trainer, finished or not, or a file of metrics (JSON lines).

Examples:
  hdlm plot runs/book
  hdlm plot runs/block runs/slide runs/wave --output curves.png
  hdlm plot runs/*/ --output curves.svg --over tokens

Drawn are the training loss (smoothed; the raw one is faint), the bound on validation text with two standard errors
either way, and small the learning rate, gradient norm, speed and measures of samples, as far as a run has them.
Without --output there is the table alone. The suffix of --output names the format: .png, .svg or .pdf.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hdlm.cli._options import add_json, print_json
from hdlm.cli._outputs import PICTURE

if TYPE_CHECKING:
    from hdlm.view.curves import RunMetrics

METRICS = "metrics.jsonl"
BARS = "▁▂▃▄▅▆▇█"
WIDTH = 24
"""Characters of a curve in the table."""
WIDE = 110
"""Columns of a terminal from which on the table has curves."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare which runs, what to draw them over, and where to."""
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help=f"folder of a {METRICS}, or a file")
    parser.add_argument(
        "-o", "--output", type=PICTURE, metavar="FILE", help="the picture: .png, .svg or .pdf"
    )
    parser.add_argument(
        "--over",
        choices=("steps", "tokens", "time"),
        default="steps",
        help="what the curves are drawn over (default: %(default)s)",
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Draw, and print the table."""
    from hdlm.view.curves import draw_curves

    runs = _read(args.runs)
    rows = {one.name: _summary(one) for one in runs}
    if args.json:
        print_json(rows)
    else:
        _print(runs, rows)
    if args.output is not None:
        draw_curves(runs, args.output, axis=args.over, title="Training" if len(runs) > 1 else runs[0].name)
    if args.output is not None and not args.json:
        print(f"wrote {args.output}")
    return 0


def _read(paths: Sequence[Path]) -> list[RunMetrics]:
    """The metrics of each run, under the shortest names that tell them apart."""
    from hdlm.view.curves import RunMetrics

    files = [path / METRICS if path.is_dir() else path for path in paths]
    for path, file in zip(paths, files, strict=True):
        if not file.is_file():
            raise ValueError(
                f"{path} has no {METRICS}: it is no folder of a run, or of one that has taken no steps to log yet."
                if path.is_dir()
                else f"there is no run at {path}: give its folder, or its {METRICS}."
            )
    named = [
        file.resolve().parent if file.name == METRICS else file.resolve().with_suffix("") for file in files
    ]
    if len(set(named)) < len(named):
        raise ValueError(
            f"{next(p for p in paths if named.count(named[paths.index(p)]) > 1)} is given twice."
        )
    return [
        RunMetrics.read(file, name) for file, name in zip(files, _shortest_distinct_names(named), strict=True)
    ]


def _shortest_distinct_names(places: Sequence[Path]) -> list[str]:
    """The last parts of paths, as many as tell them all apart."""
    for depth in range(1, max(len(place.parts) for place in places) + 1):
        names = ["/".join(place.parts[-depth:]) for place in places]
        if len(set(names)) == len(names):
            break
    return names


def _summary(one: RunMetrics) -> dict[str, Any]:
    """Where a run is, and how good."""
    from hdlm.view.curves import running_mean

    found: dict[str, Any] = {"step": one.records[-1]["step"]}
    for name in ("tokens", "seconds"):
        values = one.series(name)[1]
        found[name] = float(values[-1]) if len(values) else None
    loss = one.series("loss")[1]
    found["loss"] = float(running_mean(loss)[-1]) if len(loss) else None
    steps, bounds = one.series("validation")
    if len(bounds):
        errors, best = one.errors("validation"), int(bounds.argmin())
        found |= {"validation": float(bounds[-1]), "validation_error": float(errors[-1]) or None}
        found |= {"best_validation": float(bounds[best]), "best_step": int(steps[best])}
    speed = one.small("tokens_per_second", "steps")[1]
    found["tokens_per_second"] = float(speed[-10:].mean()) if len(speed) else None
    return found


def _print(runs: Sequence[RunMetrics], rows: dict[str, dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from hdlm.view.report import number

    console, table = Console(), Table()
    table.add_column("run", overflow="fold", min_width=8)
    for heading in ("step", "tokens", "time", "loss", "validation", "tokens/s"):
        table.add_column(heading, justify="right", no_wrap=True)
    if wide := console.width >= WIDE:
        table.add_column("best", justify="right", no_wrap=True)
        table.add_column("loss so far", no_wrap=True)
    for one in runs:
        row = rows[one.name]
        bound = row.get("validation")
        table.add_row(
            Text(one.name),
            f"{row['step']:,}",
            "" if row["tokens"] is None else f"{row['tokens'] / 1e6:,.2f}M",
            "" if row["seconds"] is None else _clock(row["seconds"]),
            "" if row["loss"] is None else f"{row['loss']:.3f}",
            "" if bound is None else number(bound, row["validation_error"]),
            "" if row["tokens_per_second"] is None else f"{row['tokens_per_second']:,.0f}",
            *([_best(row), _sparkline(one)] if wide else []),
        )
    console.print(table)


def _best(row: dict[str, Any]) -> str:
    return f"{row['best_validation']:.3f} at {row['best_step']:,}" if "best_step" in row else ""


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _sparkline(one: RunMetrics) -> str:
    """The loss as a line of bars, from the highest to the lowest."""
    import numpy as np

    loss = one.series("loss")[1]
    if not len(loss):
        return ""
    means = np.array([part.mean() for part in np.array_split(loss, min(WIDTH, len(loss)))])
    low, high = means.min(), means.max()
    share = (means - low) / max(high - low, 1e-12)
    return "".join(BARS[round(value * (len(BARS) - 1))] for value in share)
