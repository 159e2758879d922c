"""The published `simple` and `hybrid` hyperschedules, level for level, at any number of levels.

`simple` is the countdown `Slide` if `T` is `width`, and `hybrid` always differs from the countdown `Wave`, so
checkpoints trained with them need these classes. (The published `block` is `Block` at every step.)

Reference: the code of Unifying Autoregressive and Diffusion-Based Sequence Generation (arXiv 2504.06416).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Int
from torch import Tensor

from hdlm.hyperschedule.base import Windowed
from hdlm.hyperschedule.wave import Wave


@final
@dataclass(frozen=True)
class PublishedSlide(Windowed):
    """`simple`: a fixed ramp that enters the canvas, then moves right by its number of zeros per step.

        ramp[j] = round(j (T - 1) / (width - 1)),  0 left of it, T right of it
        levels[n, i] = ramp[i - shift(n)],         shift(n) = n - width  before step width,
                                                   zeros(ramp) (n - width)  from there on

    A position has about `min(T, width)` steps, with levels between 0 and `T-1`.

    Raises:
        ValueError: Also if `width` is 1 with several levels: one position cannot be a ramp.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width == 1 < self.num_levels:
            raise ValueError(
                f"a ramp of width=1 has one level, num_levels=1; got num_levels={self.num_levels}. "
                f"Widen it, or use Slide for a countdown of single positions."
            )

    @property
    def ramp(self) -> Int[Tensor, " width"]:
        """Levels inside the window from left to right, 0 to `num_levels - 1` (halves round to even)."""
        places = torch.arange(self.width, dtype=torch.float64)
        return (places * (self.num_levels - 1) / max(self.width - 1, 1)).round().long()

    @property
    def stride(self) -> int:
        """Positions that the window moves per step once it is on the canvas: the zeros of the ramp."""
        return int((self.ramp == 0).sum())

    def levels(self, n: int | Int[Tensor, "*b"]) -> Int[Tensor, "*b l"]:
        entered = torch.as_tensor(n)[..., None] - self.width
        shift = torch.where(entered < 0, entered, entered * self.stride)
        place = torch.arange(self.length, device=shift.device) - shift
        level = self._held("ramp", shift.device)[place.clamp(0, self.width - 1)]
        return level.masked_fill(place < 0, 0).masked_fill(place >= self.width, self.num_levels)

    @property
    def settles(self) -> Int[Tensor, " l"]:
        positions, stride = torch.arange(self.length), self.stride
        entering = positions + self.width - stride + 1
        return torch.where(positions < stride, entering, self.width + positions // stride)


@final
@dataclass(frozen=True)
class PublishedWave(Windowed):
    """`hybrid`: all positions of a block start at level `T - 1`, then count down one step apart.

        levels[n, i] = max(0, T - 1 - max(0, s - j)),   i = b width + j,   s = n - 1 - b (T + width - 1)

    once the block is open (`s >= 0`, and always for the first block), otherwise T.

    Raises:
        ValueError: Also if `num_levels` is 1: the first block would begin at level 0, and never be written.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_levels < 2:
            raise ValueError(
                f"the published hybrid opens its first block at level num_levels - 1, so it needs num_levels of at "
                f"least 2; got {self.num_levels}, with which the first block is never written. "
                f"Use Wave for a countdown of one level."
            )

    @property
    def opens(self) -> Int[Tensor, " l"]:
        """First step at which the block of each position is open: local step 0, or step 0 for the first block."""
        block = torch.arange(self.length) // self.width
        return torch.where(block == 0, 0, 1 + block * (self.num_levels + self.width - 1))

    @property
    def delays(self) -> Int[Tensor, " l"]:
        """Number of steps that each position stays at `num_levels - 1` once its block is open."""
        positions = torch.arange(self.length)
        return positions % self.width + (positions < self.width)

    def levels(self, n: int | Int[Tensor, "*b"]) -> Int[Tensor, "*b l"]:
        steps = torch.as_tensor(n)
        open_for = steps[..., None] - self._held("opens", steps.device)
        descended = (open_for - self._held("delays", steps.device)).clamp(min=0)
        return (self.num_levels - 1 - descended).clamp(min=0).masked_fill(open_for < 0, self.num_levels)

    def begin_in_noise(self) -> Wave:
        """The countdown `Wave`, which differs only in the level at which the first block begins."""
        return Wave(self.length, self.width, self.num_levels)

    @property
    def settles(self) -> Int[Tensor, " l"]:
        return self.opens + self.delays + self.num_levels - 1
