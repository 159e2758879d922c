"""The measurements of samples: a table in the terminal, a report, and a picture.

All are made from the document that `hdlm eval generation` writes as results.json; the model, the reference and the
controls are side by side.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hdlm.view.palette import MUTED, RULE, SERIES
from hdlm.view.report import markdown_table, write_report

__all__ = ["draw_metrics", "summary", "write_generation_report"]

Columns = Mapping[str, Mapping[str, Any]]


def columns(document: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Scores by source: the model, real text, controls."""
    result = document["result"]
    references = {Path(name).name: scores for name, scores in result["references"].items()}
    return {"model": result["metrics"], **references, **result["controls"]}


def summary(document: Mapping[str, Any]) -> str:
    """All measurements, for a terminal; reasons of failures come last."""
    rows = _rows(columns(document))
    text = [_speed(document), "", *_aligned(rows)]
    for title, table in _corrections(document["result"]).items():
        text += ["", title, *_aligned(table)]
    return "\n".join([*text, *(f"\nnot measured: {line}" for line in _failures(document["result"]))])


def write_generation_report(path: Path, document: Mapping[str, Any]) -> None:
    """Write the report of an evaluation as Markdown.

    Args:
        path: The file; it is written completely or not at all.
        document: Document of the results.
    """
    result = document["result"]
    settings = {name: value for name, value in result["settings"].items() if value is not None}
    sections = {
        "What was measured": _speed(document) + "\n\n" + markdown_table(_rows(columns(document))),
        **{title: markdown_table(table) for title, table in _corrections(result).items()},
        "Not measured": "\n".join(f"- {line}" for line in _failures(result)) or "Nothing failed.",
        "Definitions": "\n".join(f"- **{name}**: {text}" for name, text in result["definitions"].items())
        + "\n\nToken ids are those that the model wrote, without those that were given; judges read the whole text. "
        "After ± stands the standard error by the jackknife over samples (over ten groups for MAUVE); bars in the "
        "picture are two of them. Numbers of other lengths or numbers of samples must not be compared.",
        "How": "\n".join(f"- {name}: `{value}`" for name, value in settings.items())
        + f"\n- seed: `{document['seed']}`\n- drawn in: `{result['draw_dtype']}`"
        + f"\n- weights: `{document['weights']}`, sha256 `{document['weights_sha256']}`"
        + f"\n- computed in: `{document['dtype']}` on `{document['device']}`"
        + "\n- versions: "
        + ", ".join(f"{name} {value}" for name, value in document["versions"].items()),
    }
    write_report(path, f"What {document['model']} writes", sections)


def draw_metrics(document: Mapping[str, Any], output: Path) -> None:
    """Draw every measure of the model, real text and the controls side by side, with bars of two standard errors.

    Args:
        document: Document of the results.
        output: The file; its suffix (`.png`, `.svg`, `.pdf`) determines the format.

    Raises:
        ValueError: If matplotlib cannot write such a format.
    """
    from hdlm.view.figures import figure, only_ticks

    measured = columns(document)
    names = [name for name in _names(measured) if not name.endswith("mean over samples")]
    names = [name for name in names if any("value" in scores.get(name, {}) for scores in measured.values())]
    across = min(4, max(len(names), 1))
    down = -(-len(names) // across)
    with figure(2.6 * across, 2.4 * max(down, 1), output) as drawing:
        panels = drawing.subplots(max(down, 1), across, squeeze=False).flatten()
        for axes in panels[len(names) :]:
            axes.set_axis_off()
        for axes, name in zip(panels, names, strict=False):
            for place, (source, scores) in enumerate(measured.items()):
                score = scores.get(name, {})
                if "value" in score:
                    colour = SERIES[place % len(SERIES)]
                    error = None if score["error"] is None else 2 * score["error"]
                    axes.bar(place, score["value"], yerr=error, color=colour, ecolor=MUTED, label=source)
            axes.set_title("\n".join(_split(name)), fontsize=8.5)
            axes.set_xticks(
                range(len(measured)), [Path(source).name[:12] for source in measured], rotation=35, ha="right"
            )
            axes.grid(axis="y", color=RULE, linewidth=0.6)
            axes.set_axisbelow(True)
            if "perplexity" in name:
                axes.set_yscale("log")
            only_ticks(axes)


def _split(name: str) -> list[str]:
    """A long name on two lines."""
    if len(name) < 26:
        return [name]
    cut = name.find(" ", len("generative perplexity"))
    return [name] if cut < 0 else [name[:cut], name[cut + 1 :]]


def _speed(document: Mapping[str, Any]) -> str:
    result = document["result"]
    forward = result.get("tokens_per_forward")
    pace = "" if forward is None else f"{forward:.3g} tokens per forward, "
    return (
        f"{result['num_samples']} samples of {result['length']} tokens by {document['model']}, "
        f"{result['settings']['algorithm']} (eta {result['settings']['eta']}), seed {document['seed']}: "
        f"{result['num_evaluations']:g} network evaluations, {pace}{result['tokens_per_second']:.0f} tokens a second, "
        f"drawn in {result['draw_dtype']}"
    )


def _names(measured: Columns) -> list[str]:
    """All measures in order, with entropy next to the perplexities."""
    known = list(dict.fromkeys(name for scores in measured.values() for name in scores))
    late = [name for name in known if name == "entropy" or name.startswith("generative")]
    return [*(name for name in known if name not in late), *late]


def _rows(measured: Columns) -> list[Sequence[str]]:
    rows: list[Sequence[str]] = [("", *measured)]
    for name in _names(measured):
        rows.append((name, *(_cell(scores.get(name)) for scores in measured.values())))
    return rows


def _corrections(result: Mapping[str, Any]) -> dict[str, list[Sequence[str]]]:
    """Tables of corrections: in the samples, in real text with gaps, and with other values of eta."""
    telemetry = result["telemetry"]
    own = [(f"eta {result['settings']['eta']:g}", telemetry)] + [
        (f"eta {scores['eta']:g}", scores) for scores in telemetry["eta_sweep"]
    ]
    names = [name for name in _names({"": own[-1][1]}) if name not in ("eta", "infilling", "eta_sweep")]
    names = [name for name in names if not name.endswith(("by step", "mean over samples"))]
    tables = {"Words taken back, a sample": _table(own, names)}
    filled = [(eta, scores["infilling"]) for eta, scores in own if scores["infilling"] is not None]
    if filled:
        measures = dict.fromkeys(name for _, scores in filled for name in scores)
        tables["Real text with gaps"] = _table(filled, list(measures))
    return tables


def _table(rows: Sequence[tuple[str, Mapping[str, Any]]], names: Sequence[str]) -> list[Sequence[str]]:
    """A row for each set of scores, and a column for each measure."""
    return [("", *names), *((label, *(_cell(scores.get(name)) for name in names)) for label, scores in rows)]


def _cell(value: Mapping[str, Any] | None) -> str:
    if value is None:
        return "-"
    if "failed" in value:
        return "not measured"
    digits = 3 if abs(value["value"]) < 1000 else 0
    error = "" if value["error"] is None else f" ± {value['error']:.{digits}f}"
    return f"{value['value']:.{digits}f}{error}"


def _failures(result: Mapping[str, Any]) -> list[str]:
    """Each reason of a failure once, with the measures that failed for it."""
    places: dict[str, list[str]] = {}
    for place, reason in _reasons(result, ""):
        places.setdefault(reason, []).append(place.removeprefix("/"))
    return [f"{reason} ({', '.join(where)})" for reason, where in places.items()]


def _reasons(results: Any, place: str) -> Iterator[tuple[str, str]]:
    inner: Iterable[tuple[Any, Any]] = ()
    if isinstance(results, Mapping):
        if "failed" in results:
            yield place, results["failed"]
            return
        inner = results.items()
    elif isinstance(results, list):
        inner = enumerate(results, start=1)
    for name, part in inner:
        yield from _reasons(part, f"{place}/{name}")


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if not at else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
