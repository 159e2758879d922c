"""Training curves: reading metrics, drawing them, and the output of `hdlm plot`."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from hdlm.cli import main
from hdlm.view.curves import RunMetrics, draw_curves, running_mean


def _write(path: Path, records: list[dict[str, Any]], end: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + end)
    return path


def _lines(steps: int = 100, above: float = 0.0) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = [
        {
            "step": step,
            "loss": above + 4 - step / 100,
            "rate": step / steps,
            "tokens": 512 * step,
            "seconds": 2.0 * step,
        }
        for step in range(1, steps + 1)
    ]
    measured = [
        {"step": 50, "validation": above + 3.6, "validation_error": 0.1},
        {"step": 100, "validation": above + 3.2},
    ]
    return lines + measured


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    for place, name in enumerate(("one", "two")):
        _write(tmp_path / name / "metrics.jsonl", _lines(above=place))
    return [tmp_path / "one", tmp_path / "two"]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are written while a test runs."""
    figures: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *a, **k: (figures.append(self), save(self, *a, **k))[1]
    )
    return figures


def test_run_metrics_reads_series_by_name(runs):
    run = RunMetrics.read(runs[0] / "metrics.jsonl")
    steps, loss = run.series("loss")
    assert steps.tolist() == list(range(1, 101))
    assert loss[-1] == 3.0
    assert run.series("validation")[1].tolist() == [3.6, 3.2]
    assert run.errors("validation").tolist() == [0.1, 0.0]
    assert len(run.series("absent")[0]) == 0


def test_run_metrics_places_validation_on_tokens_and_time(runs):
    """Validation records hold only their step, so tokens and time come from the training records."""
    run = RunMetrics.read(runs[0] / "metrics.jsonl")
    assert run.series("validation", "tokens")[0] * 1e6 == pytest.approx([25600, 51200])
    assert run.series("validation", "time")[0] * 60 == pytest.approx([100, 200])


def test_run_metrics_derives_tokens_per_second(runs):
    run = RunMetrics.read(runs[0] / "metrics.jsonl")
    assert run.small("tokens_per_second", "steps")[1] == pytest.approx(256)


def test_run_metrics_ignores_unfinished_last_line(tmp_path):
    run = RunMetrics.read(_write(tmp_path / "m.jsonl", _lines(3)[:3], '{"step": 4, "lo'))
    assert len(run.records) == 3


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('{"step": 1, "loss": 2}\n{"step": 2, "lo\n', r"m\.jsonl:2 is not JSON"),
        ("[1, 2]\n", r'm\.jsonl:1 has no "step"'),
        ('{"step": 1', "has no line yet, only an incomplete one"),
        ("", "has no line yet"),
    ],
)
def test_run_metrics_rejects_malformed_file(tmp_path, text, complaint):
    (tmp_path / "m.jsonl").write_text(text)
    with pytest.raises(ValueError, match=complaint):
        RunMetrics.read(tmp_path / "m.jsonl")


def test_draw_curves_rejects_metrics_without_series(tmp_path):
    run = RunMetrics.read(_write(tmp_path / "m.jsonl", [{"step": 1, "speed": 3}]))
    with pytest.raises(ValueError, match="no loss and no validation to draw; the metrics have speed, step"):
        draw_curves([run], tmp_path / "x.png")
    lossy = RunMetrics.read(_write(tmp_path / "n.jsonl", [{"step": 1, "loss": 3}]), "n")
    with pytest.raises(ValueError, match="n has no seconds in its metrics"):
        draw_curves([lossy], tmp_path / "x.png", axis="time")
    assert not (tmp_path / "x.png").exists()


def test_draw_curves_marks_single_point_with_dot(tmp_path, drawn):
    run = RunMetrics.read(_write(tmp_path / "m.jsonl", [{"step": 1, "loss": 3.0}]))
    draw_curves([run], tmp_path / "x.png")
    (line,) = drawn[0].axes[0].lines
    assert line.get_marker() == "o"
    assert imread(tmp_path / "x.png").std() > 0.01


def test_draw_curves_overlays_runs_with_legend_and_error_bars(runs, tmp_path, drawn):
    read = [RunMetrics.read(run / "metrics.jsonl", run.name) for run in runs]
    draw_curves(read, tmp_path / "x.svg", axis="tokens", levels={"unigram": 3.5})
    main_panel, *small = drawn[0].axes
    legend = main_panel.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["one", "two", "validation bound ± 2 s.e."]
    assert [axes.get_title(loc="left") for axes in small] == ["learning rate / peak", "tokens per second"]
    bars = next(path for path in main_panel.collections if len(path.get_paths()) == 2)
    low, high = bars.get_paths()[0].vertices[:, 1]
    assert high - low == pytest.approx(4 * 0.1)
    colours = {line.get_color() for line in main_panel.lines if line.get_label() in ("one", "two")}
    assert len(colours) == 2


def test_the_running_mean_is_unbiased_from_the_start():
    assert running_mean(np.full(50, 3.0)) == pytest.approx(3.0)
    steps = np.concatenate([np.zeros(500), np.ones(500)])
    assert running_mean(steps)[499] == 0
    assert running_mean(steps)[-1] == pytest.approx(1, abs=1e-3)


def test_plot_writes_picture_and_prints_latest_values(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    assert main(["plot", *map(str, runs), "-o", str(tmp_path / "x.png")]) == 0
    out = capsys.readouterr().out
    assert "3.200 at 100" in out
    assert "4.200 at 100" in out
    assert "█" in out
    assert imread(tmp_path / "x.png").std() > 0.01
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["plot", *map(str, runs)]) == 0
    assert "│ two " in capsys.readouterr().out


def test_plot_json_reports_step_loss_and_speed(runs, capsys):
    assert main(["plot", str(runs[0]), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["one"]
    assert (found["step"], found["best_validation"], found["best_step"]) == (100, 3.2, 100)
    assert found["tokens_per_second"] == pytest.approx(256)
    assert math.isclose(found["loss"], 3.0, abs_tol=0.05)


def test_plot_distinguishes_runs_of_equal_folder_name(runs, tmp_path, capsys):
    _write(tmp_path / "other" / "one" / "metrics.jsonl", _lines())
    assert main(["plot", str(runs[0]), str(tmp_path / "other" / "one"), "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)) == [f"{tmp_path.name}/one", "other/one"]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["."], "has no metrics.jsonl: it is no folder of a run"),
        (["absent"], "there is no run at"),
        (["one", "one"], "is given twice"),
        (["one", "-o", "x.doc"], "a picture ends in .png, .svg or .pdf"),
    ],
)
def test_plot_rejects_bad_arguments_in_one_line(runs, tmp_path, capsys, monkeypatch, words, complaint):
    monkeypatch.chdir(tmp_path)
    assert main(["plot", *words]) == 2
    error = capsys.readouterr().err
    assert complaint in error
    assert error.count("\n") == 1
