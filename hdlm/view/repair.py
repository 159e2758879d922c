"""The repair of damaged text: a table, a report with examples, and a picture.

All are made from the document of `hdlm eval repair`, so that they show what was written.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hdlm.view.calibration import measured_text
from hdlm.view.palette import INK, MUTED, RULE, SERIES
from hdlm.view.report import markdown_table, write_report

__all__ = ["repair_table", "write_repair"]

PICTURE = "repair.png"


def _sources(document: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The numbers of the sampler and of the controls."""
    result = document["result"]
    return {result["settings"]["algorithm"]: result["metrics"], **result["controls"]}


def repair_table(document: Mapping[str, Any]) -> str:
    """A Markdown table with a line for the sampler and one for each control."""
    names = list(document["result"]["definitions"])
    rows = [["", *names]]
    for source, scores in _sources(document).items():
        rows.append([source, *(measured_text(scores.get(name)) for name in names)])
    return markdown_table(rows)


def write_repair(folder: Path, document: Mapping[str, Any]) -> None:
    """Write report.md and repair.png.

    Args:
        folder: The folder to write to.
        document: The document that `hdlm eval repair` writes.
    """
    _draw(document, folder / PICTURE)
    result = document["result"]
    settings = ", ".join(f"{name} {value}" for name, value in result["settings"].items() if value is not None)
    protocol = ", ".join(f"{name} {value}" for name, value in result["protocol"].items())
    stages = ("the text", "damaged", "corrected")
    examples = "\n\n".join(
        "\n".join(f"- {stage}: {text}" for stage, text in zip(stages, example, strict=True))
        for example in result["examples"]
    )
    sections = {
        "What was restored, and what was damaged": f"![restored and damaged shares]({PICTURE})\n\n"
        f"{repair_table(document)}\n\nAfter ± stands the standard error by the jackknife over pieces of text; bars in "
        "the picture are two of them. Each control changes as many words of each piece as the sampler did, at random "
        "places: `plain` writes them by ancestral sampling, `random` draws them from the frequencies of the text.",
        "Definitions": "\n".join(f"- **{name}**: {text}" for name, text in result["definitions"].items()),
        "Examples, the first ones": examples,
        "How": f"{protocol}; begins at noise {result['noise']:g} with {result['start']}; {settings}; "
        f"{result['num_evaluations']:.4g} network evaluations; seed {document['seed']}, {document['weights']} weights, "
        f"sha256 `{document['weights_sha256']}`, {document['dtype']} on {document['device']}",
    }
    write_report(folder / "report.md", f"Repair by {document['model']}", sections)


def _draw(document: Mapping[str, Any], output: Path) -> None:
    """Draw the restored share over the damaged share, of the sampler and the controls."""
    from hdlm.view.figures import figure, only_ticks

    with figure(5.2, 4.0, output) as drawing:
        axes = drawing.subplots()
        for place, (source, scores) in enumerate(_sources(document).items()):
            restored, damaged = scores["restored"], scores["damaged"]
            if "failed" in restored or "failed" in damaged:
                continue
            colour = INK if not place else SERIES[place % len(SERIES)]
            axes.errorbar(
                damaged["value"],
                restored["value"],
                xerr=2 * (damaged["error"] or 0.0),
                yerr=2 * (restored["error"] or 0.0),
                fmt="o",
                color=colour,
                markersize=6,
                elinewidth=0.9,
                label=source,
            )
        axes.set_xlabel("share of the other words that are damaged")
        axes.set_ylabel("share of the planted errors that are restored")
        axes.set_title(f"{document['result']['protocol']['share']:.0%} of the words were replaced")
        axes.margins(0.2)
        axes.axhline(0, color=RULE, linewidth=0.8)
        axes.grid(color=RULE, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.legend(fontsize=8, labelcolor=MUTED)
        only_ticks(axes)
