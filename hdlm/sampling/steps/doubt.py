"""Correction by doubt: redraw visible words that their context contradicts, and noise them again.

ACS draws a visible word from `p(x_0 | x_t)` and leaves it without noise. Two things limit it. In `p(x_0 | x_t)` the
word counts as evidence for itself, as if only the process could have made it wrong; but words that were written in one
step did not see one another, so more of them are wrong. And redrawn words are cleaner than the network expects, so many
redraws make the text too likely.

This step doubts and noises. With `origin(k) ~ p(x_0 = k | x_t) / q(x_t | x_0 = k)`, the evidence of the other
positions, it draws

    x_0 ~ origin(k) [(1 - d) q(x_t | x_0 = k) + d (clean + uniform) / N],     d = min(1, doubt (t - s)),

and replaces the word by a uniform one as often as the process does at `s`. If `d = 0` and only one position is redrawn,
the redraw does not change the distribution of the noisy sequence. The doubt is proportional to the size of the step,
and so is the share of words that are redrawn. So many small steps correct as much in total as a few large ones, and
doubt vanishes as steps get small. It needs a process with uniform noise; otherwise no word changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hdlm.sampling.base import Move
from hdlm.sampling.draws import draw_index, draw_word

__all__ = ["DoubtCorrection"]

_CHOICE, _MODEL, _KIND, _WORD = 0, 1, 2, 3


@final
@dataclass(frozen=True)
class DoubtCorrection:
    """Redraws each visible word with probability `min(1, rate (t - s)) s / t`, and noises it again.

    It corrects the words that were visible at the start of the move and still are, with the network call of the step
    before it in a chain.

    Attributes:
        doubt: Probability per unit of noise that a visible word is wrong for another reason than noise, at least 0.
        rate: Number of redraws of a visible word per unit of noise, at least 0.
    """

    doubt: float = 0.5
    rate: float = 4.0
    remasks: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name in ("doubt", "rate"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(
                    f"`{name}` of the correction must lie in [0, inf); got {getattr(self, name)}."
                )

    def __call__(self, x: Int[Tensor, "b l"], move: Move) -> Int[Tensor, "b l"]:
        redraw = move.events_of(self) & move.visible & (x == move.x)
        if not redraw.any():
            return x
        at_s = move.process.weights(move.s)
        noised = redraw & (move.uniform(_KIND) * (at_s.clean + at_s.uniform) >= at_s.clean)
        drawn = redraw & ~noised
        new = torch.where(noised, draw_word(move.process.num_words, move.uniform(_WORD)), x)
        if drawn.any():
            words = draw_index(self._weights(move, drawn), move.uniform(_MODEL)[drawn])
            new = new.masked_scatter(drawn, words)
        return new

    def events(self, move: Move) -> Bool[Tensor, "b l"]:
        """Where words are redrawn, if there are words that earlier steps of the chain have not changed.

        Nowhere if the noise makes no wrong words.
        """
        if move.process.only_masks:
            return torch.zeros_like(move.moving)
        share = (self.rate * (move.t - move.s)).clamp_max(1) * move.s
        return move.moving & (move.uniform(_CHOICE) * move.t < share)

    def _weights(self, move: Move, where: Bool[Tensor, "b l"]) -> Float[Tensor, "n v"]:
        """The law of the redrawn clean words, up to a factor."""
        process, x, t = move.process, move.x[where], move.t[where]
        clean = move.reading.log_clean(where).to(t.dtype).exp()
        likelihood = process.likelihood(x, process.between(torch.zeros_like(t), t))
        doubt = (self.doubt * (t - move.s[where])).clamp_max(1)[:, None]
        share_of_words = (1 - process.weights(t).mask)[:, None]
        blurred = (1 - doubt) * likelihood + doubt * share_of_words / process.num_words
        return process.origin(x, clean, t) * blurred
