"""Pictures made of characters: two rows of cells per line in colour, one row of shades without colour.

A terminal gets half blocks in the colours of the figures; a pipe, or `NO_COLOR`, gets plain shades of equal lightness.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, UInt8
from rich.color import Color
from rich.console import Console, Group
from rich.style import Style
from rich.text import Text

from hdlm.view.palette import MUTED

PAPER, SHADES, FULL = "·", "░▒▓", "█"
"""Cells without colour: empty, three shades, full."""
LINES = 32
"""Largest number of lines of a grid."""
LABEL_SPACING = 4
"""Number of lines from one label to the next."""


@dataclass(frozen=True)
class Kinds:
    """The look of each kind of cell.

    Attributes:
        colours: Red, green and blue of each kind.
        glyphs: One character for each kind, for consoles without colour.
    """

    colours: UInt8[np.ndarray, "kinds 3"]
    glyphs: str


def colourful(console: Console) -> bool:
    """Whether the console shows colours."""
    return console.color_system is not None


def most_cells(console: Console, margin: int) -> tuple[int, int]:
    """Rows and columns of cells that fit on about one screen, with labels of `margin` characters."""
    return (2 if colourful(console) else 1) * LINES, console.width - margin - 1


def grid(
    cells: Int[np.ndarray, "rows columns"],
    kinds: Kinds,
    row_numbers: Sequence[int],
    last_column: int,
    *,
    console: Console,
) -> Group:
    """A grid of cells, each drawn as its kind.

    Args:
        cells: Kind of each cell.
        kinds: The look of each kind.
        row_numbers: Number of each row; every few are written as labels.
        last_column: Number of the last column (the first is 0).
        console: The console to print on.
    """
    margin = len(str(row_numbers[-1]))
    colour = colourful(console)
    if not colour and 2 * cells.shape[1] + margin < console.width:
        cells = cells.repeat(2, axis=1)
    step = 2 if colour else 1
    lines = []
    for line, row in enumerate(range(0, len(cells), step)):
        label = str(row_numbers[row]) if line % LABEL_SPACING == 0 else ""
        drawn = _half_blocks(cells[row : row + 2], kinds) if colour else Text(_plain(cells[row], kinds))
        lines.append(Text(f"{label:>{margin}} ", MUTED) + drawn)
    scale = f"{0:<{cells.shape[1] - len(str(last_column))}}{last_column}" if last_column else "0"
    return Group(*lines, Text(f"{'':{margin}} {scale}", MUTED))


def legend(entries: Sequence[tuple[str, Sequence[int]]], kinds: Kinds, *, console: Console) -> Text:
    """Names beside samples of their kinds, on one line.

    Args:
        entries: Name of each entry and its kinds; several kinds are shown side by side as a ramp.
        kinds: The look of each kind.
        console: The console to print on.
    """
    parts = []
    for name, members in entries:
        cells = np.array(members).repeat(2 if len(members) == 1 else 1)
        sample = (
            _half_blocks(np.stack([cells, cells]), kinds)
            if colourful(console)
            else Text(_plain(cells, kinds))
        )
        parts.append(sample + Text(f" {name}", MUTED))
    return Text("   ").join(parts)


def _plain(cells: Int[np.ndarray, " columns"], kinds: Kinds) -> str:
    return "".join(kinds.glyphs[kind] for kind in cells)


def _half_blocks(pair: Int[np.ndarray, "rows columns"], kinds: Kinds) -> Text:
    """One line for two rows: the upper one in the foreground, the lower one behind it."""
    line = Text()
    for column in pair.T:
        upper, *lower = (Color.from_rgb(*map(int, kinds.colours[kind])) for kind in column)
        line.append("▀", Style(color=upper, bgcolor=lower[0] if lower else None))
    return line
