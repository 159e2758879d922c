"""The common style of all figures, and the way they are written.

Figures are built without pyplot, so no window system is needed and no figure stays open.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hdlm.atomic import replacing
from hdlm.view.palette import INK, MUTED, RULE

STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["Inter", "Helvetica Neue", "Helvetica", "Arial", "DejaVu Sans"],
    "font.size": 9.0,
    "text.color": INK,
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlepad": 8.0,
    "axes.titlesize": 11.0,
    "axes.titleweight": "bold",
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "figure.constrained_layout.h_pad": 0.07,
    "figure.constrained_layout.w_pad": 0.12,
}
DOTS_PER_INCH = 160


@contextmanager
def figure(width: float, height: float, output: Path) -> Iterator[Figure]:
    """Make a figure of `width` by `height` inches in the common style; it is written to `output` at the end.

    The suffix of `output` determines the format: `.png`, `.svg` or `.pdf`.

    Raises:
        ValueError: If matplotlib cannot write such a format.
    """
    with mpl.rc_context(STYLE):
        drawing = Figure(figsize=(width, height), layout="constrained", dpi=DOTS_PER_INCH)
        formats = drawing.canvas.get_supported_filetypes()
        if output.suffix[1:].lower() not in formats:
            raise ValueError(f"a picture ends in .png, .svg or .pdf; got {str(output)!r}.")
        yield drawing
        with replacing(output) as path:
            drawing.savefig(path)


def only_ticks(axes: Axes) -> None:
    """Remove the frame of the axes."""
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(length=2.5, pad=3)
