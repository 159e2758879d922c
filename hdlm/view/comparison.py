"""Results side by side, with one axis per metric, and error bars of two standard errors.

Results that differ significantly from the first one are drawn filled, all others hollow.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke

from hdlm.view.figures import figure, only_ticks
from hdlm.view.palette import INK, MUTED, RULE, SERIES
from hdlm.view.report import number

__all__ = ["Mark", "draw_comparison"]

COLUMNS = 3
"""Number of metrics in a row."""


@final
@dataclass(frozen=True)
class Mark:
    """One number of a picture.

    Attributes:
        value: The value; None if there is none.
        error: Standard error of the value; None if unknown.
        filled: Whether the mark is drawn filled.
    """

    value: float | None
    error: float | None = None
    filled: bool = True


def draw_comparison(
    names: Sequence[str], metrics: Mapping[str, Sequence[Mark]], output: Path, title: str
) -> None:
    """Write the picture.

    Args:
        names: Names of the results, from top to bottom.
        metrics: By name, a mark for each result.
        output: The file; its suffix determines the format.
        title: Heading of the picture.
    """
    columns = min(COLUMNS, len(metrics))
    rows = math.ceil(len(metrics) / columns)
    labels = [name if len(name) <= 32 else f"…{name[-31:]}" for name in names]
    margin = 0.075 * max(map(len, labels))
    height = rows * (0.75 + 0.34 * len(names)) + 0.4
    with figure(margin + 2.5 * columns, height, output) as drawing:
        grid = drawing.subplots(rows, columns, squeeze=False)
        for place, axes in enumerate(grid.flat):
            if place >= len(metrics):
                axes.set_axis_off()
                continue
            metric, task_scores = list(metrics.items())[place]
            _panel(axes, task_scores)
            axes.set_title(metric, fontsize=9.5)
            axes.set_yticks(range(len(names)), labels if place % columns == 0 else [""] * len(names))
        drawing.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold", color=INK)


def _panel(axes: Axes, task_scores: Sequence[Mark]) -> None:
    first = task_scores[0].value
    if first is not None:
        axes.axvline(first, color=MUTED, linewidth=0.9, linestyle=(0, (5, 3)))
    for row, mark in enumerate(task_scores):
        colour = INK if row == 0 else SERIES[0]
        if mark.value is None:
            axes.annotate("failed", (0.02, row), xycoords=("axes fraction", "data"), color=MUTED, va="center")
            continue
        axes.errorbar(
            mark.value,
            row,
            xerr=None if mark.error is None else 2 * mark.error,
            fmt="o",
            color=colour,
            markersize=5,
            markerfacecolor=colour if mark.filled else "white",
            capsize=2.5,
            linewidth=1.4,
        )
        axes.annotate(
            number(mark.value, mark.error).partition(" ")[0],
            (mark.value, row),
            (0, 5),
            textcoords="offset points",
            ha="center",
            va="bottom",
            color=MUTED,
            fontsize=7.5,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )
    axes.set_ylim(len(task_scores) - 0.5, -0.65)
    axes.margins(x=0.2)
    axes.locator_params(axis="x", nbins=4)
    axes.grid(axis="x", color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)
    only_ticks(axes)
    axes.tick_params(axis="y", length=0)
