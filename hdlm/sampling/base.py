"""The two parts of a sampler: a `Move`, which holds all inputs of a step, and a `Step`, which is a pure function.

    the loop (sample)  owns the tokens, the cache and the clock; makes a Move for every generation step
        |
      Step(x, move)  returns new tokens; lists the positions that may change *before* the network is called
        |
      Move.reading  calls the network once, at the first read; projects onto the vocabulary
                    only the positions that are read

Random numbers come from counters (`hdlm.randomness`): a step gets its uniform numbers by purpose, not in order.
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
from hdlm.network import Previous
from hdlm.process import AbstractNoiseProcess
from hdlm.randomness import Randomness
from hdlm.sampling.draws import draw_checked

__all__ = [
    "Answer",
    "Ask",
    "Chain",
    "Move",
    "Numbers",
    "Planned",
    "Reading",
    "RowTransforms",
    "Step",
    "Transform",
    "require_masks",
]

_ENTRIES = 2**22
"""Number of vocabulary entries that are projected at a time."""
_OfRows: TypeAlias = Callable[[Tensor, slice], tuple[Tensor, Tensor]]
"""Computes a value for some rows, and a number for each row that is finite if the row is a distribution."""
_Transforms: TypeAlias = "tuple[Transform, ...]"
_OfRaw: TypeAlias = Callable[[Prediction, _Transforms, Tensor, Tensor, Tensor], Tensor]
"""A function of a prediction, transforms, and raw outputs with their rows and columns."""
_STREAMS = 16
"""Uniform numbers that a step may use per position, and number of parts of a compound step."""
_ALL_STEPS = 2**32 - 1
"""The step in the address of a random number that all steps share."""
Numbers: TypeAlias = Callable[[int, bool], Tensor]
"""Uniform numbers `[b l]` of a stream: those of each row's step or, with False, those that all steps share."""
Events: TypeAlias = Callable[["Planned", "Move"], tuple[bool, list[Tensor]] | None]
"""Whether a step may act in a move, and where, in parts of the batch; None if the plan does not have it."""


@runtime_checkable
class Transform(Protocol):
    """Changes the model's distribution before a draw: temperature, top-k, a penalty."""

    def __call__(
        self, log_p: Float[Tensor, "n v"], tokens: Int[Tensor, "b l"], row: Int[Tensor, " n"]
    ) -> Float[Tensor, "n v"]:
        """New log weights, not necessarily normalised; minus infinity must stay minus infinity.

        Args:
            log_p: Log probabilities of the clean token, one row for each position that is read.
            tokens: The noisy sequences.
            row: Index of the sequence of each row of `log_p`.
        """
        ...


@final
@dataclass(frozen=True)
class RowTransforms:
    """The transforms of each row of a batch, where rows differ.

    Attributes:
        of_rows: The transforms of each row, in order.
    """

    of_rows: tuple[tuple[Transform, ...], ...]

    def parts(self, row: Int[Tensor, " n"]) -> Iterator[tuple[tuple[Transform, ...], Bool[Tensor, " n"]]]:
        """Each sequence of transforms, and the positions to which it applies.

        Args:
            row: Row of each position that is read.
        """
        chains = list(dict.fromkeys(self.of_rows))
        index = torch.tensor([chains.index(chain) for chain in self.of_rows], device=row.device)[row]
        for number, chain in enumerate(chains):
            here = index == number
            if here.any():
                yield chain, here


@final
@dataclass(frozen=True)
class Answer:
    """A denoiser's answer, and the place of each canvas position in it.

    Attributes:
        prediction: The denoiser's prediction.
        place: Index into the flattened positions of the prediction; -1 for positions without one.
    """

    prediction: Prediction
    place: Int[Tensor, "b l"]


@final
@dataclass(frozen=True)
class Reading:
    """The network's output for one state of the canvas, read at chosen positions of `[b l]`.

    The network is called at the first read, and only for the sequences that are read.

    Attributes:
        answer: Returns an answer that covers the positions that are True.
        tokens: Tokens of the canvas.
        noise: The noise fraction of each position.
        transforms: Applied in order to `p(x_0 | x_t)` before it is used; for all rows, or for each row.
        expected: Functions that return further positions which a later step may read; called only if an answer covers
            no more than the positions that are read.
        sequence: Index of each sequence in the run, for errors.
        step: Index of the generation step, for errors.

    Every method raises a `ValueError` that names the position if the network's output, or the result of the transforms,
    is not a distribution.
    """

    answer: Callable[[Bool[Tensor, "b l"]], Answer]
    tokens: Int[Tensor, "b l"]
    noise: Float[Tensor, "b l"]
    transforms: tuple[Transform, ...] | RowTransforms
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
        log_score = self._transformed(self.answer(where), row, column, self._score_of)
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

    def likeliest(self, where: Bool[Tensor, "b l"]) -> Int[Tensor, " n"]:
        """The likeliest word at each given position; the first of equal words."""
        row, column = where.nonzero(as_tuple=True)

        def likeliest(log_w: Tensor, part: slice) -> tuple[Tensor, Tensor]:
            best = log_w.max(-1)
            return best.indices, best.values

        return self._each(where, row, column, likeliest, torch.long)

    def own(self, where: Bool[Tensor, "b l"]) -> Float[Tensor, " n"]:
        """`p(x_0 = x_t | x_t)`: the model's probability of the current word."""
        row, column = where.nonzero(as_tuple=True)
        stands = self.tokens[row, column][:, None]

        def own(log_w: Tensor, part: slice) -> tuple[Tensor, Tensor]:
            total = log_w.logsumexp(-1)
            return (log_w.gather(1, stands[part])[:, 0] - total).double().exp(), total

        return self._each(where, row, column, own, torch.float64)

    def each(
        self, where: Bool[Tensor, "b l"], of: Callable[[Float[Tensor, "n v"]], Float[Tensor, " n"]]
    ) -> Float[Tensor, " n"]:
        """A number per given position, from `log p(x_0 | x_t)` over the words; at least one position.

        Unlike `log_clean`, it holds only a few rows in memory at a time.
        """
        row, column = where.nonzero(as_tuple=True)

        def each(log_w: Tensor, part: slice) -> tuple[Tensor, Tensor]:
            log_p = log_w.log_softmax(-1)
            return of(log_p), log_p.amax(-1)

        return self._each(where, row, column, each, torch.float32)

    def beliefs(
        self, where: Bool[Tensor, "b l"], tokens: Int[Tensor, "n k"], most: int
    ) -> Float[Tensor, "n c"]:
        """The model's distribution at the given positions in a few float64 numbers each; at least one position.

        Args:
            where: The positions to read.
            tokens: Tokens of each position, in the order of `where.nonzero()`; the probability of a mask is 0.
            most: Number of likeliest words.

        Returns:
            The probabilities of `tokens`, the entropy in nats, and id and probability of each of the likeliest words.
        """
        row, column = where.nonzero(as_tuple=True)

        def summary(log_w: Tensor, part: slice) -> tuple[Tensor, Tensor]:
            log_p = log_w.log_softmax(-1)
            p, own = log_p.double().exp(), tokens[part]
            is_word = own < p.shape[1]
            of_own = p.gather(1, own.where(is_word, 0)) * is_word
            best, index = p.topk(min(most, p.shape[1]), dim=1)
            likeliest = torch.stack([index.double(), best], 2).flatten(1)
            entropy = torch.special.entr(p).sum(1, keepdim=True)
            return torch.cat([of_own, entropy, likeliest], 1), log_p.amax(-1)

        return self._each(where, row, column, summary, torch.float64)

    def check(self, where: Bool[Tensor, "b l"], level: Float[Tensor, " n"]) -> None:
        """Raise an error if a row is not a distribution.

        Args:
            where: The positions that were read.
            level: A number for each position, in the order of `where.nonzero()`, which is finite for a distribution.

        Raises:
            ValueError: If a number is not finite. The message names the first such position.
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
                f"No word can be drawn at {place}: the network's answer is finite, but after "
                f"{self._applied(b) or type(answer.prediction.parameterization).__name__} it is not a distribution."
            )
        raise ValueError(
            f"The network's answer at {place} is not finite: {int(raw.isnan().sum())} of {raw.numel()} numbers are "
            f"nan, {int(raw.isinf().sum())} infinite. Check the weights, or use a wider dtype."
        )

    def _applied(self, row: int) -> list[Transform]:
        """The transforms of a row."""
        return list(
            self.transforms.of_rows[row] if isinstance(self.transforms, RowTransforms) else self.transforms
        )

    def _each(self, where: Tensor, row: Tensor, column: Tensor, of: _OfRows, dtype: torch.dtype) -> Tensor:
        """A value for each row of `log p(x_0 | x_t)`, a few rows at a time, with one check of all rows."""
        if not len(row):
            return torch.zeros(0, dtype=dtype, device=where.device)
        answer = self.answer(where)
        values, level = zip(
            *(of(log_w, part) for part, log_w in self._chunks(answer, row, column)), strict=True
        )
        self.check(where, _end_to_end(level))
        return _end_to_end(values)

    def _chunks(self, answer: Answer, row: Tensor, column: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """`log p(x_0 | x_t)` over the words, up to a constant per row, a few rows at a time."""
        size = max(1, _ENTRIES // (answer.prediction.process.num_words + 1))
        for begin in range(0, len(row), size):
            part = slice(begin, begin + size)
            yield part, self._transformed(answer, row[part], column[part], self._weights_of)

    def _log_clean(self, answer: Answer, row: Tensor, column: Tensor) -> Tensor:
        return self._transformed(answer, row, column, self._clean_of)

    def _transformed(self, answer: Answer, row: Tensor, column: Tensor, of: _OfRaw) -> Tensor:
        """A function of raw outputs, apart for rows with different transforms; the outputs are projected once."""
        raw = answer.prediction.raw(answer.place[row, column])
        if not isinstance(self.transforms, RowTransforms):
            return of(answer.prediction, self.transforms, raw, row, column)
        values: Tensor | None = None
        for transforms, here in self.transforms.parts(row):
            own = of(answer.prediction, transforms, raw[here], row[here], column[here])
            if len(own) == len(row):
                return own
            values = own.new_empty(len(row), own.shape[1]) if values is None else values
            values[here] = own
        return raw if values is None else values

    def _weights_of(
        self, prediction: Prediction, transforms: _Transforms, raw: Tensor, row: Tensor, column: Tensor
    ) -> Tensor:
        """`log p(x_0 | x_t)` over the words, up to a constant per row."""
        if transforms:
            return self._clean_of(prediction, transforms, raw, row, column)[:, :-1]
        tokens_and_noise = self.tokens[row, column], self.noise[row, column]
        weights: Tensor = prediction.parameterization.log_weights(prediction.process, raw, *tokens_and_noise)
        return weights

    def _clean_of(
        self, prediction: Prediction, transforms: _Transforms, raw: Tensor, row: Tensor, column: Tensor
    ) -> Tensor:
        """`log p(x_0 | x_t)`, normalised."""
        tokens_and_noise = self.tokens[row, column], self.noise[row, column]
        log_p: Tensor = prediction.parameterization.log_clean(prediction.process, raw, *tokens_and_noise)
        for transform in transforms:
            log_p = transform(log_p, self.tokens, row)
        return log_p.log_softmax(-1) if transforms else log_p

    def _score_of(
        self, prediction: Prediction, transforms: _Transforms, raw: Tensor, row: Tensor, column: Tensor
    ) -> Tensor:
        """`log p_u(y) / p_u(x_t)`."""
        tokens, noise = self.tokens[row, column], self.noise[row, column]
        if transforms:
            clean = self._clean_of(prediction, transforms, raw, row, column).to(self.noise.dtype).exp()
            return prediction.process.score_from_clean(tokens, clean, noise).log()
        score: Tensor = prediction.parameterization.log_score(prediction.process, raw, tokens, noise)
        return score


Ask: TypeAlias = Callable[[Tensor, Tensor, Previous | None], Reading]
"""Calls the network on tokens at noise fractions, and a self-conditioned network on the distributions of the call
before; only once for the same three values."""


@final
@dataclass(frozen=True)
class Move:
    """All inputs of a step: from noise `t` to noise `s`, the moving positions, and the network's answer.

    Attributes:
        process: The noise process of the denoiser.
        x: Tokens at the beginning of the generation step.
        t: Current noise fraction of each position.
        s: Noise fraction after the step, `s <= t`.
        moving: Positions that may change: their level drops in this step, and they are not given by the user.
        ask: Calls the network; see `Ask`.
        randomness: The run's random numbers.
        sequence: Index of each sequence in the run.
        step: Index of the generation step; one for all sequences, or one for each sequence, `[b 1]`.
        stream: Index of the random stream for this step.
        depth: Number of compound steps that contain this step.
        begin: Noise fraction at which the noise of each position begins to fall; None for `t`.
        remasked: Whether a step of the run may replace words by masks.
        numbers: Returns random numbers of `randomness` that were computed before.
        planned: Returns the events of a step that were computed before.
        self_conditioned: Whether the network reads the distributions of the call before. A step that calls it several
            times in one move passes them to the next call as `previous`.
        previous: Distributions of the call before, for `reading`; None for none.
    """

    process: AbstractNoiseProcess
    x: Int[Tensor, "b l"]
    t: Float[Tensor, "b l"]
    s: Float[Tensor, "b l"]
    moving: Bool[Tensor, "b l"]
    ask: Ask
    randomness: Randomness
    sequence: Int[Tensor, " b"]
    step: int | Int[Tensor, "b 1"]
    stream: int = 0
    depth: int = 0
    begin: Float[Tensor, "b l"] | None = None
    remasked: bool = True
    numbers: Numbers | None = None
    planned: Events | None = None
    self_conditioned: bool = False
    previous: Previous | None = None

    @property
    def reading(self) -> Reading:
        """The network's answer for `x` at `t`; the network is called once, at the first use."""
        return self.read(self.x, self.t)

    def read(self, x: Int[Tensor, "b l"], u: Float[Tensor, "b l"]) -> Reading:
        """The network's answer for tokens at noise fractions, with the names of sequences and steps for errors."""
        return replace(self.ask(x, u, self.previous), sequence=self.sequence, step=self.step)

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
        """Probability that a mask at `t` is still a mask at `s`, for any network: `mask(s) / mask(t)`."""
        at_s, at_t = self.process.weights(torch.stack([self.s, self.t])).mask
        kept: Tensor = at_s / at_t.clamp_min(torch.finfo(at_t.dtype).tiny)
        return kept

    def falls_here(self, process: AbstractNoiseProcess, when: int, again: int) -> Bool[Tensor, "b l"]:
        """Where a mask falls between `t` and `s`; only the values at masked positions are meaningful.

        One uniform number decides at which step the mask of a position falls: at the first step with `number >= mask(s)
        / mask(begin)`. So the time is known before the first step, and a mask at `t` falls with probability `1 -
        mask(s) / mask(t)`. If a mask remains at `t` although it should have fallen before, another step has put it
        there (`remasked`). It falls with an equal probability, decided by a number of this step.

        Args:
            process: The process along which masks fall.
            when: Purpose of the number that all steps share.
            again: Purpose of the number that belongs to this step.
        """
        begin = self.t if self.begin is None else self.begin
        at_s, at_t, at_begin = process.weights(torch.stack([self.s, self.t, begin])).mask
        time = self.uniform(when, each_step=False) * at_begin
        falls: Tensor = (time < at_t) & (time >= at_s)
        if self.remasked:
            falls |= (time >= at_t) & (self.uniform(again) * at_t >= at_s)
        return falls

    def events_of(self, step: Planned) -> Bool[Tensor, "b l"]:
        """`step.events(self)`, from the plan if that has it."""
        known = None if self.planned is None else self.planned(step, self)
        return step.events(self) if known is None else _end_to_end(known[1])

    def rests(self, step: Step) -> bool:
        """Whether the plan has shown that a step does nothing in this move."""
        known = None if self.planned is None or not isinstance(step, Planned) else self.planned(step, self)
        return known is not None and not known[0]

    def uniform(self, purpose: int, *, each_step: bool = True) -> Float[Tensor, "b l"]:
        """Uniform float64 numbers in [0, 1), one for each position, equal at every call with one `purpose`.

        Args:
            purpose: Purpose of the numbers, in [0, 16).
            each_step: Whether every generation step has its own numbers; otherwise all steps share them.
        """
        stream = self.stream * _STREAMS + purpose
        if self.numbers is not None:
            return self.numbers(stream, each_step)
        position = torch.arange(self.x.shape[1], device=self.x.device)[None]
        return numbers_of(
            self.randomness, self.sequence[:, None], self.step if each_step else None, position, stream
        )[stream % 2]

    def sub(self, index: int) -> Move:
        """This move with separate random numbers, for the part `index` of a compound step.

        Part 0 reuses the parent's random numbers, so adding a step to a chain does not change the draws of the first
        step.
        """
        return replace(self, stream=self.stream + index * _STREAMS**self.depth, depth=self.depth + 1)


@runtime_checkable
class Step(Protocol):
    """One way to go back from noise `t` to noise `s`. It is a pure function: equal arguments give equal tokens."""

    def __call__(self, x: Int[Tensor, "b l"], move: Move) -> Int[Tensor, "b l"]:
        """New tokens; may differ from `x` where `move.moving` only.

        Args:
            x: Tokens after the earlier steps of a chain; `move.x` if there are none.
            move: All other inputs of the step.
        """
        ...


@runtime_checkable
class Planned(Protocol):
    """A step that can list from random numbers alone where it may act, before the network is called.

    The engine skips generation steps at which a planned step does nothing, and a chain skips its planned parts. A step
    that is not planned is called at every generation step at which some position moves.
    """

    @property
    def remasks(self) -> bool:
        """Whether it may replace a word by a mask."""
        ...

    def events(self, move: Move) -> Bool[Tensor, "b l"]:
        """Positions that it may read or change, for any tokens and any other steps.

        Args:
            move: The rows are steps of sequences, so that one call plans many steps. Its tokens are those of an earlier
                step, and the network must not be read.
        """
        ...


@final
@dataclass(frozen=True)
class Chain:
    """Several steps in a row, with one network call for all steps that read one state.

    ACS is `Chain((Ancestral(), AdaptiveCorrection(eta)))`.

    Attributes:
        steps: The steps, at least one.
    """

    steps: tuple[Step, ...]

    def __post_init__(self) -> None:
        if not self.steps:
            raise ValueError("A chain needs at least one step.")

    @property
    def remasks(self) -> bool:
        """Whether one of the steps may replace a word by a mask."""
        return any(not isinstance(step, Planned) or step.remasks for step in self.steps)

    def __call__(self, x: Int[Tensor, "b l"], move: Move) -> Int[Tensor, "b l"]:
        parts = self._parts(move)
        later = [partial(own.events_of, step) for step, own in parts[1:] if isinstance(step, Planned)]
        if later:
            move.reading.expected.extend(later)
        for step, own in parts:
            x = x if own.rests(step) else step(x, own)
        return x

    def events(self, move: Move) -> Bool[Tensor, "b l"]:
        """Where one of the steps may act; everywhere if one of them is not planned."""
        events = torch.zeros_like(move.moving)
        for step, own in self._parts(move):
            if not isinstance(step, Planned):
                return move.moving
            events |= own.events_of(step)
        return events

    def _parts(self, move: Move) -> list[tuple[Step, Move]]:
        """The steps, each with a move that has its own random numbers."""
        return [(step, move.sub(index)) for index, step in enumerate(self.steps)]


def _end_to_end(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def numbers_of(
    randomness: Randomness, sequence: Tensor, step: Tensor | int | None, position: Tensor, stream: int
) -> tuple[Tensor, Tensor]:
    """The uniform numbers of the two streams `stream - stream % 2` and the next, of one step or (None) of all steps."""
    return randomness.pair(sequence, _ALL_STEPS if step is None else step, position, stream // 2)


def require_masks(process: AbstractNoiseProcess, what: str) -> None:
    """Raise an error for a process whose pure noise contains words.

    Args:
        process: The noise process.
        what: Subject of the error message, capitalised: the component that needs masks.

    Raises:
        ValueError: If pure noise is not all masks: positions that begin as words would never be written.
    """
    if not process.ends_in_masks:
        raise ValueError(
            f"{what} writes words only in place of masks, but the share of masks in pure noise of {process!r} is "
            f"{process.final_mask_share}. Use the ancestral or the analytic step."
        )
