"""A record of a generation: every change, its reason, and what the network predicted at that position."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, final

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from hdlm.sampling.frame import Frame

__all__ = ["Change", "Reason", "Trace"]

Reason = Literal["unmasked", "corrected", "remasked"]
"""Mask to word, word to word, or word to mask."""


@final
@dataclass(frozen=True)
class Change:
    """One token that changed.

    The probabilities are those of the last output of the network that the step read at this position. They are None if
    the step changed the position without reading it, for example when it masks a word again.

    Attributes:
        step: Generation step, from 0.
        sequence: Index of the sequence in the run.
        position: Position of the token.
        old: Token before the change.
        new: Token after the change.
        reason: `"unmasked"` (mask to word), `"corrected"` (word to word) or `"remasked"` (word to mask).
        noise: Noise fraction of the position before the step.
        p_old: Probability of the old token; None for a mask.
        p_new: Probability of the new token; None for a mask.
        entropy: Entropy of the distribution in nats.
        alternatives: The likeliest words with their probabilities, the likeliest first.
        evaluations: Number of network calls after the step that included the sequence.
        computed: Number of positions of the sequence that these calls have computed in total.
    """

    step: int
    sequence: int
    position: int
    old: int
    new: int
    reason: Reason
    noise: float | None = None
    p_old: float | None = None
    p_new: float | None = None
    entropy: float | None = None
    alternatives: tuple[tuple[int, float], ...] | None = None
    evaluations: int = 0
    computed: int = 0


@final
class Trace:
    """A watcher for `sample(..., watch=trace)` that keeps every change.

    It reads what the steps have read, so it changes no token and calls no network. It projects the changed positions
    onto the vocabulary a second time.

    Args:
        mask_id: Token id of the mask.
        alternatives: Number of likeliest words to keep for each change; None keeps no probabilities at all.
        transformed: Whether probabilities are those after temperature and the other transforms, from which words are
            drawn; by default they are those of the model.

    Attributes:
        start: Initial tokens of each sequence, by its index in the run.
        given: Given positions of each sequence.
        num_steps: Number of generation steps.
        num_evaluations: Number of network calls.
        evaluations: Number of network calls that included each sequence.
        computed: Number of positions of each sequence that these calls have computed in total.
    """

    def __init__(self, mask_id: int, *, alternatives: int | None = 5, transformed: bool = False) -> None:
        if alternatives is not None and alternatives < 0:
            raise ValueError(f"`alternatives` of a trace must be at least 0, or None; got {alternatives}.")
        self.mask_id, self.alternatives, self.transformed = mask_id, alternatives, transformed
        self._changes: list[Change] = []
        self.start: dict[int, list[int]] = {}
        self.given: dict[int, list[int]] = {}
        self.num_steps, self.num_evaluations = 0, 0
        self.evaluations: dict[int, int] = {}
        self.computed: dict[int, int] = {}

    def __call__(self, frame: Frame) -> None:
        """Record the changes of a step."""
        self.record(frame)

    def record(self, frame: Frame) -> list[Change]:
        """Record the changes of a step, and return them."""
        names = frame.sequence.tolist()
        if not self.start.keys() >= set(names):
            given = [row.nonzero()[:, 0].tolist() for row in frame.fixed[frame.rows]]
            self.start = dict(zip(names, frame.before.tolist(), strict=True)) | self.start
            self.given = dict(zip(names, given, strict=True)) | self.given
        self.num_steps, self.num_evaluations = frame.num_steps, frame.num_evaluations
        self.evaluations.update(zip(names, frame.evaluations, strict=True))
        self.computed.update(zip(names, frame.computed, strict=True))
        changed = frame.before != frame.after
        if not changed.any():
            return []
        changes = self._changed(frame, changed)
        self._changes += changes
        return changes

    @property
    def changes(self) -> list[Change]:
        """All changes, in order of steps, then sequences, then positions."""
        return sorted(self._changes, key=lambda change: (change.step, change.sequence, change.position))

    def edits(self, sequence: int) -> list[tuple[int, int, int]]:
        """The changes of one sequence as (step, position, new token), in order."""
        return [(c.step, c.position, c.new) for c in self.changes if c.sequence == sequence]

    def _changed(self, frame: Frame, changed: Bool[Tensor, "b l"]) -> list[Change]:
        """The changes of a step, in order of sequences and positions."""
        names = frame.sequence.tolist()
        row, column = changed.nonzero(as_tuple=True)
        old, new = frame.before[row, column], frame.after[row, column]
        known = self._beliefs(frame, changed, torch.stack([old, new], 1))
        noise = (
            [None] * len(row) if frame.reads is None else frame.reads.noise[frame.rows][row, column].tolist()
        )
        columns = (row.tolist(), column.tolist(), old.tolist(), new.tolist(), noise)
        changes = []
        for b, at, was, now, u in zip(*columns, strict=True):
            cost = frame.evaluations[b], frame.computed[b]
            plain = Change(
                frame.step, names[b], at, was, now, self._reason(was, now), u, None, None, None, None, *cost
            )
            changes.append(self._with_beliefs(plain, known.get((b, at))))
        return changes

    def _beliefs(
        self, frame: Frame, changed: Bool[Tensor, "b l"], tokens: Int[Tensor, "n 2"]
    ) -> dict[tuple[int, int], list[float]]:
        """What the network predicted at changed positions that the step has read, by row and position."""
        if frame.reads is None or self.alternatives is None:
            return {}
        where = torch.zeros(len(frame.rows), changed.shape[1], dtype=torch.bool, device=changed.device)
        where[frame.rows] = changed
        pairs = torch.zeros(*where.shape, 2, dtype=torch.long, device=changed.device)
        pairs[where] = tokens
        place = torch.full((len(where),), -1, device=changed.device)
        place[frame.rows] = torch.arange(len(changed), device=changed.device)
        known: dict[tuple[int, int], list[float]] = {}
        for reading, here in frame.reads.last(where):
            reading = reading if self.transformed else replace(reading, transforms=())
            rows = reading.beliefs(here, pairs[here], self.alternatives).tolist()
            row, column = here.nonzero(as_tuple=True)
            known |= zip(zip(place[row].tolist(), column.tolist(), strict=True), rows, strict=True)
        return known

    def _with_beliefs(self, change: Change, known: list[float] | None) -> Change:
        if known is None:
            return change
        p_old, p_new, entropy, *rest = known
        likeliest = tuple((int(token), p) for token, p in zip(rest[::2], rest[1::2], strict=True))
        return replace(
            change,
            p_old=None if change.old == self.mask_id else p_old,
            p_new=None if change.new == self.mask_id else p_new,
            entropy=entropy,
            alternatives=likeliest,
        )

    def _reason(self, old: int, new: int) -> Reason:
        if old == self.mask_id:
            return "unmasked"
        return "remasked" if new == self.mask_id else "corrected"
