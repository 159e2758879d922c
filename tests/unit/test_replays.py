"""Replays of traces in a terminal, as pictures and in a notebook; `hdlm view` and `hdlm show process`."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

import hdlm
from hdlm.cli import main
from hdlm.generation import Passages, TraceDocument
from hdlm.generation.recording import LevelCurves, TracedSequence
from hdlm.hyperschedule import Block
from hdlm.sampling import Change
from hdlm.view import tokens
from hdlm.view.animation import draw_replay
from hdlm.view.moments import TracedRun, aligned
from hdlm.view.page import ReplayPage
from hdlm.view.process import PROCESSES, noisy_sentences
from hdlm.view.replay import play, replay_of, replays_of
from hdlm.view.tokens import TokenPainter

MODEL = "kjv-epsilon-4m"
MASK = 4
PIECES = {0: " the", 1: " cat", 2: " dog", 3: " sat"}


def small(*changes: tuple[int, int, int, int, int], total: int) -> TraceDocument:
    """A trace of three positions; each change is (step, position, old, new, evaluations)."""
    reasons = {True: "unmasked", False: "corrected"}
    rows = tuple(
        Change(step, 0, at, old, new, "remasked" if new == MASK else reasons[old == MASK], evaluations=calls)
        for step, at, old, new, calls in changes
    )
    levels = LevelCurves.of(Block(3, 3, 8))
    start = TracedSequence(0, (0, MASK, MASK), (0,), "the dog sat", total, 3)
    return TraceDocument("small", 0, {}, MASK, None, False, 8, levels, PIECES, (start,), rows)


SHORT = small((1, 1, MASK, 1, 1), (3, 1, 1, 2, 2), (4, 2, MASK, 3, 2), total=2)
LONG = small((0, 1, MASK, 1, 1), (2, 1, 1, MASK, 1), (5, 1, MASK, 2, 4), (7, 2, MASK, 3, 5), total=6)


def test_moments_are_steps_with_changes() -> None:
    run = TracedRun(SHORT)
    assert [moment.steps for moment in run.moments] == [0, 2, 4, 5, 8]
    assert [run.tokens(m) for m in range(5)] == [[0, 4, 4], [0, 1, 4], [0, 2, 4], [0, 2, 3], [0, 2, 3]]
    assert run.fresh(3, 1) == {1: "corrected", 2: "unmasked"}
    assert [run.corrected(m) for m in (1, 2)] == [set(), {1}]
    assert run.caption(1) == "step 2 of 8, 1 evaluation"
    with pytest.raises(ValueError, match="has 1 sequences; got sequence 1"):
        TracedRun(SHORT, 1)


def test_two_runs_are_aligned_by_evaluations() -> None:
    runs = [TracedRun(SHORT), TracedRun(LONG)]
    together = aligned(runs)
    counts = [[run.moments[m].evaluations for run, m in zip(runs, now, strict=True)] for now in together]
    assert counts == [[0, 0], [1, 1], [2, 1], [2, 4], [2, 5], [2, 6]]
    assert together[1] == (1, 2)
    assert together[-1] == (4, 5)
    assert aligned(runs[:1]) == [(m,) for m in range(5)]


def test_terminal_shows_aligned_runs() -> None:
    short, long = replays_of([TracedRun(SHORT), TracedRun(LONG)])
    assert len(short) == len(long) == 5
    assert long.caption(3) == "step 6 of 8, 4 evaluations"
    console = Console(file=io.StringIO(), width=80)
    play({"one": replay_of(SHORT)}, console=console)
    assert console.file.getvalue().splitlines()[:2] == [  # type: ignore[attr-defined]
        "one: 3 steps, 2 unmasked, 1 corrected, 0 masked again",
        "  step 0  the ░░░ ░░░",
    ]


@pytest.mark.parametrize("documents", [(SHORT,), (SHORT, LONG)], ids=["one", "two"])
def test_gif_has_a_frame_for_each_moment_and_rests_at_the_end(documents: Any, tmp_path: Path) -> None:
    path = tmp_path / "a" / "replay.gif"
    draw_replay(documents, path, pixels=560, seconds=2.0)
    moments = len(aligned([TracedRun(document) for document in documents]))
    with Image.open(path) as gif:
        pixels, durations = [], []
        for number in range(gif.n_frames):
            gif.seek(number)
            pixels.append(np.asarray(gif.convert("RGB")))
            durations.append(gif.info["duration"])
        assert gif.info["loop"] == 0
    assert len(pixels) == moments
    assert durations == [10 * round(200 / moments)] * (moments - 1) + [3000]
    assert all((one != other).any() for one, other in pairwise(pixels))


def test_lines_of_a_picture_do_not_end_inside_a_word() -> None:
    painter, text = TokenPainter(32), "The LORD is my shepherd; I shall not want. He maketh me to lie down"
    for parts in (list(text), re.findall(r" ?\w{1,3}|\W", text)):
        pieces = [(token, "settled", "") for token in parts]
        lines: dict[int, str] = {}
        for _, line, (token, _, _) in painter.place(pieces, 300):
            lines[line] = lines.get(line, "") + str(token)
        assert len(lines) > 3
        assert [word for line in lines.values() for word in line.split()] == text.split()


def test_a_word_that_is_wider_than_the_picture_is_broken() -> None:
    painter = TokenPainter(32)
    places = painter.place([(sign, "settled", "") for sign in "a" * 40], 300)
    assert {line for _, line, _ in places} == {0, 1, 2}
    assert max(x for x, _, _ in places) < 300


def test_marks_differ_without_colour(tmp_path: Path) -> None:
    """Every kind of token differs from every other kind by more than its lightness: its shape of dark pixels."""
    painter, shapes = TokenPainter(32), {}
    for kind in ("settled", "active", "written", "corrected", "was-corrected"):
        image = Image.new("RGB", (200, 80), "white")
        painter.draw(image, [(" word", kind, "")], 4, 4, 190)
        shapes[kind] = np.asarray(image.convert("L")) < 140
    for kind in ("mask", "masked", "noise"):
        image = Image.new("RGB", (200, 80), "white")
        painter.draw(image, [(None, kind, " word")], 4, 4, 190)
        shapes[kind] = np.asarray(image.convert("L")) < 140
    kinds = list(shapes)
    for i, kind in enumerate(kinds):
        for other in kinds[:i]:
            assert (shapes[kind] != shapes[other]).sum() > 30, (kind, other)


@pytest.fixture
def fonts(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The installed fonts that a picture may use, at first none."""
    paths: list[str] = []
    monkeypatch.setattr(tokens, "findSystemFonts", lambda: paths)
    tokens._font_with.cache_clear()
    yield paths
    tokens._font_with.cache_clear()


def test_characters_without_a_font_are_named_in_a_warning(
    fonts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = replace(SHORT, pieces={**PIECES, 2: "\u592a\u521d"})
    with pytest.warns(UserWarning, match="No installed font has 2 characters of the text.*\u521d \u592a"):
        draw_replay([document], tmp_path / "a.png", frames=2)
    document.save(tmp_path / "trace.json")
    assert main(["view", str(tmp_path / "trace.json"), "-o", str(tmp_path / "b.gif")]) == 0
    assert "hdlm view: No installed font has 2 characters" in capsys.readouterr().err


def test_characters_that_the_usual_font_lacks_are_drawn_with_another_one(fonts: list[str]) -> None:
    other = str(Path(matplotlib.get_data_path(), "fonts", "ttf", "STIXGeneral.ttf"))
    lacked = min(tokens._characters(other) - tokens._characters(tokens._usual(False)) - {0})
    text, boxes, painter = chr(lacked), TokenPainter(32), TokenPainter(32)

    def drawn(by: TokenPainter) -> np.ndarray:
        image = Image.new("RGB", (200, 80), "white")
        by.draw(image, [(f"a {text} b", "settled", "")], 4, 4, 190)
        return np.asarray(image)

    before = drawn(boxes)
    fonts.append(other)
    tokens._font_with.cache_clear()
    assert (drawn(painter) != before).any()
    assert (boxes.missing, painter.missing) == ({text}, set())


def test_png_stacks_frames_and_long_runs_are_thinned(tmp_path: Path) -> None:
    draw_replay([LONG], tmp_path / "two.png", frames=2, pixels=400)
    draw_replay([LONG], tmp_path / "four.png", frames=4, pixels=400)
    with Image.open(tmp_path / "two.png") as two, Image.open(tmp_path / "four.png") as four:
        assert two.width == four.width == 800
        assert four.height > 1.5 * two.height
    draw_replay([LONG], tmp_path / "thin.gif", frames=3)
    with Image.open(tmp_path / "thin.gif") as thin:
        assert thin.n_frames == 3


@pytest.mark.parametrize(
    "wrong", [{"frames": 1}, {"pixels": 10}, {"seconds": 0.0}, {"seconds": float("nan")}]
)
def test_pictures_refuse_other_numbers(wrong: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a picture needs at least 2 frames"):
        draw_replay([SHORT], tmp_path / "a.gif", **wrong)
    with pytest.raises(ValueError, match=r"ends in \.gif or \.png"):
        draw_replay([SHORT], tmp_path / "a.svg")


def test_page_shows_one_or_two_traces() -> None:
    with pytest.raises(ValueError, match="one or two traces; got 3"):
        ReplayPage((SHORT, SHORT, LONG))
    with pytest.raises(ValueError, match="shows sequence 1, but a trace has only 1"):
        ReplayPage((SHORT,), sequence=1)
    page = ReplayPage((replace(SHORT, pieces={**PIECES, 3: "</script>"}),))
    assert page.html().count("</script>") == 2
    assert page._repr_html_().startswith("<iframe")
    assert 'sandbox="allow-scripts"' in page._repr_html_()


# --- with a model ----------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def model() -> hdlm.Checkpoint:
    return hdlm.load(MODEL, device="cpu")


def test_passages_replay_their_own_text(model: hdlm.Checkpoint) -> None:
    passages = model.generate("And", num=2, seed=1, length=12, steps=2, stop=",")
    assert isinstance(passages, Passages)
    (trace,) = passages.replay().traces
    assert [one.text for one in trace.sequences] == [passage.text for passage in passages]
    filled = model.infill("And the [MASK:2] said", seed=1)
    (trace,) = filled.replay().traces
    assert [one.text for one in trace.sequences] == [passage.text for passage in filled]


def test_sample_writes_a_trace_that_view_shows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "trace.json"
    words = ["sample", MODEL, "--prompt", "And", "--length", "12", "--steps", "2", "--seed", "3"]
    assert main([*words, "--json", "--trace", str(path), "--alternatives", "1"]) == 0
    shown = json.loads(capsys.readouterr().out)
    trace = TraceDocument.load(path)
    assert [one.text for one in trace.sequences] == [passage["text"] for passage in shown["passages"]]
    assert len(shown["changes"]) == len(trace.changes)
    assert all(len(change.alternatives or "1") == 1 for change in trace.changes)
    for suffix in ("html", "gif", "png"):
        assert main(["view", str(path), "-o", str(tmp_path / f"a.{suffix}"), "--title", "T"]) == 0
        assert (tmp_path / f"a.{suffix}").stat().st_size > 1000
    assert "<title>T</title>" in (tmp_path / "a.html").read_text()
    capsys.readouterr()
    assert main(["view", str(path), str(path)]) == 0
    assert "1: acs, seed 3: " in capsys.readouterr().out


def test_view_makes_two_runs(tmp_path: Path) -> None:
    words = ["view", "--checkpoint", MODEL, "--length", "10", "--steps", "2", "--algorithm", "original"]
    page = tmp_path / "a.html"
    assert main([*words, "--versus", "algorithm=acs", "eta=0.5", "top_p=0.9", "-o", str(page)]) == 0
    data = (
        page.read_text(encoding="utf-8")
        .partition("data-options=")[2]
        .partition(">")[2]
        .partition("</script>")[0]
    )
    first, second = json.loads(data)
    assert (first["title"], second["title"]) == ("original, seed 0", "acs, seed 0")
    assert (second["settings"]["eta"], second["settings"]["top_p"], second["settings"]["length"]) == (
        0.5,
        0.9,
        10,
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "either the TRACEs to show, or a --checkpoint"),
        (["{trace}", "--checkpoint", MODEL], "either the TRACEs to show"),
        (["{trace}", "-o", "{folder}/a.pdf"], "a replay ends in .html, .gif or .png"),
        (["{trace}", "--eta", "0.5"], "--eta is for a new run: give --checkpoint"),
        (["{trace}", "--versus", "eta=1"], "--versus is for a new run"),
        (["{trace}", "--passage", "2"], "sequence 1"),
        (["{trace}", "{trace}", "{trace}", "-o", "{folder}/a.html"], "one or two traces; got 3"),
        (["{folder}/none.json"], "none.json"),
        (["--checkpoint", MODEL, "--versus", "eta"], "--versus takes NAME=VALUE"),
        (["--checkpoint", MODEL, "--versus", "etta=1"], "etta"),
    ],
)
def test_view_refuses_in_one_line(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    SHORT.save(tmp_path / "trace.json")
    names = {"trace": tmp_path / "trace.json", "folder": tmp_path}
    assert main(["view", *(word.format(**names) for word in words)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


# --- processes -------------------------------------------------------------------------------------------------------
def test_sentences_lose_tokens_one_after_the_other() -> None:
    sentences = noisy_sentences(range(12), 100, list(PROCESSES), num_levels=6, seed=2)
    for sentence in sentences:
        clean = torch.tensor(sentence.clean)
        kept = [(torch.tensor(tokens) == clean) for tokens in sentence.tokens]
        assert kept[0].all()
        assert kept[-1].sum() <= 1
        masks = [(torch.tensor(tokens) == 100).sum() for tokens in sentence.tokens]
        assert (masks[-1] == 12) == (sentence.name != "uniform")
        if sentence.name == "absorbing":
            assert all((later <= earlier).all() for earlier, later in pairwise(kept))
    with pytest.raises(ValueError, match="at least one noise level; got 0"):
        noisy_sentences([1], 100, ["uniform"], num_levels=0)


def test_show_process_prints_draws_and_describes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "process", "absorbing", "--levels", "2", "--text", "the king"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.strip() for line in lines if "0.00" in line or "1.00" in line] == [
        "0.00  the king",
        "1.00  ░░░ ░░░░",
    ]
    assert main(["show", "process", "--json", "--levels", "2"]) == 0
    described = json.loads(capsys.readouterr().out)
    assert list(described["processes"]) == list(PROCESSES)
    assert main(["show", "process", "gidd", "--output", str(tmp_path / "a.png")]) == 0
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.width == 1400
    assert main(["show", "process", "nonsense"]) == 2
    assert "PROCESS must be one of absorbing" in capsys.readouterr().err
    assert main(["show", "process", "--output", str(tmp_path / "a.svg")]) == 2
