"""The engine: sequences that go back from noise to text, each at its own pace, and share network calls.

Every sequence has its own step `n`. A plan (`Segment`) lists the steps at which something may happen to it, and the
engine goes from one such step to the next. In an advance all sequences make one step, and the engine computes their
reads in one network call, although they are at different steps and have caches of different lengths. Sequences whose
last answer is still valid advance alone until they, too, need a call. Sequences are added (`add`), and removed when
they are finished or stopped. The engine holds the tokens and the plans; a `BatchedQuery` makes the calls, and a
`KVWindow` holds the results of earlier calls.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from hdlm.denoiser import AbstractDenoiser, Prediction, Question, resolve_device
from hdlm.hyperschedule import AbstractHyperschedule, opens_left_to_right
from hdlm.randomness import Randomness
from hdlm.regime import Regime
from hdlm.sampling.base import Move, Planned, RowTransforms, Step, Transform
from hdlm.sampling.engine.batching import BatchedQuery, CallNeeded, Member
from hdlm.sampling.engine.plan import Clock, Segment, Sequences, concatenated, events_at
from hdlm.sampling.engine.window import Execution, KVWindow
from hdlm.sampling.frame import Frame, Reads
from hdlm.sampling.loop import PRIOR

__all__ = ["Engine", "EngineRequest", "Finished", "Stop"]

Stop = Callable[[int, Int[Tensor, " p"]], int | None]
"""Function of a sequence's index in the run and its finished beginning: the number of tokens to keep if it ends."""

_EXACT = Execution()


@final
@dataclass(frozen=True, eq=False)
class EngineRequest:
    """What sequences of an engine have in common that were asked for together.

    Requests with different transforms share network calls. The tokens of a request do not depend on other requests.

    Attributes:
        transforms: Transforms of the distributions, in order, before draws.
        stop: Where its sequences may end before all their positions are written.
        watch: Called with a `Frame` of its own sequences after every step of any of them.
        every_step: Whether `watch` also gets every step in which nothing can happen; otherwise only the last one of
            several such steps in a row.
    """

    transforms: tuple[Transform, ...] = ()
    stop: Stop | None = None
    watch: Callable[[Frame], None] | None = None
    every_step: bool = True


@final
@dataclass(frozen=True)
class Finished:
    """A sequence that has left the engine.

    Attributes:
        request: The request of the sequence.
        sequence: Index of the sequence in the run.
        tokens: Tokens of the sequence.
        length: Number of valid tokens: all, or those before a stop.
        num_evaluations: Number of network calls that included the sequence.
        num_computed: Number of its positions that these calls have computed in total.
    """

    request: EngineRequest
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
        request: The request of the sequences.
        own: The constant data of the sequences.
        length: Number of positions of a sequence.
        end: The step at which the sequences are finished.
        window: Their keys and values, and the last answer.
        kept: Number of valid tokens of each sequence; None as long as none has stopped.
        segment: The plan of the next steps; None before the first step.
        n: Number of steps done; something may happen in the next step.
        checked: Number of tokens that have been searched for a stop.
    """

    request: EngineRequest
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
        """Number of sequences in the group."""
        return len(self.kept)

    @property
    def row(self) -> int:
        """Index of the next step in the plan."""
        return self.n - self.plan.begin

    @property
    def plan(self) -> Segment:
        """The plan of the next step."""
        if self.segment is None:
            raise RuntimeError("The sequences have no plan yet; `Engine._locate` makes one.")
        return self.segment


@final
@dataclass(eq=False)
class EngineTurn:
    """One step of some groups, which may have been prepared up to its first network call.

    Attributes:
        groups: The groups that make the step.
        x: Their tokens before it.
        query: The network calls of the step.
        move: The inputs of the step.
        reads: Outputs that the step has read, if somebody watches.
        new: Their tokens after it, if it needed no call.
    """

    groups: list[SequenceGroup]
    x: Int[Tensor, "b l"]
    query: BatchedQuery
    move: Move
    reads: Reads | None
    new: Int[Tensor, "b l"] | None = None


@final
class Engine:
    """Sequences between noise and text.

    The step and the regime of an engine apply to all its sequences, so the sequences can share network calls. Seed,
    prompt and length are given to `add`. Transforms, stop and watcher belong to an `EngineRequest`; sequences that are
    added without a request have those of the engine.

    Args:
        denoiser: Model of `p(x_0 | x_t)`.
        regime: When positions are noisy, and the attention; its length is the maximum length of a sequence.
        step: The sampling step.
        seed: Default seed of all random numbers.
        transforms: Transforms of the distribution, in order, before draws.
        execution: Cache and device settings. The number of sequences depends on the calls of `add`.
        stop: Where sequences may end before all their positions are written.
        watch: Called with a `Frame` after every step of any sequences.

    Attributes:
        denoiser: Model of `p(x_0 | x_t)`; engines with one denoiser can share network calls.
        num_evaluations: Number of network calls so far.
        awaited: Number of sequences that will still be added, for the `share` of frames.

    Raises:
        ValueError: If the denoiser is on another device, its network is shifted and the hyperschedule does not run from
            left to right, or an approximate cache does not fit.
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
        self.denoiser, self._hyperschedule, self._step = denoiser, hyperschedule, step
        self._seed, self._request = seed, EngineRequest(tuple(transforms), stop, watch)
        self._regime, self._execution = regime, execution
        self._prior = regime.final_noise
        noise = regime.noise_of_levels().to(device)
        self._clock = Clock(hyperschedule, noise, step, denoiser.process)
        self._begin = noise[hyperschedule.levels(0).to(device)]
        self._never = hyperschedule.never_written.to(device)
        self._any_never = bool(hyperschedule.never_written.any())
        self._positions = torch.arange(hyperschedule.length, device=device)
        self._groups: list[SequenceGroup] = []
        self._turn: EngineTurn | None = None
        self._steps_done = 0
        self._x = self._positions[:0].view(0, hyperschedule.length)

    def __len__(self) -> int:
        """Number of unfinished sequences."""
        return len(self._x)

    def add(
        self,
        sequence: Int[Tensor, " b"],
        *,
        tokens: Int[Tensor, "#b l"] | None = None,
        fixed: Bool[Tensor, "#b l"] | None = None,
        is_draft: bool = False,
        length: int | None = None,
        seed: int | Int[Tensor, " seeds"] | None = None,
        together: bool = False,
        request: EngineRequest | None = None,
    ) -> None:
        """Add sequences, at any time.

        Args:
            sequence: Index of each sequence in the run, which its random numbers depend on.
            tokens: Given tokens of the sequences.
            fixed: Where tokens are given; they are kept.
            is_draft: Whether the sequences begin with `tokens` at the other positions, too, and not with noise.
            length: Number of positions to write; all of the hyperschedule by default.
            seed: Seed of the sequences' random numbers, one for all or one for each; by default that of the engine. The
                tokens of a sequence depend on its seed and its index, not on other sequences.
            together: Whether the sequences share steps and network calls, as a denoiser requires that does not pack
                queries; otherwise each sequence advances at its own pace.
            request: The request of the sequences; by default that of the engine.

        Raises:
            ValueError: If the length does not fit the canvas, the number of seeds differs from that of the sequences, a
                shifted network gets no first tokens, or a position that begins at level 0 is not given.
        """
        self._check_idle()
        length = check_length(length, self._hyperschedule.length)
        check_first(self.denoiser, fixed)
        seeds = seeds_of(seed, self._seed, len(sequence))
        start = Randomness.of_rows(seeds).uniform(sequence[:, None], 0, self._positions[None], PRIOR)
        x = self.denoiser.process.draw_prior(torch.full_like(start, self._prior), start)
        held = torch.zeros_like(x, dtype=torch.bool)
        if tokens is not None and fixed is not None:
            begins = torch.ones_like(fixed) if is_draft else fixed
            x, held = torch.where(begins, tokens, x), fixed.expand_as(x).clone()
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
                self.denoiser,
                self._regime,
                self._execution,
                fixed=held[place],
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
            asked = self._request if request is None else request
            self._groups.append(SequenceGroup(asked, same, length, max(ends[place]), window, kept))

    def remove(self, request: EngineRequest) -> None:
        """Remove the sequences of a request, at any time. It changes no token of the others."""
        self._check_idle()
        self._keep([group for group in self._groups if group.request is not request])

    def _check_idle(self) -> None:
        """Refuse a change of the sequences while a step is prepared.

        Raises:
            RuntimeError: If a step is prepared.
        """
        if self._turn is not None:
            raise RuntimeError("A step is prepared: call `advance` before sequences are added or removed.")

    def _check_given(self, held: Bool[Tensor, "b l"]) -> None:
        """Refuse a position that begins at level 0 and is not given: no step would write it."""
        missing = (self._never & ~held).any(0).nonzero()[:, 0].tolist()
        if missing:
            raise ValueError(
                f"Position {missing[0]} begins at level 0 in {self._hyperschedule!r}, so no step writes it, and no "
                f"token is given there ({len(missing)} such position(s)). Give a token in the prompt, or let it "
                "begin at a level above 0."
            )

    def prepare(self) -> list[Question]:
        """Run the next step up to its first network call, which several engines may share.

        If there are questions, `answer` gets the prediction for them. Then `advance` completes the step. Sequences
        cannot be added or removed before that.

        Returns:
            The questions of that call; none if the step needs no call.
        """
        self._check_idle()
        self._turn = turn = self._next_turn()
        if turn is None:
            return []
        turn.query.defers = True
        try:
            turn.new = self._step(turn.x, turn.move)
        except CallNeeded:
            return turn.query.questions
        return []

    def answer(self, prediction: Prediction, begin: int) -> None:
        """Give the answer to the questions of `prepare`; its rows start at index `begin` of the prediction.

        Raises:
            RuntimeError: If no step is prepared.
        """
        if self._turn is None:
            raise RuntimeError("No step is prepared: call `prepare` first.")
        self._turn.query.answer(prediction, begin)
        self.num_evaluations += 1

    def advance(self) -> list[Finished]:
        """Make one step of at least one sequence, in which something may happen, with at most a few network calls.

        Returns:
            The finished sequences, which are removed from the engine.

        Raises:
            RuntimeError: If the step leaves a mask in a finished sequence.
        """
        turn, self._turn = self._next_turn() if self._turn is None else self._turn, None
        if turn is not None:
            self._complete(turn)
        return self._leave()

    # -- one step -------------------------------------------------------------------------------------------

    def _first(self, groups: list[SequenceGroup]) -> list[SequenceGroup]:
        """The groups whose last answer is still valid, if there are any; otherwise all groups, which share a call."""
        if len(groups) == 1:
            return groups
        ready = [
            group
            for group in groups
            if group.window.cached_answer(group.n, self._x[self._rows_of([group])]) is not None
        ]
        return ready or groups

    def _next_turn(self) -> EngineTurn | None:
        """The next step of the sequences that can advance; None if all of them are finished."""
        for group in self._groups:
            if group.segment is None:
                self._locate(group, self._rows_of([group]))
        waiting = [group for group in self._groups if group.n < group.end and None in group.kept]
        if not waiting:
            return None
        groups = self._first(waiting)
        x = self._x[self._rows_of(groups)]
        members = [Member(group.window, group.size, group.n) for group in groups]
        query = BatchedQuery(self.denoiser, members, self._transforms_of(groups))
        move = self._move(groups, x, query)
        if all(group.request.watch is None for group in groups):
            return EngineTurn(groups, x, query, move, None)
        reads = Reads(query.read, move.t)
        return EngineTurn(groups, x, query, replace(move, ask=reads.ask), reads)

    def _complete(self, turn: EngineTurn) -> None:
        """Make a step, which may have been prepared."""
        groups, x, steps = turn.groups, turn.x, [group.n for group in turn.groups]
        try:
            new = self._step(x, turn.move) if turn.new is None else turn.new
        finally:
            turn.query.end()
        self.num_evaluations += turn.query.num_evaluations
        rows = self._rows_of(groups)
        self._x = new if isinstance(rows, slice) and len(new) == len(self._x) else self._written(rows, new)
        self._show(groups, steps, x, new, turn.reads)
        for group in groups:
            group.n += 1
            own = self._rows_of([group])
            self._locate(group, own)
            if group.request.stop is not None:
                self._check_stop(group.request.stop, group, own)

    def _transforms_of(self, groups: list[SequenceGroup]) -> tuple[Transform, ...] | RowTransforms:
        """The transforms of some groups, for each row if they differ."""
        first = groups[0].request.transforms
        if all(group.request.transforms == first for group in groups):
            return first
        return RowTransforms(tuple(group.request.transforms for group in groups for _ in range(group.size)))

    def _written(self, rows: slice | Tensor, new: Tensor) -> Tensor:
        """All tokens, with new tokens in some rows; frames keep the old tensor."""
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

        t = concatenated([plan.t[row] for plan, row in plans])
        s = concatenated([plan.s[row] for plan, row in plans])
        moving = concatenated([plan.moving[row] for plan, row in plans])
        process, begin = self.denoiser.process, concatenated([group.own.begin for group in groups])
        seeds = [seed for group in groups for seed in group.own.randomness.seeds_of(group.size)]
        return Move(
            process,
            x,
            t,
            s,
            moving,
            query.read,
            Randomness.of_rows(seeds),
            concatenated([group.own.sequence for group in groups]),
            concatenated([group.plan.steps[group.row].expand(group.size, 1) for group in groups]),
            begin=begin,
            remasked=not isinstance(self._step, Planned) or self._step.remasks,
            numbers=numbers,
            planned=events_at(plans, (process, t, s, moving, begin, numbers)),
            self_conditioned=self.denoiser.self_conditioned,
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
        if group.request.watch is not None:
            for n in range(first if group.request.every_step else max(first, group.n - 1), group.n):
                self._show([group], [n], self._x[rows], self._x[rows])

    def _show(
        self,
        groups: list[SequenceGroup],
        steps: list[int],
        before: Tensor,
        after: Tensor,
        reads: Reads | None = None,
    ) -> None:
        """Send each watcher a frame for each step that was made."""
        self._steps_done += len(after)
        rows = [(group, n) for group, n in zip(groups, steps, strict=True) for _ in range(group.size)]
        watched = dict.fromkeys((group.request, n) for group, n in rows if group.request.watch is not None)
        if not watched:
            return
        n = torch.tensor([n for _, n in rows], device=after.device)
        sequence, fixed = (
            torch.cat([getattr(group.own, name) for group in groups]) for name in ("sequence", "fixed")
        )
        now, then = self._hyperschedule.levels(n), self._hyperschedule.levels(n + 1)
        moving, settled = (then < now) & ~fixed, ((then == 0) | fixed).long().cumprod(1).sum(1)
        for request, step in sorted(watched, key=lambda pair: pair[1]):
            chosen = [n == step and group.request is request for group, n in rows]
            own = torch.tensor(chosen, device=after.device)
            seen = sequence[own], before[own], after[own], moving[own], fixed, settled[own]
            windows = [group.window for (group, _), mine in zip(rows, chosen, strict=True) if mine]
            costs = tuple(w.num_evaluations for w in windows), tuple(w.num_computed for w in windows)
            whole = step, self._hyperschedule.num_steps
            frame = Frame(*whole, *seen, *costs, self.num_evaluations, self._share(after), reads, own)
            if request.watch is not None:
                request.watch(frame)
        if reads is not None:
            reads.end()

    def _share(self, after: Tensor) -> float:
        """The share of all steps that are done, after a step of some rows."""
        ahead = sum((group.end - group.n) * group.size for group in self._groups) - len(after)
        num_steps = self._hyperschedule.num_steps
        return self._steps_done / (self._steps_done + max(ahead, 0) + self.awaited * num_steps)

    def _check_stop(self, stop: Stop, group: SequenceGroup, rows: slice | Tensor) -> None:
        """Record the stops of sequences whose finished beginning has grown."""
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
        """Remove finished sequences and return them."""
        gone = [group for group in self._groups if group.n >= group.end or None not in group.kept]
        if not gone:
            return []
        done: list[Finished] = []
        for group in gone:
            lengths = [group.length if kept is None else kept for kept in group.kept]
            tokens = self._x[self._rows_of([group])][:, : group.length]
            costs = group.window.num_evaluations, group.window.num_computed
            counts = self._positions[: group.length] < torch.tensor(lengths, device=tokens.device)[:, None]
            if (counts & (tokens >= self.denoiser.process.num_words)).any():
                raise RuntimeError(
                    f"{self._step!r} left masks in finished text; a step to s = 0 must replace every mask."
                )
            done += [
                Finished(group.request, sequence, row, length, *costs)
                for sequence, row, length in zip(
                    group.own.sequence.tolist(), tokens.unbind(), lengths, strict=True
                )
            ]
        self._keep([group for group in self._groups if group not in gone])
        return done

    def _keep(self, staying: list[SequenceGroup]) -> None:
        """Remove all other groups."""
        self._x = self._x[self._rows_of(staying)]
        self._groups = staying

    def _rows_of(self, groups: list[SequenceGroup]) -> slice | Int[Tensor, " b"]:
        """Row indices of the sequences of some groups, in the order of the groups."""
        begins = itertools.accumulate((group.size for group in self._groups), initial=0)
        place = {id(group): begin for group, begin in zip(self._groups, begins, strict=False)}
        if len(groups) == 1:
            return slice(place[id(groups[0])], place[id(groups[0])] + groups[0].size)
        if len(groups) == len(self._groups):
            return slice(None)
        chosen = [row for group in groups for row in range(place[id(group)], place[id(group)] + group.size)]
        return torch.tensor(chosen, dtype=torch.long).to(self._x.device)


def _check_order(denoiser: AbstractDenoiser, hyperschedule: AbstractHyperschedule) -> None:
    """Refuse a hyperschedule that writes a position before the position from which it is predicted."""
    if denoiser.lookback and not opens_left_to_right(hyperschedule, denoiser.lookback):
        raise ValueError(
            "A shifted network predicts a position from the output at the position before it, but along "
            f"{hyperschedule!r} some position is written while the one before it is not on the canvas yet. Use an "
            "aligned network, or a hyperschedule that opens its positions from left to right."
        )


def check_length(length: int | None, canvas: int) -> int:
    """The number of positions to write: by default all of the canvas.

    Raises:
        ValueError: If the number is not positive, or larger than that of the canvas.
    """
    if length is None:
        return canvas
    if not 1 <= length <= canvas:
        raise ValueError(f"`length` must lie in [1, {canvas}], the positions of the canvas; got {length}.")
    return length


def seeds_of(seed: int | Tensor | None, default: int, count: int) -> list[int]:
    """A seed for each of `count` sequences.

    Raises:
        ValueError: If there are seeds, and not one for each sequence.
    """
    if isinstance(seed, Tensor):
        if seed.shape != (count,):
            raise ValueError(
                f"`seed` must be one integer, or {count}, one for each sequence; got shape {tuple(seed.shape)}."
            )
        return [int(value) for value in seed]
    return [default if seed is None else seed] * count


def check_first(denoiser: AbstractDenoiser, fixed: Bool[Tensor, "#b l"] | None) -> None:
    """Refuse sequences whose first positions are not given although a shifted network cannot predict them."""
    lookback = denoiser.lookback
    if lookback and (fixed is None or not bool(fixed[:, :lookback].all())):
        raise ValueError(
            f"A shifted network does not predict the first {lookback} position(s): give a prompt that begins with the "
            "begin-of-sequence token."
        )
