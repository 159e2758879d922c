"""The steps of generation that share one two-stream pass, so that a pass trains as many positions as possible.

A position is active in one interval of steps, `starts[i] <= n < settles[i]`. Two steps fit into one pass if no position
is active in both; then each position belongs to at most one of them: its *window*. For every hyperschedule,

    next(n) = max { settles[i] : i active at step n }

is the first step that fits together with `n`: by then every position that was active at `n` has settled, and so has
everything before it. So `n, next(n), next(next(n)), ..` all fit together. The steps of an *epoch* (positions whose
intervals overlap, directly or through others) form a forest under `next`; a pass draws one leaf of each epoch,
uniformly, and uses the chain from there on. Every step is on some chain, so every position is trained at each of its
levels; step `n` is used with probability `chains through n / chains`, whose inverse is its weight.

In a countdown, one step of every position is congruent to any given phase, so windows tile the sequence and all steps
have the probability `1 / T`. The same holds for the published `simple` if its stride divides its width, once it is on
the canvas; otherwise up to `stride - 1` positions between two windows are not in the pass. The published `hybrid`
cannot tile: from its step `T - 1` on, a block has settled positions on its left, and all windows of a block end where
the block ends, so no other window of it covers them. They are not in the pass, just as generation does not change them.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hdlm.hyperschedule.base import AbstractHyperschedule
from hdlm.hyperschedule.countdown import AbstractCountdown

__all__ = ["AbstractPacking", "Packed", "opens_left_to_right", "packing"]

ABSENT = -1
"""The step of a position that is not in a pass."""
_ENTRIES = 2**22
"""Number of levels that are computed at a time."""


@final
@dataclass(frozen=True)
class Packed:
    """The steps and levels of the positions in a pass.

    Attributes:
        steps: Step of each position, or `ABSENT`; positions with equal steps are active together.
        now: Level of each position at that step; 0 if it is absent.
        then: Level of each position at the next step.
        within: Share of the step that is done, in [0, 1).
        weight: Inverse of the probability that a pass uses this position at this step; 0 if it is absent.
    """

    steps: Int[Tensor, "*b l"]
    now: Int[Tensor, "*b l"]
    then: Int[Tensor, "*b l"]
    within: Float[Tensor, "*b l"]
    weight: Float[Tensor, "*b l"]


class AbstractPacking(abc.ABC):
    """The passes of a hyperschedule.

    Attributes:
        num_epochs: Number of groups of positions that choose their steps independently.
        num_cells: Number of equal parts of the time of each epoch: one for each of its chains.
        left_to_right: Whether each position becomes active, and settles, no earlier than the one before it.
    """

    num_epochs: int
    num_cells: tuple[int, ...]
    left_to_right: bool

    @abc.abstractmethod
    def __call__(self, times: Float[Tensor, "*b e"]) -> Packed:
        """The pass for given times.

        Args:
            times: A number in [0, 1) for each epoch; uniform ones draw a chain, and a time within its steps.
        """


def packing(hyperschedule: AbstractHyperschedule) -> AbstractPacking:
    """The passes of any hyperschedule."""
    if isinstance(hyperschedule, AbstractCountdown):
        return _Phases(hyperschedule)
    return _Chains(hyperschedule)


def opens_left_to_right(hyperschedule: AbstractHyperschedule, lookback: int = 1) -> bool:
    """Whether the positions before each position have become active whenever it is active.

    A shifted network predicts a position from the output at the position before it, so it needs such a hyperschedule.
    """
    starts = _starts(hyperschedule)
    moves = starts < hyperschedule.settles
    return not any(
        bool((moves[back:] & (starts[:-back] > starts[back:])).any()) for back in range(1, lookback + 1)
    )


@final
class _Phases(AbstractPacking):
    """Passes of a countdown: one step of each position for every phase."""

    def __init__(self, countdown: AbstractCountdown) -> None:
        self._countdown = countdown
        self.num_epochs = countdown.num_epochs
        self.num_cells = (countdown.num_levels,) * countdown.num_epochs
        self.left_to_right = _rises(countdown.starts)

    def __call__(self, times: Float[Tensor, "*b e"]) -> Packed:
        plan = self._countdown
        spread = times * plan.num_levels
        steps = plan.packed_steps(spread.long())
        now = plan.settles.to(steps.device) - steps
        within = (spread - spread.floor())[..., plan.epochs.to(steps.device)]
        weight = torch.full_like(within, plan.num_levels)
        return Packed(steps, now, now - 1, within, weight)


@final
class _Chains(AbstractPacking):
    """Passes of any other hyperschedule, from tables of the chains of each epoch."""

    def __init__(self, hyperschedule: AbstractHyperschedule) -> None:
        self._hyperschedule = hyperschedule
        self._starts, self._settles = _starts(hyperschedule), hyperschedule.settles
        self._epochs = _epochs(self._starts, self._settles)
        self.num_epochs = int(self._epochs.max()) + 1
        self._chains = [self._chains_of(epoch) for epoch in range(self.num_epochs)]
        self.num_cells = tuple(len(chains) for chains, _ in self._chains)
        self.left_to_right = _rises(self._starts) and _rises(self._settles)

    def __call__(self, times: Float[Tensor, "*b e"]) -> Packed:
        if times.shape[-1] != self.num_epochs:
            raise ValueError(
                f"`times` must end in one entry per epoch, num_epochs={self.num_epochs}; "
                f"got shape {tuple(times.shape)}."
            )
        device, epochs = times.device, self._epochs.to(times.device)
        spread = (times * torch.tensor(self.num_cells, device=device))[..., epochs]
        chain, position = spread.long(), torch.arange(len(epochs), device=device)
        steps, now, then = (table[chain, position] for table in self._levels.to(device))
        weight = self._weights.to(device)[chain, position].to(times.dtype)
        return Packed(steps, now, then, spread - spread.floor(), weight)

    def _chains_of(self, epoch: int) -> tuple[Int[Tensor, "chains m"], Float[Tensor, "chains m"]]:
        """The step, and its weight, of each of an epoch's positions in each of its chains."""
        members = self._epochs == epoch
        starts, settles = self._starts[members], self._settles[members]
        first = int(starts.min())
        count = max(int(settles.max()) - first, 1)
        n = torch.arange(first, first + count)
        latest = torch.zeros(count, dtype=torch.long).scatter_reduce(
            0, (starts - first).clamp_max(count - 1), torch.where(starts < settles, settles, 0), "amax"
        )
        after = latest.cummax(0).values
        after = torch.where(after > n, after - first, count)  # no position is active: the end
        leaf = torch.ones(count + 1, dtype=torch.bool)
        leaf[after] = False
        here = leaf[:-1].nonzero()[:, 0]
        steps = torch.full((len(here), len(starts)), ABSENT)
        visits = torch.zeros(count + 1)
        while len(going := (here < count).nonzero()[:, 0]):
            at = here[going]
            now = n[at, None]
            steps[going] = torch.where((starts <= now) & (now < settles), now, steps[going])
            visits.index_add_(0, at, torch.ones(len(at)))
            here = here.clone()
            here[going] = after[at]
        weight = len(steps) / visits[(steps - first).clamp_min(0)]
        return steps, torch.where(steps == ABSENT, 0.0, weight)

    @cached_property
    def _levels(self) -> Int[Tensor, "3 chains l"]:
        """Steps, levels at these steps and levels after them, by chain; shorter epochs are padded with `ABSENT`."""
        table = torch.zeros(3, *self._weights.shape, dtype=torch.long)
        table[0] = ABSENT
        for epoch, (steps, _) in enumerate(self._chains):
            members = (self._epochs == epoch).nonzero()[:, 0]
            chain, column = (steps != ABSENT).nonzero(as_tuple=True)
            at, position = steps[chain, column], members[column]
            table[0, chain, position] = at
            table[1, chain, position] = _levels(self._hyperschedule, at, position)
            table[2, chain, position] = _levels(self._hyperschedule, at + 1, position)
        return table

    @cached_property
    def _weights(self) -> Float[Tensor, "chains l"]:
        weights = torch.zeros(max(len(steps) for steps, _ in self._chains), len(self._epochs))
        for epoch, (steps, weight) in enumerate(self._chains):
            weights[: len(steps), self._epochs == epoch] = weight
        return weights


def _rises(values: Int[Tensor, " l"]) -> bool:
    return not bool((values.diff() < 0).any())


def _starts(hyperschedule: AbstractHyperschedule) -> Int[Tensor, " l"]:
    """First step in which each position is active, by bisection, since levels never rise."""
    position = torch.arange(hyperschedule.length)
    low, high = torch.zeros_like(position), hyperschedule.settles.clone()
    while bool((low < high).any()):
        middle = (low + high) // 2
        waits = _levels(hyperschedule, middle + 1, position) == hyperschedule.num_levels
        low, high = torch.where(waits & (low < high), middle + 1, low), torch.where(waits, high, middle)
    return low


def _levels(
    hyperschedule: AbstractHyperschedule, steps: Int[Tensor, " k"], position: Int[Tensor, " k"]
) -> Int[Tensor, " k"]:
    """The level of each position at its own step, a number of steps at a time."""
    distinct, row = steps.unique(return_inverse=True)
    levels = torch.empty_like(steps)
    size = max(1, _ENTRIES // hyperschedule.length)
    for begin in range(0, len(distinct), size):
        part = hyperschedule.levels(distinct[begin : begin + size])
        own = (begin <= row) & (row < begin + size)
        levels[own] = part[row[own] - begin, position[own]]
    return levels


def _epochs(starts: Int[Tensor, " l"], settles: Int[Tensor, " l"]) -> Int[Tensor, " l"]:
    """Connected components of overlapping intervals, numbered in time; positions that never move are in the first."""
    moves = settles > starts
    order = torch.argsort(torch.where(moves, starts, -1), stable=True)
    latest = torch.where(moves, settles, 0)[order].cummax(0).values
    opens = torch.zeros_like(order)
    opens[1:] = (starts[order][1:] >= latest[:-1]) & moves[order][1:] & moves[order][:-1]
    return torch.empty_like(order).scatter_(0, order, opens.cumsum(0))
