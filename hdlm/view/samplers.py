"""The distance of samplers from the truth over the number of network evaluations, as a picture and as tables.

The upper row of the picture has the distance of each sampler in each world. The lower row shows whether the text is too
likely (below zero: sharpened) or too unlikely (above zero: blurred). Bars are two standard errors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter

from hdlm.view.figures import figure, only_ticks
from hdlm.view.palette import INK, RULE, SERIES
from hdlm.view.report import markdown_table, number, write_report

__all__ = ["draw_samplers", "samplers_table", "strengths_table", "write_samplers"]

_PICTURE = "samplers.png"
_DRAWN = (
    ("original", "absorbing", "ancestral, absorbing noise"),
    ("exact", "epsilon 0.01", "ancestral, epsilon 0.01"),
    ("acs", "epsilon 0.01", "ACS, epsilon 0.01"),
    ("doubt", "epsilon 0.01", "doubt, epsilon 0.01"),
    ("exact", "gamma 0.1", "ancestral, gamma 0.1"),
    ("remdm", "absorbing", "ReMDM, absorbing noise"),
    ("first_hitting", "absorbing", "first-hitting, absorbing noise"),
)
"""The curves of the picture: algorithm, process and name."""
_MARKERS = "osD^vPX"
_Points = Sequence[Mapping[str, Any]]


def _curves(
    document: Mapping[str, Any], plan: str
) -> dict[tuple[str, str, str, float], list[Mapping[str, Any]]]:
    """The points of each world, process, sampler and strength, in order of evaluations."""
    curves: dict[tuple[str, str, str, float], list[Mapping[str, Any]]] = {}
    for point in document["points"]:
        arm = point["arm"]
        if arm["plan"] == plan:
            curves.setdefault((arm["world"], arm["process"], arm["sampler"], arm["eta"]), []).append(point)
    for points in curves.values():
        points.sort(key=lambda point: (point["evaluations"], point["arm"]["steps"]))
    return curves


def _best(document: Mapping[str, Any], plan: str = "flat") -> dict[tuple[str, str], float]:
    """One strength for each process and sampler: the least mean log distance over all worlds and numbers of steps."""
    scores: dict[tuple[str, str], dict[float, list[float]]] = {}
    for (_, process, sampler, eta), points in _curves(document, plan).items():
        logs = [math.log(max(point["distance"], 1e-6)) for point in points]
        scores.setdefault((process, sampler), {}).setdefault(eta, []).extend(logs)
    best = {}
    for key, of_eta in scores.items():
        most = max(map(len, of_eta.values()))
        whole = {eta: sum(logs) / len(logs) for eta, logs in of_eta.items() if len(logs) == most}
        best[key] = min(whole, key=whole.__getitem__)
    return best


def draw_samplers(document: Mapping[str, Any], output: Path) -> None:
    """Write the picture of the flat hyperschedule.

    Args:
        document: The document of `oracle_document`.
        output: The file; its suffix determines the format.

    Raises:
        ValueError: If there is no point to draw.
    """
    curves, best = _curves(document, "flat"), _best(document)
    worlds = list(dict.fromkeys(world for world, *_ in curves))
    if not worlds:
        raise ValueError("there is no point to draw: nothing was measured.")
    with figure(3.1 * len(worlds) + 0.6, 6.4, output) as drawing:
        rows = drawing.subplots(2, len(worlds), squeeze=False, sharex=True)
        for column, world in enumerate(worlds):
            for place, (sampler, process, name) in enumerate(_DRAWN):
                points = curves.get((world, process, sampler, best.get((process, sampler), 0.0)), [])
                eta = best.get((process, sampler), 0.0)
                label = f"{name}, eta {eta:g}" if eta else name
                for axes, measure in zip(rows[:, column], ("distance", "excess"), strict=True):
                    _plot(axes, points, measure, place, label)
            _finish(rows[0, column], rows[1, column], world, curves)
        rows[0, 0].set_ylabel("total variation from the truth")
        rows[1, 0].set_ylabel("excess, nats per token\n< 0: sharpened   > 0: blurred")
        drawing.legend(
            *rows[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8
        )


def _plot(axes: Axes, points: _Points, measure: str, place: int, label: str) -> None:
    axes.errorbar(
        [point["evaluations"] for point in points],
        [point[measure] for point in points],
        [2 * point[f"{measure}_error"] for point in points],
        marker=_MARKERS[place],
        color=(*SERIES, INK)[place],
        lw=1.2,
        ms=4.5,
        label=label,
    )


def _finish(
    above: Axes, below: Axes, world: str, curves: Mapping[tuple[str, str, str, float], _Points]
) -> None:
    """Scales, lines and titles of the two panels of a world."""
    floors = [point["floor"] for (of, *_), points in curves.items() if of == world for point in points]
    drawn = [floor for floor in floors if floor > 0]
    above.set_title(f"World: {world}")
    above.set_yscale("log")
    above.yaxis.set_major_formatter("{x:g}")
    above.yaxis.set_minor_formatter(NullFormatter())
    if drawn and len(drawn) == len(floors):
        above.axhline(min(drawn), color=INK, ls=":", lw=1.0)
    below.axhline(0.0, color=INK, lw=1.0)
    below.set_xlabel("network evaluations")
    below.set_xscale("log", base=2)
    below.set_yscale("symlog", linthresh=0.02)
    below.xaxis.set_major_formatter("{x:.0f}")
    below.yaxis.set_major_formatter("{x:g}")
    for axes in (above, below):
        axes.grid(color=RULE, linewidth=0.6)
        axes.set_axisbelow(True)
        only_ticks(axes)


def samplers_table(document: Mapping[str, Any], world: str, plan: str = "flat") -> str:
    """A Markdown table of one world: the distance at each number of steps, with the best strength of each sampler.

    Args:
        document: The document of `oracle_document`.
        world: Name of the world.
        plan: Family of the hyperschedule.
    """
    curves, best = _curves(document, plan), _best(document, plan)
    steps = sorted({point["arm"]["steps"] for point in document["points"]} - {1})
    heading = ["process", "sampler", "eta", *(f"{count} steps" for count in steps), f"excess at {steps[-1]}"]
    rows = [heading]
    for (of, process, sampler, eta), points in curves.items():
        if of == world and eta == best[process, sampler]:
            cells = {point["arm"]["steps"]: point for point in points}
            shown = [_cell(cells[count], "distance") if count in cells else "" for count in steps]
            last = _cell(points[-1], "excess")
            if list(cells) == [1]:
                shown[0] = f"{_cell(points[0], 'distance')} in {points[0]['evaluations']:.1f} evaluations"
            rows.append([process, sampler, f"{eta:g}", *shown, last])
    return markdown_table(rows)


def strengths_table(document: Mapping[str, Any], plan: str = "flat") -> str:
    """A Markdown table of the strength that is best over all worlds and numbers of steps, by process and sampler.

    Args:
        document: The document of `oracle_document`.
        plan: Family of the hyperschedule.
    """
    rows = [["process", "sampler", "best eta"]]
    rows += [
        [process, sampler, f"{eta:g}"] for (process, sampler), eta in sorted(_best(document, plan).items())
    ]
    return markdown_table(rows)


def _cell(point: Mapping[str, Any], measure: str) -> str:
    return number(point[measure], point[f"{measure}_error"], sign=measure == "excess")


def write_samplers(folder: Path, document: Mapping[str, Any]) -> None:
    """Write report.md and samplers.png.

    Args:
        folder: The folder to write to.
        document: The document of `oracle_document`.
    """
    draw_samplers(document, folder / _PICTURE)
    arms = [point["arm"] for point in document["points"]]
    sections = {
        "Picture": f"![Distance over evaluations]({_PICTURE})",
        "Best strengths": strengths_table(document),
    }
    for plan in dict.fromkeys(arm["plan"] for arm in arms):
        for world in dict.fromkeys(arm["world"] for arm in arms if arm["plan"] == plan):
            floors = {p["floor"] for p in document["points"] if p["arm"]["world"] == world and p["floor"] > 0}
            note = f"Sampling floor of drawn distances: {max(floors):.3f}.\n\n" if floors else ""
            sections[f"{world}, {plan}"] = note + samplers_table(document, world, plan)
    effort = ", ".join(f"{name} {value}" for name, value in document["effort"].items())
    sections["How"] = (
        f"Exact denoisers; {effort}. After ± stands a standard error; numbers without one are computed."
    )
    write_report(folder / "report.md", "Samplers with an exact denoiser", sections)
