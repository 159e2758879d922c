"""The loss of a training run as a curve, read from its metrics: one JSON object a line.

Every line holds `step` and any of the measured numbers; lines without a number that is asked for are skipped, for
training loss and validation loss are measured at different steps.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from hdlm.view.palette import MUTED, RULE, SERIES

SMOOTHED_ABOVE = 60
"""Points from which a noisy series is drawn faintly, with its running mean on top."""
SMOOTHING_SHARE = 0.01
"""Part of the series over which the running mean forgets."""

Points = tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]


def read_series(metrics: Path, names: Sequence[str]) -> dict[str, Points]:
    """Steps and values of each named number in a file of metrics; names that never occur are left out.

    Raises:
        ValueError: if a line is no JSON object with a `step`, or none of the names occurs.
    """
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    seen: set[str] = set()
    with metrics.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            record = _record(line, f"{metrics}:{number}")
            seen |= record.keys()
            for name in found.keys() & record.keys():
                found[name].append((float(record["step"]), float(record[name])))
    series = {name: _columns(points) for name, points in found.items() if points}
    if not series:
        raise ValueError(
            f"{metrics} has no {' or '.join(names)}; it has {', '.join(sorted(seen)) or 'no lines'}."
        )
    return series


def _record(line: str, place: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{place} is no JSON ({error.msg}); expected one object a line.") from error
    if not isinstance(record, dict) or "step" not in record:
        raise ValueError(f'{place} has no "step"; expected an object such as {{"step": 10, "loss": 3.2}}.')
    return dict(record)


def _columns(points: list[tuple[float, float]]) -> Points:
    steps, values = np.array(points, dtype=float).T
    return steps, values


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


def draw_loss(
    metrics: Path,
    output: Path,
    *,
    names: Mapping[str, str],
    title: str = "Loss",
    unit: str = "nats per token",
    levels: Mapping[str, float] | None = None,
) -> None:
    """Write the curves of a run.

    Args:
        metrics: file of JSON lines.
        output: the file; its suffix (`.png`, `.svg`, `.pdf`) names the format.
        names: what to draw and how to call it, such as `{"loss": "training"}`.
        title: heading of the picture.
        unit: unit of the vertical axis.
        levels: values to compare with, drawn as dashed lines, such as those of a unigram model.

    Raises:
        ValueError: if the metrics cannot be read or hold none of the names.
    """
    from hdlm.view.figures import figure, only_ticks

    series = read_series(metrics, list(names))
    with figure(6.4, 3.6, output) as drawing:
        axes = drawing.subplots()
        for colour, (name, (steps, values)) in zip(SERIES, series.items(), strict=False):
            noisy = len(values) > SMOOTHED_ABOVE
            if noisy:
                axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.7)
                values = running_mean(values)
            marker = "" if noisy else "o"
            axes.plot(
                steps, values, color=colour, linewidth=1.8, marker=marker, markersize=3.5, label=names[name]
            )
        for name, value in (levels or {}).items():
            axes.axhline(value, color=MUTED, linewidth=0.9, linestyle=(0, (5, 3)))
            axes.annotate(
                name, (1, value), (-2, 3), ("axes fraction", "data"), "offset points", color=MUTED, ha="right"
            )
        axes.set_title(title)
        axes.set_xlabel("step")
        axes.set_ylabel(unit)
        axes.grid(axis="y", color=RULE, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.margins(x=0.01)
        only_ticks(axes)
        axes.legend(loc="upper right")
