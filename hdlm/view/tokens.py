"""Tokens as pixels: words in lines, each marked by colour and by form, as `static/replay.css` marks them in a page."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import final

from matplotlib.font_manager import FontProperties, findfont, findSystemFonts
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont

from hdlm.view.palette import INK, MUTED

__all__ = ["TokenMark", "TokenPainter", "key_of_marks", "warn_of_missing"]

PAPER = "#ffffff"
MASK_FILL, MASK_INK = "#e3dcf5", "#4f3585"
_LINE = 1.75
"""Distance of lines, as a multiple of the size of the font."""


@final
@dataclass(frozen=True)
class TokenMark:
    """The look of a token.

    Attributes:
        ink: Colour of the text and its lines.
        fill: Colour behind the text; empty for none.
        bold: Whether the text is bold.
        line: Line below the text: none, `"dotted"`, `"solid"`, `"double"` or `"wavy"`.
        frame: Whether a frame surrounds the text.
    """

    ink: str = INK
    fill: str = ""
    bold: bool = False
    line: str = ""
    frame: bool = False


MARKS = {
    "settled": TokenMark(),
    "active": TokenMark("#4f3585", line="dotted"),
    "given": TokenMark(MUTED),
    "written": TokenMark("#0b4d26", "#d6f2df", bold=True, line="solid"),
    "corrected": TokenMark("#7a2e00", "#ffe3c9", bold=True, line="double", frame=True),
    "masked": TokenMark("#5a2ca0", "#ece2fb", frame=True),
    "was-corrected": TokenMark(line="wavy"),
    "mask": TokenMark(MASK_INK, MASK_FILL),
    "noise": TokenMark(MUTED),
}
"""The look of each kind of token."""
_KEY = {
    "given": "given",
    "settled": "settled",
    "active": "active",
    "written": "written now",
    "corrected": "corrected now",
    "was-corrected": "corrected before",
    "masked": "masked again",
    "mask": "mask",
    "noise": "still noise",
}
Piece = tuple[str | None, str, str]
"""Text of a token (None for a mask), its mark, and the text that a mask is as wide as."""


def key_of_marks() -> list[Piece]:
    """A line of text that explains the marks."""
    return [piece for kind, name in _KEY.items() for piece in _sample(kind, name)]


def _sample(kind: str, name: str) -> Iterator[Piece]:
    if kind in ("mask", "noise"):
        yield None, kind, "   xxx"
        yield f" {name}", "given", ""
    else:
        yield f"   {name}", kind, ""


def _shown(piece: Piece) -> str:
    """The text whose width a piece has."""
    text, _, end = piece
    return end if text is None else text


def _words(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Pieces that are not separated by a space or a line break."""
    word: list[Piece] = []
    for piece in pieces:
        if word and (_shown(piece).startswith(" ") or _shown(word[-1]).endswith("\n")):
            yield word
            word = []
        word.append(piece)
    yield word


@final
class TokenPainter:
    """Draws tokens as lines of text.

    A character that the font of matplotlib lacks is drawn with an installed font that has it.

    Args:
        size: Size of the font in pixels.

    Attributes:
        size: Size of the font in pixels.
        line: Distance of lines in pixels.
        missing: Characters that no installed font has; boxes are drawn in their place.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.missing: set[str] = set()
        self.line = round(_LINE * size)
        self._thin = max(1, size // 12)

    def place(self, pieces: Iterable[Piece], width: int) -> list[tuple[int, int, Piece]]:
        """Left edge and line of each piece, in lines of at most `width` pixels; lines do not end inside a word."""
        x, line, placed = 0, 0, []
        for word in _words(pieces):
            room = sum(self._room(piece) for piece in word)
            breaks = x > 0 and x + room > width
            for text, mark, end in word:
                if breaks or x + self._room((text, mark, end)) > width:
                    x, line, breaks = 0, line + (x > 0), False
                if not x:  # a line does not begin with a space
                    text, end = text if text is None else text.lstrip(" "), end.lstrip(" ")
                placed.append((x, line, (text, mark, end)))
                x += self._room((text, mark, end))
                if _shown((text, mark, end)).endswith("\n"):
                    x, line = 0, line + 1
        return placed

    def _room(self, piece: Piece) -> int:
        """Width of a piece in pixels."""
        return self._width(_shown(piece).removesuffix("\n"), bold=MARKS[piece[1]].bold)

    def height(self, pieces: Iterable[Piece], width: int) -> int:
        """Height in pixels of some pieces."""
        return (1 + max((line for _, line, _ in self.place(pieces, width)), default=0)) * self.line

    def draw(self, image: Image.Image, pieces: Iterable[Piece], left: int, top: int, width: int) -> None:
        """Draw pieces into a picture."""
        canvas = ImageDraw.Draw(image)
        for x, line, piece in self.place(pieces, width):
            self._draw(canvas, piece, left + x, top + line * self.line)

    def _draw(self, canvas: ImageDraw.ImageDraw, piece: Piece, left: int, top: int) -> None:
        text, kind, end = piece
        mark, whole = MARKS[kind], (end if text is None else text).replace("\n", "↵")
        word = whole.strip(" ")
        left += self._width(whole[: len(whole) - len(whole.lstrip(" "))], bold=mark.bold)
        right = left + self._width(word or " ", bold=mark.bold)
        above, below = top + round(0.2 * self.size), top + round(1.45 * self.size)
        if text is None:
            self._draw_mask(canvas, kind, (left, above, right, below))
            return
        if mark.fill:
            canvas.rectangle((left - 1, above, right, below), fill=mark.fill)
        if mark.frame:
            canvas.rectangle((left - 1, above, right, below), outline=mark.ink, width=self._thin)
        self._draw_text(canvas, word, mark, left, top + round(0.25 * self.size))
        self._underline(canvas, mark, left, right, top + round(1.36 * self.size))

    def _draw_text(
        self, canvas: ImageDraw.ImageDraw, text: str, mark: TokenMark, left: int, top: int
    ) -> None:
        """Draw a text in parts with one font each, on one base line."""
        base, _ = _font(_usual(mark.bold), self.size).getmetrics()
        x = float(left)
        for part, font in self._parts(text, bold=mark.bold):
            canvas.text((x, top + base), part, fill=mark.ink, font=font, anchor="ls")
            x += font.getlength(part)

    def _parts(self, text: str, *, bold: bool) -> Iterator[tuple[str, ImageFont.FreeTypeFont]]:
        """The parts of a text, each with its font."""
        usual = _usual(bold)
        for path, characters in groupby(text, lambda character: _font_with(character, usual)):
            part = "".join(characters)
            if path is None:
                self.missing.update(filter(str.isprintable, part))
            yield part, _font(path or usual, self.size)

    def _draw_mask(self, canvas: ImageDraw.ImageDraw, kind: str, box: tuple[int, int, int, int]) -> None:
        left, above, right, below = box
        mark, middle = MARKS[kind], (above + below) // 2
        if kind == "noise":
            for x in range(left + self._thin, right, 4 * self._thin):
                canvas.rectangle((x, middle, x + self._thin, middle + self._thin), fill=mark.ink)
            return
        half = round(0.45 * self.size)
        outline = mark.ink if mark.frame else None
        canvas.rectangle(
            (left, middle - half, right - 2, middle + half), mark.fill, outline=outline, width=self._thin
        )
        for x in range(left + 2 * self._thin, right - 2, 4 * self._thin):
            canvas.line((x, middle + half // 2, x, middle - half // 2), fill=mark.ink, width=self._thin)

    def _underline(self, canvas: ImageDraw.ImageDraw, mark: TokenMark, left: int, right: int, y: int) -> None:
        thin = self._thin
        match mark.line:
            case "solid":
                canvas.line((left, y, right - 1, y), fill=mark.ink, width=thin + 1)
            case "double":
                for at in (y - 2 * thin, y + thin - 1):
                    canvas.line((left, at, right - 1, at), fill=mark.ink, width=thin)
            case "dotted":
                for x in range(left, right - thin, 3 * thin):
                    canvas.rectangle((x, y, x + thin - 1, y + thin - 1), fill=mark.ink)
            case "wavy":
                step = 2 * thin
                points = [
                    (x, y + (step // 2 if k % 2 else -step // 2))
                    for k, x in enumerate(range(left, right, step))
                ]
                canvas.line(points, fill=mark.ink, width=thin)

    def _width(self, text: str, *, bold: bool) -> int:
        return round(sum(font.getlength(part) for part, font in self._parts(text, bold=bold)))


def warn_of_missing(painters: Iterable[TokenPainter]) -> None:
    """Warn of characters that were drawn as boxes, if there are any."""
    missing = sorted(set().union(*(painter.missing for painter in painters)))
    if not missing:
        return
    shown = " ".join(missing[:10]) + (" ..." if len(missing) > 10 else "")
    warnings.warn(
        f"No installed font has {len(missing)} characters of the text, and the picture has boxes in their place: "
        f"{shown}. Install a font that has them; for Chinese, Japanese and Korean, Noto Sans CJK (in Debian: "
        "fonts-noto-cjk).",
        stacklevel=3,
    )


@cache
def _usual(bold: bool) -> str:
    """The sans-serif font that matplotlib ships."""
    return findfont(FontProperties(family="DejaVu Sans", weight="bold" if bold else "normal"))


@cache
def _font(path: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size)


@cache
def _characters(path: str) -> frozenset[int]:
    """The characters of a font; none if the file cannot be read."""
    try:
        return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()


@cache
def _font_with(character: str, usual: str) -> str | None:
    """The usual font if it has a character, else an installed font that has it; None if there is none."""
    if ord(character) in _characters(usual):
        return usual
    fonts = sorted(findSystemFonts(), key=lambda path: ("Regular" not in Path(path).stem, path))
    return next((path for path in fonts if ord(character) in _characters(path)), None)
