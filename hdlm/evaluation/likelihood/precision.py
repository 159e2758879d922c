"""As many replicates as it takes: a likelihood measured until its standard error is small enough.

Replicates are numbered, and each is a function of its number, so an evaluation can be done in pieces: those of 0 to 3
and those of 4 to 7 together are those of 0 to 7. What has been measured is handed to `keep` after every piece; who kept
it can go on after a kill.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from hdlm.evaluation.likelihood.result import LikelihoodResult

__all__ = ["until_precise"]

_FIRST = 4
"""Replicates before the error is looked at: two would be too rash."""


def until_precise(
    measure: Callable[[int, int], LikelihoodResult],
    target: float,
    *,
    most: int = 1024,
    known: LikelihoodResult | None = None,
    keep: Callable[[LikelihoodResult], None] = lambda result: None,
) -> LikelihoodResult:
    """Measure until the standard error of the bits per token is at most `target`.

    The error is itself an estimate, so stopping at the first moment at which it looks small enough would stop too early
    too often. Each piece aims at the number of replicates that the error of now asks for, at least half as many again.

    Args:
        measure: Given the number of the first replicate and how many, the result for these.
        target: Standard error wanted, in bits per token, positive.
        most: Replicates after which to give up.
        known: Replicates that were measured before, from number 0 on.
        keep: Called with all there is, after every piece.

    Raises:
        ValueError: If `target` is not positive, or is not reached with `most` replicates; what there is was kept.
    """
    if not target > 0:
        raise ValueError(f"the standard error to reach must be positive; got {target}.")
    found = known
    while True:
        if found is not None and found.estimator == "exact":
            return found
        have = 0 if found is None else found.replicates
        error = None if found is None else found.bits_per_token_error
        if found is not None and have >= _FIRST and error is not None and error <= target:
            return found
        if have >= most:
            raise ValueError(
                f"after {have} replicates the standard error is {error:.2g} bits per token, not {target:.2g}: about "
                f"{_wanted(have, error or math.inf, target)} would do. Allow more, or ask for less."
            )
        wanted = _FIRST if error is None or have < _FIRST else _wanted(have, error, target)
        count = min(max(wanted, have + max(have // 2, 1)), most) - have
        piece = measure(have, count)
        found = piece if found is None else found.with_replicates_of(piece)
        keep(found)


def _wanted(have: int, error: float, target: float) -> int:
    """Replicates that bring the error down to the target: it falls with the square root of their number."""
    return math.ceil(have * (error / target) ** 2)
