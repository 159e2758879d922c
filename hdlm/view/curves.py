"""The curves of training runs, read from their metrics: one JSON object per line, with its `step` and some numbers.

    training loss       a running mean over the raw values, which are faint
    validation          dots with error bars of two standard errors
    below               learning rate, gradient norm, speed, and measures of samples, if they were written

Lines without a needed number are skipped, because loss and validation are measured at different steps. A last line
without an end is still being written, and is skipped too.
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
"""Number of points from which a noisy series is drawn faintly, with its running mean on top."""
SMOOTHING_SHARE = 0.01
"""Share of the series after which a value of the running mean has decayed to 1/e."""
COLUMNS = 3
"""Number of small panels in a row."""
LINES = ("-", (0, (4, 2)), (0, (1, 1.5)))
"""Line styles of the first runs, of those that use the colours a second time, and so on."""

Axis: TypeAlias = Literal["steps", "tokens", "time"]
Points: TypeAlias = tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]

UNITS: dict[Axis, tuple[str, str, float]] = {
    "steps": ("step", "optimizer step", 1.0),
    "tokens": ("tokens", "million tokens", 1e6),
    "time": ("seconds", "minutes", 60.0),
}
"""For each axis: the name of its number, its label, and its unit."""
PANELS = {
    "learning_rate": "learning rate",
    "rate": "learning rate / peak",
    "gradient_norm": "gradient norm",
    "tokens_per_second": "tokens per second",
    "utilisation": "MFU",
    "entropy": "entropy of samples in nats",
    "generative perplexity": "generative perplexity",
}
"""The small panels, in this order; the second one only if the first is missing."""
EXACT = ("learning_rate", "rate")
"""Series without noise."""


@final
@dataclass(frozen=True)
class RunMetrics:
    """The metrics that a run has written so far.

    Attributes:
        name: Name of the run.
        records: The lines, in the order of their steps.
    """

    name: str
    records: tuple[Mapping[str, Any], ...]

    @classmethod
    def read(cls, path: Path, name: str = "training") -> RunMetrics:
        """Read a file of metrics.

        Raises:
            ValueError: If a line is not a JSON object with a `step`, or there is no line.
        """
        *lines, unfinished = path.read_text(encoding="utf-8").split("\n")
        records = [_record(line, f"{path}:{n}") for n, line in enumerate(lines, start=1) if line.strip()]
        if not records:
            raise ValueError(f"{path} has no line yet{', only an incomplete one' if unfinished else ''}.")
        return cls(name, tuple(sorted(records, key=lambda record: float(record["step"]))))

    def series(self, name: str, axis: Axis = "steps") -> Points:
        """Places of a number, in units of the axis, and its values; both are empty if it was never measured."""
        records = [record for record in self.records if _is_number(record.get(name))]
        steps = np.array([record["step"] for record in records], dtype=float)
        return self._along(steps, axis), np.array([record[name] for record in records], dtype=float)

    def errors(self, name: str) -> Float[np.ndarray, " n"]:
        """Standard error of each value of a series; 0 if it is unknown."""
        records = [record for record in self.records if _is_number(record.get(name))]
        return np.array([record.get(f"{name}_error") or 0.0 for record in records], dtype=float)

    def small(self, name: str, axis: Axis) -> Points:
        """The series of a small panel; a missing speed is computed from tokens and seconds."""
        if name == "tokens_per_second" and not len(self.series(name)[0]):
            steps, tokens = self.series("tokens")
            seconds = self.series("seconds")[1]
            if len(tokens) != len(seconds) or len(tokens) < 2:
                return np.empty(0), np.empty(0)
            speed = np.diff(tokens) / np.maximum(np.diff(seconds), 1e-9)
            return self._along(steps[1:], axis), speed
        return self.series(name, axis)

    def _along(self, steps: Float[np.ndarray, " n"], axis: Axis) -> Float[np.ndarray, " n"]:
        """Steps on another axis, interpolated between the steps at which it is known."""
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
    """Exponential running mean with bias correction.

    Args:
        values: Values of the series.
        share: Share of the series after which a value counts for 1/e.
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
    """Write the curves of several runs into one figure.

    Args:
        runs: The runs to draw.
        output: The file; its suffix (`.png`, `.svg`, `.pdf`) determines the format.
        axis: Quantity of the horizontal axis.
        title: Heading of the figure.
        levels: Values to compare the loss with, drawn as dashed lines, such as those of a unigram model.
        panels: Names of small panels, of `PANELS`; those without data are left out.

    Raises:
        ValueError: If no run has a loss, or one lacks the quantity of the axis.
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
        raise ValueError(f"{place} is not JSON ({error.msg}); expected one object per line.") from error
    if not isinstance(record, dict) or not _is_number(record.get("step")):
        raise ValueError(f'{place} has no "step"; expected an object such as {{"step": 10, "loss": 3.2}}.')
    return record


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _style(place: int) -> dict[str, Any]:
    """Colour and line style of a run."""
    return {"color": SERIES[place % len(SERIES)], "linestyle": LINES[place // len(SERIES) % len(LINES)]}


def _draw_line(
    axes: Axes, points: Points, style: dict[str, Any], width: float, label: str = "", *, smooth: bool = True
) -> None:
    """Draw a series: a long, noisy one with its running mean, a single point as a dot."""
    x, values = points
    if smooth and len(values) > SMOOTHED_ABOVE:
        axes.plot(x, values, color=style["color"], alpha=0.22, linewidth=0.6)
        values = running_mean(values)
    dot: dict[str, Any] = {"marker": "o", "markersize": 3.5} if len(values) == 1 else {}
    axes.plot(x, values, linewidth=width, label=label or None, **style, **dot)


def _draw_loss(axes: Axes, runs: Sequence[RunMetrics], axis: Axis) -> None:
    """Draw loss and validation of each run; the legend names these for a single run, and the runs for several."""
    alone = len(runs) == 1
    measured = False
    for place, run in enumerate(runs):
        style, loss = _style(place), run.series("loss", axis)
        if len(loss[0]):
            _draw_line(axes, loss, style, 1.8, "training loss" if alone else run.name)
        x, values = run.series("validation", axis)
        if len(x):
            measured = True
            colour = SERIES[1] if alone else style["color"]
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
            _draw_line(axes, points, _style(place), 1.2, smooth=name not in EXACT)
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
