"""Confidence-ordered decoding: the words the model is surest of first (MaskGIT, arXiv 2202.04200; LLaDA, 2502.09992).

A heuristic: its law is not the model's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hdlm.sampling.base import Move, require_masks
from hdlm.sampling.draws import draw_index
from hdlm.sampling.ties import ascending

__all__ = ["ByConfidence"]

Measure = Literal["probability", "margin", "entropy"]
_MODEL, _ROUND, _TIE = 0, 1, 2


@final
@dataclass(frozen=True)
class ByConfidence:
    """Lifts as many masks as the schedule wants, those first of which the model is surest.

    How many: the number of masks times the share that is to fall, rounded up or down at random so that the mean
    follows the schedule; those among them that must fall now (their noise ends) come first.

    Attributes:
        measure: `"probability"` of the drawn word, `"margin"` between the two likeliest, or negative `"entropy"`.
    """

    measure: Measure = "probability"

    def __post_init__(self) -> None:
        if self.measure not in get_args(Measure):
            raise ValueError(
                f"`measure` of confidence must be one of {get_args(Measure)}; got {self.measure!r}."
            )

    def __call__(self, x: Int[Tensor, "b l"], move: Move) -> Int[Tensor, "b l"]:
        require_masks(move.process, "Decoding by confidence")
        masked = move.masked
        if not masked.any():
            return x
        expected = torch.where(masked, 1 - move.still_masked, 0.0).sum(1, keepdim=True)
        count = (expected + move.uniform(_ROUND)[:, :1]).floor()
        log_p = move.reading.log_clean(masked)
        at = masked.nonzero(as_tuple=True)
        drawn = draw_index(log_p.exp(), move.uniform(_MODEL)[at])
        trust = torch.full_like(move.t, -torch.inf)
        trust[at] = self._trust(log_p, drawn).to(trust.dtype)
        trust = trust.masked_fill(masked & (move.still_masked == 0), torch.inf)
        rank = ascending(-trust, move.uniform(_TIE)).argsort(dim=1)
        guess = x.clone()
        guess[at] = drawn
        return torch.where(masked & (rank < count), guess, x)

    def _trust(self, log_p: Float[Tensor, "n v"], drawn: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        match self.measure:
            case "probability":
                return log_p.gather(1, drawn[:, None])[:, 0]
            case "margin":
                best = log_p.exp().topk(2, dim=1).values
                return best[:, 0] - best[:, 1]
            case "entropy":
                return torch.xlogy(log_p.exp(), log_p.exp()).sum(1)
