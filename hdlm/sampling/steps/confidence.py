"""Decoding by confidence: the words that the model is most certain of come first.

MaskGIT (arXiv 2202.04200), LLaDA (arXiv 2502.09992), Dream (arXiv 2508.15487) and SDAR (arXiv 2510.06303) decode in
this way; they differ in the measure of confidence and in the number of words per step. It is a heuristic: the
distribution of the text is not that of the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hdlm.sampling.base import Move, require_masks
from hdlm.sampling.draws import draw_index
from hdlm.sampling.ties import ascending

__all__ = ["ByConfidence"]

Measure = Literal["probability", "margin", "entropy", "position"]
Quota = Literal["random", "even", "truncated", "nearest", "standing"]
_MODEL, _ROUND, _TIE = 0, 1, 2
_WHOLE = 1e-9


@final
@dataclass(frozen=True)
class ByConfidence:
    """Writes as many words as the schedule prescribes, beginning with those of highest confidence.

    In a step a share `1 - s / t` of the masks falls, where `t` and `s` are their noise before and after it. `quota`
    determines the number if that share of the masks is not a whole number:

    | quota | words in a step | used by |
    |---|---|---|
    | `"random"` | rounded up or down at random, so that the mean follows the schedule | |
    | `"even"` | rounded up, so that the first steps write one word more than the others | LLaDA, SDAR |
    | `"truncated"` | rounded down; the last step writes the rest | Dream |
    | `"nearest"` | rounded to the nearest number, halves to the even one | dllm |
    | `"standing"` | depends on the words that have been written, see below | DiffuGPT, DiffuLLaMA |

    Masks whose noise ends in this step come first, for any confidence. With `"standing"`, written words are ranked
    together with the masks, and a mask stays if it is in the share `s` of lowest rank, rounded down.

    Attributes:
        measure: `"probability"` of the word that is written, `"margin"` between the two likeliest words, the negative
            `"entropy"`, or `"position"`, which writes from left to right.
        quota: Rule for the number of words in a step; see the table.
        greedy: Whether the likeliest word is written; otherwise a word is drawn.
        block: Width of blocks, or None. Along a flat hyperschedule, the free positions are cut into blocks of this
            width, from the first free position on. Each block gets an equal part of the noise, and the blocks are
            written one after the other. Unlike with `Block`, every position sees the whole canvas (LLaDA).
        from_start: Whether blocks are counted from the start of the canvas, as dllm does to fill gaps.
        threshold: A probability in [0, 1], or None. Every word whose probability is above it is written too, so that a
            step may write more words than the quota (the dynamic rule of SDAR).
        postponed: Words with probability 0 in the measure, so that they are written last (`begin_suppress_tokens` of
            dllm, `confidence_eos_eot_inf` of LLaDA).

    Raises:
        ValueError: If the measure or the quota is unknown, `block` is not positive, `from_start` has no block, or the
            threshold is out of range.
    """

    measure: Measure = "probability"
    quota: Quota = "random"
    greedy: bool = False
    block: int | None = None
    from_start: bool = False
    threshold: float | None = None
    postponed: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name, choices in (("measure", get_args(Measure)), ("quota", get_args(Quota))):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"`{name}` of decoding by confidence must be one of {', '.join(choices)}; "
                    f"got {getattr(self, name)!r}."
                )
        if self.block is not None and self.block < 1:
            raise ValueError(f"`block` of decoding by confidence must be positive; got {self.block}.")
        if self.from_start and self.block is None:
            raise ValueError("`from_start` of decoding by confidence needs blocks: give `block` too.")
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise ValueError(
                f"`threshold` of decoding by confidence must lie in [0, 1]; got {self.threshold}."
            )

    def __call__(self, x: Int[Tensor, "b l"], move: Move) -> Int[Tensor, "b l"]:
        require_masks(move.process, "Decoding by confidence")
        kept = move.still_masked
        masked = move.masked
        if self.block is not None:
            inside, kept = _of_blocks(move, self.block, from_start=self.from_start)
            masked = masked & inside
        if not masked.any():
            return x
        ranked = move.moving if self.quota == "standing" else masked
        log_p = move.reading.log_clean(ranked)
        at = ranked.nonzero(as_tuple=True)
        drawn = log_p.argmax(1) if self.greedy else draw_index(log_p.exp(), move.uniform(_MODEL)[at])
        trust, sure = torch.full_like(move.t, -torch.inf), torch.zeros_like(masked)
        trust[at] = self._trust(self._measured(log_p), drawn, at[1]).to(trust.dtype)
        if self.threshold is not None:
            sure[at] = log_p.gather(1, drawn[:, None])[:, 0].exp() > self.threshold
        trust = trust.masked_fill(masked & (kept == 0), torch.inf)
        rank = ascending(-trust, move.uniform(_TIE)).argsort(dim=1)
        guess = x.clone()
        guess[at] = drawn
        return torch.where(masked & (sure | (rank < self._count(move, masked, kept))), guess, x)

    def _measured(self, log_p: Float[Tensor, "n v"]) -> Float[Tensor, "n v"]:
        """The distribution that the measure gets: without the words that are postponed."""
        if not self.postponed:
            return log_p
        words = torch.tensor(self.postponed, device=log_p.device)
        return log_p.index_fill(1, words, -torch.inf).log_softmax(1)

    def _count(
        self, move: Move, masked: Bool[Tensor, "b l"], kept: Float[Tensor, "b l"]
    ) -> Float[Tensor, "b 1"]:
        """Number of words for each sequence; a float64 share has rounding errors, so nearly whole numbers are whole."""
        expected = torch.where(masked, 1 - kept, 0.0).sum(1, keepdim=True)
        match self.quota:
            case "random":
                return (expected + move.uniform(_ROUND)[:, :1]).floor()
            case "even":
                return (expected - _WHOLE).ceil()
            case "truncated":
                return (expected + _WHOLE).floor()
            case "nearest":
                return expected.round()
            case "standing":
                begin = move.t if move.begin is None else move.begin
                stays = torch.where(move.moving, move.s / begin, 0.0).sum(1, keepdim=True)
                return move.moving.sum(1, keepdim=True) - (stays + _WHOLE).floor()

    def _trust(
        self, log_p: Float[Tensor, "n v"], drawn: Int[Tensor, " n"], column: Int[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        match self.measure:
            case "position":
                return -column.to(log_p.dtype)
            case "margin":
                best = log_p.exp().topk(2, dim=1).values
                return best[:, 0] - best[:, 1]
            case "entropy":
                return torch.xlogy(log_p.exp(), log_p.exp()).sum(1)
            case _:
                return log_p.gather(1, drawn[:, None])[:, 0]


def _of_blocks(
    move: Move, width: int, *, from_start: bool
) -> tuple[Bool[Tensor, "b l"], Float[Tensor, "b l"]]:
    """Where the noise of a block falls in this step, and the share of its masks that stay.

    Of `n` blocks, number `i` has the noise `n u - (n - 1 - i)`, cut to [0, 1], while that of the canvas is `u`.

    Raises:
        ValueError: If positions that may change have different noise.
    """
    moving, place = move.moving, torch.arange(move.x.shape[1], device=move.x.device)
    counted = torch.ones_like(moving) if from_start else moving
    first = torch.where(counted, place, move.x.shape[1]).amin(1, keepdim=True)
    last = torch.where(counted, place, -1).amax(1, keepdim=True)
    now, then = (torch.where(moving, u, 0.0).amax(1, keepdim=True) for u in (move.t, move.s))
    if bool((moving & ((move.t != now) | (move.s != then))).any()):
        raise ValueError(
            "`block` of decoding by confidence needs a flat hyperschedule: all positions share one noise."
        )
    block, count = ((at - first).div(width, rounding_mode="floor") for at in (place, last + width))
    t, s = ((count * u - (count - 1 - block)).clamp(0, 1) for u in (now, then))
    kept = s / t.clamp_min(_WHOLE)
    return t - s > _WHOLE, torch.where(kept < _WHOLE, 0.0, kept)
