"""`hdlm eval frontier`: points with errors, resuming, and the picture."""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import replace

import pytest

import hdlm.evaluation.generation.frontier as frontier
from hdlm.cli import main
from hdlm.cli._registry import verbs
from hdlm.cli.eval import kinds
from hdlm.evaluation.generation.judge import CheckpointJudge
from hdlm.view.frontier import Curve, Point, draw_frontier

MODEL = "kjv-epsilon-4m"
SWEEP = [
    "eval",
    "frontier",
    MODEL,
    "--judge",
    MODEL,
    "--num",
    "3",
    "--length",
    "12",
    "--steps",
    "2",
    "--json",
]
TEMPERATURES = ["--temperature", "0.5", "1"]


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """Two samplers at two temperatures, beside real text."""
    folder = tmp_path_factory.mktemp("frontier")
    text = folder / "book.txt"
    text.write_text("In the beginning God created the heaven and the earth. " * 30)
    options = [*TEMPERATURES, "--algorithm", "original", "acs", "--reference", str(text)]
    assert main([*SWEEP, *options, "--output", str(folder / "out")]) == 0
    return folder


def results(folder):
    document = json.loads((folder / "results.json").read_text())
    document.pop("wall_seconds")
    return document


def test_frontier_has_every_sampler_at_every_temperature(swept):
    document = results(swept / "out")
    assert [curve["algorithm"] for curve in document["curves"]] == ["original", "acs"]
    for curve in document["curves"]:
        assert [point["temperature"] for point in curve["points"]] == [0.5, 1.0]
        for point in curve["points"]:
            assert point["entropy"]["value"] > 0
            assert point["generative perplexity"]["error"] > 0
            assert point["generative perplexity"]["judge"] == MODEL
            assert point["num_evaluations"] > 0
    assert document["reference"]["entropy"]["value"] > 0
    assert document["data"]["documents"] == 1
    assert document["judge"] == MODEL
    assert set(document["models"][MODEL]) >= {"weights", "weights_sha256", "dtype"}
    report = (swept / "out" / "report.md").read_text()
    assert report.count(f"| {MODEL} ") == 4
    assert "real text" in report
    assert "![generative perplexity over entropy](frontier.png)" in report
    assert (swept / "out" / "frontier.png").stat().st_size > 10_000


def test_frontier_points_equal_eval_generation(swept, capsys):
    """The same samples and the same numbers as when they are measured alone."""
    alone = ["eval", "generation", MODEL, "--judge", MODEL, "--num", "3", "--length", "12", "--steps", "2"]
    assert main([*alone, "--algorithm", "original", "--temperature", "0.5", "--json"]) == 0
    metrics = json.loads(capsys.readouterr().out)["result"]["metrics"]
    point = results(swept / "out")["curves"][0]["points"][0]
    for measure in frontier.MEASURES:
        assert point[measure] == pytest.approx(metrics[measure])


def test_frontier_measures_finished_points_only_once(swept, monkeypatch, capsys):
    before = results(swept / "out")
    drawn = []

    def counting(checkpoint, settings, **options):
        drawn.append(settings.temperature)
        return real(checkpoint, settings, **options)

    real = frontier.draw_samples
    monkeypatch.setattr(frontier, "draw_samples", counting)
    again = [*SWEEP, "--algorithm", "original", "acs", "--reference", str(swept / "book.txt")]
    assert main([*again, *TEMPERATURES, "--output", str(swept / "out")]) == 0
    assert not drawn
    assert results(swept / "out") == before
    wider = [*SWEEP, "--algorithm", "original", "--temperature", "0.5", "0.8", "1"]
    assert main([*wider, "--output", str(swept / "out")]) == 0
    assert drawn == [0.8]


def test_frontier_resumes_after_interrupt(swept, tmp_path, monkeypatch):
    def killed(checkpoint, settings, **options):
        if settings.temperature == 1:
            raise KeyboardInterrupt
        return real(checkpoint, settings, **options)

    real = frontier.draw_samples
    command = [*SWEEP, *TEMPERATURES, "--algorithm", "acs", "--output", str(tmp_path)]
    monkeypatch.setattr(frontier, "draw_samples", killed)
    assert main(command) == 130
    assert not (tmp_path / "results.json").exists()
    monkeypatch.setattr(frontier, "draw_samples", real)
    assert main(command) == 0
    kept = [path for path in (tmp_path / "points").iterdir() if path.suffix == ".json"]
    assert len(kept) == 2


def test_frontier_reports_failed_point_and_retries_it(tmp_path, monkeypatch, capsys):
    def failing_judge(self, texts):
        raise ValueError("the judge has lost its voice.")

    real = CheckpointJudge.judge
    command = [*SWEEP, "--top-p", "0.9", "--algorithm", "original", "--output", str(tmp_path)]
    monkeypatch.setattr(CheckpointJudge, "judge", failing_judge)
    assert main(command) == 1
    (point,) = results(tmp_path)["curves"][0]["points"]
    assert point["top_p"] == 0.9
    assert "lost its voice" in point["generative perplexity"]["failed"]
    assert point["entropy"]["value"] > 0
    assert "failed: the judge has lost its voice." in (tmp_path / "report.md").read_text()
    assert not (tmp_path / "frontier.png").exists()
    monkeypatch.setattr(CheckpointJudge, "judge", real)
    assert main(command) == 0
    assert (tmp_path / "frontier.png").exists()


def test_frontier_reports_reference_text_that_is_too_short(tmp_path):
    (tmp_path / "short.txt").write_text("And God said.")
    command = [*SWEEP, "--temperature", "1", "--reference", str(tmp_path / "short.txt")]
    assert main([*command, "--output", str(tmp_path / "out")]) == 1
    assert "are needed, one for each sample" in results(tmp_path / "out")["reference"]["entropy"]["failed"]


def test_commands_in_evaluation_page_parse(repository):
    page = (repository / "docs" / "evaluation.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```bash\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    commands = [line.split()[1:] for line in "".join(blocks).splitlines() if line.startswith("hdlm ")]
    assert {command[1] for command in commands if command[0] == "eval"} == set(kinds())
    for verb, *words in commands:
        parser = argparse.ArgumentParser(exit_on_error=False)
        verbs()[verb].load().add_arguments(parser)
        parser.parse_args(words)


def test_frontier_rejects_bad_arguments_in_one_line(tmp_path, monkeypatch, capsys):
    output = ["--output", str(tmp_path / "out")]
    nobody = [word if word != MODEL else "no-such-judge/here" for word in SWEEP[3:]]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert main([*SWEEP[:3], *nobody, *TEMPERATURES, *output]) == 2
    assert main([*SWEEP, "--temperature", "-1", *output]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "judge no-such-judge/here" in lines[0]
    with pytest.raises(SystemExit):
        main([*SWEEP, *output])


def test_frontier_rejects_models_of_different_tokenizers(tmp_path, monkeypatch, capsys):
    from hdlm.cli.eval import frontier as _eval_frontier

    real = _eval_frontier.open_checkpoint

    def another(name, reading, device):
        checkpoint = real(MODEL, reading, device)
        change = {"tokenizer_json": "{}"} if name == "words" else {"length": 7}
        return checkpoint if name == MODEL else replace(checkpoint, **change)

    monkeypatch.setattr(_eval_frontier, "open_checkpoint", another)
    output = ["--output", str(tmp_path)]
    assert main([*SWEEP[:3], "words", *SWEEP[3:], *TEMPERATURES, *output]) == 2
    assert "different tokenizers" in capsys.readouterr().err


def line(name: str, shift: float) -> Curve:
    points = [Point(f"{t:g}", 2 + t + shift, 0.02, 10 * t + 5 + shift, 0.8) for t in (0.6, 0.8, 1.0)]
    return Curve(name, points)


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_draw_frontier_writes_many_curves(tmp_path, suffix):
    curves = [line(f"sampler {index}", index / 100) for index in range(8)]
    reference = Point("book", 3.4, None, 12.0, None)
    path = tmp_path / f"frontier.{suffix}"
    draw_frontier([*curves, Curve("empty", [])], path, reference=reference, swept="top-p", judge="gpt2")
    assert path.stat().st_size > 10_000


def test_draw_frontier_rejects_empty_curves(tmp_path):
    with pytest.raises(ValueError, match="nothing was measured"):
        draw_frontier([Curve("empty", [])], tmp_path / "frontier.png")
