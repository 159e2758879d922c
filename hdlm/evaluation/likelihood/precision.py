"""A likelihood measured with as many replicates as a small enough standard error needs.

Replicates are numbered, and each is a function of its number, so an evaluation can be done in pieces: replicates 0 to 3
and replicates 4 to 7 together are replicates 0 to 7. `keep` gets the result so far after every piece; a caller that
saves it can resume after an interruption.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from hdlm.evaluation.likelihood.result import LikelihoodResult

__all__ = ["until_precise"]

_FIRST = 4
"""Replicates before the error is trusted: the error of two would be too unreliable."""


def until_precise(
    measure: Callable[[int, int], LikelihoodResult],
    target: float,
    *,
    most: int = 1024,
    known: LikelihoodResult | None = None,
    keep: Callable[[LikelihoodResult], None] = lambda result: None,
) -> LikelihoodResult:
    """Measure until the standard error of the bits per token is at most `target`.

    The error is itself an estimate, so stopping at the first moment at which it is small enough would stop too early
    too often. Each piece aims at the number of replicates that the current error demands, and adds at least half as
    many again.

    Args:
        measure: Function of the number of the first replicate and their count that returns their result.
        target: Standard error to reach, in bits per token, positive.
        most: Maximum number of replicates.
        known: Earlier replicates, from number 0 on.
        keep: Called with the result so far after every piece.

    Raises:
        ValueError: If `target` is not positive, or is not reached with `most` replicates; the result so far was kept.
    """
    if not target > 0:
        raise ValueError(f"the standard error to reach must be positive; got {target}.")
    so_far = known
    while True:
        if so_far is not None and so_far.estimator == "exact":
            return so_far
        have = 0 if so_far is None else so_far.replicates
        error = None if so_far is None else so_far.bits_per_token_error
        if so_far is not None and have >= _FIRST and error is not None and error <= target:
            return so_far
        if have >= most:
            raise ValueError(
                f"after {have} replicates the standard error is {error:.2g} bits per token, not {target:.2g}: about "
                f"{_wanted(have, error or math.inf, target)} would be enough. Allow more replicates, or a larger error."
            )
        wanted = _FIRST if error is None or have < _FIRST else _wanted(have, error, target)
        count = min(max(wanted, have + max(have // 2, 1)), most) - have
        piece = measure(have, count)
        so_far = piece if so_far is None else so_far.with_replicates_of(piece)
        keep(so_far)


def _wanted(have: int, error: float, target: float) -> int:
    """Replicates that reduce the error to the target: it falls with the square root of their number."""
    return math.ceil(have * (error / target) ** 2)
