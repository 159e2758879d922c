"""Which steps of generation share one two-stream pass, so that a pass trains as much of a sequence as it can.

A position is active in one interval of steps, `starts[i] <= n < settles[i]`. Two steps fit into one pass if nobody is
active in both, and then each position belongs to at most one of them: its *window*. Whatever the hyperschedule,

    next(n) = max { settles[i] : i active at step n }

is the first step that fits together with `n`: by then all that was active at `n` has settled, and with it everything
before. So `n, next(n), next(next(n)), ..` fit together, all of them. The steps of an *epoch* (positions whose intervals
overlap, directly or through others) form a forest under `next`; a pass takes one leaf of each epoch, uniformly, and
the chain from there on. Every step is on some chain, so every position is trained at every level that it has; step `n`
is taken with probability `chains through n / chains`, whose inverse is its weight.

A countdown does better: one step of every position is congruent to any given phase, so that windows tile the sequence
and all steps have the probability `1 / T`. So does the published `simple` where its stride divides its width, once it
is on the canvas; else up to `stride - 1` positions between two windows wait for another pass. The published `hybrid`
cannot tile: from its step `T - 1` on a block has settled positions on its left, and all windows of a block end where
the block ends, so no other window of it covers these. They are left out of the pass, as generation leaves them alone.
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
"""The step of a position that takes no part in a pass."""
_ENTRIES = 2**22
"""Levels that are held at a time."""


@final
@dataclass(frozen=True)
class Packed:
    """What the positions do in a pass.

    Attributes:
        steps: The step that each is at, `ABSENT` for none: equal ones are active together.
        now: Its level at that step; 0 if it is absent.
        then: Its level at the next one.
        within: Share of the step that is done, in [0, 1).
        weight: The inverse of the probability that a pass takes this position at this step; 0 if it is absent.
    """

    steps: Int[Tensor, "*b l"]
    now: Int[Tensor, "*b l"]
    then: Int[Tensor, "*b l"]
    within: Float[Tensor, "*b l"]
    weight: Float[Tensor, "*b l"]


class AbstractPacking(abc.ABC):
    """The passes of a hyperschedule.

    Attributes:
        num_epochs: Groups of positions that choose their steps independently.
        num_cells: Into how many equal parts the time of each epoch is cut: one for each of its chains.
        rightwards: Whether each position becomes active, and settles, no earlier than the one before it.
    """

    num_epochs: int
    num_cells: tuple[int, ...]
    left_to_right: bool

    @abc.abstractmethod
    def __call__(self, times: Float[Tensor, "*b e"]) -> Packed:
        """The pass that some times mean.

        Args:
            times: A number in [0, 1) for each epoch; uniform ones draw a chain, and a time within its steps.
        """


def packing(hyperschedule: AbstractHyperschedule) -> AbstractPacking:
    """The passes of any hyperschedule."""
    if isinstance(hyperschedule, AbstractCountdown):
        return _Phases(hyperschedule)
    return _Chains(hyperschedule)


def opens_left_to_right(hyperschedule: AbstractHyperschedule, lookback: int = 1) -> bool:
    """Whether the positions before each position are on the canvas whenever it is active.

    A shifted network predicts a position from the output at the position before it, so it needs such a hyperschedule.

    Args:
        hyperschedule: The hyperschedule.
        lookback: How many positions before each one are needed.
    """
    starts = _starts(hyperschedule)
    moves = starts < hyperschedule.settles
    return not any(
        bool((moves[back:] & (starts[:-back] > starts[back:])).any()) for back in range(1, lookback + 1)
    )


@final
class _Phases(AbstractPacking):
    """Of a countdown: one step of each position for every phase."""

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
    """Of anything else: tables of the chains of each epoch."""

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
                f"`times` must end in one entry an epoch, num_epochs={self.num_epochs}; "
                f"got shape {tuple(times.shape)}."
            )
        device, epochs = times.device, self._epochs.to(times.device)
        spread = (times * torch.tensor(self.num_cells, device=device))[..., epochs]
        chain, position = spread.long(), torch.arange(len(epochs), device=device)
        steps, now, then = (table[chain, position] for table in self._levels.to(device))
        weight = self._weights.to(device)[chain, position].to(times.dtype)
        return Packed(steps, now, then, spread - spread.floor(), weight)

    def _chains_of(self, epoch: int) -> tuple[Int[Tensor, "chains m"], Float[Tensor, "chains m"]]:
        """The step of each of an epoch's positions in each of its chains, and its weight."""
        members = self._epochs == epoch
        starts, settles = self._starts[members], self._settles[members]
        first = int(starts.min())
        count = max(int(settles.max()) - first, 1)
        n = torch.arange(first, first + count)
        latest = torch.zeros(count, dtype=torch.long).scatter_reduce(
            0, (starts - first).clamp_max(count - 1), torch.where(starts < settles, settles, 0), "amax"
        )
        after = latest.cummax(0).values
        after = torch.where(after > n, after - first, count)  # nobody is active: the end
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
        """Steps, levels at these and levels after, by chain; shorter epochs are filled up with nobody."""
        found = torch.zeros(3, *self._weights.shape, dtype=torch.long)
        found[0] = ABSENT
        for epoch, (steps, _) in enumerate(self._chains):
            members = (self._epochs == epoch).nonzero()[:, 0]
            chain, column = (steps != ABSENT).nonzero(as_tuple=True)
            at, position = steps[chain, column], members[column]
            found[0, chain, position] = at
            found[1, chain, position] = _levels(self._hyperschedule, at, position)
            found[2, chain, position] = _levels(self._hyperschedule, at + 1, position)
        return found

    @cached_property
    def _weights(self) -> Float[Tensor, "chains l"]:
        found = torch.zeros(max(len(steps) for steps, _ in self._chains), len(self._epochs))
        for epoch, (steps, weight) in enumerate(self._chains):
            found[: len(steps), self._epochs == epoch] = weight
        return found


def _rises(values: Int[Tensor, " l"]) -> bool:
    return not bool((values.diff() < 0).any())


def _starts(hyperschedule: AbstractHyperschedule) -> Int[Tensor, " l"]:
    """First step in which each position is active, by bisection: levels never rise."""
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
    """The level of each position at a step of its own, some steps at a time."""
    distinct, row = steps.unique(return_inverse=True)
    found = torch.empty_like(steps)
    size = max(1, _ENTRIES // hyperschedule.length)
    for begin in range(0, len(distinct), size):
        some = hyperschedule.levels(distinct[begin : begin + size])
        own = (begin <= row) & (row < begin + size)
        found[own] = some[row[own] - begin, position[own]]
    return found


def _epochs(starts: Int[Tensor, " l"], settles: Int[Tensor, " l"]) -> Int[Tensor, " l"]:
    """Connected components of overlapping intervals, numbered in time; who is never active goes with the first."""
    moves = settles > starts
    order = torch.argsort(torch.where(moves, starts, -1), stable=True)
    latest = torch.where(moves, settles, 0)[order].cummax(0).values
    opens = torch.zeros_like(order)
    opens[1:] = (starts[order][1:] >= latest[:-1]) & moves[order][1:] & moves[order][:-1]
    return torch.empty_like(order).scatter_(0, order, opens.cumsum(0))
