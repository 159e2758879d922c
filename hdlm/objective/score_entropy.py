r"""Exact denoising score entropy: the bound in continuous time, for every process and every parameterization.

With reverse jumps `x_t -> y` at the forward rate `R(y -> x_t)` times the score `s_y`, and true conditional ratios
`r_y = q(y | x_0) / q(x_t | x_0)`, a position costs, per unit of noise fraction,

    sum_y R(y -> x_t) [ s_y - r_y log s_y + r_y log r_y - r_y ]

(SEDD, arXiv 2310.16834, equation 9). `r_y` takes one value at `y = x_0` and another elsewhere, so the sums close: one
`sum s_y`, one `sum log s_y` over the vocabulary, and terms of size one. Integrated over the noise fraction this is the
negative evidence lower bound; with the exact score it is the entropy of the data. With a mean
parameterization and the absorbing process it is MDLM's weighted cross-entropy.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from hdlm.denoiser import AbstractDenoiser, Prediction
from hdlm.objective.base import AbstractObjective
from hdlm.objective.canvas import Canvas

__all__ = ["ScoreEntropy"]


@final
@dataclass(frozen=True)
class ScoreEntropy(AbstractObjective):
    """`measure * sum_y R(y -> x_t) [s_y - r_y log s_y + r_y log r_y - r_y]`.

    Attributes:
        chunk: How many positions are expanded over the vocabulary at a time.
        floor: The noise fraction is kept this far from 0 and 1, where ratios are infinite.
    """

    chunk: int = 4096
    floor: float = 1e-6

    def __call__(self, denoiser: AbstractDenoiser, canvas: Canvas) -> Float[Tensor, "b l"]:
        canvas = canvas.spoken(denoiser)
        prediction = canvas.predict(denoiser)
        prediction = replace(prediction, noise=self._inner(prediction.noise))
        rates = denoiser.process.rates(self._inner(canvas.t))
        leaves = torch.where(
            canvas.x_t == denoiser.process.mask_id, rates.mask, rates.uniform + rates.release
        )
        costly = ((canvas.measure > 0) & (leaves > 0)).flatten().nonzero()[:, 0]
        parts = [self._at(prediction, canvas, at) for at in costly.split(self.chunk)]
        entropy = torch.zeros_like(canvas.t).flatten().index_put((costly,), torch.cat(parts))
        return canvas.measure * entropy.view(canvas.t.shape)

    def _inner(self, u: Tensor) -> Tensor:
        return u.clamp(self.floor, 1 - self.floor)

    def _at(self, prediction: Prediction, canvas: Canvas, at: Tensor) -> Tensor:
        process = prediction.process
        n = process.num_words
        x_0, x_t = canvas.x_0.flatten()[at], canvas.x_t.flatten()[at]
        u = self._inner(canvas.t.flatten()[at])
        w, rates = process.weights(u), process.rates(u)
        log_s = prediction.log_score(at).to(u.dtype)
        own, true = x_t[:, None], x_0[:, None]
        masked, kept = x_t == process.mask_id, x_t == x_0
        # q(y | x_0) for y = x_0, for another word and for the mask, over q(x_t | x_0)
        here = torch.where(masked, w.mask, w.uniform / n + torch.where(kept, w.clean, 0.0))
        other, same, mask = w.uniform / n / here, (w.uniform / n + w.clean) / here, w.mask / here
        # words y != x_t
        words = log_s[:, :n]
        log_words, sum_words = words.sum(-1), words.exp().sum(-1)
        log_true = log_s.gather(1, true)[:, 0]
        count = torch.where(masked, float(n), n - 1.0)
        log_own = torch.where(masked, 0.0, log_s.gather(1, own)[:, 0])
        sum_words = sum_words - torch.where(masked, 0.0, log_s.gather(1, own)[:, 0].exp())
        log_words = log_words - log_own
        bump = torch.where(kept, 0.0, same - other)
        cost = sum_words - _times(other, log_words) - _times(bump, log_true)
        num_other = torch.where(kept, count, count - 1)
        cost = cost + num_other * _negentropy(other) + torch.where(kept, 0.0, _negentropy(same))
        from_words = torch.where(masked, rates.mask, rates.uniform / n)
        # the mask, where noise releases it
        log_mask = torch.where(rates.release > 0, log_s[:, n], 0.0)
        cost_mask = log_mask.exp() - mask * log_mask + _negentropy(mask)
        return from_words * cost + torch.where(masked, 0.0, rates.release / n) * cost_mask


def _negentropy(r: Tensor) -> Tensor:
    """`r log r - r`."""
    return torch.xlogy(r, r) - r


def _times(weight: Tensor, log: Tensor) -> Tensor:
    """`weight * log`, and 0 where the weight is 0."""
    return torch.where(weight > 0, weight * log, 0.0)
