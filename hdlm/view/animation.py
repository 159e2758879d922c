"""Replays as pictures: an animated GIF, or a PNG with some frames one below the other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import final

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from hdlm.atomic import replacing
from hdlm.generation.recording import TraceDocument
from hdlm.view.moments import TracedRun, aligned
from hdlm.view.palette import MUTED, RULE, level_colours
from hdlm.view.tokens import PAPER, Piece, TokenPainter, key_of_marks, warn_of_missing

__all__ = ["draw_replay"]

_REST = 3000
"""Milliseconds for which an animation rests at its end."""
_FRAMES = {".gif": 80, ".png": 5}
"""Number of frames by default; in a longer run some moments are shown together."""


def draw_replay(
    documents: Sequence[TraceDocument],
    output: Path,
    *,
    sequence: int = 0,
    pixels: int = 860,
    seconds: float = 12.0,
    frames: int | None = None,
) -> None:
    """Write the replay of a trace, or of several, one below the other and aligned by evaluations.

    It warns of characters that no installed font has.

    Args:
        documents: The traces to show.
        output: The file: `.gif` is an animation, `.png` has some frames one below the other.
        sequence: Place of the sequence in the list of each trace.
        pixels: Width of the picture in pixels; a PNG has twice as many.
        seconds: Duration of the animation, without the rest at its end.
        frames: Largest number of frames, at least 2; by default 80 in a GIF and 5 in a PNG.

    Raises:
        ValueError: If the suffix is another one, or a number is out of range.
    """
    kind = output.suffix.lower()
    if kind not in _FRAMES:
        raise ValueError(f"a replay as a picture ends in .gif or .png; got {str(output)!r}.")
    most = _FRAMES[kind] if frames is None else frames
    if most < 2 or pixels < 200 or not 0 < seconds <= 600:
        raise ValueError(
            "a picture needs at least 2 frames, a width of at least 200 pixels and at most 600 seconds; got "
            f"{most}, {pixels} and {seconds}."
        )
    runs = [TracedRun(document, sequence) for document in documents]
    animated = kind == ".gif"
    sheet = _Sheet(runs, pixels if animated else 2 * pixels, 1 if animated else 2)
    moments = aligned(runs)
    shown = _spread(len(moments), min(most, len(moments)))
    before = [moments[max(number - 1, 0)] for number in shown]
    if animated:
        before = [moments[earlier] for earlier in (0, *shown[:-1])]
    drawn = [sheet.frame(moments[number], earlier) for number, earlier in zip(shown, before, strict=True)]
    with replacing(output) as path:
        if animated:
            _save_gif(drawn, path, seconds)
        else:
            sheet.stacked(drawn).save(path, optimize=True)
    warn_of_missing([sheet.painter, sheet.small])


def _spread(count: int, most: int) -> list[int]:
    """At most so many of the numbers below `count`, evenly spread, with the first and the last."""
    return sorted({round(number) for number in np.linspace(0, count - 1, most)})


def _save_gif(frames: list[Image.Image], path: Path, seconds: float) -> None:
    """Write an animation; all frames share one table of colours, so that equal parts are stored once."""
    colours = frames[len(frames) // 2].quantize(32, dither=Image.Dither.NONE)
    tables = [frame.quantize(palette=colours, dither=Image.Dither.NONE) for frame in frames]
    pause = 10 * round(100 * seconds / len(frames))  # the format counts hundredths of a second
    first, *rest = tables
    durations = [max(pause, 20)] * (len(frames) - 1) + [_REST]
    first.save(
        path, save_all=True, append_images=rest, duration=durations, loop=0, optimize=False, disposal=1
    )


@final
class _Sheet:
    """The layout of a picture: for each run a heading, the text, and the hyperschedule beside it."""

    def __init__(self, runs: list[TracedRun], width: int, scale: int) -> None:
        self.runs, self.width, self.scale = runs, width, scale
        self.margin = 16 * scale
        self.painter, self.small = TokenPainter(16 * scale), TokenPainter(12 * scale)
        self.map_width = 0 if width < 520 * scale else 150 * scale
        self.text_width = width - 2 * self.margin - (self.map_width + self.margin if self.map_width else 0)
        self.maps = [_heat_map(run) for run in runs]
        most = [max(self._height(run, moment) for moment in self._samples(run)) for run in runs]
        self.heights = [max(height, 90 * scale if self.map_width else 0) for height in most]
        self.key = self.small.height(key_of_marks(), width - 2 * self.margin)

    def frame(self, moments: tuple[int, ...], before: tuple[int, ...]) -> Image.Image:
        """One frame of all runs."""
        heading = 2 * self.small.line
        height = sum(self.heights) + len(self.runs) * (heading + self.margin) + self.key + self.margin
        image = Image.new("RGB", (self.width, height), PAPER)
        top = self.margin // 2
        for number in range(len(self.runs)):
            self._draw_run(image, number, moments[number], before[number], top)
            top += self.heights[number] + heading + self.margin
        self.small.draw(image, key_of_marks(), self.margin, top, self.width - 2 * self.margin)
        return image

    def stacked(self, frames: list[Image.Image]) -> Image.Image:
        """Frames one below the other; the marks are explained once, below all of them."""
        cut = self.key + self.margin // 2
        bodies = [frame.crop((0, 0, frame.width, frame.height - cut)) for frame in frames[:-1]] + frames[-1:]
        sheet = Image.new("RGB", (self.width, sum(body.height for body in bodies)), PAPER)
        top = 0
        for body in bodies:
            sheet.paste(body, (0, top))
            top += body.height
            ImageDraw.Draw(sheet).line(
                (self.margin, top, self.width - self.margin, top), fill=RULE, width=self.scale
            )
        return sheet

    def _draw_run(self, image: Image.Image, number: int, moment: int, before: int, top: int) -> None:
        run = self.runs[number]
        caption: list[Piece] = [
            (run.document.title, "settled", ""),
            (f"    {run.caption(moment)}", "given", ""),
        ]
        self.small.draw(image, caption, self.margin, top, self.width)
        top += 2 * self.small.line - self.small.size // 2
        self.painter.draw(image, _pieces(run, moment, before), self.margin, top, self.text_width)
        if not self.map_width:
            return
        left = self.width - self.margin - self.map_width
        box = (self.map_width, self.heights[number])
        image.paste(self.maps[number].resize(box, Image.Resampling.NEAREST), (left, top))
        canvas = ImageDraw.Draw(image)
        share = run.moments[moment].steps / max(run.document.num_steps, 1)
        y = top + round(share * (box[1] - 1))
        canvas.rectangle(
            (left - 4 * self.scale, y - self.scale, left + box[0] - 1, y + self.scale - 1), fill="#b3261e"
        )
        canvas.rectangle((left, top, left + box[0] - 1, top + box[1] - 1), outline=MUTED)

    def _samples(self, run: TracedRun) -> list[int]:
        return _spread(len(run.moments), 12)

    def _height(self, run: TracedRun, moment: int) -> int:
        return self.painter.height(_pieces(run, moment, moment), self.text_width) + self.painter.line // 2


def _pieces(run: TracedRun, moment: int, before: int) -> list[Piece]:
    """The tokens at a moment, with the marks of what has changed since an earlier one."""
    now, fresh, corrected = run.moments[moment], run.fresh(moment, before), run.corrected(moment)
    final, given = run.tokens(len(run.moments) - 1), set(run.sequence.given)
    levels = run.document.levels
    pieces: list[Piece] = []
    for position, token in enumerate(run.tokens(moment)):
        text, end = run.piece(token), run.piece(final[position]) or " xxxx"
        if position in given:
            kind = "given"
            text = "" if position == 0 and not (text or "").strip() else text
        elif position in fresh:
            kind = {"unmasked": "written", "corrected": "corrected", "remasked": "masked"}[fresh[position]]
        elif text is None:
            kind = "noise" if now.steps < levels.opens[position] else "mask"
        elif position in corrected:
            kind = "was-corrected"
        else:
            kind = "settled" if now.finished or not levels.level(position, now.steps) else "active"
        pieces.append((text, kind, end))
    return pieces


def _heat_map(run: TracedRun) -> Image.Image:
    """Levels as colours: positions from left to right, steps from top to bottom."""
    levels, num_steps = run.document.levels, run.document.num_steps
    steps, given = _spread(num_steps + 1, min(num_steps + 1, 256)), set(run.sequence.given)
    table = [[0 if i in given else levels.level(i, step) for i in range(len(run))] for step in steps]
    pixels: UInt8[np.ndarray, "steps positions 3"] = level_colours(levels.num_levels)[np.array(table)]
    return Image.fromarray(pixels)
