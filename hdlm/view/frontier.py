"""The frontier as a picture: generative perplexity over entropy, one curve per sampler or model.

Error bars are two standard errors; the small numbers are the temperatures (or another varied quantity). Lower and
further to the right is better. Real text, if given, is the reference.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from hdlm.view.figures import figure, only_ticks
from hdlm.view.palette import INK, RULE, SERIES
from hdlm.view.report import markdown_table, number, write_report

__all__ = [
    "Curve",
    "Point",
    "draw_document",
    "draw_frontier",
    "frontier_table",
    "write_frontier",
    "write_frontier_report",
]

PERPLEXITY = "generative perplexity"
PICTURE = "frontier.png"
APART = 11.0
"""Smallest distance of two labels, in points (1/72 inch)."""
MARKERS = "osD^v"
MANY = 4
"""With more curves than this, a legend names them, and only the points of the first have labels."""


@final
@dataclass(frozen=True)
class Point:
    """One setting of one sampler.

    Attributes:
        label: Name of the setting, in a word.
        entropy: Entropy of a sample, in nats.
        entropy_error: Standard error of the entropy; None if unknown.
        perplexity: Generative perplexity of the samples.
        perplexity_error: Standard error of the perplexity; None if unknown.
    """

    label: str
    entropy: float
    entropy_error: float | None
    perplexity: float
    perplexity_error: float | None


@final
@dataclass(frozen=True)
class Curve:
    """One sampler of one model.

    Attributes:
        name: Name of the curve.
        points: Points in the order of the varied quantity.
    """

    name: str
    points: Sequence[Point]


def draw_frontier(
    curves: Sequence[Curve],
    output: Path,
    *,
    reference: Point | None = None,
    swept: str = "temperature",
    judge: str = "the judge",
) -> None:
    """Write the picture.

    Args:
        curves: The measured curves; those without points are left out.
        output: The file; its suffix (`.png`, `.svg`, `.pdf`) determines the format.
        reference: The measures of real text.
        swept: Name of the varied quantity.
        judge: Name of the judge of the perplexity.

    Raises:
        ValueError: If there is nothing to draw.
    """
    drawn = [curve for curve in curves if curve.points]
    if not drawn:
        raise ValueError("there is no point to draw: nothing was measured.")
    with figure(6.8, 4.6, output) as drawing:
        axes = drawing.subplots()
        colours = [SERIES[place % len(SERIES)] for place in range(len(drawn))]
        for place, (curve, colour) in enumerate(zip(drawn, colours, strict=True)):
            marker = MARKERS[place // len(SERIES) % len(MARKERS)]
            style: dict[str, Any] = {"color": colour, "ls": "-", "lw": 1.4, "ms": 5.0, "alpha": 0.8}
            axes.plot(*_places(curve.points), marker, label=curve.name, **style)
            for point in curve.points:
                _dot(axes, point, colour, marker)
                if len(drawn) > MANY:
                    if not place:
                        _label(axes, point.label, point, (-5.0, 7.0), colour, 7.0, True)
                elif point is not _end(curve):
                    above = _is_above(point, curve, drawn)
                    _label(
                        axes, point.label, point, (-5.0, 7.0) if above else (5.0, -7.0), colour, 7.0, above
                    )
        if reference is not None:
            _dot(axes, reference, INK, "*", 10.0)
        axes.set_yscale("log")
        axes.margins(x=0.1, y=0.1)
        _few_decades(axes)
        axes.set_title(f"Quality against variety, over {swept}")
        axes.set_xlabel("entropy of a sample in nats: more varied →")
        axes.set_ylabel(f"perplexity by {judge}: lower is better")
        axes.grid(color=RULE, linewidth=0.6)
        axes.set_axisbelow(True)
        only_ticks(axes)
        if len(drawn) > MANY:
            axes.legend(loc="upper left", fontsize=8)
            drawn, colours = [], []
        ends = [
            (f"{_end(curve).label}  {curve.name}", _end(curve), _is_above(_end(curve), curve, drawn))
            for curve in drawn
        ]
        if reference is not None:
            ends, colours = [*ends, (reference.label, reference, True)], [*colours, INK]
        _name_curves(drawing, axes, ends, colours)


def _end(curve: Curve) -> Point:
    """The point where the name of a curve is written."""
    return max(curve.points, key=lambda point: point.entropy)


def _is_above(point: Point, own: Curve, curves: Sequence[Curve]) -> bool:
    """Whether a point lies above the mean of the other curves at its entropy, so that its label goes above it."""
    heights = []
    for curve in curves:
        if curve is not own:
            entropies, perplexities = _places(sorted(curve.points, key=lambda other: other.entropy))
            heights.append(float(np.interp(point.entropy, entropies, np.log(perplexities))))
    return not heights or math.log(point.perplexity) >= sum(heights) / len(heights)


def _places(points: Sequence[Point]) -> tuple[list[float], list[float]]:
    return [point.entropy for point in points], [point.perplexity for point in points]


def _dot(axes: Axes, point: Point, colour: str, marker: str, size: float = 5.0) -> None:
    axes.errorbar(
        point.entropy,
        point.perplexity,
        xerr=None if point.entropy_error is None else 2 * point.entropy_error,
        yerr=None if point.perplexity_error is None else _downwards(point),
        fmt=marker,
        color=colour,
        markersize=size,
        elinewidth=0.8,
        alpha=0.75,
        capsize=0,
        zorder=3,
    )


def _downwards(point: Point) -> list[list[float]]:
    """The error bar below and above; below it is limited, because a logarithmic axis has no 0."""
    error = 2 * (point.perplexity_error or 0.0)
    return [[min(error, 0.9 * point.perplexity)], [error]]


def _label(
    axes: Axes, text: str, point: Point, offset: tuple[float, float], colour: str, size: float, left: bool
) -> None:
    """Write text beside a point, at an offset in points (1/72 inch)."""
    axes.annotate(
        text,
        (point.entropy, point.perplexity),
        offset,
        textcoords="offset points",
        ha="right" if left else "left",
        va="center",
        color=colour,
        fontsize=size,
        path_effects=[withStroke(linewidth=2.5, foreground="white")],
        zorder=4,
    )


def _few_decades(axes: Axes) -> None:
    """Set ticks at round numbers, as many as the range needs."""
    low, high = axes.get_ylim()
    steps = (
        (1.0,) if high / low > 1000 else (1, 2, 5) if high / low > 8 else (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)
    )
    ticks = [step * 10.0**power for power in range(-3, 12) for step in steps]
    ticks = [tick for tick in ticks if low <= tick <= high]
    axes.set_yticks(ticks, [f"{tick:,.6g}" for tick in ticks])
    axes.set_yticks([], minor=True)


def _name_curves(
    drawing: Figure, axes: Axes, ends: Sequence[tuple[str, Point, bool]], colours: Sequence[str]
) -> None:
    """Write each name beside its last point, above or below it, with distance between the names."""
    drawing.draw_without_rendering()
    scale = 72 / drawing.dpi
    places = [
        float(axes.transData.transform((point.entropy, point.perplexity))[1]) * scale for _, point, _ in ends
    ]
    wanted = [place + (9.0 if end[2] else -9.0) for place, end in zip(places, ends, strict=True)]
    at = -math.inf
    for index in sorted(range(len(ends)), key=wanted.__getitem__):
        at = max(wanted[index], at + APART)
        name, point, _ = ends[index]
        _label(axes, name, point, (7.0, at - places[index]), colours[index], 8.5, False)


def write_frontier(folder: Path, document: Mapping[str, Any]) -> None:
    """Write report.md and, if there is a point to draw, frontier.png.

    Args:
        folder: The folder to write to.
        document: The document that `hdlm eval frontier` writes.
    """
    drawn = any(_is_measured(point) for curve in document["curves"] for point in curve["points"])
    if drawn:
        draw_document(document, folder / PICTURE)
    write_frontier_report(folder / "report.md", document, PICTURE if drawn else "")


def draw_document(document: Mapping[str, Any], output: Path) -> None:
    """Draw the measured points.

    Args:
        document: The document that `hdlm eval frontier` writes, or several in one.
        output: The picture; its suffix determines the format.

    Raises:
        ValueError: If nothing was measured.
    """
    swept = document["swept"]
    one_model = len(document["models"]) == 1
    short = {Path(name).name for name in document["models"]}
    named = (lambda name: Path(name).name) if len(short) == len(document["models"]) else str
    curves = [
        Curve(
            curve["algorithm"] if one_model else f"{named(curve['model'])}, {curve['algorithm']}",
            [_point(f"{point[swept]:g}", point) for point in curve["points"] if _is_measured(point)],
        )
        for curve in document["curves"]
    ]
    reference = document["reference"]
    data = None
    if reference is not None and _is_measured(reference):
        data = _point(Path(document["data"]["name"]).name, reference)
    judge = Path(document["judge"]).name
    draw_frontier(curves, output, reference=data, swept=swept.replace("_", "-"), judge=judge)


def write_frontier_report(path: Path, document: Mapping[str, Any], picture: str = "") -> None:
    """Write the report as Markdown.

    Args:
        path: The file; it is written completely or not at all.
        document: The document, as for `draw_document`.
        picture: Name of the picture in the report; empty if there is none.
    """
    write_report(path, f"Frontier over {document['swept'].replace('_', '-')}", _sections(document, picture))


def frontier_table(document: Mapping[str, Any]) -> str:
    """A Markdown table with one point per line; real text comes last, if there is any."""
    swept = document["swept"]
    rows = [("model", "algorithm", swept.replace("_", "-"), "entropy", PERPLEXITY, "network evaluations")]
    for curve in document["curves"]:
        for point in curve["points"]:
            measured = (_cell(point["entropy"]), _cell(point[PERPLEXITY]), f"{point['num_evaluations']:.4g}")
            rows.append((curve["model"], curve["algorithm"], f"{point[swept]:g}", *measured))
    reference = document["reference"]
    if reference is not None:
        name = document["data"]["name"]
        rows.append((name, "real text", "", _cell(reference["entropy"]), _cell(reference[PERPLEXITY]), ""))
    return markdown_table(rows)


def _sections(document: Mapping[str, Any], picture: str) -> dict[str, str]:
    models = "\n".join(
        f"- {name}: {model['weights']} weights, sha256 `{model['weights_sha256']}`, {model['dtype']}"
        + "".join(
            f", {key} {'as the checkpoint has it' if value is None else value}"
            for key, value in model.get("settings", {}).items()
        )
        for name, model in document["models"].items()
    )
    settings = [f"{name} {value}" for name, value in document["settings"].items() if value is not None]
    versions = ", ".join(f"{name} {value}" for name, value in document["versions"].items())
    shown = f"![{PERPLEXITY} over entropy]({picture})\n\n" if picture else ""
    definitions = {name: document["definitions"][name] for name in ("entropy", PERPLEXITY)}
    return {
        "Points": f"{shown}{frontier_table(document)}\n\nAfter ± stands the standard error by the jackknife over "
        "samples; bars in the picture are two of them. A curve is better than another where it is lower at the same "
        "entropy.",
        "How": f"{document['num_samples']} samples of {document['length']} tokens a point, judged by "
        f"{document['judge']}; {''.join(f'{setting}, ' for setting in settings)}seed {document['seed']}, drawn in "
        f"{document['draw_dtype']} on {document['device']}; {versions}\n\n{models}",
        "Definitions": "\n".join(f"- {name}: {text}" for name, text in definitions.items()),
    }


def _is_measured(point: Mapping[str, Any]) -> bool:
    return not any("failed" in point[measure] for measure in ("entropy", PERPLEXITY))


def _point(label: str, point: Mapping[str, Any]) -> Point:
    entropy, perplexity = point["entropy"], point[PERPLEXITY]
    return Point(label, entropy["value"], entropy["error"], perplexity["value"], perplexity["error"])


def _cell(measured: Mapping[str, Any]) -> str:
    return (
        f"failed: {measured['failed']}"
        if "failed" in measured
        else number(measured["value"], measured["error"])
    )
