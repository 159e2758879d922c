"""The plan of sequences that are always at one common step: noise, random numbers, and the steps with events.

A plan is computed for a *segment* of consecutive steps in a few vectorised calls. The random numbers of a step are a
function of their address, so a segment computes the numbers of all its steps at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hdlm.hyperschedule import AbstractHyperschedule
from hdlm.process import AbstractNoiseProcess
from hdlm.randomness import Randomness
from hdlm.sampling.base import Events, Move, Planned, Reading, Step, numbers_of

__all__ = ["Clock", "Segment", "Sequences", "concatenated", "events_at"]

_MOST_NUMBERS = 2**18
"""Numbers of one purpose that are computed at a time; a segment has at least one step."""
_INPUTS = ("process", "t", "s", "moving", "begin", "numbers")
"""The inputs of a move on which events depend, except those that a chain gives to its parts."""
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
@dataclass(eq=False)
class _Part:
    """Where a step may act that is the sampling step or a part of it, at each step of a segment.

    Attributes:
        step: The planned step.
        stream: First stream of its random numbers.
        events: Positions at which it may act.
        acts: For each step of the segment, whether there are such positions.
    """

    step: Planned
    stream: int
    events: Bool[Tensor, "n b l"]
    acts: list[bool] = field(default_factory=list)


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
        self._parts: list[_Part] = []
        self.active: list[bool] = self._planned(x)

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

    def part(self, step: Planned, move: Move) -> _Part | None:
        """The plan of a step that is part of the sampling step; None if there is none."""
        return next((part for part in self._parts if part.step is step and part.stream == move.stream), None)

    def _planned(self, x: Int[Tensor, "b l"]) -> list[bool]:
        """Whether something may happen at each step; keeps the plan of each part of the sampling step."""
        step, group, num = self._clock.step, self._group, self.end - self.begin
        if not isinstance(step, Planned):
            return list(self.moving.flatten(1).any(1).tolist())

        def rows(values: Tensor) -> Tensor:
            return values.expand(num, *values.shape[-2:]).flatten(0, 1)

        def numbers(stream: int, each_step: bool) -> Tensor:
            return rows(self.numbers(stream, each_step))

        process, begin = self._clock.process, rows(group.begin)
        t, s, moving = rows(self.t), rows(self.s), rows(self.moving)
        inputs = process, t, s, moving, begin, numbers

        def planned(step: Planned, own: Move) -> tuple[bool, list[Tensor]]:
            events = step.events(own)
            if _has(own, inputs):
                self._parts.append(_Part(step, own.stream, events.view_as(self.moving)))
            return True, [events]

        move = Move(
            process,
            rows(x),
            t,
            s,
            moving,
            _refuse,
            group.randomness,
            group.sequence.repeat(num),
            self.steps.expand(-1, len(x), 1).flatten(0, 1),
            begin=begin,
            remasked=step.remasks,
            numbers=numbers,
            planned=planned,
        )
        whole = move.events_of(step).view_as(self.moving) & self.moving
        acts = torch.stack([whole, *(part.events for part in self._parts)]).flatten(2).any(2).tolist()
        for part, own in zip(self._parts, acts[1:], strict=True):
            part.acts = own
        return list(acts[0])


def events_at(plans: list[tuple[Segment, int]], inputs: tuple[object, ...]) -> Events:
    """The planned events of some segments, each at one of its steps.

    Args:
        plans: The segments, each with the index of a step.
        inputs: The inputs of the move on which events depend, in the order of `_INPUTS`: a move with other ones, which
            a step has made, is not planned.
    """

    def planned(step: Planned, move: Move) -> tuple[bool, list[Tensor]] | None:
        if not _has(move, inputs):
            return None
        parts = [(plan.part(step, move), row) for plan, row in plans]
        known = [(part, row) for part, row in parts if part is not None]
        if len(known) < len(parts):
            return None
        return any(part.acts[row] for part, row in known), [part.events[row] for part, row in known]

    return planned


def _has(move: Move, inputs: tuple[object, ...]) -> bool:
    """Whether a move has these very inputs."""
    return all(getattr(move, name) is value for name, value in zip(_INPUTS, inputs, strict=True))


def _refuse(x: Tensor, u: Tensor, previous: object = None, /) -> Reading:
    raise RuntimeError(
        "A plan of events must not read the network's answer; leave `events` out for such a step."
    )


def concatenated(values: list[Tensor]) -> Tensor:
    """Rows of several groups in one tensor."""
    return values[0] if len(values) == 1 else torch.cat(values)
