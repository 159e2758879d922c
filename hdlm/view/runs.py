"""Training runs in a table: where each of them is, how good it is, and its loss so far as a line of bars."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hdlm.view.curves import RunMetrics, running_mean
from hdlm.view.report import number

__all__ = ["METRICS_FILE", "print_runs", "read_runs", "run_summary"]

METRICS_FILE = "metrics.jsonl"
"""Name of the metrics in the folder of a run."""
_BARS = "▁▂▃▄▅▆▇█"
_WIDTH = 24
"""Characters of a curve in the table."""
_WIDE = 110
"""Columns of a terminal from which on the table has curves."""


def read_runs(paths: Sequence[Path]) -> list[RunMetrics]:
    """The metrics of each run, under the shortest names that differ.

    Args:
        paths: Folders of runs, or files of metrics.

    Raises:
        ValueError: If a run has no metrics, or is given twice.
    """
    files = [path / METRICS_FILE if path.is_dir() else path for path in paths]
    for path, file in zip(paths, files, strict=True):
        if not file.is_file():
            raise ValueError(
                f"{path} has no {METRICS_FILE}: it is no folder of a run, or of one that has taken no steps to log yet."
                if path.is_dir()
                else f"there is no run at {path}: give its folder, or its {METRICS_FILE}."
            )
    named = [
        file.resolve().parent if file.name == METRICS_FILE else file.resolve().with_suffix("")
        for file in files
    ]
    if len(set(named)) < len(named):
        raise ValueError(
            f"{next(p for p in paths if named.count(named[paths.index(p)]) > 1)} is given twice."
        )
    return [
        RunMetrics.read(file, name) for file, name in zip(files, _shortest_distinct_names(named), strict=True)
    ]


def run_summary(one: RunMetrics) -> dict[str, Any]:
    """Where a run is, and how good."""
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


def print_runs(runs: Sequence[RunMetrics]) -> None:
    """Print the table."""
    console, table = Console(), Table()
    table.add_column("run", overflow="fold", min_width=8)
    for heading in ("step", "tokens", "time", "loss", "validation", "tokens/s"):
        table.add_column(heading, justify="right", no_wrap=True)
    if wide := console.width >= _WIDE:
        table.add_column("best", justify="right", no_wrap=True)
        table.add_column("loss so far", no_wrap=True)
    for one in runs:
        row = run_summary(one)
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


def _shortest_distinct_names(places: Sequence[Path]) -> list[str]:
    """The last parts of paths, as many as make all of them different."""
    for depth in range(1, max(len(place.parts) for place in places) + 1):
        names = ["/".join(place.parts[-depth:]) for place in places]
        if len(set(names)) == len(names):
            break
    return names


def _best(row: dict[str, Any]) -> str:
    return f"{row['best_validation']:.3f} at {row['best_step']:,}" if "best_step" in row else ""


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _sparkline(one: RunMetrics) -> str:
    """The loss as a line of bars, from the highest to the lowest."""
    loss = one.series("loss")[1]
    if not len(loss):
        return ""
    means = np.array([part.mean() for part in np.array_split(loss, min(_WIDTH, len(loss)))])
    low, high = means.min(), means.max()
    share = (means - low) / max(high - low, 1e-12)
    return "".join(_BARS[round(value * (len(_BARS) - 1))] for value in share)
