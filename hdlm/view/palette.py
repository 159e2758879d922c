"""The colours of all pictures: lightness falls as text becomes certain, so they also work in grey.

Worthless is nearly white, settled is nearly black, and active levels lie between them with falling lightness.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8
from numpy.typing import ArrayLike

WORTHLESS = "#eceae4"
SETTLED = "#16213e"
ACTIVE = ("#ffe08a", "#fbb04a", "#ee7a51", "#cf4a74", "#913a8a", "#4f3585")
"""From nearly noise to nearly settled."""

INK, MUTED, RULE = "#1c2333", "#6b7280", "#d5d7dc"
"""Text, secondary text and lines of figures."""

SERIES = ("#0f6cbd", "#c2410c", "#3f7d20", "#7a3e9d", "#8a6d00", "#475569")
"""Lines of a chart, which differ in lightness as well as in hue."""

FRESH, CORRECTED, REMASKED = "#1f9d55", "#dd6b20", "#9061e8"
"""The last change of a token; readable on dark and on light terminals."""


def rgb(colour: str) -> tuple[int, int, int]:
    """Red, green and blue, each in `[0, 255]`, of a `#rrggbb` colour."""
    red, green, blue = bytes.fromhex(colour.removeprefix("#"))
    return red, green, blue


def active_colours(shares: ArrayLike) -> UInt8[np.ndarray, "*s 3"]:
    """Colours of active positions by their share of noise, 0 (nearly settled) to 1 (nearly noise)."""
    stops = np.array([rgb(colour) for colour in reversed(ACTIVE)], dtype=float)
    wanted = np.asarray(shares, dtype=float)
    at = np.linspace(0, 1, len(stops))
    channels: list[Float[np.ndarray, "*s"]] = [np.interp(wanted, at, channel) for channel in stops.T]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def level_colours(num_levels: int) -> UInt8[np.ndarray, "levels 3"]:
    """Colour of each noise level `0..num_levels`: settled, the active ones, worthless."""
    shares = np.linspace(0, 1, max(num_levels - 1, 1))[: num_levels - 1]
    return np.concatenate([[rgb(SETTLED)], active_colours(shares), [rgb(WORTHLESS)]]).astype(np.uint8)
