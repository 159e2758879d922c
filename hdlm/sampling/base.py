"""The two things a sampler is made of: a `Move`, which is all that a step may know, and a `Step`, which is pure.

    the loop (sample)  owns the tokens, the cache and the clock; makes a Move for every generation step
        |
      Step(x, move)  returns new tokens; says which positions may change *before* it asks the network
        |
      Move.reading  asks the network, once, when somebody first wants to know; projects onto the vocabulary
                    only the positions that are read

Randomness comes from counters (`hdlm.randomness`): a step gets its uniform numbers by purpose, not in order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol, TypeAlias, final, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hdlm.denoiser import Prediction
from hdlm.process import AbstractNoiseProcess
from hdlm.randomness import Randomness
from hdlm.sampling.draws import draw_checked

__all__ = [
    "Answer",
    "Chain",
    "Move",
    "Numbers",
    "Planned",
    "Reading",
    "Step",
    "Transform",
    "require_masks",
]

_ENTRIES = 2**22
"""How many vocabulary entries are projected at a time."""
_OfRows: TypeAlias = Callable[[Tensor, slice], tuple[Tensor, Tensor]]
"""What is wanted of some rows, and a number of each row that is finite if the row is a distribution."""
_STREAMS = 16
"""Uniform numbers a step may have per position, and parts that a compound step may have."""
_ALL_STEPS = 2**32 - 1
"""The step in the address of a random number that is one for all steps."""
Numbers: TypeAlias = Callable[[int, bool], Tensor]
"""Uniform numbers `[b l]` of a stream; of the step of each row, or, with False, one for all steps."""


@runtime_checkable
class Transform(Protocol):
    """Reshapes the model's distribution before a draw: temperature, top-k, a penalty."""

    def __call__(
        self, log_p: Float[Tensor, "n v"], tokens: Int[Tensor, "b l"], row: Int[Tensor, " n"]
    ) -> Float[Tensor, "n v"]:
        """New log weights, not necessarily normalised; what was minus infinity stays so.

        Args:
            log_p: Log probabilities of the clean token, one row for each position that is read.
            tokens: The noisy sequences.
            row: Which sequence each row of `log_p` belongs to.
        """
        ...


@final
@dataclass(frozen=True)
class Answer:
    """A denoiser's answer, and where in it each position of the canvas is found.

    Attributes:
        prediction: The answer.
        place: Index into its flattened positions; -1 for what it does not speak of.
    """

    prediction: Prediction
    place: Int[Tensor, "b l"]


@final
@dataclass(frozen=True)
class Reading:
    """What the network says of one state of the canvas, read at chosen positions of `[b l]`.

    The network is asked when somebody reads, and only about the sequences that are read.

    Attributes:
        answer: Gives an answer that speaks of the positions that are True.
        tokens: The canvas that is asked about.
        noise: The noise fraction of each position.
        transforms: Applied in order to `p(x_0 | x_t)` before it is used.
        expected: Each says where a later step may read as well; called only if an answer speaks of no more than is
            read.
        sequence: Index of each sequence in the run, for errors.
        step: Index of the generation step, for errors.

    Every method raises a `ValueError` that names the place if the network's answer, or what the transforms leave of it,
    is no distribution.
    """

    answer: Callable[[Bool[Tensor, "b l"]], Answer]
    tokens: Int[Tensor, "b l"]
    noise: Float[Tensor, "b l"]
    transforms: tuple[Transform, ...]
    expected: list[Callable[[], Bool[Tensor, "b l"]]] = field(default_factory=list)
    sequence: Int[Tensor, " b"] | None = None
    step: int | Int[Tensor, "b 1"] | None = None

    def log_clean(self, where: Bool[Tensor, "b l"]) -> Float[Tensor, "n v"]:
        """`log p(x_0 | x_t)`, transformed and normalised, in the order of `where.nonzero()`."""
        row, column = where.nonzero(as_tuple=True)
        answer = self.answer(where)
        log_p = self._log_clean(answer, row, column)
        self.check(where, log_p.amax(-1))
        return log_p

    def log_score(self, where: Bool[Tensor, "b l"]) -> Float[Tensor, "n v"]:
        """`log p_u(y) / p_u(x_t)`; by way of the transformed `p(x_0 | x_t)` if there are transforms."""
        row, column = where.nonzero(as_tuple=True)
        told, answer = (self.tokens[row, column], self.noise[row, column]), self.answer(where)
        prediction = answer.prediction
        if self.transforms:
            clean = self._log_clean(answer, row, column).to(self.noise.dtype).exp()
            log_score = prediction.process.score_from_clean(told[0], clean, told[1]).log()
        else:
            raw = prediction.raw(answer.place[row, column])
            log_score = prediction.parameterization.log_score(prediction.process, raw, *told)
        self.check(where, log_score.amax(-1))
        return log_score

    def draw(self, where: Bool[Tensor, "b l"], uniform: Float[Tensor, "b l"]) -> Int[Tensor, " n"]:
        """Words drawn from `p(x_0 | x_t)` at the given positions, with one uniform number each."""
        row, column = where.nonzero(as_tuple=True)
        numbers = uniform[row, column]

        def draw(log_w: Tensor, part: slice) -> tuple[Tensor, Tensor]:
            best = log_w.amax(-1, keepdim=True)
            index, _ = draw_checked((log_w - best).exp_(), numbers[part])
            return index, best[:, 0]

        return self._each(where, row, column, draw, torch.long)

    def own(self, where: Bool[Tensor, "b l"]) -> Float[Tensor, " n"]:
        """`p(x_0 = x_t | x_t)`: how much the model believes the word that stands there."""
        row, column = where.nonzero(as_tuple=True)
        stands = self.tokens[row, column][:, None]

        def own(log_w: Tensor, part: slice) -> tuple[Tensor, Tensor]:
            total = log_w.logsumexp(-1)
            return (log_w.gather(1, stands[part])[:, 0] - total).double().exp(), total

        return self._each(where, row, column, own, torch.float64)

    def each(
        self, where: Bool[Tensor, "b l"], of: Callable[[Float[Tensor, "n v"]], Float[Tensor, " n"]]
    ) -> Float[Tensor, " n"]:
        """A number for each of the given positions, of `log p(x_0 | x_t)` over the words; at least one position.

        Unlike `log_clean`, it never holds more than a few rows.
        """
        row, column = where.nonzero(as_tuple=True)

        def each(log_w: Tensor, part: slice) -> tuple[Tensor, Tensor]:
            log_p = log_w.log_softmax(-1)
            return of(log_p), log_p.amax(-1)

        return self._each(where, row, column, each, torch.float32)

    def check(self, where: Bool[Tensor, "b l"], level: Float[Tensor, " n"]) -> None:
        """Refuse what is no distribution.

        Args:
            where: The positions that were read.
            level: A number of each, in the order of `where.nonzero()`, which is finite if it has a distribution.

        Raises:
            ValueError: If one is not finite. It names the first place.
        """
        if math.isfinite(float(level.sum())):
            return
        fine = level.isfinite()
        if fine.all():  # the sum of finite numbers may be infinite
            return
        b, i = (int(index) for index in where.nonzero()[~fine][0])
        answer = self.answer(where)
        raw = answer.prediction.raw(answer.place[b, i][None])
        sequence = b if self.sequence is None else int(self.sequence[b])
        step = self.step[b, 0] if isinstance(self.step, Tensor) else self.step
        when = "" if step is None else f" in step {int(step)}"
        place = f"position {i} of sequence {sequence}{when}"
        if raw.isfinite().all():
            raise ValueError(
                f"No word can be drawn at {place}: the network's answer is finite, but what is left of it after "
                f"{list(self.transforms) or type(answer.prediction.parameterization).__name__} is no distribution."
            )
        raise ValueError(
            f"The network's answer at {place} is not finite: {int(raw.isnan().sum())} of {raw.numel()} numbers are "
            f"nan, {int(raw.isinf().sum())} infinite. Check the weights, or use a wider dtype."
        )

    def _each(self, where: Tensor, row: Tensor, column: Tensor, of: _OfRows, dtype: torch.dtype) -> Tensor:
        """Something of each row of `log p(x_0 | x_t)`, a few rows at a time, and one check of all rows."""
        if not len(row):
            return torch.zeros(0, dtype=dtype, device=where.device)
        answer = self.answer(where)
        found, level = zip(
            *(of(log_w, part) for part, log_w in self._chunks(answer, row, column)), strict=True
        )
        self.check(where, _end_to_end(level))
        return _end_to_end(found)

    def _chunks(self, answer: Answer, row: Tensor, column: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """`log p(x_0 | x_t)` over the words, up to a constant a row, a few rows at a time."""
        prediction = answer.prediction
        size = max(1, _ENTRIES // (prediction.process.num_words + 1))
        for begin in range(0, len(row), size):
            part = slice(begin, begin + size)
            at = row[part], column[part]
            if self.transforms:
                yield part, self._log_clean(answer, *at)[:, :-1]
            else:
                raw = prediction.raw(answer.place[at])
                told = self.tokens[at], self.noise[at]
                yield part, prediction.parameterization.log_weights(prediction.process, raw, *told)

    def _log_clean(self, answer: Answer, row: Tensor, column: Tensor) -> Tensor:
        prediction = answer.prediction
        told = self.tokens[row, column], self.noise[row, column]
        raw = prediction.raw(answer.place[row, column])
        log_p = prediction.parameterization.log_clean(prediction.process, raw, *told)
        for transform in self.transforms:
            log_p = transform(log_p, self.tokens, row)
        return log_p.log_softmax(-1) if self.transforms else log_p


@final
@dataclass(frozen=True)
class Move:
    """All that a step may know: from noise `t` to noise `s`, where, and what the network says.

    Attributes:
        process: The noise process of the denoiser.
        x: Tokens when the generation step began.
        t: Noise fraction of each position now.
        s: Noise fraction to reach, `s <= t`.
        moving: Positions that may change: their level drops in this step, and they are not given by the user.
        ask: Asks the network about tokens at noise fractions; about the same two tensors only once.
        randomness: The run's random numbers.
        sequence: Index of each sequence in the run.
        step: Index of the generation step; one for all sequences, or one for each, `[b 1]`.
        stream: Which of the run's random streams this step may use.
        depth: How many compound steps this one is a part of.
        begin: Noise fraction at which the noise of each position begins to fall; None for `t`.
        remasked: Whether another step of the chain may put masks where words stand.
        numbers: Returns random numbers that were computed before, those that `randomness` gives.
    """

    process: AbstractNoiseProcess
    x: Int[Tensor, "b l"]
    t: Float[Tensor, "b l"]
    s: Float[Tensor, "b l"]
    moving: Bool[Tensor, "b l"]
    ask: Callable[[Tensor, Tensor], Reading]
    randomness: Randomness
    sequence: Int[Tensor, " b"]
    step: int | Int[Tensor, "b 1"]
    stream: int = 0
    depth: int = 0
    begin: Float[Tensor, "b l"] | None = None
    remasked: bool = False
    numbers: Numbers | None = None

    @property
    def reading(self) -> Reading:
        """What the network says of `x` at `t`; it is asked at first use, and then once."""
        return self.read(self.x, self.t)

    def read(self, x: Int[Tensor, "b l"], u: Float[Tensor, "b l"]) -> Reading:
        """What the network says of tokens at noise fractions, with the names of sequences and steps for errors."""
        return replace(self.ask(x, u), sequence=self.sequence, step=self.step)

    @property
    def masked(self) -> Bool[Tensor, "b l"]:
        """Moving positions that hold the mask."""
        return self.moving & (self.x == self.process.mask_id)

    @property
    def visible(self) -> Bool[Tensor, "b l"]:
        """Moving positions that hold a word."""
        return self.moving & (self.x != self.process.mask_id)

    @property
    def still_masked(self) -> Float[Tensor, "b l"]:
        """Probability that a mask at `t` is still one at `s`, whatever the network says: `mask(s) / mask(t)`."""
        at_s, at_t = self.process.weights(torch.stack([self.s, self.t])).mask
        kept: Tensor = at_s / at_t.clamp_min(torch.finfo(at_t.dtype).tiny)
        return kept

    def mask_falls(self, process: AbstractNoiseProcess, when: int, again: int) -> Bool[Tensor, "b l"]:
        """Where a mask falls between `t` and `s`; only what it says of masked positions counts.

        One uniform number decides at which step the mask of a position falls: at the first with
        `number >= mask(s) / mask(begin)`. So the time is known before the first step, and a mask at `t` falls with
        probability `1 - mask(s) / mask(t)`. A mask that stands at `t` although it should have fallen before was put
        there by another step. It falls with the same probability, by a number of this step.

        Args:
            process: The process along which masks fall.
            when: Purpose of the number of all steps.
            again: Purpose of the number of this step.
        """
        begin = self.t if self.begin is None else self.begin
        at_s, at_t, at_begin = process.weights(torch.stack([self.s, self.t, begin])).mask
        time = self.uniform(when, each_step=False) * at_begin
        return torch.where(time < at_t, time >= at_s, self.uniform(again) * at_t >= at_s)

    def falls_here(self, process: AbstractNoiseProcess, when: int, again: int) -> Bool[Tensor, "b l"]:
        """Where a mask may fall between `t` and `s`, whatever the tokens are; a part of `mask_falls`."""
        begin = self.t if self.begin is None else self.begin
        at_s, at_t, at_begin = process.weights(torch.stack([self.s, self.t, begin])).mask
        time = self.uniform(when, each_step=False) * at_begin
        falls: Tensor = (time < at_t) & (time >= at_s)
        if self.remasked:
            falls |= (time >= at_t) & (self.uniform(again) * at_t >= at_s)
        return falls

    def uniform(self, purpose: int, *, each_step: bool = True) -> Float[Tensor, "b l"]:
        """Uniform float64 numbers in [0, 1), one for each position, the same at every call with a `purpose`.

        Args:
            purpose: What the numbers are for, in [0, 16).
            each_step: Whether every generation step has numbers of its own; else they are the same at all steps.
        """
        stream = self.stream * _STREAMS + purpose
        if self.numbers is not None:
            return self.numbers(stream, each_step)
        position = torch.arange(self.x.shape[1], device=self.x.device)[None]
        return numbers_of(
            self.randomness, self.sequence[:, None], self.step if each_step else None, position, stream
        )[stream % 2]

    def sub(self, index: int) -> Move:
        """The same move with random numbers of its own, for the part `index` of a compound step.

        Part 0 reuses the random numbers of the whole, so what is chained behind a step changes nothing that it draws.
        """
        return replace(self, stream=self.stream + index * _STREAMS**self.depth, depth=self.depth + 1)


@runtime_checkable
class Step(Protocol):
    """One way to walk back from noise `t` to noise `s`. Pure: same arguments, same tokens."""

    def __call__(self, x: Int[Tensor, "b l"], move: Move) -> Int[Tensor, "b l"]:
        """New tokens; may differ from `x` where `move.moving` only.

        Args:
            x: Tokens as earlier steps of a chain left them; `move.x` if there were none.
            move: Everything else.
        """
        ...


@runtime_checkable
class Planned(Protocol):
    """A step that knows from random numbers alone at which positions it may act, before the network is called.

    The engine skips the steps at which a planned step does nothing. A step that is not planned is called at every
    generation step at which some position moves.
    """

    @property
    def remasks(self) -> bool:
        """Whether it may put a mask where a word stands."""
        ...

    def events(self, move: Move) -> Bool[Tensor, "b l"]:
        """Positions that it may read or change, whatever the tokens are and other steps do.

        Args:
            move: The rows are steps of sequences, so that one call plans many steps. Its tokens are those that a
                sequence had at an earlier step, and nothing may be read from the network.
        """
        ...


@final
@dataclass(frozen=True)
class Chain:
    """Several steps in a row, with one call of the network for all that read the same state.

    ACS is `Chain((Ancestral(), AdaptiveCorrection(eta)))`.

    Attributes:
        steps: At least one.
    """

    steps: tuple[Step, ...]

    def __post_init__(self) -> None:
        if not self.steps:
            raise ValueError("A chain needs at least one step.")

    @property
    def remasks(self) -> bool:
        """Whether one of the steps may put a mask where a word stands."""
        return any(not isinstance(step, Planned) or step.remasks for step in self.steps)

    def __call__(self, x: Int[Tensor, "b l"], move: Move) -> Int[Tensor, "b l"]:
        parts = self._parts(move)
        later = [partial(step.events, own) for step, own in parts[1:] if isinstance(step, Planned)]
        if later:
            move.reading.expected.extend(later)
        for step, own in parts:
            x = step(x, own)
        return x

    def events(self, move: Move) -> Bool[Tensor, "b l"]:
        """Where one of the steps may act; everywhere if one of them is not planned."""
        found = torch.zeros_like(move.moving)
        for step, own in self._parts(move):
            if not isinstance(step, Planned):
                return move.moving
            found |= step.events(own)
        return found

    def _parts(self, move: Move) -> list[tuple[Step, Move]]:
        """The steps, each with its own random numbers."""
        remasked = move.remasked or (len(self.steps) > 1 and self.remasks)
        return [(step, replace(move.sub(index), remasked=remasked)) for index, step in enumerate(self.steps)]


def _end_to_end(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def numbers_of(
    randomness: Randomness, sequence: Tensor, step: Tensor | int | None, position: Tensor, stream: int
) -> tuple[Tensor, Tensor]:
    """The uniform numbers of the two streams `stream - stream % 2` and the next, of a step or (None) of all steps."""
    return randomness.pair(sequence, _ALL_STEPS if step is None else step, position, stream // 2)


def require_masks(process: AbstractNoiseProcess, what: str) -> None:
    """Refuse a process whose pure noise holds words.

    Args:
        process: The noise process.
        what: Who needs masks, at the beginning of a sentence.

    Raises:
        ValueError: If pure noise is not all masks: what begins as a word would never be written.
    """
    if not process.ends_in_masks:
        raise ValueError(
            f"{what} writes words where masks stand, and in the pure noise of {process!r} their share is "
            f"{process.final_mask_share}. Use the ancestral or the analytic step."
        )
