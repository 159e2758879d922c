"""The engine: sequences that walk back from noise, each at its own pace, and ask the network together.

Every sequence has a step `n` of its own. An advance tries the step of all of them; the network is asked when somebody
wants to read its answer, and only about sequences that are read. Those for which nothing need be read go on alone until
they, too, have a question: so one call of the network serves all, though they stand at different steps, behind caches
of different lengths. Sequences come (`add`) and go when they are finished or stopped.

What a call computes is a *window*: positions that are active, and those that have settled since the last call; settled
ones leave keys and values in the cache and are never computed again, worthless ones are absent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hdlm.attention import Active, Context, generation
from hdlm.denoiser import AbstractDenoiser, Prediction, Question, joined
from hdlm.denoiser import Context as Asked
from hdlm.hyperschedule import AbstractHyperschedule
from hdlm.noise_schedule import LINEAR, AbstractNoiseSchedule
from hdlm.randomness import Randomness
from hdlm.sampling.base import Answer, Move, Reading, Step, Transform

__all__ = ["ApproximateCache", "Engine", "Finished", "Frame", "Stop", "View"]

Stop = Callable[[int, Int[Tensor, " p"]], int | None]
"""Told the index of a sequence in the run and its finished beginning, says how many tokens to keep if it ends there."""

_PRIOR = 2**32 - 1
"""The random stream of the noise in which generation begins."""


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
    """

    sequence: int
    tokens: Int[Tensor, " l"]
    length: int
    num_evaluations: int


@final
@dataclass(frozen=True)
class ApproximateCache:
    """Remember settled positions although their view grows, as it does where `context` is `"full"` (the prefix cache).

    Keys and values are those of the call after which a position settled. It changes logits: a heuristic of its own for
    networks trained with full attention (Fast-dLLM, arXiv 2505.22618).

    Attributes:
        refresh: Everything is computed anew at every so many calls (at least 1, which is exact); None for never.
    """

    refresh: int | None = None

    def __post_init__(self) -> None:
        if self.refresh is not None and self.refresh < 1:
            raise ValueError(f"`refresh` of an approximate cache must be at least 1; got {self.refresh}.")


@final
@dataclass(frozen=True)
class View:
    """Who sees whom, and what is remembered.

    Attributes:
        context: What settled positions see of one another.
        active: What active positions see of one another.
        use_cache: Whether settled positions are computed once, where that is exact: it changes no logit. Where settled
            positions look at later ones (`context` is `"full"`), it is not done.
        approximate: How to do it there all the same.
    """

    context: Context = "block_causal"
    active: Active = "full"
    use_cache: bool = True
    approximate: ApproximateCache | None = None

    def __post_init__(self) -> None:
        if self.approximate is not None and self.context != "full":
            raise ValueError(
                f"An approximate cache is for context='full'; with context={self.context!r} there is an exact one: "
                "leave `approximate` out."
            )

    @property
    def remembers(self) -> bool:
        """Whether there is a cache, exact or not."""
        return self.use_cache and (self.context != "full" or self.approximate is not None)

    def forgets(self, calls: int) -> bool:
        """Whether everything is to be computed anew after so many calls."""
        every = None if self.approximate is None else self.approximate.refresh
        return every is not None and calls % every == 0


@dataclass
class _Group:
    """Sequences that are always at the same step, and what the network remembers of them."""

    size: int
    length: int
    end: int
    cache: Any
    in_cache: Bool[Tensor, " l"]
    cached: Int[Tensor, " k"]
    evaluations: int = 0
    checked: int = 0
    kept: list[int | None] = field(default_factory=list)
    asked: tuple[tuple[int, int], Int[Tensor, " q"], Int[Tensor, "g q"]] | None = None
    answer: Answer | None = None


class _QuietError(Exception):
    """Raised to let sequences go on for which the network need not be asked."""

    def __init__(self, groups: list[int]) -> None:
        self.groups = groups


@final
class Engine:
    """Sequences on their way from noise to text.

    Args:
        denoiser: Knows `p(x_0 | x_t)`.
        hyperschedule: When each position is noisy; its length is the most that a sequence may have.
        step: How to walk back.
        seed: Of all random numbers.
        transforms: Applied in order before draws.
        noise_schedule: From a position's time, `level / num_levels`, to its noise fraction.
        sampling_eps: Read times off the published grid with this margin instead.
        view: Who sees whom.
        stop: Where sequences may end before all their positions are written.
        device: Where tokens live; that of the denoiser.
        watch: Called with a `Frame` after every step of any sequences.

    Attributes:
        num_evaluations: Calls of the network so far.
        awaited: How many sequences are still to come, for the `share` of frames.
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
        view: View = View(),
        stop: Stop | None = None,
        device: torch.device | str = "cpu",
        watch: Callable[[Frame], None] | None = None,
    ) -> None:
        self.num_evaluations, self.awaited = 0, 0
        self._denoiser, self._hyperschedule, self._step = denoiser, hyperschedule, step
        self._randomness, self._transforms, self._view = Randomness(seed), tuple(transforms), view
        self._stop, self._watch = stop, watch
        self._prior = float(noise_schedule.fraction(torch.ones((), dtype=torch.float64)))
        self._noise = _noise_of_levels(hyperschedule, noise_schedule, sampling_eps).to(device)
        self._positions = torch.arange(hyperschedule.length, device=device)
        self._groups: list[_Group] = []
        self._steps_done = 0
        nothing = self._positions[:0]
        self._x, self._n, self._sequence = nothing.view(0, hyperschedule.length), nothing, nothing
        self._fixed = self._x.bool()

    def __len__(self) -> int:
        """How many sequences are on their way."""
        return len(self._n)

    def add(
        self,
        sequence: Int[Tensor, " b"],
        *,
        tokens: Int[Tensor, "#b l"] | None = None,
        fixed: Bool[Tensor, "#b l"] | None = None,
        length: int | None = None,
        together: bool = False,
    ) -> None:
        """Let sequences in.

        Args:
            sequence: Index of each in the run, on which its random numbers depend.
            tokens: Given tokens.
            fixed: Where tokens are given; they are kept.
            length: How many positions are written; all of the hyperschedule by default.
            together: Whether they share steps and calls of the network, as they must for a denoiser that does not
                pack questions; else each goes at its own pace.

        Raises:
            ValueError: If the length does not fit the canvas.
        """
        canvas = self._hyperschedule.length
        length = canvas if length is None else length
        if not 1 <= length <= canvas:
            raise ValueError(
                f"`length` must lie in [1, {canvas}], the positions of the canvas; got {length}."
            )
        start = self._randomness.uniform(sequence[:, None], 0, self._positions[None], _PRIOR)
        x = self._denoiser.process.draw_prior(torch.full_like(start, self._prior), start)
        held = torch.zeros_like(x, dtype=torch.bool)
        if tokens is not None and fixed is not None:
            x, held = torch.where(fixed, tokens, x), fixed.expand_as(x).clone()
        held[:, length:] = True
        self._x, self._fixed = torch.cat([self._x, x]), torch.cat([self._fixed, held])
        self._sequence = torch.cat([self._sequence, sequence])
        self._n = torch.cat([self._n, torch.zeros_like(sequence)])
        settles = self._hyperschedule.settles.to(x.device).expand_as(x).masked_fill(held, 0)
        ends = settles.amax(1).tolist()
        sizes = [(len(sequence), max(ends))] if together else [(1, end) for end in ends]
        for size, end in sizes:
            cache = self._denoiser.new_cache() if self._view.remembers else None
            nothing = torch.zeros(canvas, dtype=torch.bool, device=x.device)
            kept: list[int | None] = [None] * size
            self._groups.append(_Group(size, length, end, cache, nothing, self._positions[:0], kept=kept))

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
        rows = self._rows(groups)
        x, n, fixed, sequence = self._x[rows], self._n[rows], self._fixed[rows], self._sequence[rows]
        now, then = self._hyperschedule.levels(n), self._hyperschedule.levels(n + 1)
        moving = (then < now) & ~fixed
        new = x
        if moving.any():
            t, s = (self._noise[level].masked_fill(fixed, 0.0) for level in (now, then))
            talk = _Talk(self, groups, len(groups) > 1)
            process = self._denoiser.process
            move = Move(process, x, t, s, moving, talk.ask, self._randomness, sequence, n[:, None])
            try:
                new = self._step(x, move)
            except _QuietError as found:
                self._go(found.groups)
                return
        self._x[rows], self._n[rows] = new, n + 1
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
        ahead = sum(group.end * group.size for group in self._groups) - int(self._n.sum())
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
            if int(self._n[own[0]]) < group.end and None in group.kept:
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
                Finished(sequence, row, length, group.evaluations)
                for sequence, row, length in zip(
                    self._sequence[own].tolist(), tokens.unbind(), lengths, strict=True
                )
            ]
        if done:
            left = self._rows(staying)
            self._x, self._n, self._fixed = self._x[left], self._n[left], self._fixed[left]
            self._sequence = self._sequence[left]
            self._groups = [self._groups[number] for number in staying]
        return done

    def _rows(self, groups: Sequence[int] | range) -> Int[Tensor, " b"]:
        """Places of the sequences of some groups."""
        sizes = [group.size for group in self._groups]
        begins = torch.tensor([0, *sizes]).cumsum(0).tolist()
        chosen = [torch.arange(begins[number], begins[number + 1]) for number in groups]
        return torch.cat(chosen).to(self._n.device) if chosen else self._positions[:0]

    # -- the network ----------------------------------------------------------------------------------------

    def remembered(self, groups: list[int], x: Int[Tensor, "b l"]) -> dict[int, Answer]:
        """Answers that still hold, by the place of the group: a network told no time, and the same tokens in view."""
        found: dict[int, Answer] = {}
        if not self._denoiser.timeless:
            return found
        for place, (number, own) in enumerate(zip(groups, self._split(groups, x), strict=True)):
            group = self._groups[number]
            if group.asked is None or group.answer is None:
                continue
            seen, window, tokens = group.asked
            if seen == self._seen(number)[0] and torch.equal(own[:, window], tokens):
                found[place] = group.answer
        return found

    def consult(
        self, groups: list[int], x: Int[Tensor, "b l"], u: Float[Tensor, "b l"], places: list[int]
    ) -> dict[int, Answer]:
        """Ask the network, once, about the groups at some places of a list; answers by place."""
        tokens, noise = self._split(groups, x), self._split(groups, u)
        windows, questions = [], []
        for place in places:
            window, question = self._question(groups[place], tokens[place], noise[place])
            windows.append(window)
            questions.append(question)
        prediction = self._denoiser.predict_many(questions)
        self.num_evaluations += 1
        found: dict[int, Answer] = {}
        begin = 0
        for place, window, question in zip(places, windows, questions, strict=True):
            group = self._groups[groups[place]]
            group.evaluations += 1
            rows = torch.arange(group.size, device=window.device)[:, None] * len(window)
            index = x.new_full((group.size, x.shape[1]), -1)
            index[:, window] = begin + rows + torch.arange(len(window), device=window.device)
            group.answer = found[place] = Answer(prediction, index)
            group.asked = self._seen(groups[place])[0], window, question.tokens
            begin += question.tokens.numel()
            self._remember(group, window, question.context.store)
        return found

    def answer(self, groups: list[int], found: dict[int, Answer], where: Bool[Tensor, "b l"]) -> Answer:
        """Answers by place of the group as one, for the positions that are True."""
        wanted = [place for place, own in enumerate(self._split(groups, where)) if own.any()]
        predictions: list[Prediction] = []
        for place in wanted:
            if not any(found[place].prediction is one for one in predictions):
                predictions.append(found[place].prediction)
        begins = torch.tensor([0, *(one.tokens.numel() for one in predictions)]).cumsum(0).tolist()
        offsets = {id(one): begin for one, begin in zip(predictions, begins[:-1], strict=True)}
        index = torch.full_like(where, -1, dtype=torch.long)
        for place, own in zip(wanted, (self._split(groups, index)[place] for place in wanted), strict=True):
            own.copy_(found[place].place + offsets[id(found[place].prediction)])
        return Answer(joined(predictions), index)

    def reading(self, answer: Callable[[Tensor], Answer], x: Tensor, u: Tensor) -> Reading:
        """What will be read of the network."""
        return Reading(answer, x, u, self._transforms)

    def _split(self, groups: list[int], values: Tensor) -> list[Tensor]:
        return list(values.split([self._groups[number].size for number in groups]))

    def _seen(self, number: int) -> tuple[tuple[int, int], Any, Tensor]:
        """How many positions of a group are settled and how many worthless; which; and the step."""
        group, n = self._groups[number], self._n[self._rows([number])[0]]
        regions = self._hyperschedule.regions(n)
        absent = regions.worthless | (self._positions >= group.length)
        return (int(regions.settled.sum()), int(absent.sum())), (regions.settled, absent), n

    def _question(self, number: int, x: Tensor, u: Tensor) -> tuple[Int[Tensor, " q"], Question]:
        """Positions of a group that the network must see now, and what it is asked.

        A shifted network reads position `i` off position `i - 1`, so that one is remembered only when `i` is settled.
        """
        group = self._groups[number]
        if self._view.forgets(group.evaluations):
            group.cache, group.cached = self._denoiser.new_cache(), self._positions[:0]
            group.in_cache = torch.zeros_like(group.in_cache)
        _, (settled, absent), n = self._seen(number)
        window = self._positions[~absent & ~group.in_cache]
        done = settled.clone()
        for ahead in range(1, self._denoiser.lookback + 1):
            done[:-ahead] &= settled[ahead:]
        seen = generation(self._hyperschedule, n, self._view.context, self._view.active)
        attention = seen.select(window, torch.cat([group.cached, window])).on(x.device)
        store = done[window].nonzero()[:, 0] if self._view.remembers else None
        context = Asked(window[None], attention, group.cache, store)
        return window, Question(x[:, window], u[:, window], context)

    def _remember(self, group: _Group, window: Tensor, store: Any) -> None:
        if self._view.remembers:
            group.cached = torch.cat([group.cached, window[store]])
            group.in_cache[window[store]] = True


class _Talk:
    """The questions of one step."""

    def __init__(self, engine: Engine, groups: list[int], patient: bool) -> None:
        self._engine, self._groups, self._patient = engine, groups, patient
        self._last: tuple[Tensor, Tensor, Reading] | None = None

    def ask(self, x: Tensor, u: Tensor) -> Reading:
        """What the network will say; the last question is kept."""
        if self._last is not None and self._last[0] is x and self._last[1] is u:
            return self._last[2]
        found = self._engine.remembered(self._groups, x)

        def answer(where: Tensor) -> Answer:
            self._find(x, u, where, found)
            return self._engine.answer(self._groups, found, where)

        reading = self._engine.reading(answer, x, u)
        self._last = (x, u, reading)
        return reading

    def _find(self, x: Tensor, u: Tensor, where: Tensor, found: dict[int, Answer]) -> None:
        """Have an answer for every group that is read."""
        sizes = [own.any() for own in self._engine._split(self._groups, where)]
        missing = [place for place, wanted in enumerate(sizes) if wanted and place not in found]
        if not missing:
            return
        if self._patient and len(missing) < len(self._groups):
            raise _QuietError([number for place, number in enumerate(self._groups) if place not in missing])
        self._patient = False
        found |= self._engine.consult(self._groups, x, u, missing)


def _noise_of_levels(
    hyperschedule: AbstractHyperschedule, noise_schedule: AbstractNoiseSchedule, sampling_eps: float | None
) -> Float[Tensor, " levels"]:
    """Noise fraction of each level; exactly 0 where a position is settled."""
    levels = torch.arange(hyperschedule.num_levels + 1)
    even = levels.double() / hyperschedule.num_levels
    time = even if sampling_eps is None else hyperschedule.time_grid(sampling_eps)
    return torch.where(levels > 0, noise_schedule.fraction(time), 0.0)
