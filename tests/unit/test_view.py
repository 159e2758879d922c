"""Pictures of any size in a terminal, a pipe and a file."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from rich.console import Console

from hdlm.atomic import replacing
from hdlm.attention import generation_attention
from hdlm.hyperschedule import Block, PublishedSlide, Slide, autoregressive, flat
from hdlm.view.attention import AttentionPicture, draw_attention, print_attention
from hdlm.view.hyperschedule import (
    draw_gallery,
    draw_hyperschedule,
    print_hyperschedule,
    sampled_levels,
    sampled_steps,
)
from hdlm.view.palette import SETTLED, WORTHLESS, active_colours, level_colours, rgb
from hdlm.view.replay import Replay, TokenChange, play, token_changes

LUMA = np.array([0.299, 0.587, 0.114])


def plain(width: int = 80) -> Console:
    return Console(file=io.StringIO(), width=width)


def coloured_console(width: int = 80) -> Console:
    return Console(file=io.StringIO(), width=width, force_terminal=True, color_system="truecolor")


def printed(console: Console) -> str:
    return console.file.getvalue()


@pytest.mark.parametrize("num_levels", [1, 2, 3, 8, 1000])
def test_level_colours_get_darker_toward_settled(num_levels):
    """The colours stay distinguishable in greyscale and for colour-blind readers."""
    colours = level_colours(num_levels)
    assert colours.shape == (num_levels + 1, 3)
    assert tuple(colours[0]) == rgb(SETTLED)
    assert tuple(colours[-1]) == rgb(WORTHLESS)
    lightness = colours @ LUMA
    assert (np.diff(lightness) > -1).all()
    assert np.diff(active_colours(np.linspace(0, 1, 20)) @ LUMA).min() > 3


def test_print_hyperschedule_without_colour_uses_shades():
    console = plain()
    print_hyperschedule(Block(8, width=4, num_levels=2), console, "two blocks")
    assert printed(console).splitlines() == [
        "two blocks",
        "0 ················",
        "  ▓▓▓▓▓▓▓▓········",
        "  ████████········",
        "  ████████▓▓▓▓▓▓▓▓",
        "4 ████████████████",
        "  0              7",
        "·· worthless   ▓▓ active   ██ settled",
    ]


def test_print_hyperschedule_in_colour_uses_half_blocks():
    console = coloured_console()
    print_hyperschedule(autoregressive(4), console)
    lines = printed(console).splitlines()
    assert len(lines) == 3 + 2
    settled, worthless = (";".join(map(str, rgb(colour))) for colour in (SETTLED, WORTHLESS))
    assert f"38;2;{settled}" in lines[2]
    assert f"38;2;{worthless};48;2;{settled}" in lines[0]


@pytest.mark.parametrize("console", [plain(40), coloured_console(40)], ids=["plain", "colour"])
@pytest.mark.parametrize(
    "hyperschedule", [flat(4096, 4096), PublishedSlide(8192, 64, 128), flat(1, 1)], ids=repr
)
def test_print_hyperschedule_of_any_size_fits_console(console, hyperschedule):
    console.file = io.StringIO()
    print_hyperschedule(hyperschedule, console)
    lines = console.file.getvalue().splitlines()
    assert len(lines) < 40
    assert all(len(console.render_str(line)) <= 40 for line in lines if "\x1b" not in line)


def test_sampled_steps_keep_first_and_last():
    hyperschedule = Slide(100, width=10, num_levels=7)
    steps = sampled_steps(hyperschedule, most=13)
    assert steps[0] == 0
    assert steps[-1] == hyperschedule.num_steps
    assert len(steps) <= 14
    levels = sampled_levels(hyperschedule, steps, most=30)
    assert np.array_equal(levels, hyperschedule.levels(steps)[:, ::4].numpy())


def test_draw_hyperschedule_shows_colour_of_every_level(tmp_path):
    path = tmp_path / "new folder" / "block.png"
    draw_hyperschedule(Block(64, width=16, num_levels=8), path, "Block")
    shown = {tuple(pixel) for pixel in (imread(path)[..., :3].reshape(-1, 3) * 255).round().astype(int)}
    assert {tuple(map(int, colour)) for colour in level_colours(8)} <= shown
    assert [one.name for one in path.parent.iterdir()] == ["block.png"]


def test_draw_gallery_writes_svg(tmp_path):
    path = tmp_path / "families.svg"
    draw_gallery({"Flat\nMDLM": flat(8, 4), "Autoregressive": autoregressive(8)}, path)
    assert path.read_text().lstrip().startswith("<?xml")


def test_draw_hyperschedule_rejects_unknown_suffix(tmp_path):
    with pytest.raises(ValueError, match=r"ends in \.png, \.svg or \.pdf; got .*picture\.xyz"):
        draw_hyperschedule(flat(4, 2), tmp_path / "picture.xyz")
    assert not list(tmp_path.iterdir())


def test_print_and_draw_attention(tmp_path):
    hyperschedule = Block(4, width=2, num_levels=2)
    noisy = hyperschedule.regions(2).active.numpy()
    picture = AttentionPicture(generation_attention(hyperschedule, 2).dense().numpy(), noisy, title="step 2")
    console = plain()
    print_attention(picture, console)
    assert printed(console).splitlines() == [
        "step 2",
        "0 ████····",
        "  ████····",
        "  ░░░░▓▓▓▓",
        "  ░░░░▓▓▓▓",
        "  0      3",
        "██ settled sees settled   ░░ active sees settled   ▓▓ active sees active",
    ]
    draw_attention(picture, tmp_path / "attention.png")
    pixels = (imread(tmp_path / "attention.png")[..., :3] * 255).round().astype(int)
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 3  # three kinds of attention, and the paper


def test_replacing_writes_file_atomically(tmp_path):
    target = tmp_path / "report.txt"
    target.write_text("old")
    with pytest.raises(TypeError), replacing(target) as path:
        path.write_text(b"no text")
    assert target.read_text() == "old"
    with replacing(target) as path:
        path.write_text("new")
    assert target.read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


def test_replacing_names_unwritable_file(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(OSError, match=r"picture\.png") as caught,
        replacing(tmp_path / "file" / "picture.png"),
    ):
        pass
    assert caught.value.filename.endswith("picture.png")


STORY = Replay(
    [
        [None, None, None],
        ["A", " dog", None],
        ["A", " cat", None],
        [None, " cat", " sat"],
        ["The", " cat", " sat"],
    ]
)


def test_token_changes_and_counts():
    assert token_changes(STORY.frames[0], STORY.frames[1]) == [
        TokenChange.UNMASKED,
        TokenChange.UNMASKED,
        TokenChange.NOTHING,
    ]
    assert token_changes(STORY.frames[1], STORY.frames[2])[1] is TokenChange.CORRECTED
    assert token_changes(STORY.frames[2], STORY.frames[3])[0] is TokenChange.REMASKED
    assert [
        STORY.count(change) for change in (TokenChange.UNMASKED, TokenChange.CORRECTED, TokenChange.REMASKED)
    ] == [
        4,
        1,
        1,
    ]


def test_play_to_pipe_prints_lines():
    console = plain(20)
    play({"acs": STORY}, console=console)
    assert printed(console).splitlines() == [
        "acs: 4 steps, 4 unmasked, 1 corrected, 1 masked again",
        "  step 0  ░░░ ░░░ ░░░",
        "  step 1  A dog ░░░",
        "  step 2  A cat ░░░",
        "  step 3  ░░░ cat sat",
        "  step 4  The cat sat",
    ]


def test_play_in_terminal_shows_all_frames():
    console = coloured_console()
    play({"original": STORY, "acs": Replay(STORY.frames[-1:])}, console=console, seconds=0.0)
    output = printed(console)
    assert "step 4/4" in output
    assert "corrected" in output
    assert STORY.text(99).plain == "The cat sat"
    assert not [span for span in STORY.text(99).spans if span.style]


def test_replay_rejects_no_frames_and_unequal_lengths():
    with pytest.raises(ValueError, match="at least one frame"):
        Replay([])
    with pytest.raises(ValueError, match="equal lengths; got 1 and 2"):
        Replay([["a"], ["a", "b"]])


def test_printed_levels_equal_hyperschedule_levels():
    """Compares every cell at a size that needs no subsampling."""
    hyperschedule = Slide(12, width=6, num_levels=3)
    console = plain(16)
    print_hyperschedule(hyperschedule, console)
    glyphs = "█" + "".join(sorted({c for c in printed(console) if c in "░▒▓"}, reverse=True)) + "·"
    rows = [line[-12:] for line in printed(console).splitlines()[: hyperschedule.num_steps + 1]]
    levels = hyperschedule.levels(torch.arange(hyperschedule.num_steps + 1))
    order = {glyph: level for level, glyph in enumerate(dict.fromkeys(glyphs))}
    assert [[order[glyph] for glyph in row] for row in rows] == levels.tolist()
