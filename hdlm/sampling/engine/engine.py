"""The engine: sequences that walk back from noise, each at its own pace, and share the calls of the network.

Every sequence has a step `n` of its own. A plan (`Segment`) says at which steps something may happen to it, and the
engine goes from one such step to the next. In an advance all sequences make one step, and what they read is computed
in one call of the network, though they stand at different steps, behind caches of different lengths. Sequences whose
last answer is still valid go ahead alone until they, too, need a call. Sequences come (`add`) and go when they are
finished or stopped.

The engine has the tokens and the plans; the calls are the business of a `BatchedQuery`, and what is kept of earlier
calls that of a `KVWindow`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from hdlm.denoiser import AbstractDenoiser, resolve_device
from hdlm.hyperschedule import AbstractHyperschedule, opens_left_to_right
from hdlm.randomness import Randomness
from hdlm.regime import Regime
from hdlm.sampling.base import Move, Step, Transform
from hdlm.sampling.engine.batching import BatchedQuery, Member
from hdlm.sampling.engine.plan import Clock, Segment, Sequences, concatenated
from hdlm.sampling.engine.window import Execution, KVWindow
from hdlm.sampling.loop import PRIOR

__all__ = ["Engine", "Finished", "Frame", "Stop"]

Stop = Callable[[int, Int[Tensor, " p"]], int | None]
"""Told the index of a sequence in the run and its finished beginning, says how many tokens to keep if it ends there."""

_EXACT = Execution()


@final
@dataclass(frozen=True)
class Frame:
    """What a watcher sees after every generation step.

    Attributes:
        step: Index of the generation step, from 0.
        num_steps: How many there are.
        sequence: Index in the run of each sequence that made this step.
        before: Tokens before the step.
        after: Tokens after it.
        moving: Positions that might have changed.
        settled: How many tokens at the beginning of each sequence are final.
        num_evaluations: Calls of the network so far.
        share: Share of the steps of all sequences in the engine that are done, in (0, 1].
    """

    step: int
    num_steps: int
    sequence: Int[Tensor, " b"]
    before: Int[Tensor, "b l"]
    after: Int[Tensor, "b l"]
    moving: Bool[Tensor, "b l"]
    settled: Int[Tensor, " b"]
    num_evaluations: int
    share: float


@final
@dataclass(frozen=True)
class Finished:
    """A sequence that has left the engine.

    Attributes:
        sequence: Its index in the run.
        tokens: Its tokens.
        length: How many of them count: all, or those before a stop.
        num_evaluations: Calls of the network that it took part in.
        num_computed: How many positions of it these calls have computed in all.
    """

    sequence: int
    tokens: Int[Tensor, " l"]
    length: int
    num_evaluations: int
    num_computed: int


@final
@dataclass(eq=False)
class SequenceGroup:
    """Sequences that are always at the same step.

    Attributes:
        own: What never changes about them.
        length: How many positions they have.
        end: The step at which they are finished.
        window: Their keys and values, and the last answer.
        kept: How many tokens of each count; None as long as nothing has stopped it.
        segment: The plan of the coming steps; None before the first.
        n: Steps done; the next one is a step at which something may happen.
        checked: How many tokens have been looked through for a stop.
    """

    own: Sequences
    length: int
    end: int
    window: KVWindow
    kept: list[int | None]
    segment: Segment | None = None
    n: int = 0
    checked: int = 0

    @property
    def size(self) -> int:
        """How many they are."""
        return len(self.kept)

    @property
    def row(self) -> int:
        """Where the coming step is in the plan."""
        return self.n - self.plan.begin

    @property
    def plan(self) -> Segment:
        """The plan of the coming step."""
        if self.segment is None:
            raise RuntimeError("The sequences have no plan yet; `Engine._locate` makes one.")
        return self.segment


@final
class Engine:
    """Sequences on their way from noise to text.

    One engine serves one way of writing: the step, the transforms, the regime and the stop are those of all its
    sequences, which is why their questions can share a call. Seed, prompt and length are those of a request (`add`).

    Args:
        denoiser: Knows `p(x_0 | x_t)`.
        regime: When positions are noisy, and who sees whom; its length is the most that a sequence may have.
        step: How to walk back.
        seed: Of all random numbers of those who bring none.
        transforms: Applied in order before draws.
        execution: What is remembered between calls, and the device. How many sequences there are is up to `add`.
        stop: Where sequences may end before all their positions are written.
        watch: Called with a `Frame` after every step of any sequences.

    Attributes:
        num_evaluations: Calls of the network so far.
        awaited: How many sequences are still to come, for the `share` of frames.

    Raises:
        ValueError: If the denoiser is on another device, its network is shifted and the hyperschedule does not run from
            left to right, or an approximate cache makes no sense.
    """

    def __init__(
        self,
        denoiser: AbstractDenoiser,
        regime: Regime,
        step: Step,
        *,
        seed: int = 0,
        transforms: Sequence[Transform] = (),
        execution: Execution = _EXACT,
        stop: Stop | None = None,
        watch: Callable[[Frame], None] | None = None,
    ) -> None:
        hyperschedule, device = regime.hyperschedule, resolve_device(denoiser, execution.device)
        execution.check_cache(regime, denoiser.noise_dependence)
        _check_order(denoiser, hyperschedule)
        self.num_evaluations, self.awaited = 0, 0
        self._denoiser, self._hyperschedule, self._step = denoiser, hyperschedule, step
        self._seed, self._transforms = seed, tuple(transforms)
        self._regime, self._execution = regime, execution
        self._stop, self._watch = stop, watch
        self._prior = regime.final_noise
        noise = regime.noise_of_levels().to(device)
        self._clock = Clock(hyperschedule, noise, step, denoiser.process)
        self._begin = noise[hyperschedule.levels(0).to(device)]
        self._never = hyperschedule.never_written.to(device)
        self._any_never = bool(hyperschedule.never_written.any())
        self._positions = torch.arange(hyperschedule.length, device=device)
        self._groups: list[SequenceGroup] = []
        self._steps_done = 0
        self._x = self._positions[:0].view(0, hyperschedule.length)

    def __len__(self) -> int:
        """How many sequences are on their way."""
        return len(self._x)

    def add(
        self,
        sequence: Int[Tensor, " b"],
        *,
        tokens: Int[Tensor, "#b l"] | None = None,
        fixed: Bool[Tensor, "#b l"] | None = None,
        length: int | None = None,
        seed: int | Int[Tensor, " seeds"] | None = None,
        together: bool = False,
    ) -> None:
        """Let sequences in.

        Args:
            sequence: Index of each in the run, on which its random numbers depend.
            tokens: Given tokens.
            fixed: Where tokens are given; they are kept.
            length: How many positions are written; all of the hyperschedule by default.
            seed: Of the random numbers of these, one for all or one for each; that of the engine by default. The tokens
                of a sequence depend on its seed and its index, and not on who else is there.
            together: Whether they share steps and calls of the network, as they must for a denoiser that does not
                pack questions; else each goes at its own pace.

        Raises:
            ValueError: If the length does not fit the canvas, there are not as many seeds as sequences, a shifted
                network is not given the first tokens, or a position that begins at level 0 is not given.
        """
        canvas = self._hyperschedule.length
        length = canvas if length is None else length
        if not 1 <= length <= canvas:
            raise ValueError(
                f"`length` must lie in [1, {canvas}], the positions of the canvas; got {length}."
            )
        _check_first(self._denoiser, fixed)
        seeds = self._seeds(seed, len(sequence))
        start = Randomness.of_rows(seeds).uniform(sequence[:, None], 0, self._positions[None], PRIOR)
        x = self._denoiser.process.draw_prior(torch.full_like(start, self._prior), start)
        held = torch.zeros_like(x, dtype=torch.bool)
        if tokens is not None and fixed is not None:
            x, held = torch.where(fixed, tokens, x), fixed.expand_as(x).clone()
        held[:, length:] = True
        if self._any_never:
            self._check_given(held)
        self._x = torch.cat([self._x, x])
        settles = self._hyperschedule.settles.to(x.device).expand_as(x).masked_fill(held, 0)
        ends = settles.amax(1).tolist()
        rows = [range(len(x))] if together else [range(row, row + 1) for row in range(len(x))]
        for own in rows:
            place = slice(own.start, own.stop)
            window = KVWindow(
                self._denoiser,
                self._regime,
                self._execution,
                size=len(own),
                length=length,
                device=x.device,
            )
            same = Sequences(
                sequence[place],
                held[place],
                Randomness.of_rows(seeds[place]),
                self._begin.expand(len(own), -1),
                {},
            )
            kept: list[int | None] = [None] * len(own)
            self._groups.append(SequenceGroup(same, length, max(ends[place]), window, kept))

    def _check_given(self, held: Bool[Tensor, "b l"]) -> None:
        """Refuse a position that begins at level 0 and is not given: no step would write it."""
        missing = (self._never & ~held).any(0).nonzero()[:, 0].tolist()
        if missing:
            raise ValueError(
                f"Position {missing[0]} begins at level 0 in {self._hyperschedule!r}, so no step writes it, and no "
                f"token is given there ({len(missing)} such position(s)). Give a token in the prompt, or let it "
                "begin at a level above 0."
            )

    def _seeds(self, seed: int | Tensor | None, count: int) -> list[int]:
        """A seed for each of some sequences."""
        if isinstance(seed, Tensor):
            if seed.shape != (count,):
                raise ValueError(
                    f"`seed` must be one integer, or {count}, one for each sequence; got shape {tuple(seed.shape)}."
                )
            return [int(one) for one in seed]
        return [self._seed if seed is None else seed] * count

    def advance(self) -> list[Finished]:
        """Make one step of at least one sequence, in which something may happen; at most a few calls of the network.

        Returns:
            The sequences that are finished, which leave the engine.

        Raises:
            RuntimeError: If the step leaves a mask in a finished sequence.
        """
        for group in self._groups:
            if group.segment is None:
                self._locate(group, self._rows_of([group]))
        waiting = [group for group in self._groups if group.n < group.end and None in group.kept]
        if waiting:
            self._step_of(self._first(waiting))
        return self._leave()

    # -- one step -------------------------------------------------------------------------------------------

    def _first(self, groups: list[SequenceGroup]) -> list[SequenceGroup]:
        """Those whose last answer is still valid, if there are some: the others wait to share a call with them."""
        if len(groups) == 1:
            return groups
        ready = [
            group
            for group in groups
            if group.window.cached_answer(group.n, self._x[self._rows_of([group])]) is not None
        ]
        return ready or groups

    def _step_of(self, groups: list[SequenceGroup]) -> None:
        """One step of some groups."""
        rows = self._rows_of(groups)
        x = self._x[rows]
        steps = [group.n for group in groups]
        members = [Member(group.window, group.size, group.n) for group in groups]
        query = BatchedQuery(self._denoiser, members, self._transforms)
        move = self._move(groups, x, query)
        try:
            new = self._step(x, move)
        finally:
            query.end()
        self.num_evaluations += query.num_evaluations
        self._x = new if isinstance(rows, slice) and len(new) == len(self._x) else self._written(rows, new)
        if self._watch is not None:
            self._show(self._watch, groups, steps, x, new)
        for group in groups:
            group.n += 1
            own = self._rows_of([group])
            self._locate(group, own)
            if self._stop is not None:
                self._check_stop(self._stop, group, own)

    def _written(self, rows: slice | Tensor, new: Tensor) -> Tensor:
        """All tokens with new ones in some rows; frames keep the old ones."""
        tokens = self._x.clone()
        tokens[rows] = new
        return tokens

    def _move(self, groups: list[SequenceGroup], x: Tensor, query: BatchedQuery) -> Move:
        """The move of some groups, each at its own step."""
        plans = [(group.plan, group.row) for group in groups]

        def numbers(stream: int, each_step: bool) -> Tensor:
            parts = [plan.numbers(stream, each_step) for plan, _ in plans]
            if each_step:
                parts = [values[row] for values, (_, row) in zip(parts, plans, strict=True)]
            return concatenated(parts)

        seeds = [seed for group in groups for seed in group.own.randomness.seeds_of(group.size)]
        return Move(
            self._denoiser.process,
            x,
            concatenated([plan.t[row] for plan, row in plans]),
            concatenated([plan.s[row] for plan, row in plans]),
            concatenated([plan.moving[row] for plan, row in plans]),
            query.read,
            Randomness.of_rows(seeds),
            concatenated([group.own.sequence for group in groups]),
            concatenated([group.plan.steps[group.row].expand(group.size, 1) for group in groups]),
            begin=concatenated([group.own.begin for group in groups]),
            numbers=numbers,
        )

    def _locate(self, group: SequenceGroup, rows: slice | Tensor) -> None:
        """Go to the next step at which something may happen, or to the end."""
        first = group.n
        while group.n < group.end:
            if group.segment is None or group.n >= group.segment.end:
                group.segment = Segment(self._clock, group.own, self._x[rows], group.n, group.end)
            event = group.segment.next_event(group.n)
            group.n = group.segment.end if event is None else event
            if event is not None:
                break
        if self._watch is not None:
            for n in range(first, group.n):
                self._show(self._watch, [group], [n], self._x[rows], self._x[rows])

    def _show(
        self,
        watch: Callable[[Frame], None],
        groups: list[SequenceGroup],
        steps: list[int],
        before: Tensor,
        after: Tensor,
    ) -> None:
        """A frame for each step that has been made."""
        num_steps = self._hyperschedule.num_steps
        self._steps_done += len(after)
        n = torch.tensor([n for group, n in zip(groups, steps, strict=True) for _ in range(group.size)])
        n = n.to(after.device)
        sequence, fixed = (
            torch.cat([getattr(group.own, name) for group in groups]) for name in ("sequence", "fixed")
        )
        now, then = self._hyperschedule.levels(n), self._hyperschedule.levels(n + 1)
        moving, settled = (then < now) & ~fixed, ((then == 0) | fixed).long().cumprod(1).sum(1)
        ahead = sum((group.end - group.n) * group.size for group in self._groups) - len(after)
        share = self._steps_done / (self._steps_done + max(ahead, 0) + self.awaited * num_steps)
        for step in sorted(set(steps)):
            own = n == step
            seen = sequence[own], before[own], after[own], moving[own], settled[own]
            watch(Frame(step, num_steps, *seen, self.num_evaluations, share))

    def _check_stop(self, stop: Stop, group: SequenceGroup, rows: slice | Tensor) -> None:
        """Note where sequences stop whose finished beginning has grown."""
        level = self._hyperschedule.levels(torch.tensor(group.n, device=self._x.device))
        settled = ((level == 0) | group.own.fixed).long().cumprod(1).sum(1).tolist()
        if sum(settled) <= group.checked:
            return
        group.checked = sum(settled)
        names = group.own.sequence.tolist()
        for index, tokens in enumerate(self._x[rows]):
            if group.kept[index] is None:
                group.kept[index] = stop(names[index], tokens[: settled[index]])

    def _leave(self) -> list[Finished]:
        """Take out what is finished."""
        gone = [group for group in self._groups if group.n >= group.end or None not in group.kept]
        if not gone:
            return []
        done: list[Finished] = []
        for group in gone:
            lengths = [group.length if kept is None else kept for kept in group.kept]
            tokens = self._x[self._rows_of([group])][:, : group.length]
            counts = self._positions[: group.length] < torch.tensor(lengths, device=tokens.device)[:, None]
            if (counts & (tokens >= self._denoiser.process.num_words)).any():
                raise RuntimeError(
                    f"{self._step!r} left masks in finished text; a step must lift every mask on its way to s = 0."
                )
            done += [
                Finished(sequence, row, length, group.window.num_evaluations, group.window.num_computed)
                for sequence, row, length in zip(
                    group.own.sequence.tolist(), tokens.unbind(), lengths, strict=True
                )
            ]
        staying = [group for group in self._groups if group not in gone]
        self._x = self._x[self._rows_of(staying)]
        self._groups = staying
        return done

    def _rows_of(self, groups: list[SequenceGroup]) -> slice | Int[Tensor, " b"]:
        """Places of the sequences of some groups, in the order of the groups."""
        begins = itertools.accumulate((group.size for group in self._groups), initial=0)
        place = {id(group): begin for group, begin in zip(self._groups, begins, strict=False)}
        if len(groups) == 1:
            return slice(place[id(groups[0])], place[id(groups[0])] + groups[0].size)
        if len(groups) == len(self._groups):
            return slice(None)
        chosen = [row for group in groups for row in range(place[id(group)], place[id(group)] + group.size)]
        return torch.tensor(chosen, dtype=torch.long).to(self._x.device)


def _check_order(denoiser: AbstractDenoiser, hyperschedule: AbstractHyperschedule) -> None:
    """Refuse a hyperschedule along which a position is written before the position that predicts it is there."""
    if denoiser.lookback and not opens_left_to_right(hyperschedule, denoiser.lookback):
        raise ValueError(
            "A shifted network predicts a position from the output at the position before it, but along "
            f"{hyperschedule!r} some position is written while the one before it is not on the canvas yet. Use an "
            "aligned network, or a hyperschedule that opens its positions from left to right."
        )


def _check_first(denoiser: AbstractDenoiser, fixed: Bool[Tensor, "#b l"] | None) -> None:
    """Refuse sequences whose first positions a shifted network would have to predict."""
    lookback = denoiser.lookback
    if lookback and (fixed is None or not bool(fixed[:, :lookback].all())):
        raise ValueError(
            f"A shifted network says nothing of the first {lookback} position(s): give a prompt that begins with the "
            "begin-of-sequence token."
        )
