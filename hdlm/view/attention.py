"""Attention masks as pictures: queries from top to bottom, keys from left to right.

Colours distinguish the three kinds of pairs: text attends to text, noise to text, noise to noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int
from rich.console import Console
from rich.text import Text

from hdlm.view import terminal
from hdlm.view.palette import ACTIVE, SETTLED, WORTHLESS, rgb

BLIND, SETTLED_SETTLED, NOISY_SETTLED, NOISY_NOISY = range(4)
COLOURS = (WORTHLESS, SETTLED, ACTIVE[1], ACTIVE[4])
"""Colour of each kind of pair: no attention, settled to settled, noisy to settled, noisy to noisy."""
KINDS = terminal.Kinds(
    np.array([rgb(colour) for colour in COLOURS], dtype=np.uint8),
    glyphs=terminal.PAPER + terminal.FULL + terminal.SHADES[0] + terminal.SHADES[-1],
)
MOST_CELLS = 1024
"""Largest number of queries, and of keys, in a figure."""


@dataclass(frozen=True)
class AttentionPicture:
    """The content of a picture.

    Attributes:
        visible: True if the query may attend to the key.
        noisy: Which positions are noisy (active, or of the noisy stream); the others are finished text.
        names: Names of finished and noisy positions, such as `("settled", "active")`.
        title: Heading of the picture.
    """

    visible: Bool[np.ndarray, "l l"]
    noisy: Bool[np.ndarray, " l"]
    names: tuple[str, str] = ("settled", "active")
    title: str = ""

    @property
    def kinds(self) -> Int[np.ndarray, "l l"]:
        """Kind of each pair, an index into `COLOURS`."""
        pair = np.where(self.noisy[None, :], NOISY_NOISY, NOISY_SETTLED)
        return np.where(self.visible, np.where(self.noisy[:, None], pair, SETTLED_SETTLED), BLIND)

    @property
    def captions(self) -> tuple[tuple[int, str], ...]:
        """Each kind of pair that occurs, with its name."""
        finished, noisy = self.names
        names = (
            "not seen",
            f"{finished} sees {finished}",
            f"{noisy} sees {finished}",
            f"{noisy} sees {noisy}",
        )
        return tuple((int(kind), names[kind]) for kind in np.unique(self.kinds))


def draw_attention(picture: AttentionPicture, output: Path) -> None:
    """Write the picture.

    Args:
        picture: The content of the picture.
        output: The file; its suffix (`.png`, `.svg`, `.pdf`) determines the format.
    """
    from matplotlib.patches import Patch

    from hdlm.view.figures import figure, only_ticks

    size = len(picture.visible)
    stride = -(-size // MOST_CELLS)
    with figure(5.4, 6.2, output) as drawing:
        axes = drawing.subplots()
        extent = (-0.5, size - 0.5, size - 0.5, -0.5)
        axes.imshow(KINDS.colours[picture.kinds[::stride, ::stride]], interpolation="nearest", extent=extent)
        if size <= 64:
            lines = np.arange(1, size) - 0.5
            axes.hlines(lines, -0.5, size - 0.5, colors="white", linewidth=0.6)
            axes.vlines(lines, -0.5, size - 0.5, colors="white", linewidth=0.6)
        axes.set_title(picture.title)
        axes.set_xlabel("key: who is looked at")
        axes.set_ylabel("query: who looks")
        only_ticks(axes)
        patches = [Patch(facecolor=COLOURS[kind], label=caption) for kind, caption in picture.captions]
        drawing.legend(handles=patches, loc="outside lower center", ncols=2)


def print_attention(picture: AttentionPicture, console: Console) -> None:
    """Print the picture; a canvas larger than the console is sampled.

    Args:
        picture: The content of the picture.
        console: The console to print on; without colours it gets shades.
    """
    size = len(picture.visible)
    stride = -(-size // min(terminal.most_cells(console, margin=len(str(size)))))
    if picture.title:
        console.print(Text(picture.title, "bold"))
    kinds = picture.kinds[::stride, ::stride]
    console.print(terminal.grid(kinds, KINDS, range(0, size, stride), size - 1, console=console))
    entries = [(caption, [kind]) for kind, caption in picture.captions if kind != BLIND]
    console.print(terminal.legend(entries, KINDS, console=console))
