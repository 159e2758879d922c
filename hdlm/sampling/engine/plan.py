"""The plan of sequences that are always at one common step: noise, random numbers, and the steps with events.

A plan is computed for a *segment* of consecutive steps in a few vectorised calls. The random numbers of a step are a
function of their address, so a segment computes the numbers of all its steps at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hdlm.hyperschedule import AbstractHyperschedule
from hdlm.process import AbstractNoiseProcess
from hdlm.randomness import Randomness
from hdlm.sampling.base import Move, Planned, Reading, Step, numbers_of

__all__ = ["Clock", "Segment", "Sequences", "concatenated"]

_MOST_NUMBERS = 2**18
"""Numbers of one purpose that are computed at a time; a segment has at least one step."""
_Pair = tuple[Tensor, Tensor]


@final
@dataclass(frozen=True)
class Clock:
    """When each position is noisy, and its noise fraction.

    Attributes:
        hyperschedule: The levels of each step.
        noise: Noise fraction of each level.
        step: The sampling step.
        process: The noise process of the denoiser.
    """

    hyperschedule: AbstractHyperschedule
    noise: Float[Tensor, " levels"]
    step: Step
    process: AbstractNoiseProcess


@final
@dataclass(frozen=True)
class Sequences:
    """The constant data of some sequences.

    Attributes:
        sequence: Index of each sequence in the run.
        fixed: Positions that are given.
        randomness: Random numbers of the sequences.
        begin: Noise fraction of each position at the beginning.
        constant: Random numbers that all steps share, by stream.
    """

    sequence: Int[Tensor, " b"]
    fixed: Bool[Tensor, "b l"]
    randomness: Randomness
    begin: Float[Tensor, "b l"]
    constant: dict[int, _Pair]


@final
class Segment:
    """Some consecutive steps of some sequences.

    Args:
        clock: When each position is noisy.
        group: The sequences to plan.
        x: Tokens before the first step.
        begin: The first step.
        end: The step at which the last segment ends (exclusive).

    Attributes:
        begin: The first step.
        end: The step after the last one.
        levels: Level of each position before each step, and after the last step.
        t: Noise fractions before each step.
        s: Noise fractions after each step.
        moving: Positions that may change.
        steps: Index of each step.
        active: For each step, whether something may happen in it.
    """

    def __init__(self, clock: Clock, group: Sequences, x: Int[Tensor, "b l"], begin: int, end: int) -> None:
        most = max(1, _MOST_NUMBERS // x.numel())
        self.begin, self.end = begin, min(end, begin + most)
        self._clock, self._group = clock, group
        steps = torch.arange(self.begin, self.end + 1, device=x.device)
        self.levels: Int[Tensor, "n l"] = clock.hyperschedule.levels(steps)
        noise = clock.noise[self.levels][:, None].masked_fill(group.fixed, 0.0)
        self.t: Float[Tensor, "n b l"] = noise[:-1]
        self.s: Float[Tensor, "n b l"] = noise[1:]
        down = (self.levels[1:] < self.levels[:-1])[:, None]
        self.moving: Bool[Tensor, "n b l"] = down & ~group.fixed
        self.steps: Int[Tensor, "n 1 1"] = steps[:-1, None, None]
        self._numbers: dict[int, _Pair] = {}
        self.active: list[bool] = self._events(x).flatten(1).any(1).tolist()

    def next_event(self, n: int) -> int | None:
        """The first step from `n` at which something may happen, if it is in this segment."""
        return next((step for step in range(n, self.end) if self.active[step - self.begin]), None)

    def numbers(self, stream: int, each_step: bool) -> Float[Tensor, "n b l"] | Float[Tensor, "b l"]:
        """The random numbers of a stream: of all steps of the segment, or one set that all steps share."""
        known = self._numbers if each_step else self._group.constant
        if stream // 2 not in known:
            group = self._group
            position = torch.arange(self.levels.shape[1], device=self.levels.device)
            step = self.steps if each_step else None
            known[stream // 2] = numbers_of(group.randomness, group.sequence[:, None], step, position, stream)
        return known[stream // 2][stream % 2]

    def _events(self, x: Int[Tensor, "b l"]) -> Bool[Tensor, "n b l"]:
        """Where something may happen at each step."""
        step, group, num = self._clock.step, self._group, self.end - self.begin
        if not isinstance(step, Planned):
            return self.moving

        def rows(values: Tensor) -> Tensor:
            return values.expand(num, *values.shape[-2:]).flatten(0, 1)

        move = Move(
            self._clock.process,
            rows(x),
            rows(self.t),
            rows(self.s),
            rows(self.moving),
            _refuse,
            group.randomness,
            group.sequence.repeat(num),
            self.steps.expand(-1, len(x), 1).flatten(0, 1),
            begin=rows(group.begin),
            numbers=lambda stream, each_step: rows(self.numbers(stream, each_step)),
        )
        return step.events(move).view_as(self.moving) & self.moving


def _refuse(x: Tensor, u: Tensor, previous: object = None, /) -> Reading:
    raise RuntimeError(
        "A plan of events must not read the network's answer; leave `events` out for such a step."
    )


def concatenated(values: list[Tensor]) -> Tensor:
    """Rows of several groups in one tensor."""
    return values[0] if len(values) == 1 else torch.cat(values)
