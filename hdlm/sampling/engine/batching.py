"""The questions of one step, put to the network for several sequences in one call.

Steps ask when they want to read, and only about sequences that are read; a sequence whose last answer still holds is
not asked about. If only some have a question, the others are sent ahead alone (`QuietError`): so they meet again when
all of them have one.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hdlm.denoiser import AbstractDenoiser, Prediction, joined
from hdlm.sampling.base import Answer, Reading, Transform
from hdlm.sampling.engine.window import Memory

__all__ = ["QuietError", "Speaker", "Talk"]


class QuietError(Exception):
    """Raised to let sequences go on for which the network need not be asked.

    Attributes:
        quiet: Their places among the speakers.
    """

    def __init__(self, quiet: list[int]) -> None:
        super().__init__(f"{len(quiet)} speakers have no question")
        self.quiet = quiet


@final
@dataclass(frozen=True)
class Speaker:
    """Sequences that are at the same step.

    Attributes:
        memory: What is remembered of them.
        size: How many they are.
        step: Steps done.
    """

    memory: Memory
    size: int
    step: int


@final
class Talk:
    """The questions of one step of some sequences.

    Args:
        denoiser: Who is asked.
        speakers: The sequences, in the order of their rows.
        transforms: Applied to what is read.

    Attributes:
        num_evaluations: Calls of the network so far.
    """

    def __init__(
        self, denoiser: AbstractDenoiser, speakers: Sequence[Speaker], transforms: tuple[Transform, ...]
    ) -> None:
        self.num_evaluations = 0
        self._denoiser, self._speakers, self._transforms = denoiser, speakers, transforms
        self._patient = len(speakers) > 1
        self._last: tuple[Tensor, Tensor, Reading] | None = None

    def ask(self, x: Int[Tensor, "b l"], u: Float[Tensor, "b l"]) -> Reading:
        """What the network will say of tokens at noise fractions; about the same two tensors it is asked once."""
        if self._last is not None and self._last[0] is x and self._last[1] is u:
            return self._last[2]
        pairs = zip(self._speakers, self._split(x), strict=True)
        recalled = enumerate(one.memory.recall(one.step, tokens) for one, tokens in pairs)
        found = {place: answer for place, answer in recalled if answer is not None}

        expected: list[Callable[[], Tensor]] = []

        def answer(where: Bool[Tensor, "b l"]) -> Answer:
            missing = self._missing(where, found)
            if missing:
                self._consult(x, u, where, expected, found, missing)
            return self._together(found, where)

        reading = Reading(answer, x, u, self._transforms, expected)
        self._last = (x, u, reading)
        return reading

    def end(self) -> None:
        """Forget the last question: it knows this talk, and a cycle would keep caches until garbage is collected."""
        self._last = None

    def _missing(self, where: Tensor, found: dict[int, Answer]) -> list[int]:
        """Speakers that are read, and have no answer which speaks of all that is read.

        Raises:
            QuietError: If there are others, who can go ahead alone.
        """
        wanted = self._split(where)
        missing = [
            place
            for place in self._read(where)
            if place not in found or bool((wanted[place] & (found[place].place < 0)).any())
        ]
        if self._patient and 0 < len(missing) < len(self._speakers):
            raise QuietError([place for place in range(len(self._speakers)) if place not in missing])
        return missing

    def _consult(
        self,
        x: Tensor,
        u: Tensor,
        where: Tensor,
        expected: list[Callable[[], Tensor]],
        found: dict[int, Answer],
        missing: list[int],
    ) -> None:
        """Ask about some speakers: all positions that are, were or may yet be read."""
        self._patient = False
        if self._speakers[0].memory.keeps_active:
            for also in expected:
                where = where | also()
        tokens, noise, wanted = self._split(x), self._split(u), self._split(where)
        questions = []
        for place in missing:
            one, read = self._speakers[place], wanted[place]
            read = read | (found[place].place >= 0) if place in found else read
            questions.append(one.memory.question(one.step, tokens[place], noise[place], read))
        prediction = self._denoiser.predict_many(questions)
        self.num_evaluations += 1
        begin = 0
        for place, question in zip(missing, questions, strict=True):
            found[place] = self._speakers[place].memory.hear(prediction, begin)
            begin += question.tokens.numel()

    def _together(self, found: dict[int, Answer], where: Tensor) -> Answer:
        """The answers to those who are read as one."""
        wanted = self._read(where)
        predictions: list[Prediction] = []
        for place in wanted:
            if not any(found[place].prediction is one for one in predictions):
                predictions.append(found[place].prediction)
        begins = itertools.accumulate((one.tokens.numel() for one in predictions), initial=0)
        offsets = {id(one): begin for one, begin in zip(predictions, begins, strict=False)}
        index = torch.full_like(where, -1, dtype=torch.long)
        own = self._split(index)
        for place in wanted:
            own[place].copy_(found[place].place + offsets[id(found[place].prediction)])
        return Answer(joined(predictions), index)

    def _read(self, where: Tensor) -> list[int]:
        """Places of the speakers that are read."""
        rows, sizes = where.any(1).tolist(), [one.size for one in self._speakers]
        parts = zip(itertools.accumulate(sizes, initial=0), itertools.accumulate(sizes), strict=False)
        return [place for place, (begin, end) in enumerate(parts) if any(rows[begin:end])]

    def _split(self, values: Tensor) -> list[Tensor]:
        """By speaker."""
        return list(values.split([one.size for one in self._speakers]))
