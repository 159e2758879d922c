"""A record of a generation: the changes at each step, and their kinds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

from hdlm.sampling.engine.engine import Frame

__all__ = ["Change", "Trace"]

Reason = Literal["unmasked", "corrected", "remasked"]


@final
@dataclass(frozen=True)
class Change:
    """One token that changed.

    Attributes:
        step: Generation step, from 0.
        sequence: Index of the sequence in the run.
        position: Position of the token.
        old: Token before the change.
        new: Token after the change.
        reason: `"unmasked"` (mask to word), `"corrected"` (word to word) or `"remasked"` (word to mask).
    """

    step: int
    sequence: int
    position: int
    old: int
    new: int
    reason: Reason


@final
class Trace:
    """A watcher for `sample(..., watch=trace)` that keeps every change.

    Args:
        mask_id: Token id of the mask.

    Attributes:
        start: Initial tokens of each sequence, by its index in the run.
        num_evaluations: Number of network calls.
    """

    def __init__(self, mask_id: int) -> None:
        self.mask_id = mask_id
        self._changes: list[Change] = []
        self.start: dict[int, list[int]] = {}
        self.num_evaluations = 0

    def __call__(self, frame: Frame) -> None:
        """Record the changes of a step."""
        names = frame.sequence.tolist()
        if frame.step == 0:
            self.start.update(zip(names, frame.before.tolist(), strict=True))
        self.num_evaluations = frame.num_evaluations
        row, column = (frame.before != frame.after).nonzero(as_tuple=True)
        old, new = frame.before[row, column].tolist(), frame.after[row, column].tolist()
        for i, at, was, now in zip(row.tolist(), column.tolist(), old, new, strict=True):
            self._changes.append(Change(frame.step, names[i], at, was, now, self._reason(was, now)))

    @property
    def changes(self) -> list[Change]:
        """All changes, in order of steps, then sequences, then positions."""
        return sorted(self._changes, key=lambda change: (change.step, change.sequence, change.position))

    def edits(self, sequence: int) -> list[tuple[int, int, int]]:
        """The changes of one sequence as (step, position, new token), in order."""
        return [(c.step, c.position, c.new) for c in self.changes if c.sequence == sequence]

    def _reason(self, old: int, new: int) -> Reason:
        if old == self.mask_id:
            return "unmasked"
        return "remasked" if new == self.mask_id else "corrected"
