"""Gibbs correction: redraw visible words without changing the law of the noisy sequence.

For a visible word the network's `p(x_0 | x_u)` contains the word's own testimony. Divided by its likelihood it is what
the rest of the sequence says, `l(k) ~ p(x_0 = k | x_u) / q(x_u | x_0 = k)`, and a redraw at the same noise level,

    x_u ~ clean / (clean + uniform) l + uniform / (clean + uniform) U(words),

leaves the law of `x_u` exactly as it was, one position at a time, if the denoiser is exact. Many positions at once are
an approximation, as ACS is. Needs a process with uniform noise.
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
    """Redraws visible words at the noise level that the move has reached; costs one more question to the network.

    Attributes:
        share: Probability of each visible word to be redrawn, in (0, 1]; None redraws exactly one a sequence, chosen
            uniformly among the visible ones, which is exact.
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
