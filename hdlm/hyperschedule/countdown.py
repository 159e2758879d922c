"""A countdown: position `i` stays at `T` until step `starts[i]`, then loses one level per step.

    levels[n, i] = clamp(T - (n - starts[i]), 0, T)

Autoregressive, flat, block, slide and wave generation differ only in `starts`.
"""

from __future__ import annotations

import abc
import functools
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Int
from torch import Tensor

from hdlm.hyperschedule.base import AbstractHyperschedule


class AbstractCountdown(AbstractHyperschedule):
    """A hyperschedule given by the step at which each position begins to count down.

    Position `i` is active exactly in the steps `starts[i] <= n < starts[i] + num_levels`. Positions whose intervals
    overlap belong to one *epoch*; positions of different epochs are never active together, so two-stream training can
    draw a noise level for each epoch independently (`packed_steps`).
    """

    @property
    @abc.abstractmethod
    def starts(self) -> Int[Tensor, " l"]:
        """Step at which each position becomes active, at least 0, in any order."""

    @functools.cached_property
    def settles(self) -> Int[Tensor, " l"]:
        """First step at which each position is settled: `starts + num_levels`."""
        return self.starts + self.num_levels

    def levels(self, n: int | Int[Tensor, "*b"]) -> Int[Tensor, "*b l"]:
        steps = torch.as_tensor(n)
        return (self.settles_on(steps.device) - steps[..., None]).clamp(0, self.num_levels)

    @property
    def epochs(self) -> Int[Tensor, " l"]:
        """Epoch of each position: connected components of overlapping activity intervals, numbered in time.

        Block: the block.  Flat: 0 everywhere.  Slide: one epoch (width 1: one each).  Wave: the block.
        """
        ordered, order = torch.sort(self.starts, stable=True)
        opens = torch.zeros_like(ordered)
        opens[1:] = ordered[1:] - ordered[:-1] >= self.num_levels
        return torch.empty_like(order).scatter_(0, order, opens.cumsum(0))

    @property
    def num_epochs(self) -> int:
        """Number of epochs, which is the number of offsets of `packed_steps`."""
        return int(self.epochs.max()) + 1

    @property
    def has_epochs(self) -> bool:
        return True

    @functools.cached_property
    def opens_together(self) -> bool:
        return len(self.starts.unique()) == self.num_epochs

    @functools.cached_property
    def is_autoregressive(self) -> bool:
        return self.num_epochs == self.length and bool((self.starts.diff() > 0).all())

    def _first(self, length: int) -> AbstractCountdown:
        return _FirstOfCountdown(self, length)

    def packed_steps(self, offsets: Int[Tensor, "*b e"]) -> Int[Tensor, "*b l"]:
        """A step for every position such that each is active and windows of equal step tile the sequence.

        The step of a position is the only one of its activity interval that is congruent, modulo `num_levels`, to the
        first start of its epoch plus the epoch's offset. So positions with equal steps are exactly those that are
        active together at that step of generation, and a uniform offset visits every level of every position equally
        often.

        Args:
            offsets: One integer in `[0, num_levels)` for each epoch, on the device of the result.

        Raises:
            ValueError: If the number of offsets is not the number of epochs.
        """
        starts, epochs = self.starts.to(offsets.device), self.epochs.to(offsets.device)
        num_epochs = self.num_epochs
        if offsets.shape[-1] != num_epochs:
            raise ValueError(
                f"`offsets` must end in one entry per epoch, num_epochs={num_epochs}; "
                f"got shape {tuple(offsets.shape)}."
            )
        never = starts.new_full((num_epochs,), self.num_steps)
        phases = (offsets + never.scatter_reduce(0, epochs, starts, "amin"))[..., epochs]
        return starts + (phases - starts) % self.num_levels


@final
@dataclass(frozen=True)
class _FirstOfCountdown(AbstractCountdown):
    """The first positions of a countdown, which is a countdown."""

    whole: AbstractCountdown
    length: int

    @property
    def num_levels(self) -> int:  # type: ignore[override]
        return self.whole.num_levels

    @property
    def starts(self) -> Int[Tensor, " l"]:
        return self.whole.starts[: self.length]
