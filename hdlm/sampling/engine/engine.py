"""The engine: sequences that walk back from noise, each at its own pace, and ask the network together.

Every sequence has a step `n` of its own. An advance tries the step of all of them; the network is asked when somebody
wants to read its answer, and only about sequences that are read. Those for which nothing need be read go on alone until
they, too, have a question: so one call of the network serves all, though they stand at different steps, behind caches
of different lengths. Sequences come (`add`) and go when they are finished or stopped.

The engine has the clock and the tokens; what is asked is the business of a `Talk`, and what is remembered that of a
`Memory`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hdlm.denoiser import AbstractDenoiser, placed
from hdlm.hyperschedule import AbstractHyperschedule, opens_rightwards
from hdlm.noise_schedule import LINEAR, AbstractNoiseSchedule
from hdlm.randomness import Randomness
from hdlm.sampling.base import Move, Step, Transform
from hdlm.sampling.engine.batching import QuietError, Speaker, Talk
from hdlm.sampling.engine.window import Memory, View

__all__ = ["Engine", "Finished", "Frame", "Stop"]

Stop = Callable[[int, Int[Tensor, " p"]], int | None]
"""Told the index of a sequence in the run and its finished beginning, says how many tokens to keep if it ends there."""

_PRIOR = 2**32 - 1
"""The random stream of the noise in which generation begins."""
_EXACT = View()


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


@dataclass
class _Group:
    """Sequences that are always at the same step.

    Attributes:
        seeds: Of each of them.
        length: How many positions they have.
        end: The step at which they are finished.
        memory: What the network remembers of them.
        n: Steps done.
        kept: How many tokens of each count; None as long as nothing has stopped it.
        checked: How many tokens have been looked at for a stop.
    """

    seeds: list[int]
    length: int
    end: int
    memory: Memory
    kept: list[int | None]
    n: int = 0
    checked: int = 0

    @property
    def size(self) -> int:
        return len(self.seeds)


@final
class Engine:
    """Sequences on their way from noise to text.

    One engine serves one way of writing: the step, the transforms, the hyperschedule and the stop are those of all its
    sequences, which is why their questions can share a call. Seed, prompt and length are those of a request (`add`).

    Args:
        denoiser: Knows `p(x_0 | x_t)`.
        hyperschedule: When each position is noisy; its length is the most that a sequence may have.
        step: How to walk back.
        seed: Of all random numbers of those who bring none.
        transforms: Applied in order before draws.
        noise_schedule: From a position's time, `level / num_levels`, to its noise fraction.
        sampling_eps: Read times off the published grid with this margin instead.
        view: Who sees whom.
        stop: Where sequences may end before all their positions are written.
        device: Where tokens are; that of the denoiser by default, and no other.
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
        hyperschedule: AbstractHyperschedule,
        step: Step,
        *,
        seed: int = 0,
        transforms: Sequence[Transform] = (),
        noise_schedule: AbstractNoiseSchedule = LINEAR,
        sampling_eps: float | None = None,
        view: View = _EXACT,
        stop: Stop | None = None,
        device: torch.device | str | None = None,
        watch: Callable[[Frame], None] | None = None,
    ) -> None:
        device = placed(denoiser, device)
        view.check(denoiser)
        _check_order(denoiser, hyperschedule)
        self.num_evaluations, self.awaited = 0, 0
        self._denoiser, self._hyperschedule, self._step = denoiser, hyperschedule, step
        self._seed, self._transforms, self._view = seed, tuple(transforms), view
        self._stop, self._watch = stop, watch
        self._prior = float(noise_schedule.fraction(torch.ones((), dtype=torch.float64)))
        self._noise = _noise_of_levels(hyperschedule, noise_schedule, sampling_eps).to(device)
        self._never = hyperschedule.never_written.to(device)
        self._any_never = bool(self._never.any())
        self._positions = torch.arange(hyperschedule.length, device=device)
        self._groups: list[_Group] = []
        self._steps_done = 0
        self._sequence = self._positions[:0]
        self._x = self._sequence.view(0, hyperschedule.length)
        self._fixed = self._x.bool()

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
        start = Randomness.of_rows(seeds).uniform(sequence[:, None], 0, self._positions[None], _PRIOR)
        x = self._denoiser.process.draw_prior(torch.full_like(start, self._prior), start)
        held = torch.zeros_like(x, dtype=torch.bool)
        if tokens is not None and fixed is not None:
            x, held = torch.where(fixed, tokens, x), fixed.expand_as(x).clone()
        held[:, length:] = True
        if self._any_never:
            self._check_given(held)
        self._x, self._fixed = torch.cat([self._x, x]), torch.cat([self._fixed, held])
        self._sequence = torch.cat([self._sequence, sequence])
        settles = self._hyperschedule.settles.to(x.device).expand_as(x).masked_fill(held, 0)
        ends = settles.amax(1).tolist()
        parts = (
            [(seeds, max(ends))] if together else [([one], end) for one, end in zip(seeds, ends, strict=True)]
        )
        for own, end in parts:
            whose = self._denoiser, self._hyperschedule, self._view
            memory = Memory(*whose, size=len(own), length=length, device=x.device)
            self._groups.append(_Group(own, length, end, memory, [None] * len(own)))

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
        """Go on until at least one sequence has made a step; at most a few calls of the network.

        Returns:
            The sequences that are finished, which leave the engine.

        Raises:
            RuntimeError: If the step leaves a mask in a finished sequence.
        """
        if self._groups:
            self._go(list(range(len(self._groups))))
        return self._leave()

    # -- one step -------------------------------------------------------------------------------------------

    def _go(self, groups: list[int]) -> None:
        """One step of some groups; if only some of them have a question, of those that have none."""
        rows, members = self._rows(groups), [self._groups[number] for number in groups]
        x, fixed, sequence = self._x[rows], self._fixed[rows], self._sequence[rows]
        n = torch.tensor([one.n for one in members for _ in range(one.size)], device=x.device)
        now, then = self._hyperschedule.levels(n), self._hyperschedule.levels(n + 1)
        moving = (then < now) & ~fixed
        new = x
        if moving.any():
            t, s = (self._noise[level].masked_fill(fixed, 0.0) for level in (now, then))
            speakers = [Speaker(one.memory, one.size, one.n) for one in members]
            talk = Talk(self._denoiser, speakers, self._transforms)
            randomness = Randomness.of_rows([seed for one in members for seed in one.seeds])
            process = self._denoiser.process
            move = Move(process, x, t, s, moving, talk.ask, randomness, sequence, n[:, None])
            try:
                new = self._step(x, move)
            except QuietError as found:
                self._go([groups[place] for place in found.quiet])
                return
            finally:
                talk.end()
            self.num_evaluations += talk.num_evaluations
        self._x[rows] = new
        for one in members:
            one.n += 1
        if self._watch is not None or self._stop is not None:
            settled = ((then == 0) | fixed).long().cumprod(1).sum(1)
            if self._watch is not None:
                self._show(self._watch, sequence, n, (x, new), moving, settled)
            if self._stop is not None:
                self._look_for_an_end(self._stop, groups, settled)

    def _show(
        self,
        watch: Callable[[Frame], None],
        sequence: Tensor,
        n: Tensor,
        tokens: tuple[Tensor, Tensor],
        moving: Tensor,
        settled: Tensor,
    ) -> None:
        """A frame for each step that has been made."""
        num_steps = self._hyperschedule.num_steps
        self._steps_done += len(n)
        ahead = sum((group.end - group.n) * group.size for group in self._groups)
        share = self._steps_done / (self._steps_done + max(ahead, 0) + self.awaited * num_steps)
        for step in n.unique().tolist():
            own = n == step
            seen = sequence[own], tokens[0][own], tokens[1][own], moving[own], settled[own]
            watch(Frame(step, num_steps, *seen, self.num_evaluations, share))

    def _look_for_an_end(self, stop: Stop, groups: list[int], settled: Tensor) -> None:
        """Note where sequences stop whose finished beginning has grown."""
        row = 0
        for number in groups:
            group = self._groups[number]
            known = int(settled[row : row + group.size].sum())
            if known > group.checked:
                group.checked = known
                begin = int(self._rows([number])[0])
                for index in range(group.size):
                    if group.kept[index] is None:
                        own = self._x[begin + index, : int(settled[row + index])]
                        group.kept[index] = stop(int(self._sequence[begin + index]), own)
            row += group.size

    def _leave(self) -> list[Finished]:
        """Take out what is finished."""
        done: list[Finished] = []
        staying: list[int] = []
        rows = self._rows(range(len(self._groups))).split([group.size for group in self._groups])
        for number, (group, own) in enumerate(zip(self._groups, rows, strict=True)):
            if group.n < group.end and None in group.kept:
                staying.append(number)
                continue
            lengths = [group.length if kept is None else kept for kept in group.kept]
            tokens = self._x[own, : group.length]
            counts = self._positions[: group.length] < torch.tensor(lengths, device=own.device)[:, None]
            if (counts & (tokens >= self._denoiser.process.num_words)).any():
                raise RuntimeError(
                    f"{self._step!r} left masks in finished text; a step must lift every mask on its way to s = 0."
                )
            done += [
                Finished(sequence, row, length, group.memory.num_evaluations, group.memory.num_computed)
                for sequence, row, length in zip(
                    self._sequence[own].tolist(), tokens.unbind(), lengths, strict=True
                )
            ]
        if done:
            left = self._rows(staying)
            self._x, self._fixed, self._sequence = self._x[left], self._fixed[left], self._sequence[left]
            self._groups = [self._groups[number] for number in staying]
        return done

    def _rows(self, groups: Sequence[int] | range) -> Int[Tensor, " b"]:
        """Places of the sequences of some groups."""
        begins = [0, *itertools.accumulate(group.size for group in self._groups)]
        chosen = [row for number in groups for row in range(begins[number], begins[number + 1])]
        return torch.tensor(chosen, dtype=torch.long, device=self._x.device)


def _check_order(denoiser: AbstractDenoiser, hyperschedule: AbstractHyperschedule) -> None:
    """Refuse a hyperschedule along which a position is written before the position that predicts it is there."""
    if denoiser.lookback and not opens_rightwards(hyperschedule, denoiser.lookback):
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


def _noise_of_levels(
    hyperschedule: AbstractHyperschedule, noise_schedule: AbstractNoiseSchedule, sampling_eps: float | None
) -> Float[Tensor, " levels"]:
    """Noise fraction of each level; exactly 0 where a position is settled."""
    levels = torch.arange(hyperschedule.num_levels + 1)
    even = levels.double() / hyperschedule.num_levels
    time = even if sampling_eps is None else hyperschedule.time_grid(sampling_eps)
    return torch.where(levels > 0, noise_schedule.fraction(time), 0.0)
