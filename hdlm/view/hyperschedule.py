"""A hyperschedule as a picture: positions from left to right, generation steps from top to bottom.

It works at any size: steps and positions are sampled to the resolution of the picture, and the table is never built.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Int
from rich.console import Console
from rich.text import Text

from hdlm.hyperschedule import AbstractHyperschedule
from hdlm.view import terminal
from hdlm.view.palette import MUTED, SETTLED, WORTHLESS, active_colours, level_colours

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_CELLS = 1024
"""Largest number of steps, and of positions, in a figure."""


def sampled_steps(hyperschedule: AbstractHyperschedule, most: int) -> Int[torch.Tensor, " rows"]:
    """About `most` evenly spaced steps, with the first and the last."""
    return _evenly(hyperschedule.num_steps + 1, most)


def sampled_levels(
    hyperschedule: AbstractHyperschedule, steps: Int[torch.Tensor, " rows"], most: int
) -> Int[np.ndarray, "rows columns"]:
    """Levels at the steps, at no more than `most` evenly spaced positions."""
    stride = -(-hyperschedule.length // most)
    return hyperschedule.levels(steps)[:, ::stride].numpy()


def _evenly(size: int, most: int) -> Int[torch.Tensor, " n"]:
    numbers = torch.arange(0, size, -(-size // most))
    return numbers if numbers[-1] == size - 1 else torch.cat([numbers, torch.tensor([size - 1])])


def draw_hyperschedule(hyperschedule: AbstractHyperschedule, output: Path, title: str = "") -> None:
    """Write the heat map of one hyperschedule.

    Args:
        hyperschedule: The hyperschedule to draw.
        output: The file; its suffix (`.png`, `.svg`, `.pdf`) determines the format.
        title: Heading of the picture.
    """
    from hdlm.view.figures import figure

    rows, columns = hyperschedule.num_steps + 1, hyperschedule.length
    width = 6.4
    height = width * min(max(rows / columns, 0.35), 1.4)
    with figure(width, height + 1.2, output) as drawing:
        axes = drawing.subplots()
        _heat_map(axes, hyperschedule, title)
        axes.set_ylabel("step")
        _legend(drawing, hyperschedule.num_levels)


def print_hyperschedule(hyperschedule: AbstractHyperschedule, console: Console, title: str = "") -> None:
    """Print the heat map of one hyperschedule, with steps on the left, as large as the console is wide.

    Args:
        hyperschedule: The hyperschedule to draw.
        console: The console to print on; without colours it gets shades.
        title: Heading of the picture.
    """
    rows, columns = terminal.most_cells(console, margin=len(str(hyperschedule.num_steps)))
    steps = sampled_steps(hyperschedule, rows)
    levels = sampled_levels(hyperschedule, steps, columns)
    kinds = _kinds(hyperschedule.num_levels)
    if title:
        console.print(Text(title, "bold"))
    last = hyperschedule.length - 1
    console.print(terminal.grid(levels, kinds, steps.tolist(), last, console=console))
    worthless, settled = hyperschedule.num_levels, 0
    active = range(worthless - 1, settled, -max(worthless // 8, 1))
    entries = [("worthless", [worthless]), ("active", active), ("settled", [settled])]
    console.print(terminal.legend([entry for entry in entries if entry[1]], kinds, console=console))


def _kinds(num_levels: int) -> terminal.Kinds:
    """The look of each level: ink, shades, paper."""
    darkness = np.linspace(len(terminal.SHADES), 0, num_levels - 1, endpoint=False)
    shades = "".join(terminal.SHADES[int(np.ceil(dark)) - 1] for dark in darkness)
    return terminal.Kinds(level_colours(num_levels), terminal.FULL + shades + terminal.PAPER)


def draw_gallery(hyperschedules: Mapping[str, AbstractHyperschedule], output: Path) -> None:
    """Write several hyperschedules side by side, each under its name, with a common scale of steps.

    Args:
        hyperschedules: The hyperschedules by title; a second line of the title is set below it.
        output: The file; its suffix (`.png`, `.svg`, `.pdf`) determines the format.
    """
    from hdlm.view.figures import figure

    num_steps = max(plan.num_steps for plan in hyperschedules.values())
    with figure(2.15 * len(hyperschedules), 3.6, output) as drawing:
        row = drawing.subplots(1, len(hyperschedules), sharey=True, squeeze=False)[0]
        for axes, (title, hyperschedule) in zip(row, hyperschedules.items(), strict=True):
            heading, _, subheading = title.partition("\n")
            _heat_map(axes, hyperschedule, f"{heading}\n")
            axes.set_ylim(num_steps + 0.5, -0.5)
            axes.annotate(subheading, (0, 1), (0, 6), "axes fraction", "offset points", color=MUTED)
        row[0].set_ylabel("step")
        _legend(drawing, max(plan.num_levels for plan in hyperschedules.values()))


def _heat_map(axes: Axes, hyperschedule: AbstractHyperschedule, title: str) -> None:
    from matplotlib.ticker import MaxNLocator

    from hdlm.view.figures import only_ticks

    rows, columns = hyperschedule.num_steps + 1, hyperschedule.length
    levels = sampled_levels(hyperschedule, sampled_steps(hyperschedule, MOST_CELLS), MOST_CELLS)
    image = level_colours(hyperschedule.num_levels)[levels]
    extent = (-0.5, columns - 0.5, rows - 0.5, -0.5)
    axes.imshow(image, aspect="auto", interpolation="nearest", extent=extent)
    axes.set_title(title)
    axes.set_xlabel("position")
    axes.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True))
    axes.yaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True))
    only_ticks(axes)


def _legend(drawing: Figure, num_levels: int) -> None:
    """One line under the picture: worthless, the active levels as a ramp, settled."""
    from matplotlib.legend_handler import HandlerTuple
    from matplotlib.patches import Patch

    patches: list[Any] = [Patch(facecolor=WORTHLESS), Patch(facecolor=SETTLED)]
    names = ["worthless: pure noise", "settled: final text"]
    if num_levels > 1:
        colours = active_colours(np.linspace(1, 0, min(num_levels - 1, 16))) / 255
        patches.insert(1, tuple(Patch(facecolor=tuple(colour)) for colour in colours))
        names.insert(1, "active: being denoised")
    drawing.legend(
        patches,
        names,
        loc="outside lower center",
        ncols=len(names),
        handlelength=4.0,
        handler_map={tuple: HandlerTuple(ndivide=None, pad=0)},
    )
