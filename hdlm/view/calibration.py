"""The calibration of a model: tables, a report, and the reliability curves as a picture.

All are made from the document of `hdlm eval calibration`, so that they show what was written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hdlm.view.palette import MUTED, RULE, SERIES
from hdlm.view.report import markdown_table, number, write_report

__all__ = ["calibration_table", "measured_text", "write_calibration"]

PICTURE = "calibration.png"


def measured_text(entry: Mapping[str, Any] | None) -> str:
    """A number with its error as text; `-` if it was not measured."""
    if entry is None or "failed" in entry:
        return "-"
    return number(entry["value"], entry["error"])


def calibration_table(document: Mapping[str, Any]) -> str:
    """A Markdown table with a line for each range of noise, in both measurements."""
    names = list(document["result"]["definitions"])
    rows: list[Sequence[str]] = [("", "noise", "words", "wrong", *names)]
    for condition, levels in document["result"]["conditions"].items():
        for level, measured in levels.items():
            cells = (measured_text(measured["metrics"].get(name)) for name in names)
            counts = (f"{measured['num_words']:,}", f"{measured['num_wrong']:,}")
            rows.append((condition, level, *counts, *cells))
    return markdown_table(rows)


def write_calibration(folder: Path, document: Mapping[str, Any]) -> None:
    """Write report.md and calibration.png.

    Args:
        folder: The folder to write to.
        document: The document that `hdlm eval calibration` writes.
    """
    _draw(document, folder / PICTURE)
    result = document["result"]
    how = ", ".join(f"{name} {value}" for name, value in result["protocol"].items())
    sections = {
        "Does the probability that a word is wrong mean it?": f"![reliability curves]({PICTURE})\n\n"
        f"{calibration_table(document)}\n\nAfter ± stands the standard error by the bootstrap over pieces of text; "
        "bars in the picture are two of them.",
        "Definitions": "\n".join(f"- **{name}**: {text}" for name, text in result["definitions"].items()),
        "How": f"{how}; seed {document['seed']}, {document['weights']} weights, sha256 "
        f"`{document['weights_sha256']}`, {document['dtype']} on {document['device']}",
    }
    write_report(folder / "report.md", f"Calibration of {document['model']}", sections)


def _draw(document: Mapping[str, Any], output: Path) -> None:
    """Draw the reliability curves of each range of noise, one panel for each measurement."""
    from hdlm.view.figures import figure, only_ticks

    conditions = document["result"]["conditions"]
    with figure(4.0 * len(conditions), 4.0, output) as drawing:
        panels = drawing.subplots(1, len(conditions), squeeze=False)[0]
        for axes, (condition, levels) in zip(panels, conditions.items(), strict=True):
            axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.9, linestyle=(0, (5, 3)))
            for place, (level, measured) in enumerate(levels.items()):
                bins = measured["bins"]
                axes.errorbar(
                    [entry["probability"] for entry in bins],
                    [entry["wrong"] for entry in bins],
                    yerr=[2 * (entry["error"] or 0.0) for entry in bins],
                    fmt="o-",
                    color=SERIES[place % len(SERIES)],
                    markersize=3.5,
                    linewidth=1.2,
                    elinewidth=0.8,
                    alpha=0.85,
                    label=level if level == "all" else f"noise {level}",
                )
            axes.set_title(condition)
            axes.set_xlabel("probability that the word is wrong")
            axes.set_xlim(-0.03, 1.03)
            axes.set_ylim(-0.03, 1.03)
            axes.grid(color=RULE, linewidth=0.6)
            axes.set_axisbelow(True)
            only_ticks(axes)
        panels[0].set_ylabel("share of words that are wrong")
        panels[0].legend(loc="upper left", fontsize=8)
