"""Adaptive parallel decoding: as many words at once as the model is sure of, so that easy text takes few calls.

These are heuristics. Words written together are drawn as if they were independent, which is nearly true where the model
is sure; and the model determines their order, not the noise. Every call writes at least one word in each sequence.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hdlm.sampling.base import Move, Reading, require_masks
from hdlm.sampling.ties import ROUNDING, ascending, least

__all__ = ["ByEntropy", "ByFactor", "ByThreshold"]

_MODEL, _TIE = 0, 1
_Sure: TypeAlias = Callable[[Reading, Tensor, Tensor], Tensor]


@final
@dataclass(frozen=True)
class ByThreshold:
    """Writes the words whose probability reaches a threshold, and always the likeliest one (Fast-dLLM, 2505.22618).

    Words are drawn at random, as in other steps: the draw is nearly always the likeliest word, and with a temperature
    near 0 it always is. All masks of a move are written in it, for any share of the schedule: use few, large moves.

    Attributes:
        threshold: Probability in [0, 1]; 1 writes one word at a time (apart from certain words), 0 all at once. A word
            reaches it if its probability is at most `ROUNDING` below it.
        greedy: Whether the likeliest word is written; otherwise a word is drawn.
    """

    threshold: float = 0.9
    greedy: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"`threshold` of confidence must lie in [0, 1]; got {self.threshold}.")

    def __call__(self, x: Int[Tensor, "b l"], move: Move) -> Int[Tensor, "b l"]:
        return _write(x, move, self._sure, greedy=self.greedy)

    def _sure(
        self, reading: Reading, masked: Bool[Tensor, "b l"], tie: Float[Tensor, "b l"]
    ) -> Bool[Tensor, "b l"]:
        best = _confidence(reading, masked)
        return (masked & (best.exp() >= self.threshold - ROUNDING)) | least(-best, tie, masked)


@final
@dataclass(frozen=True)
class ByFactor:
    """Writes the `n` likeliest words, with the largest `n` for which `(n + 1) (1 - p_n) < factor` (2505.22618).

    `p_n` is the probability of the word in place `n` of this order, so more words need a higher confidence. It is the
    factor rule of Fast-dLLM. At least the likeliest word is written.

    Attributes:
        factor: Number of at least 0; a larger one writes more words, 0 one word at a time.
        greedy: Whether the likeliest word is written; otherwise a word is drawn.
    """

    factor: float = 1.0
    greedy: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.factor < float("inf"):
            raise ValueError(f"`factor` of confidence must lie in [0, inf); got {self.factor}.")

    def __call__(self, x: Int[Tensor, "b l"], move: Move) -> Int[Tensor, "b l"]:
        return _write(x, move, self._sure, greedy=self.greedy)

    def _sure(
        self, reading: Reading, masked: Bool[Tensor, "b l"], tie: Float[Tensor, "b l"]
    ) -> Bool[Tensor, "b l"]:
        best = _confidence(reading, masked)
        order = ascending(-best, tie)
        place = torch.arange(2, masked.shape[1] + 2, device=masked.device)
        enough = place * (1 - best.gather(1, order).exp()) < self.factor
        together = torch.zeros_like(masked).scatter(1, order, enough.cumprod(1).bool())
        return (together & masked) | least(-best, tie, masked)


@final
@dataclass(frozen=True)
class ByEntropy:
    """Writes the words of least entropy while their mutual information is bounded (2505.24857).

    The entropies of these words, except for the largest, add up to at most `bound`, which bounds their mutual
    information.

    Attributes:
        bound: Bound in nats, at least 0; 0 writes one word at a time (apart from certain words).
        greedy: Whether the likeliest word is written; otherwise a word is drawn.
    """

    bound: float = 0.1
    greedy: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.bound < float("inf"):
            raise ValueError(f"`bound` of the entropy must lie in [0, inf); got {self.bound}.")

    def __call__(self, x: Int[Tensor, "b l"], move: Move) -> Int[Tensor, "b l"]:
        return _write(x, move, self._sure, greedy=self.greedy)

    def _sure(
        self, reading: Reading, masked: Bool[Tensor, "b l"], tie: Float[Tensor, "b l"]
    ) -> Bool[Tensor, "b l"]:
        entropy = torch.full(masked.shape, torch.inf, dtype=torch.float64, device=masked.device)
        entropies = reading.each(masked, lambda log_p: torch.special.entr(log_p.exp()).sum(-1))
        entropy = entropy.masked_scatter(masked, entropies.double())
        order = ascending(entropy, tie)
        ordered = entropy.gather(1, order)
        before = (ordered.cumsum(1) - ordered).nan_to_num(torch.inf)
        within = torch.zeros_like(masked).scatter(1, order, before <= self.bound + ROUNDING)
        return (within & masked) | least(entropy, tie, masked)


def _confidence(reading: Reading, masked: Bool[Tensor, "b l"]) -> Float[Tensor, "b l"]:
    """The largest log probability at each mask; minus infinity at other positions."""
    best = torch.full(masked.shape, -torch.inf, dtype=torch.float64, device=masked.device)
    return best.masked_scatter(masked, reading.each(masked, lambda log_p: log_p.amax(-1)).double())


def _write(x: Int[Tensor, "b l"], move: Move, sure: _Sure, *, greedy: bool) -> Int[Tensor, "b l"]:
    """Call the network and write until no mask of the move is left; the network's noise input falls with the masks."""
    require_masks(move.process, "Adaptive decoding")
    asked = replace(move, x=x)
    tie = move.uniform(_TIE)
    masks = asked.masked.sum(1, keepdim=True).clamp_min(1).to(move.t.dtype)
    while asked.masked.any():
        masked = asked.masked
        chosen = sure(asked.reading, masked, tie)
        new = asked.x.clone()
        new[chosen] = (
            asked.reading.likeliest(chosen) if greedy else asked.reading.draw(chosen, move.uniform(_MODEL))
        )
        left = (masked & ~chosen).sum(1, keepdim=True) / masks
        asked = replace(
            asked, x=new, t=torch.where(move.moving, torch.maximum(left * move.t, move.s), move.t)
        )
    return asked.x
