"""Steps along the score: the analytic (Tweedie) step and Euler's (SEDD, arXiv 2310.16834, section 4)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hdlm.sampling.base import Move
from hdlm.sampling.draws import draw_checked

__all__ = ["Analytic", "Euler"]

_DRAW = 0
_Places: TypeAlias = tuple[Tensor, ...]


@final
@dataclass(frozen=True)
class Analytic:
    """`p(x_s = y | x_t) ~ (exp(-dQ) score)(y) exp(dQ)[x_t, y]`, with the exact inverse of the hybrid kernel.

    With the exact score it is the exact posterior of one position.

    Attributes:
        floor: Distance from full noise at which a move from full noise begins, where the score is finite.
    """

    floor: float = 1e-4

    def __post_init__(self) -> None:
        _check_floor(self.floor)

    def __call__(self, x: Int[Tensor, "b l"], move: Move) -> Int[Tensor, "b l"]:
        move = _from_below(move, self.floor)
        return _walk(
            x, move, lambda at, score: move.process.tweedie(move.x[at], score, move.s[at], move.t[at])
        )


@final
@dataclass(frozen=True)
class Euler:
    """`p(x_s = y | x_t) = delta(x_t) + (t - s) R(y -> x_t) score(y)`, first order in the step.

    The last step, to `s = 0`, is the analytic one, since Euler's would leave masks behind.

    Attributes:
        floor: Distance from full noise at which a move from full noise begins, where rates are finite.
    """

    floor: float = 1e-4

    def __post_init__(self) -> None:
        _check_floor(self.floor)

    def __call__(self, x: Int[Tensor, "b l"], move: Move) -> Int[Tensor, "b l"]:
        move = _from_below(move, self.floor)
        process, t = move.process, move.t
        rates = process.rates(t)
        n = process.num_words

        def law(at: _Places, score: Float[Tensor, "n v"]) -> Float[Tensor, "n v"]:
            x_t, last = move.x[at], move.s[at] == 0
            masked = x_t == process.mask_id
            to_word = torch.where(masked, rates.mask[at], rates.uniform[at] / n)
            to_mask = torch.where(masked, 0.0, rates.release[at] / n)
            rate = torch.cat([to_word[:, None].expand(-1, n), to_mask[:, None]], 1)
            jump = ((t - move.s)[at][:, None] * rate * score).scatter(1, x_t[:, None], 0.0)
            stay = (1 - jump.sum(1, keepdim=True)).clamp_min(0)
            euler = jump.scatter(1, x_t[:, None], stay)
            return torch.where(last[:, None], process.tweedie(x_t, score, move.s[at], t[at]), euler)

        return _walk(x, move, law)


def _check_floor(floor: float) -> None:
    if not 0 < floor < 1:
        raise ValueError(f"`floor` of a step along the score must lie in (0, 1); got {floor}.")


def _from_below(move: Move, floor: float) -> Move:
    """A copy of the move from a noise fraction below 1, since the score is undefined at 1."""
    return replace(move, t=torch.maximum(move.t.clamp_max(1 - floor), move.s))


def _walk(x: Int[Tensor, "b l"], move: Move, law: Callable[[_Places, Tensor], Tensor]) -> Int[Tensor, "b l"]:
    """Draw from a distribution over the vocabulary at every position that can change."""
    can = move.moving & (move.s < move.t)
    kernel = move.process.between(move.s, move.t)
    can &= (move.x == move.process.mask_id) | (kernel.uniform > 0) | (kernel.release > 0)
    if not can.any():
        return x
    at = can.nonzero(as_tuple=True)
    reading = move.reading
    p = law(at, reading.log_score(can).to(move.t.dtype).exp())
    p[:, -1] = torch.where(move.s[at] == 0, 0.0, p[:, -1])
    drawn, total = draw_checked(p, move.uniform(_DRAW)[at])
    reading.check(can, torch.where(total > 0, total, torch.nan))
    new = x.clone()
    new[at] = drawn
    return new
