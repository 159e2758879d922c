"""The curves of training runs, read from their metrics: one JSON object a line, with its `step` and some numbers.

    training loss       a running mean over the raw values, which are faint
    validation          dots with two standard errors either way
    below               learning rate, gradient norm, speed, and measures of samples, as far as they were written

Lines without a number that is asked for are skipped, for loss and validation are measured at different steps. A last
line without an end is being written at the moment, and skipped too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, final

import numpy as np
from jaxtyping import Float

from hdlm.view.palette import MUTED, RULE, SERIES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Axis", "RunMetrics", "draw_curves", "running_mean"]

SMOOTHED_ABOVE = 60
"""Points from which a noisy series is drawn faintly, with its running mean on top."""
SMOOTHING_SHARE = 0.01
"""Part of the series over which the running mean forgets."""
COLUMNS = 3
"""Small panels beside each other."""
LINES = ("-", (0, (4, 2)), (0, (1, 1.5)))
"""Lines of the runs of the first colours, of those that have the same colours again, and so on."""

Axis: TypeAlias = Literal["steps", "tokens", "time"]
Points: TypeAlias = tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]

UNITS: dict[Axis, tuple[str, str, float]] = {
    "steps": ("step", "optimizer step", 1.0),
    "tokens": ("tokens", "million tokens", 1e6),
    "time": ("seconds", "minutes", 60.0),
}
"""Of each axis: the number that it shows, its label, and its unit."""
PANELS = {
    "learning_rate": "learning rate",
    "rate": "learning rate / peak",
    "gradient_norm": "gradient norm",
    "tokens_per_second": "tokens per second",
    "utilisation": "MFU",
    "entropy": "entropy of samples in nats",
    "generative perplexity": "generative perplexity",
}
"""What is drawn small, in this order; the second only if the first is not known."""
EXACT = ("learning_rate", "rate")
"""Series without noise."""


@final
@dataclass(frozen=True)
class RunMetrics:
    """What a run has written so far.

    Attributes:
        name: What to call it.
        records: The lines, in the order of their steps.
    """

    name: str
    records: tuple[Mapping[str, Any], ...]

    @classmethod
    def read(cls, path: Path, name: str = "training") -> RunMetrics:
        """Read a file of metrics.

        Args:
            path: The file.
            name: What to call the run.

        Raises:
            ValueError: If a line is no JSON object with a `step`, or there is none.
        """
        *lines, unfinished = path.read_text(encoding="utf-8").split("\n")
        records = [_record(line, f"{path}:{n}") for n, line in enumerate(lines, start=1) if line.strip()]
        if not records:
            raise ValueError(f"{path} has no line yet{', only the beginning of one' if unfinished else ''}.")
        return cls(name, tuple(sorted(records, key=lambda record: float(record["step"]))))

    def series(self, name: str, axis: Axis = "steps") -> Points:
        """Where a number was measured, in units of the axis, and its values; both empty if it never was."""
        found = [record for record in self.records if _is_number(record.get(name))]
        steps = np.array([record["step"] for record in found], dtype=float)
        return self._along(steps, axis), np.array([record[name] for record in found], dtype=float)

    def errors(self, name: str) -> Float[np.ndarray, " n"]:
        """Standard error of each value of a series, 0 where it is unknown."""
        found = [record for record in self.records if _is_number(record.get(name))]
        return np.array([record.get(f"{name}_error") or 0.0 for record in found], dtype=float)

    def small(self, name: str, axis: Axis) -> Points:
        """The series of a small panel; speed follows from tokens and seconds if it was not written."""
        if name == "tokens_per_second" and not len(self.series(name)[0]):
            steps, tokens = self.series("tokens")
            seconds = self.series("seconds")[1]
            if len(tokens) != len(seconds) or len(tokens) < 2:
                return np.empty(0), np.empty(0)
            speed = np.diff(tokens) / np.maximum(np.diff(seconds), 1e-9)
            return self._along(steps[1:], axis), speed
        return self.series(name, axis)

    def _along(self, steps: Float[np.ndarray, " n"], axis: Axis) -> Float[np.ndarray, " n"]:
        """Steps on another axis, straight lines between the steps of which it is known."""
        key, _, unit = UNITS[axis]
        if axis == "steps":
            return steps
        known = [record for record in self.records if _is_number(record.get(key))]
        if not known:
            raise ValueError(f"{self.name} has no {key} in its metrics: draw it over steps.")
        at = [float(record["step"]) for record in known]
        placed: Float[np.ndarray, " n"] = np.interp(steps, at, [record[key] / unit for record in known])
        return placed


def running_mean(values: Float[np.ndarray, " n"], share: float = SMOOTHING_SHARE) -> Float[np.ndarray, " n"]:
    """Exponential running mean without the bias of its beginning.

    Args:
        values: the series.
        share: part of the series after which a value counts for 1/e.
    """
    decay = np.exp(-1 / max(share * len(values), 1))
    means = np.empty_like(values)
    total = weight = 0.0
    for place, value in enumerate(values):
        total, weight = decay * total + value, decay * weight + 1
        means[place] = total / weight
    return means


def draw_curves(
    runs: Sequence[RunMetrics],
    output: Path,
    *,
    axis: Axis = "steps",
    title: str = "Training",
    levels: Mapping[str, float] | None = None,
    panels: Sequence[str] = tuple(PANELS),
) -> None:
    """Write the curves of runs, one over the other.

    Args:
        runs: What to draw.
        output: The file; its suffix (`.png`, `.svg`, `.pdf`) names the format.
        axis: What the curves are drawn over.
        title: Heading.
        levels: Values to compare the loss with, drawn as dashed lines, such as those of a unigram model.
        panels: What to draw small, of `PANELS`; what no run has is left out.

    Raises:
        ValueError: If no run has a loss, or one has not what the axis shows.
    """
    from hdlm.view.figures import figure

    if not any(len(run.series(name)[0]) for run in runs for name in ("loss", "validation")):
        seen = sorted({name for run in runs for record in run.records for name in record})
        raise ValueError(f"there is no loss and no validation to draw; the metrics have {', '.join(seen)}.")
    small = [name for name in panels if any(len(run.small(name, axis)[0]) for run in runs)]
    if "learning_rate" in small:
        small = [name for name in small if name != "rate"]
    rows = -(-len(small) // COLUMNS)
    with figure(7.2, 3.8 + 1.55 * rows, output) as drawing:
        grid = drawing.add_gridspec(1 + rows, COLUMNS, height_ratios=[3.6, *[1.2] * rows])
        main = drawing.add_subplot(grid[0, :])
        _draw_loss(main, runs, axis)
        _draw_levels(main, levels or {})
        main.set_title(title)
        main.set_ylabel("nats per token")
        _finish(main, UNITS[axis][1] if not rows else "")
        for place, name in enumerate(small):
            axes = drawing.add_subplot(grid[1 + place // COLUMNS, place % COLUMNS])
            _draw_panel(axes, runs, name, axis)
            _finish(axes, UNITS[axis][1] if place + COLUMNS >= len(small) else "")


def _record(line: str, place: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{place} is no JSON ({error.msg}); expected one object a line.") from error
    if not isinstance(record, dict) or not _is_number(record.get("step")):
        raise ValueError(f'{place} has no "step"; expected an object such as {{"step": 10, "loss": 3.2}}.')
    return record


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _look(place: int) -> dict[str, Any]:
    """Colour and line of a run."""
    return {"color": SERIES[place % len(SERIES)], "linestyle": LINES[place // len(SERIES) % len(LINES)]}


def _draw_line(
    axes: Axes, points: Points, look: dict[str, Any], width: float, label: str = "", *, smooth: bool = True
) -> None:
    """A series: smoothed over its faint self if it is long and noisy, a dot if it is one point."""
    x, values = points
    if smooth and len(values) > SMOOTHED_ABOVE:
        axes.plot(x, values, color=look["color"], alpha=0.22, linewidth=0.6)
        values = running_mean(values)
    dot: dict[str, Any] = {"marker": "o", "markersize": 3.5} if len(values) == 1 else {}
    axes.plot(x, values, linewidth=width, label=label or None, **look, **dot)


def _draw_loss(axes: Axes, runs: Sequence[RunMetrics], axis: Axis) -> None:
    """Loss and validation of each run; of a single one these are named, of several the runs are."""
    alone = len(runs) == 1
    measured = False
    for place, run in enumerate(runs):
        look, loss = _look(place), run.series("loss", axis)
        if len(loss[0]):
            _draw_line(axes, loss, look, 1.8, "training loss" if alone else run.name)
        x, values = run.series("validation", axis)
        if len(x):
            measured = True
            colour = SERIES[1] if alone else look["color"]
            name = "validation bound ± 2 s.e." if alone else "" if len(loss[0]) else run.name
            _draw_dots(axes, (x, values), 2 * run.errors("validation"), colour, name)
    if measured and not alone:
        _draw_dots(axes, (np.empty(0), np.empty(0)), np.empty(0), MUTED, "validation bound ± 2 s.e.")
    axes.legend(loc="upper right", fontsize=8)


def _draw_dots(axes: Axes, points: Points, bars: Float[np.ndarray, " n"], colour: str, label: str) -> None:
    axes.errorbar(
        *points,
        yerr=bars,
        fmt="o:",
        color=colour,
        markersize=4,
        markeredgecolor="white",
        markeredgewidth=0.5,
        capsize=2.5,
        linewidth=1.0,
        label=label or None,
        zorder=3,
    )


def _draw_levels(axes: Axes, levels: Mapping[str, float]) -> None:
    for name, value in levels.items():
        axes.axhline(value, color=MUTED, linewidth=0.9, linestyle=(0, (5, 3)))
        axes.annotate(
            name, (1, value), (-2, 3), ("axes fraction", "data"), "offset points", color=MUTED, ha="right"
        )


def _draw_panel(axes: Axes, runs: Sequence[RunMetrics], name: str, axis: Axis) -> None:
    for place, run in enumerate(runs):
        points = run.small(name, axis)
        if len(points[0]):
            _draw_line(axes, points, _look(place), 1.2, smooth=name not in EXACT)
    axes.set_title(PANELS[name], fontsize=8.5, fontweight="normal", pad=4)
    axes.tick_params(labelsize=7.5)
    axes.locator_params(nbins=4)


def _finish(axes: Axes, label: str) -> None:
    from hdlm.view.figures import only_ticks

    axes.set_xlabel(label)
    axes.grid(axis="y", color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.margins(x=0.01)
    only_ticks(axes)
