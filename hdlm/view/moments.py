"""A traced run as moments: the steps that changed something. Two runs are aligned by their evaluations.

`static/replay.js` has the same moments for pages.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import final

from hdlm.generation.recording import TraceDocument, TracedSequence
from hdlm.sampling import Change, Reason

__all__ = ["Moment", "TracedRun", "aligned"]


@final
@dataclass(frozen=True)
class Moment:
    """The state of a run after some steps.

    Attributes:
        steps: Number of steps done.
        evaluations: Number of network calls so far.
        changes: The changes of the last step.
        finished: Whether the run has ended.
    """

    steps: int
    evaluations: int
    changes: tuple[Change, ...] = ()
    finished: bool = False


@final
class TracedRun:
    """One sequence of a trace, as moments: the start, each step with changes, and the end.

    Args:
        document: Trace of the run.
        sequence: Place of the sequence in the list of the trace.

    Attributes:
        document: Trace of the run.
        sequence: The sequence that was chosen.
        moments: All moments in order.
    """

    def __init__(self, document: TraceDocument, sequence: int = 0) -> None:
        if not 0 <= sequence < len(document.sequences):
            raise ValueError(
                f"the trace {document.title!r} has {len(document.sequences)} sequences; got sequence {sequence}."
            )
        self.document, self.sequence = document, document.sequences[sequence]
        self.moments = list(_moments(document, self.sequence))

    def __len__(self) -> int:
        """Number of positions."""
        return len(self.sequence.start)

    def tokens(self, moment: int) -> list[int]:
        """The tokens at a moment."""
        tokens = list(self.sequence.start)
        for passed in self.moments[: moment + 1]:
            for change in passed.changes:
                tokens[change.position] = change.new
        return tokens

    def fresh(self, moment: int, before: int) -> dict[int, Reason]:
        """Why positions have changed since an earlier moment, by position."""
        passed = self.moments[before + 1 : moment + 1]
        return {change.position: change.reason for one in passed for change in one.changes}

    def corrected(self, moment: int) -> set[int]:
        """The positions that have been corrected up to a moment."""
        passed = self.moments[: moment + 1]
        return {c.position for one in passed for c in one.changes if c.reason == "corrected"}

    def piece(self, token: int) -> str | None:
        """The text of a token; None for the mask."""
        return None if token == self.document.mask_id else self.document.pieces[token]

    def caption(self, moment: int) -> str:
        """Number of steps and of evaluations at a moment."""
        now = self.moments[moment]
        noun = "evaluation" if now.evaluations == 1 else "evaluations"
        return f"step {now.steps} of {self.document.num_steps}, {now.evaluations} {noun}"


def aligned(runs: Sequence[TracedRun]) -> list[tuple[int, ...]]:
    """The moments that are shown together: all moments of one run, or those of several with equal evaluations."""
    if len(runs) == 1:
        return [(moment,) for moment in range(len(runs[0].moments))]
    now, together = [0] * len(runs), [(0,) * len(runs)]
    for evaluations in sorted({moment.evaluations for run in runs for moment in run.moments}):
        for r, run in enumerate(runs):
            passed = [m for m, moment in enumerate(run.moments[:-1]) if moment.evaluations <= evaluations]
            now[r] = max(passed)
        if tuple(now) != together[-1]:
            together.append(tuple(now))
    return [*together, tuple(len(run.moments) - 1 for run in runs)]


def _moments(document: TraceDocument, sequence: TracedSequence) -> Iterator[Moment]:
    yield Moment(0, 0)
    evaluations = 0
    for step, group in groupby(document.of_sequence(sequence.index), key=lambda change: change.step):
        changes = tuple(group)
        evaluations = changes[-1].evaluations
        yield Moment(step + 1, evaluations, changes)
    yield Moment(document.num_steps, max(evaluations, sequence.evaluations), finished=True)
