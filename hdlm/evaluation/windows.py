"""Text to windows: every token in exactly one, none dropped, none invented.

The last window is short where the text does not divide. It is not padded: it is evaluated at its own length, on the
first positions of the same hyperschedule.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Int
from torch import Tensor

from hdlm.hyperschedule import AbstractCountdown, AbstractHyperschedule, Table

__all__ = ["first_positions", "windows"]


def windows(tokens: Int[Tensor, " n"], length: int) -> tuple[Int[Tensor, "w l"], ...]:
    """Cut a text into consecutive windows.

    Args:
        tokens: The text, at least one token.
        length: Tokens in a window, at least 1.

    Returns:
        One stack of windows, or two: the full ones, and the short last one by itself.

    Raises:
        ValueError: If there are no tokens, or `length` is not positive.
    """
    if length < 1:
        raise ValueError(f"`length` of a window must be at least 1; got {length}.")
    if not len(tokens):
        raise ValueError("there are no tokens to cut into windows; give at least one.")
    whole = len(tokens) // length * length
    stacks = (tokens[:whole].view(-1, length), tokens[whole:][None])
    return tuple(stack for stack in stacks if stack.numel())


def first_positions(hyperschedule: AbstractHyperschedule, length: int) -> AbstractHyperschedule:
    """The same hyperschedule on a shorter canvas: its first positions, at the same steps.

    Args:
        hyperschedule: When each position is noisy.
        length: How many positions to keep, in [1, `hyperschedule.length`].

    Raises:
        ValueError: If `length` is out of range.
    """
    if not 1 <= length <= hyperschedule.length:
        raise ValueError(f"`length` must lie in [1, {hyperschedule.length}]; got {length}.")
    if length == hyperschedule.length:
        return hyperschedule
    if isinstance(hyperschedule, AbstractCountdown):
        return _FirstPositions(hyperschedule, length)
    levels = hyperschedule.levels(torch.arange(hyperschedule.num_steps + 1))
    return Table(levels[:, :length], hyperschedule.num_levels)


@final
@dataclass(frozen=True)
class _FirstPositions(AbstractCountdown):
    """A countdown cut short."""

    whole: AbstractCountdown
    length: int

    @property
    def num_levels(self) -> int:  # type: ignore[override]
        return self.whole.num_levels

    @property
    def starts(self) -> Int[Tensor, " l"]:
        return self.whole.starts[: self.length]
