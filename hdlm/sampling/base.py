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

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol, final, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hdlm.denoiser import Prediction
from hdlm.process import AbstractNoiseProcess
from hdlm.randomness import Randomness
from hdlm.sampling.draws import draw_index

__all__ = [
    "Answer",
    "Chain",
    "Foresees",
    "Move",
    "Reading",
    "Step",
    "Transform",
    "require_masks",
    "words_wait",
]

_ENTRIES = 2**22
"""How many vocabulary entries are projected at a time."""
_STREAMS = 16
"""Uniform numbers a step may have per position, and parts that a compound step may have."""


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
    """

    answer: Callable[[Bool[Tensor, "b l"]], Answer]
    tokens: Int[Tensor, "b l"]
    noise: Float[Tensor, "b l"]
    transforms: tuple[Transform, ...]
    expected: list[Callable[[], Bool[Tensor, "b l"]]] = field(default_factory=list)

    def log_clean(self, where: Bool[Tensor, "b l"]) -> Float[Tensor, "n v"]:
        """`log p(x_0 | x_t)`, transformed and normalised, in the order of `where.nonzero()`."""
        row, column = where.nonzero(as_tuple=True)
        return self._log_clean(self.answer(where), row, column)

    def log_score(self, where: Bool[Tensor, "b l"]) -> Float[Tensor, "n v"]:
        """`log p_u(y) / p_u(x_t)`; by way of the transformed `p(x_0 | x_t)` if there are transforms."""
        row, column = where.nonzero(as_tuple=True)
        told, answer = (self.tokens[row, column], self.noise[row, column]), self.answer(where)
        prediction = answer.prediction
        if not self.transforms:
            raw = prediction.raw(answer.place[row, column])
            return prediction.parameterization.log_score(prediction.process, raw, *told)
        clean = self._log_clean(answer, row, column).to(self.noise.dtype).exp()
        return prediction.process.score_from_clean(told[0], clean, told[1]).log()

    def draw(self, where: Bool[Tensor, "b l"], uniform: Float[Tensor, "b l"]) -> Int[Tensor, " n"]:
        """Words drawn from `p(x_0 | x_t)` at the given positions, with one uniform number each."""
        at = where.nonzero(as_tuple=True)
        numbers = uniform[at]
        drawn = [
            draw_index((log_w - log_w.amax(-1, keepdim=True)).exp_(), numbers[part])
            for part, log_w in self._chunks(where, at)
        ]
        return torch.cat(drawn) if drawn else numbers.long()

    def own(self, where: Bool[Tensor, "b l"]) -> Float[Tensor, " n"]:
        """`p(x_0 = x_t | x_t)`: how much the model believes the word that stands there."""
        at = where.nonzero(as_tuple=True)
        stands = self.tokens[at][:, None]
        found = [
            (log_w.gather(1, stands[part])[:, 0] - log_w.logsumexp(-1)).double().exp()
            for part, log_w in self._chunks(where, at)
        ]
        return torch.cat(found) if found else stands[:, 0].double()

    def each(
        self, where: Bool[Tensor, "b l"], of: Callable[[Float[Tensor, "n v"]], Float[Tensor, " n"]]
    ) -> Float[Tensor, " n"]:
        """A number for each of the given positions, of `log p(x_0 | x_t)` over the words; at least one position.

        Unlike `log_clean`, it never holds more than a few rows.
        """
        return torch.cat(
            [of(log_w.log_softmax(-1)) for _, log_w in self._chunks(where, where.nonzero(as_tuple=True))]
        )

    def _chunks(self, where: Tensor, places: tuple[Tensor, ...]) -> Iterator[tuple[slice, Tensor]]:
        """`log p(x_0 | x_t)` over the words, up to a constant a row, a few rows at a time.

        Args:
            where: The positions to read.
            places: Their rows and columns, which the caller has counted: on an accelerator counting waits for it.
        """
        row, column = places
        if not len(row):
            return
        answer = self.answer(where)
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

    @property
    def reading(self) -> Reading:
        """What the network says of `x` at `t`; it is asked at first use, and then once."""
        return self.ask(self.x, self.t)

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
        at_s, at_t = self.process.weights(self.s).mask, self.process.weights(self.t).mask
        return torch.where(at_t > 0, at_s / torch.where(at_t > 0, at_t, 1.0), 0.0)

    def uniform(self, purpose: int) -> Float[Tensor, "b l"]:
        """Uniform float64 numbers in [0, 1), one for each position, the same whenever asked for `purpose`."""
        position = torch.arange(self.x.shape[1], device=self.x.device)[None]
        return self.randomness.uniform(
            self.sequence[:, None], self.step, position, self.stream * _STREAMS + purpose
        )

    def sub(self, index: int) -> Move:
        """The same move with random numbers of its own, for the part `index` of a compound step.

        Part 0 goes on with the numbers of the whole: what is chained behind a step changes nothing that it draws.
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
class Foresees(Protocol):
    """A step that knows beforehand where it may read, so that one question serves a chain."""

    def foresee(self, move: Move) -> Bool[Tensor, "b l"]:
        """Positions that it may read of `move.reading`, whatever steps before it do."""
        ...


@final
@dataclass(frozen=True)
class Chain:
    """Several steps in a row, with one question to the network between them if they ask about the same state.

    ACS is `Chain((Ancestral(), AdaptiveCorrection(eta)))`.

    Attributes:
        steps: At least one.
    """

    steps: tuple[Step, ...]

    def __post_init__(self) -> None:
        if not self.steps:
            raise ValueError("A chain needs at least one step.")

    def __call__(self, x: Int[Tensor, "b l"], move: Move) -> Int[Tensor, "b l"]:
        parts = [(step, move.sub(index)) for index, step in enumerate(self.steps)]
        later = [partial(step.foresee, own) for step, own in parts[1:] if isinstance(step, Foresees)]
        if later:
            move.reading.expected.extend(later)
        for step, own in parts:
            x = step(x, own)
        return x


def words_wait(process: AbstractNoiseProcess) -> bool:
    """Whether words stay as they are while masks fall, as in the absorbing and the epsilon-hybrid process."""
    middle = process.rates(torch.full((), 0.5, dtype=torch.float64))
    return bool(middle.mask > 0) and not bool((middle.uniform > 0) | (middle.release > 0))


def require_masks(process: AbstractNoiseProcess, what: str) -> None:
    """Refuse a process whose pure noise holds words.

    Args:
        process: The noise process.
        what: Who needs masks, at the beginning of a sentence.

    Raises:
        ValueError: If pure noise is not all masks: what begins as a word would never be written.
    """
    share = float(process.weights(torch.ones((), dtype=torch.float64)).mask)
    if share < 1:
        raise ValueError(
            f"{what} writes words where masks stand, and in the pure noise of {process!r} their share is {share}. "
            "Use the ancestral or the analytic step."
        )
