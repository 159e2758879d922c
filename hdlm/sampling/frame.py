"""The state after a generation step, for a watcher, with the outputs of the network that the step has read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hdlm.sampling.base import Answer, Reading

__all__ = ["Frame", "Reads"]


@final
class Reads:
    """The outputs of the network that a step has read. It records which ones, computes nothing and calls no network.

    It is valid while the watcher is called; after that it is empty, so that a frame keeps no cache alive.

    Args:
        ask: Calls the network, as in `Move`.
        noise: Noise fraction of each position before the step.
    """

    def __init__(self, ask: Callable[[Tensor, Tensor], Reading], noise: Float[Tensor, "b l"]) -> None:
        self.noise = noise
        self._ask = ask
        self._done: list[tuple[Reading, Tensor]] = []

    def ask(self, x: Int[Tensor, "b l"], u: Float[Tensor, "b l"]) -> Reading:
        """The reading of the same question, which records the positions that are read."""
        reading = self._ask(x, u)

        def answer(where: Bool[Tensor, "b l"]) -> Answer:
            known = reading.answer(where)
            self._done.append((replace(reading, answer=lambda _: known), where))
            return known

        return replace(reading, answer=answer)

    def last(self, where: Bool[Tensor, "b l"]) -> Iterator[tuple[Reading, Bool[Tensor, "b l"]]]:
        """For some positions, the last reading of the step that read them; positions that were not read are left out.

        Args:
            where: Positions of all sequences in the step.
        """
        for reading, read in reversed(self._done):
            here = where & read
            if here.any():
                yield reading, here
                where = where & ~read

    def end(self) -> None:
        """Drop the readings."""
        self._done.clear()


@final
@dataclass(frozen=True)
class Frame:
    """The state after a generation step, for a watcher.

    Attributes:
        step: Index of the generation step, from 0.
        num_steps: Number of generation steps.
        sequence: Index in the run of each sequence in this step.
        before: Tokens before the step.
        after: Tokens after the step.
        moving: Positions that might have changed.
        fixed: Positions that are given, of all sequences in the step; `rows` selects those of this frame.
        settled: How many tokens at the beginning of each sequence are final.
        evaluations: Number of network calls so far that included each sequence.
        computed: Number of positions of each sequence that these calls have computed in total.
        num_evaluations: Number of network calls so far, for all sequences.
        share: Share of the steps of all sequences in the engine that are done, in (0, 1].
        reads: The outputs that the step has read; None if nothing could happen in it.
        rows: Which sequences of `reads` and of `fixed` are those of this frame.
    """

    step: int
    num_steps: int
    sequence: Int[Tensor, " b"]
    before: Int[Tensor, "b l"]
    after: Int[Tensor, "b l"]
    moving: Bool[Tensor, "b l"]
    fixed: Bool[Tensor, "n l"]
    settled: Int[Tensor, " b"]
    evaluations: tuple[int, ...]
    computed: tuple[int, ...]
    num_evaluations: int
    share: float
    reads: Reads | None
    rows: Bool[Tensor, " n"]

    def of_each(self) -> Iterator[Frame]:
        """A frame for each of its sequences."""
        for index, place in enumerate(self.rows.nonzero()[:, 0].tolist()):
            own, row = slice(index, index + 1), torch.zeros_like(self.rows)
            row[place] = True
            names = ("sequence", "before", "after", "moving", "settled", "evaluations", "computed")
            yield replace(self, **{name: getattr(self, name)[own] for name in names}, rows=row)
