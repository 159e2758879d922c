"""Gibbs correction: redraw visible words without changing the distribution of the noisy sequence.

At a visible word the network's `p(x_0 | x_u)` depends on the word itself. Divided by the word's likelihood it becomes
the evidence of the rest of the sequence, `l(k) ~ p(x_0 = k | x_u) / q(x_u | x_0 = k)`, and a redraw at an equal noise
level,

    x_u ~ clean / (clean + uniform) l + uniform / (clean + uniform) U(words),

does not change the distribution of `x_u`, one position at a time, if the denoiser is exact. Many positions at once are
an approximation, as in ACS. It needs a process with uniform noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Int
from torch import Tensor

from hdlm.sampling.base import Move
from hdlm.sampling.draws import draw_index, draw_word

__all__ = ["GibbsCorrection"]

_CHOICE, _KIND, _MODEL, _WORD = 0, 1, 2, 3


@final
@dataclass(frozen=True)
class GibbsCorrection:
    """Redraws visible words at the noise level after the move; costs one more network call.

    Attributes:
        share: Probability that a visible word is redrawn, in (0, 1]; None redraws exactly one word per sequence, chosen
            uniformly among the visible words, which is exact.
    """

    share: float | None = None

    def __post_init__(self) -> None:
        if self.share is not None and not 0 < self.share <= 1:
            raise ValueError(
                f"`share` of the Gibbs correction must lie in (0, 1], or be None; got {self.share}."
            )

    def __call__(self, x: Int[Tensor, "b l"], move: Move) -> Int[Tensor, "b l"]:
        process = move.process
        w = process.weights(move.s)
        able = move.moving & (x != process.mask_id) & (w.uniform > 0)
        choice = move.uniform(_CHOICE)
        if self.share is None:
            first = torch.where(able, choice, 2.0).argmin(-1, keepdim=True)
            chosen = able & torch.zeros_like(able).scatter(1, first, True)
        else:
            chosen = able & (choice < self.share)
        if not chosen.any():
            return x
        keep = w.clean / (w.clean + w.uniform)
        from_model = chosen & (move.uniform(_KIND) < keep)
        new = torch.where(chosen, draw_word(process.num_words, move.uniform(_WORD)), x)
        if from_model.any():
            clean = move.read(x, move.s).log_clean(from_model).to(move.s.dtype).exp()
            rest = process.origin(x[from_model], clean, move.s[from_model])
            new[from_model] = draw_index(rest, move.uniform(_MODEL)[from_model])
        return new
