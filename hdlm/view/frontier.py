"""The frontier as a picture: generative perplexity over entropy, a curve for each sampler or model.

Bars are two standard errors either way; the small numbers are the temperatures (or whatever was swept). Down and to the
right is better, and real text, where it is given, is the place to be.
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
"""Points (1/72 inch) that labels keep from one another."""
MARKERS = "osD^v"
MANY = 4
"""Curves beyond which they are named in a legend, and only the first says what its points are."""


@final
@dataclass(frozen=True)
class Point:
    """One setting of one sampler.

    Attributes:
        label: What was set, in a word.
        entropy: Nats.
        entropy_error: Its standard error; None if unknown.
        perplexity: Generative perplexity.
        perplexity_error: Its standard error, likewise.
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
        name: What to call it.
        points: In the order of what was swept.
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
        curves: What was measured; curves without points are left out.
        output: The file; its suffix (`.png`, `.svg`, `.pdf`) names the format.
        reference: The same measures of real text.
        swept: What the small numbers are.
        judge: Whose perplexity it is.

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
            axes.plot(
                *_places(curve.points),
                marker,
                color=colour,
                ls="-",
                lw=1.4,
                ms=5.0,
                alpha=0.8,
                label=curve.name,
            )
            for point in curve.points:
                _dot(axes, point, colour, marker)
                if len(drawn) > MANY:
                    if not place:
                        _say(axes, point.label, point, (-5.0, 7.0), colour, 7.0, True)
                elif point is not _end(curve):
                    above = _is_above(point, curve, drawn)
                    _say(axes, point.label, point, (-5.0, 7.0) if above else (5.0, -7.0), colour, 7.0, above)
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
    """Where a curve is named."""
    return max(curve.points, key=lambda point: point.entropy)


def _is_above(point: Point, own: Curve, curves: Sequence[Curve]) -> bool:
    """Whether a point lies above the middle of the other curves at its entropy, so that it is labelled there."""
    heights = []
    for curve in curves:
        if curve is not own:
            entropies, perplexities = _places(sorted(curve.points, key=lambda one: one.entropy))
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
    """Two errors down and up; on a logarithmic axis no bar reaches 0."""
    error = 2 * (point.perplexity_error or 0.0)
    return [[min(error, 0.9 * point.perplexity)], [error]]


def _say(
    axes: Axes, text: str, point: Point, offset: tuple[float, float], colour: str, size: float, left: bool
) -> None:
    """Write beside a point, in points (1/72 inch) from it."""
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
    """Ticks at round numbers, as many as the range asks for."""
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
    """Write each name beside its last point, above or below it, and names apart from one another."""
    drawing.draw_without_rendering()
    scale = 72 / drawing.dpi
    places = [float(axes.transData.transform((one.entropy, one.perplexity))[1]) * scale for _, one, _ in ends]
    wanted = [place + (9.0 if end[2] else -9.0) for place, end in zip(places, ends, strict=True)]
    at = -math.inf
    for index in sorted(range(len(ends)), key=wanted.__getitem__):
        at = max(wanted[index], at + APART)
        name, point, _ = ends[index]
        _say(axes, name, point, (7.0, at - places[index]), colours[index], 8.5, False)


def write_frontier(folder: Path, document: Mapping[str, Any]) -> None:
    """Write report.md and, if there is a point to draw, frontier.png.

    Args:
        folder: Where to.
        document: The document that `hdlm eval frontier` writes.
    """
    drawn = _is_drawable(document)
    if drawn:
        draw_document(document, folder / PICTURE)
    write_frontier_report(folder / "report.md", document, PICTURE if drawn else "")


def _is_drawable(document: Mapping[str, Any]) -> bool:
    """Whether any point of it was measured."""
    return any(_whole(point) for curve in document["curves"] for point in curve["points"])


def draw_document(document: Mapping[str, Any], output: Path) -> None:
    """Draw what was measured.

    Args:
        document: The document that `hdlm eval frontier` writes, or several in one.
        output: The picture; its suffix names the format.

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
            [_point(f"{one[swept]:g}", one) for one in curve["points"] if _whole(one)],
        )
        for curve in document["curves"]
    ]
    reference = document["reference"]
    data = None
    if reference is not None and _whole(reference):
        data = _point(Path(document["data"]["name"]).name, reference)
    judge = Path(document["judge"]).name
    draw_frontier(curves, output, reference=data, swept=swept.replace("_", "-"), judge=judge)


def write_frontier_report(path: Path, document: Mapping[str, Any], picture: str = "") -> None:
    """Write the report, as Markdown.

    Args:
        path: The file; it is whole or not there.
        document: As for `draw_document`.
        picture: What the report calls the picture; empty if there is none.
    """
    write_report(path, f"Frontier over {document['swept'].replace('_', '-')}", _sections(document, picture))


def frontier_table(document: Mapping[str, Any]) -> str:
    """A Markdown table, one point a line; real text last, if there is any."""
    swept = document["swept"]
    rows = [("model", "algorithm", swept.replace("_", "-"), "entropy", PERPLEXITY, "network evaluations")]
    for curve in document["curves"]:
        for one in curve["points"]:
            rows.append(
                (
                    curve["model"],
                    curve["algorithm"],
                    f"{one[swept]:g}",
                    _cell(one["entropy"]),
                    _cell(one[PERPLEXITY]),
                    f"{one['num_evaluations']:.4g}",
                )
            )
    reference = document["reference"]
    if reference is not None:
        name = document["data"]["name"]
        rows.append((name, "real text", "", _cell(reference["entropy"]), _cell(reference[PERPLEXITY]), ""))
    return markdown_table(rows)


def _sections(document: Mapping[str, Any], picture: str) -> dict[str, str]:
    models = "\n".join(
        f"- {name}: {one['weights']} weights, sha256 `{one['weights_sha256']}`, {one['dtype']}"
        + "".join(
            f", {key} {'as the checkpoint has it' if value is None else value}"
            for key, value in one.get("settings", {}).items()
        )
        for name, one in document["models"].items()
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
        f"{document['judge']}; {''.join(f'{one}, ' for one in settings)}seed {document['seed']}, drawn in "
        f"{document['draw_dtype']} on {document['device']}; {versions}\n\n{models}",
        "Definitions": "\n".join(f"- {name}: {text}" for name, text in definitions.items()),
    }


def _whole(point: Mapping[str, Any]) -> bool:
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
