"""The results of a study: one report with tables, and pictures.

likelihood.png    bits per byte of held-out text over training tokens, with a panel for each text
quality.png       nats per token by each judge over the evaluations of the network, with controls as lines
frontier.png      nats per token by each judge over entropy, with controls as stars

All are made from the document that `hdlm study` writes as results.json.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hdlm.view.figures import figure, only_ticks
from hdlm.view.palette import INK, MUTED, RULE, SERIES
from hdlm.view.report import markdown_table, number, write_report

__all__ = ["study_sections", "write_study"]

NATS = "nats per token, "
BITS = "bits per byte"
_MARKERS = "osD^vPX*<>hpd"
_STYLES = ("-", "--", ":", "-.")
_TITLES = {
    "train": "What was trained",
    "likelihood": "Likelihood of held-out text",
    "generation": "Samples",
    "calibration": "Calibration",
    "repair": "Repair of planted errors",
}
_SHOWN = {
    "generation": (NATS, "entropy", "distinct-2", "repetition-4", "MAUVE", "network evaluations"),
    "calibration": ("calibration error", "bias", "area under the curve"),
}
"""Beginnings of the names of metrics in the tables; all metrics by default. results.json has all."""


def write_study(folder: Path, document: Mapping[str, Any]) -> None:
    """Write report.md, and the pictures for which there are numbers.

    Args:
        folder: The folder to write to.
        document: The document of the study.
    """
    sections = study_sections(document)
    pictures = []
    if curves := _likelihood_curves(document["rows"]):
        with figure(6.4, 4.6 * len(curves) + 0.9, folder / "likelihood.png") as drawing:
            _draw_likelihood(drawing, curves)
        pictures.append("![likelihood over tokens](likelihood.png)")
    generations = [row for row in document["rows"] if row["kind"] == "generation" and _judges(row)]
    if generations:
        judges = _judges(generations[0])
        draw = {"quality.png": _draw_quality, "frontier.png": _draw_frontier}
        for name, axes_of in draw.items():
            with figure(6.4, 4.2 * len(judges) + 0.9, folder / name) as drawing:
                panels = drawing.subplots(len(judges), 1, squeeze=False)[:, 0]
                for axes, judge in zip(panels, judges, strict=True):
                    axes_of(axes, judge, generations, document["controls"])
                    axes.set_ylabel(f"{NATS}{judge}")
                    axes.grid(color=RULE, linewidth=0.6)
                    axes.set_axisbelow(True)
                    only_ticks(axes)
                panels[-1].legend(
                    loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, fontsize=7, labelcolor=MUTED
                )
        pictures += ["![quality over evaluations](quality.png)", "![frontier](frontier.png)"]
    if pictures:
        sections["Pictures"] = "\n\n".join(pictures)
    write_report(folder / "report.md", document["title"], sections)


def study_sections(document: Mapping[str, Any]) -> dict[str, str]:
    """The sections of the report, each a table in Markdown."""
    sections = {"Question": document["description"].strip()} if document["description"] else {}
    for kind, title in _TITLES.items():
        rows = [row for row in document["rows"] if row["kind"] == kind]
        if rows:
            sections[title] = _trained(rows) if kind == "train" else _measured(kind, rows)
    if document["differences"]:
        sections["Differences of the likelihood"] = _differences(document["differences"])
    if document["controls"]:
        sections["Controls"] = _controls(document["controls"])
    sections["Errors"] = (
        f"Means over {len(document['seeds'])} seed(s). After ± stands the standard error between seeds (standard "
        "deviation over the root of their number), and in parentheses the error within seeds, of other samples or "
        "other noise with the same models. With one seed there is no error between seeds. Bars in the pictures are "
        "two of the larger error."
    )
    if document["failed"]:
        sections["Failed"] = "\n".join(f"- {entry['job']}: {entry['reason']}" for entry in document["failed"])
    if document["missing"]:
        sections["Not done yet"] = "\n".join(f"- {name}" for name in document["missing"])
    return sections


def _labels(row: Mapping[str, Any]) -> dict[str, str]:
    names = ("judge", "arm", "budget", "text", "sampler", "evaluations")
    return {name: str(row[name]) for name in names if name in row}


def _trained(rows: Sequence[Mapping[str, Any]]) -> str:
    table: list[Sequence[str]] = [("model", "budget", "parameters", "steps", "tokens", "FLOPs", "seconds")]
    for row in rows:
        name = row.get("arm", f"judge: {row.get('judge')}")
        counts = (f"{row[key]:,.0f}" for key in ("parameters", "steps", "tokens"))
        table.append((name, row.get("budget", ""), *counts, f"{row['flops']:.3g}", f"{row['seconds']:,.0f}"))
    return markdown_table(table)


def _measured(kind: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """A line for each row, with a column for each metric."""
    labels = list(dict.fromkeys(name for row in rows for name in _labels(row)))
    known = dict.fromkeys(metric for row in rows for metric in row["metrics"])
    metrics = [metric for metric in known if metric.startswith(_SHOWN.get(kind, ("",)))]
    table = [[*labels, *metrics]]
    for row in rows:
        own = _labels(row)
        table.append(
            [*(own.get(name, "") for name in labels), *(_cell(row["metrics"].get(name)) for name in metrics)]
        )
    return markdown_table(table)


def _differences(entries: Sequence[Mapping[str, Any]]) -> str:
    table = [["budget", "text", "difference", BITS, "least and most of the pairs"]]
    for entry in entries:
        if entry["metric"].startswith(BITS):
            mean = number(entry["mean"], entry["between"], sign=True)
            pairs = f"{entry['least']:+.3f} .. {entry['most']:+.3f}, {entry['pairs']} pairs"
            what = f"{entry['of']} - {entry['minus']}"
            table.append([entry["budget"], entry["text"], what, mean, pairs])
    return markdown_table(table)


def _cell(entry: Mapping[str, Any] | None) -> str:
    """Mean, error between seeds, and error within seeds."""
    if entry is None or "failed" in entry:
        return "-"
    between, within = entry["between"], entry["within"]
    shown = number(entry["mean"], between or within)
    if between is None and within:
        return f"{shown.partition(' ')[0]} ({within:.2g})"
    return f"{shown} ({within:.2g})" if within else shown


def _controls(controls: Mapping[str, Any]) -> str:
    metrics = [
        metric
        for metric in dict.fromkeys(name for scores in controls.values() for name in scores)
        if metric.startswith(_SHOWN["generation"])
    ]
    table = [["", *metrics]]
    for name, scores in controls.items():
        cells = []
        for metric in metrics:
            entry = scores.get(metric)
            absent = entry is None or "failed" in entry
            cells.append("-" if absent else number(entry["value"], entry["error"]))
        table.append([name, *cells])
    return markdown_table(table)


_Curves = dict[str, dict[str, list[tuple[float, Mapping[str, Any]]]]]
"""The points of each arm by text: training tokens, and a number over seeds."""


def _likelihood_curves(rows: Sequence[Mapping[str, Any]]) -> _Curves:
    """The points of each arm in bits per byte by text; empty if no arm has two budgets."""
    tokens = {
        (row["arm"], row["budget"]): row["tokens"] for row in rows if row["kind"] == "train" and "arm" in row
    }
    curves: _Curves = {}
    for row in rows:
        for metric, entry in row["metrics"].items() if row["kind"] == "likelihood" else ():
            if metric.startswith(BITS) and "failed" not in entry:
                points = curves.setdefault(row["text"], {}).setdefault(row["arm"], [])
                points.append((tokens[row["arm"], row["budget"]], entry))
    return curves if any(len(points) > 1 for arms in curves.values() for points in arms.values()) else {}


def _draw_likelihood(drawing: Figure, curves: _Curves) -> None:
    """Draw a panel for each text: lines of arms, and a level for an arm that has one budget only."""
    panels = drawing.subplots(len(curves), 1, squeeze=False)[:, 0]
    for axes, (text, arms) in zip(panels, curves.items(), strict=True):
        named = {name: name.partition(", ")[::2] for name, points in arms.items() if len(points) > 1}
        firsts, rests = (list(dict.fromkeys(parts)) for parts in zip(*named.values(), strict=True))
        for name, (first, rest) in named.items():
            points = sorted(arms[name], key=lambda point: point[0])
            kind, colour = firsts.index(first), rests.index(rest)
            aside = 1.015 ** (list(named).index(name) - len(named) / 2)  # bars would cover each other
            axes.errorbar(
                [x * aside for x, _ in points],
                [y["mean"] for _, y in points],
                yerr=[_error(y) for _, y in points],
                label=name,
                color=SERIES[colour % len(SERIES)],
                linestyle=_STYLES[kind % len(_STYLES)],
                marker=_MARKERS[kind % len(_MARKERS)],
                markersize=4.0,
                linewidth=1.1,
                elinewidth=0.7,
                capsize=2.0,
            )
        _draw_levels(axes, {name: points[0][1]["mean"] for name, points in arms.items() if name not in named})
        axes.set_xscale("log")
        axes.set_xlabel("training tokens of the arm")
        axes.set_ylabel(BITS)
        axes.set_title(f"Likelihood of {text}; bars are two standard errors", fontsize=9.5)
        axes.grid(color=RULE, linewidth=0.6)
        axes.set_axisbelow(True)
        only_ticks(axes)
    panels[-1].legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, fontsize=7, labelcolor=MUTED)


def _judges(row: Mapping[str, Any]) -> list[str]:
    """Names of the judges with a number."""
    return [
        metric.removeprefix(NATS)
        for metric, entry in row["metrics"].items()
        if metric.startswith(NATS) and "failed" not in entry
    ]


def _curves(
    rows: Sequence[Mapping[str, Any]], judge: str, across: str
) -> Iterator[tuple[str, dict[str, Any], list[tuple[Any, Any]]]]:
    """For each arm, budget and sampler: name, style, and the pairs of numbers of its points.

    The colour stands for the arm, or for the sampler if there is one arm only; the marker for the other.
    """
    arms = list(dict.fromkeys((row["arm"], row["budget"]) for row in rows))
    samplers = list(dict.fromkeys(row["sampler"] for row in rows))
    for a, (arm, budget) in enumerate(arms):
        for s, sampler in enumerate(samplers):
            points = [
                (row["metrics"][across], row["metrics"][NATS + judge])
                for row in rows
                if (row["arm"], row["budget"], row["sampler"]) == (arm, budget, sampler)
                and not any(
                    "failed" in row["metrics"].get(name, {"failed": ""}) for name in (across, NATS + judge)
                )
            ]
            colour, other, others = (s, a, 1) if len(arms) == 1 else (a, s, len(samplers))
            style = {
                "color": SERIES[colour % len(SERIES)],
                "marker": _MARKERS[(other + others * (colour // len(SERIES))) % len(_MARKERS)],
                "linestyle": _STYLES[other % len(_STYLES)],
            }
            if points:
                one_budget = len({of for _, of in arms}) == 1
                yield ", ".join([arm, *([] if one_budget else [budget]), sampler]), style, points


def _error(entry: Mapping[str, Any]) -> float:
    """Two of the larger error."""
    return 2 * max(entry["between"] or 0.0, entry["within"] or 0.0)


def _draw_curves(
    axes: Axes, judge: str, rows: Sequence[Mapping[str, Any]], across: str, *, bars: bool
) -> None:
    for name, style, points in _curves(rows, judge, across):
        axes.errorbar(
            [x["mean"] for x, _ in points],
            [y["mean"] for _, y in points],
            xerr=[_error(x) for x, _ in points] if bars else None,
            yerr=[_error(y) for _, y in points],
            label=name,
            markersize=4.0,
            linewidth=1.1,
            elinewidth=0.7,
            alpha=0.85,
            **style,
        )


def _measured_controls(controls: Mapping[str, Any], *metrics: str) -> Iterator[tuple[str, list[float]]]:
    for name, scores in controls.items():
        entries = [scores.get(metric, {"failed": ""}) for metric in metrics]
        if not any("failed" in entry for entry in entries):
            yield name, [entry["value"] for entry in entries]


def _draw_levels(axes: Axes, levels: Mapping[str, float]) -> None:
    """Draw a horizontal line with a name for each level."""
    for name, value in levels.items():
        axes.axhline(value, color=INK if name == "data" else MUTED, linewidth=0.9, linestyle=(0, (5, 3)))
        axes.annotate(
            name,
            (1, value),
            (0, 1.5),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            fontsize=7,
            color=MUTED,
            ha="right",
        )


def _keep_to_curves(axes: Axes, controls: Mapping[str, Sequence[float]]) -> dict[str, Sequence[float]]:
    """Fix the limits at those of the curves, and name the controls beyond them; returns the others.

    Controls are far from all samples, so limits that contain them would draw the samples on top of one another.

    Args:
        axes: A panel whose curves are drawn.
        controls: The numbers of each control: x and y, or y alone.
    """
    axes.margins(0.12)
    axes.autoscale_view()
    limits = axes.set_xlim(axes.get_xlim()), axes.set_ylim(axes.get_ylim())
    inside, beyond = {}, []
    for name, values in controls.items():
        if all(low <= value <= high for value, (low, high) in zip(values[::-1], limits[::-1], strict=False)):
            inside[name] = values
        else:
            beyond.append(f"{name} {', '.join(f'{value:.2f}' for value in values)}")
    if beyond:
        note = f"beyond the picture: {'; '.join(beyond)}"
        axes.text(0.01, 0.015, note, transform=axes.transAxes, fontsize=7, color=MUTED)
    return inside


def _draw_quality(
    axes: Axes, judge: str, rows: Sequence[Mapping[str, Any]], controls: Mapping[str, Any]
) -> None:
    axes.set_xscale("log", base=2)
    _draw_curves(axes, judge, rows, "network evaluations", bars=False)
    levels = _keep_to_curves(axes, dict(_measured_controls(controls, NATS + judge)))
    _draw_levels(axes, {name: value for name, (value,) in levels.items()})
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("evaluations of the network for a batch of samples")
    axes.set_title("Quality over cost; lower is likelier, and `repeat` shows how to cheat", fontsize=9.5)


def _draw_frontier(
    axes: Axes, judge: str, rows: Sequence[Mapping[str, Any]], controls: Mapping[str, Any]
) -> None:
    _draw_curves(axes, judge, rows, "entropy", bars=True)
    inside = _keep_to_curves(axes, dict(_measured_controls(controls, "entropy", NATS + judge)))
    for name, (entropy, nats) in inside.items():
        axes.plot(entropy, nats, "*", color=INK if name == "data" else MUTED, markersize=9)
        axes.annotate(name, (entropy, nats), (5, 4), textcoords="offset points", fontsize=7, color=MUTED)
    axes.set_xlabel("entropy of a sample in nats: more varied →")
    axes.set_title("Quality against variety: better is lower at the same entropy", fontsize=9.5)
