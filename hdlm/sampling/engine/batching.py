"""The network calls in one step of several sequences.

A step calls the network when it first reads, and only for the sequences that it reads. The sequences of a batch share
the call. A sequence whose last answer is still valid takes no part in it.

Several engines can share a call as well. Then the first call of each step is deferred: the step ends there with
`CallNeeded`, all questions are answered together, and the step is called again. A step is a pure function, so it reads
the same positions again. Later calls of the step are not shared.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hdlm.denoiser import AbstractDenoiser, Prediction, Question, joined
from hdlm.sampling.base import Answer, Reading, RowTransforms, Transform
from hdlm.sampling.engine.window import KVWindow

__all__ = ["BatchedQuery", "CallNeeded", "Member"]


@final
class CallNeeded(BaseException):
    """A step needs a network call that engines share. It is not an `Exception`, so that no step catches it."""


@final
@dataclass(frozen=True)
class Member:
    """Sequences of a batch that are at the same step.

    Attributes:
        window: Their keys and values, and their last answer.
        size: Number of sequences.
        step: Number of steps done.
    """

    window: KVWindow
    size: int
    step: int


@final
class BatchedQuery:
    """The network calls in one step of some sequences.

    Args:
        denoiser: The denoiser to call.
        members: The members, in the order of their rows.
        transforms: Transforms of the distributions that are read.

    Attributes:
        num_evaluations: Number of network calls so far, without one that other queries shared.
        defers: Whether a read that needs a call raises `CallNeeded`; then the call is made with other queries.
        questions: The questions of the call that is needed.
    """

    def __init__(
        self,
        denoiser: AbstractDenoiser,
        members: Sequence[Member],
        transforms: tuple[Transform, ...] | RowTransforms,
    ) -> None:
        self.num_evaluations = 0
        self._denoiser, self._members, self._transforms = denoiser, members, transforms
        self._sizes = [member.size for member in members]
        self._last: tuple[Tensor, Tensor, Reading] | None = None
        self.defers = False
        self.questions: list[Question] = []
        self._past: list[tuple[Tensor, Tensor, dict[int, Answer]]] = []
        self._waiting: list[int] = []

    def read(self, x: Int[Tensor, "b l"], u: Float[Tensor, "b l"]) -> Reading:
        """The answer for tokens at noise fractions; the network is called once for the same two tensors."""
        if self._last is not None and self._last[0] is x and self._last[1] is u:
            return self._last[2]
        answers = self._known(x, u)
        expected: list[Callable[[], Tensor]] = []

        def answer(where: Bool[Tensor, "b l"]) -> Answer:
            missing = self._missing(where, answers)
            if missing:
                self._call(x, u, where, expected, answers, missing)
            return self._together(answers, where)

        reading = Reading(answer, x, u, self._transforms, expected)
        self._last = (x, u, reading)
        return reading

    def answer(self, prediction: Prediction, begin: int) -> None:
        """Take the answer to `questions`; its rows start at index `begin` of the prediction.

        The step is called again from its beginning, and gets the answers of its first call.
        """
        self._record(prediction, begin, self._past[-1][2], self._waiting)
        self.questions, self.defers = [], False

    def end(self) -> None:
        """Drop the last reading, which refers to this query: the cycle would keep caches until garbage collection."""
        self._last = None

    def _known(self, x: Tensor, u: Tensor) -> dict[int, Answer]:
        """The answers by member that need no call: those of an earlier call of the step, or the last ones if valid."""
        if self._past and not self.defers:
            tokens, noise, answers = self._past.pop(0)
            if not (torch.equal(x, tokens) and torch.equal(u, noise)):
                raise RuntimeError(
                    "A step must be a pure function, but its second call has read other tokens."
                )
            return answers
        pairs = zip(self._members, self._split(x), strict=True)
        cached = enumerate(member.window.cached_answer(member.step, tokens) for member, tokens in pairs)
        answers = {place: answer for place, answer in cached if answer is not None}
        if self.defers:
            self._past.append((x, u, answers))
        return answers

    def _missing(self, where: Tensor, answers: dict[int, Answer]) -> list[int]:
        """Indices of members that are read and have no answer for some of the positions."""
        wanted = self._split(where)
        return [
            place
            for place in self._read(where)
            if place not in answers or bool((wanted[place] & (answers[place].place < 0)).any())
        ]

    def _call(
        self,
        x: Tensor,
        u: Tensor,
        where: Tensor,
        expected: list[Callable[[], Tensor]],
        answers: dict[int, Answer],
        missing: list[int],
    ) -> None:
        """Call the network for some members: for all positions that are, were or may yet be read."""
        if self._members[0].window.keeps_active:
            for also in expected:
                where = where | also()
        tokens, noise, wanted = self._split(x), self._split(u), self._split(where)
        questions = []
        for place in missing:
            member, read = self._members[place], wanted[place]
            read = read | (answers[place].place >= 0) if place in answers else read
            questions.append(member.window.build_query(member.step, tokens[place], noise[place], read))
        self.questions = questions
        if self.defers:
            self._last, self._waiting = None, missing
            raise CallNeeded
        self.num_evaluations += 1
        self._record(self._denoiser.predict_many(questions), 0, answers, missing)

    def _record(
        self, prediction: Prediction, begin: int, answers: dict[int, Answer], missing: list[int]
    ) -> None:
        """Keep the answers to `questions`, those of some members; the rows start at `begin` of the prediction."""
        for place, question in zip(missing, self.questions, strict=True):
            answers[place] = self._members[place].window.record(prediction, begin)
            begin += question.tokens.numel()

    def _together(self, answers: dict[int, Answer], where: Tensor) -> Answer:
        """The answers for the members that are read, joined into one."""
        if len(self._members) == 1:
            return answers[0]
        wanted = self._read(where)
        predictions: list[Prediction] = []
        for place in wanted:
            if not any(answers[place].prediction is known for known in predictions):
                predictions.append(answers[place].prediction)
        begins = itertools.accumulate((known.tokens.numel() for known in predictions), initial=0)
        offsets = {id(known): begin for known, begin in zip(predictions, begins, strict=False)}
        index = torch.full_like(where, -1, dtype=torch.long)
        own = self._split(index)
        for place in wanted:
            own[place].copy_(answers[place].place + offsets[id(answers[place].prediction)])
        return Answer(joined(predictions), index)

    def _read(self, where: Tensor) -> list[int]:
        """Indices of the members that are read."""
        if len(self._members) == 1:
            return [0]  # a reading always has at least one position
        rows = where.any(1).tolist()
        ends = list(itertools.accumulate(self._sizes))
        return [place for place, end in enumerate(ends) if any(rows[end - self._sizes[place] : end])]

    def _split(self, values: Tensor) -> list[Tensor]:
        """Values split by member."""
        return [values] if len(self._members) == 1 else list(values.split(self._sizes))
