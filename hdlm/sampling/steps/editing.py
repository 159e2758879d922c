"""Steps that change their own words while they decode: joint thresholds, and renoising by entropy.

These are heuristics, as all adaptive decoding is (`hdlm.sampling.steps.adaptive`). One move writes all its positions,
with several calls of the network.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hdlm.network import Previous
from hdlm.sampling.base import Move, require_masks
from hdlm.sampling.draws import draw_index
from hdlm.sampling.ties import ROUNDING, ascending, least

__all__ = ["EntropyRenoising", "JointThreshold"]

_MODEL, _PRIOR, _TIE = 0, 1, 2
_HALF = 16


@final
@dataclass(frozen=True)
class JointThreshold:
    """Writes words above a threshold and replaces written words above another one, as LLaDA2.1 does.

    Each call of the network gives a word for each position of the move. A mask becomes that word if its probability
    reaches `threshold`; the likeliest word of the masks is always written. A written word is replaced by another word
    whose probability reaches `edit`. When no mask is left, calls continue until no word changes, but at most `passes`
    times.

    Attributes:
        threshold: Probability in [0, 1] from which a mask is replaced.
        edit: Probability in [0, 1] from which a written word is replaced.
        passes: Largest number of calls after the last mask.
        greedy: Whether the likeliest word is proposed; otherwise a word is drawn.
    """

    threshold: float = 0.7
    edit: float = 0.5
    passes: int = 16
    greedy: bool = False

    def __post_init__(self) -> None:
        for name in ("threshold", "edit"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f"`{name}` of joint thresholds must lie in [0, 1]; got {getattr(self, name)}."
                )
        if self.passes < 0:
            raise ValueError(f"`passes` of joint thresholds must be at least 0; got {self.passes}.")

    def __call__(self, x: Int[Tensor, "b l"], move: Move) -> Int[Tensor, "b l"]:
        require_masks(move.process, "Decoding with joint thresholds")
        asked = replace(move, x=x)
        masks = asked.masked.sum(1, keepdim=True).clamp_min(1).to(move.t.dtype)
        active = torch.ones_like(masks, dtype=torch.bool)
        after = torch.zeros_like(masks)
        while True:
            masked = asked.masked
            waits = masked.any(1, keepdim=True)
            after = after + (~waits).to(after.dtype)
            active = active & (after <= self.passes)
            if not (active & move.moving).any():
                return asked.x
            new = self._changed(asked, masked & active, asked.visible & active)
            active = active & (waits | (new != asked.x).any(1, keepdim=True))
            left = (new == move.process.mask_id).logical_and(masked).sum(1, keepdim=True) / masks
            t = torch.where(move.moving, torch.maximum(left * move.t, move.s), move.t)
            asked = replace(asked, x=new, t=t)

    def _changed(
        self, asked: Move, masked: Bool[Tensor, "b l"], written: Bool[Tensor, "b l"]
    ) -> Int[Tensor, "b l"]:
        """The tokens after one call."""
        at = (masked | written).nonzero(as_tuple=True)
        log_p = asked.reading.log_clean(masked | written)
        proposed = log_p.argmax(1) if self.greedy else draw_index(log_p.exp(), asked.uniform(_MODEL)[at])
        word, trust = asked.x.clone(), torch.full_like(asked.t, -torch.inf)
        word[at] = proposed
        trust[at] = log_p.gather(1, proposed[:, None])[:, 0].to(trust.dtype)
        writes = masked & (trust.exp() >= self.threshold - ROUNDING)
        writes |= least(-trust, asked.uniform(_TIE), masked)
        return torch.where(writes | (written & (trust.exp() >= self.edit - ROUNDING)), word, asked.x)


@final
@dataclass(frozen=True)
class EntropyRenoising:
    """Accepts the words of least entropy and replaces all others by noise, until the words are stable (DiffusionGemma).

    Each call of the network gives a word for each position of the move. The positions of least entropy are accepted:
    the entropies of all but the largest add up to at most `bound`. All other positions become pure noise again: masks,
    or random words where the process has no mask. A sequence is finished when its likeliest words have not changed for
    `stable` calls and their mean entropy is below `entropy`, or after `passes` calls. A position is written in the
    first move in which its noise falls.

    The temperature falls evenly from `hot` towards `cold`. DiffusionGemma uses .8 and .4. A self-conditioned network
    gets the distributions of the call before, at its temperature; the first call of a move gets none.

    Attributes:
        bound: Bound of the accepted entropies in nats, at least 0.
        passes: Largest number of calls of the network, in [1, 256].
        stable: Number of calls in which the likeliest words must not change, at least 1.
        entropy: Mean entropy in nats below which a sequence may be finished.
        hot: Temperature of the first call.
        cold: Temperature that would follow after the last call.
        greedy: Whether the likeliest words of the last call are the result; otherwise the drawn words are.
    """

    bound: float = 0.1
    passes: int = 48
    stable: int = 1
    entropy: float = 0.005
    hot: float = 1.0
    cold: float = 1.0
    greedy: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.bound < float("inf"):
            raise ValueError(f"`bound` of the entropy must lie in [0, inf); got {self.bound}.")
        if not 1 <= self.passes <= _HALF**2:
            raise ValueError(f"`passes` of renoising must lie in [1, {_HALF**2}]; got {self.passes}.")
        if self.stable < 1:
            raise ValueError(f"`stable` of renoising must be at least 1; got {self.stable}.")
        for name in ("hot", "cold"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(
                    f"`{name}`, a temperature of renoising, must be positive; got {getattr(self, name)}."
                )

    def __call__(self, x: Int[Tensor, "b l"], move: Move) -> Int[Tensor, "b l"]:
        begin = move.t if move.begin is None else move.begin
        own = move.moving & (move.t == begin)
        asked, result = replace(move, x=x), x
        active, streak = own.any(1, keepdim=True), torch.zeros_like(own[:, :1], dtype=torch.long)
        likeliest = torch.full_like(x, -1)
        for number in range(self.passes):
            where = own & active
            if not where.any():
                break
            drawn, best, entropy, previous = self._read(asked, where, number)
            unchanged = (best == likeliest).logical_or(~where).all(1, keepdim=True)
            streak, likeliest = torch.where(unchanged, streak + 1, 0), best
            result = torch.where(where, best if self.greedy else drawn, result)
            sure = entropy.sum(1, keepdim=True) / own.sum(1, keepdim=True).clamp_min(1)
            active = active & ~((streak >= self.stable) & (sure < self.entropy))
            asked = replace(self._renoised(asked, move, where, drawn, entropy, number), previous=previous)
        return result

    def accepted(
        self, entropy: Float[Tensor, "b l"], tie: Float[Tensor, "b l"], where: Bool[Tensor, "b l"]
    ) -> Bool[Tensor, "b l"]:
        """The positions of least entropy, within the bound."""
        ordered = entropy.masked_fill(~where, torch.inf)
        order = ascending(ordered, tie)
        values = ordered.gather(1, order)
        before = (values.cumsum(1) - values).nan_to_num(torch.inf)
        within = torch.zeros_like(where).scatter(1, order, before <= self.bound + ROUNDING)
        return within & where

    def temperature(self, number: int) -> float:
        """The temperature of a call, by its number."""
        return self.cold + (self.hot - self.cold) * (self.passes - number) / self.passes

    def _read(
        self, asked: Move, where: Bool[Tensor, "b l"], number: int
    ) -> tuple[Int[Tensor, "b l"], Int[Tensor, "b l"], Float[Tensor, "b l"], Previous | None]:
        """A drawn word, the likeliest word and the entropy at each position, and what the next call is to get."""
        at = where.nonzero(as_tuple=True)
        log_p = (asked.reading.log_clean(where) / self.temperature(number)).log_softmax(1)
        drawn, best = asked.x.clone(), torch.full_like(asked.x, -1)
        entropy = torch.zeros_like(asked.t)
        drawn[at] = draw_index(log_p.exp(), _numbered(asked, number).uniform(_MODEL)[at])
        best[at] = log_p.argmax(1)
        entropy[at] = torch.special.entr(log_p.exp()).sum(1).to(entropy.dtype)
        if not asked.self_conditioned:
            return drawn, best, entropy, None
        place = torch.full_like(asked.x, -1)
        place[at] = torch.arange(len(log_p), device=place.device)
        return drawn, best, entropy, Previous(log_p, place)

    def _renoised(
        self, asked: Move, move: Move, where: Tensor, drawn: Tensor, entropy: Tensor, number: int
    ) -> Move:
        """The move of the next call: accepted words at the noise `s`, and pure noise elsewhere."""
        numbers = _numbered(move, number)
        accepted = self.accepted(entropy, move.uniform(_TIE), where)
        fresh = move.process.draw_prior(move.t, numbers.uniform(_PRIOR))
        x = torch.where(where, torch.where(accepted, drawn, fresh), asked.x)
        t = torch.where(where, torch.where(accepted, move.s, move.t), asked.t)
        return replace(asked, x=x, t=t)


def _numbered(move: Move, number: int) -> Move:
    """The move with random numbers of its own for a call."""
    return move.sub(number // _HALF).sub(number % _HALF)
