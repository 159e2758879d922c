"""The frontier picture: points, error bars and labels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure

from hdlm.view import frontier
from hdlm.view.frontier import Curve, Point, draw_document, draw_frontier


@pytest.fixture
def captured_figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The drawn figures. No file is written."""
    found: list[Figure] = []

    @contextmanager
    def figure(width: float, height: float, output: Path) -> Iterator[Figure]:
        found.append(Figure(figsize=(width, height)))
        yield found[-1]

    monkeypatch.setattr(frontier, "figure", figure)
    return found


def _bars(drawing: Figure) -> list[ErrorbarContainer]:
    (axes,) = drawing.axes
    return [one for one in axes.containers if isinstance(one, ErrorbarContainer)]


def _words(drawing: Figure) -> dict[str, Any]:
    (axes,) = drawing.axes
    return {text.get_text(): text for text in axes.texts}


def test_frontier_error_bars_are_two_standard_errors_and_positive(captured_figures: list[Figure]) -> None:
    points = [Point("0.5", 3.0, 0.1, 40.0, 5.0), Point("1", 4.0, None, 90.0, 80.0)]
    draw_frontier([Curve("acs", points)], Path("x.png"), reference=Point("book", 4.2, 0.0, 20.0, None))
    first, second, book = _bars(captured_figures[0])
    across, along = (bar.get_segments()[0] for bar in first[2])
    assert across[:, 0].tolist() == pytest.approx([2.8, 3.2])
    assert along[:, 1].tolist() == pytest.approx([30, 50])
    (unsure,) = (bar.get_segments()[0] for bar in second[2])
    assert unsure[:, 1].tolist() == pytest.approx([9, 250])
    assert (second.has_xerr, book.has_yerr) == (False, False)
    assert set(_words(captured_figures[0])) == {"0.5", "1  acs", "book"}
    with pytest.raises(ValueError, match="nothing was measured"):
        draw_frontier([Curve("acs", [])], Path("x.png"))


def test_frontier_labels_do_not_overlap(captured_figures: list[Figure]) -> None:
    """Three curves end near one point, and their labels keep the order of the curves."""
    ends = {"low": 50.0, "middle": 51.0, "high": 52.0}
    curves = [
        Curve(name, [Point("1", 4.0, None, end, None), Point("0.5", 3.0, None, end / 9, None)])
        for name, end in ends.items()
    ]
    draw_frontier(curves, Path("x.png"))
    (drawing,) = captured_figures
    drawing.draw_without_rendering()
    words = _words(drawing)
    heights = [words[f"1  {name}"].get_window_extent().y0 * 72 / drawing.dpi for name in ends]
    assert heights[1] - heights[0] > frontier.APART - 0.5
    assert heights[2] - heights[1] > frontier.APART - 0.5
    for name, above in (("low", False), ("high", True)):
        place = drawing.axes[0].transData.transform((4.0, ends[name]))[1]
        extent = words[f"1  {name}"].get_window_extent()
        assert ((extent.y0 + extent.y1) / 2 > place) == above


def _document(*models: str) -> dict[str, Any]:
    good = {"value": 3.0, "error": 0.1}
    point = {"temperature": 1.0, "entropy": good, "generative perplexity": good}
    bad = {"temperature": 0.5, "entropy": good, "generative perplexity": {"failed": "why"}}
    return {
        "swept": "temperature",
        "judge": "models/gpt2",
        "models": {name: {} for name in models},
        "curves": [{"model": name, "algorithm": "acs", "points": [bad, point]} for name in models],
        "reference": {"entropy": good, "generative perplexity": {"failed": "why"}},
        "data": {"name": "texts/book.txt"},
    }


@pytest.mark.parametrize(
    ("models", "names"),
    [
        (("runs/a",), {"1  acs"}),
        (("runs/a", "runs/b"), {"1  a, acs", "1  b, acs"}),
        (("x/run", "y/run"), {"1  x/run, acs", "1  y/run, acs"}),
    ],
)
def test_draw_document_omits_failed_points(
    captured_figures: list[Figure], models: tuple[str, ...], names: set[str]
) -> None:
    draw_document(_document(*models), Path("x.png"))
    assert set(_words(captured_figures[0])) == names
    assert len(_bars(captured_figures[0])) == len(models)
    assert "by gpt2:" in captured_figures[0].axes[0].get_ylabel()
