r"""Exact denoising score entropy: the bound in continuous time, for every process and every parameterization.

With reverse jumps `x_t -> y` at the forward rate `R(y -> x_t)` times the score `s_y`, and true conditional ratios
`r_y = q(y | x_0) / q(x_t | x_0)`, a position costs, per unit of noise fraction,

    sum_y R(y -> x_t) [ s_y - r_y log s_y + r_y log r_y - r_y ]

(SEDD, arXiv 2310.16834, equation 9). `r_y` has one value at `y = x_0` and another elsewhere, so the sums have a closed
form: one `sum s_y`, one `sum log s_y` over the vocabulary, and terms of size one. Its integral over the noise fraction
is the negative evidence lower bound; with the exact score it is the entropy of the data. With a mean parameterization
and the absorbing process it is MDLM's weighted cross-entropy.

The published code uses the rates of the hybrid, but the ratios of its two ends: at masks those of the absorbing
process, at words those of the uniform process. The minimum of its loss is not at the true score; `ratios` offers both
variants.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, final, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hdlm.denoiser import Prediction
from hdlm.objective.base import AbstractCost, AbstractObjective, Term
from hdlm.objective.canvas import Canvas
from hdlm.process import AbstractNoiseProcess, Weights

__all__ = ["ScoreEntropy"]


Ratios = Literal["exact", "published_code"]


@final
@dataclass(frozen=True)
class ScoreEntropy(AbstractObjective):
    """`measure * sum_y R(y -> x_t) [s_y - r_y log s_y + r_y log r_y - r_y]`.

    Attributes:
        floor: Distance that the noise fraction keeps from 0 and 1, where ratios are infinite.
        ratios: `"exact"`, or the ratios that the published gamma-hybrids were trained with (`"published_code"`).
    """

    floor: float = 1e-6
    ratios: Ratios = "exact"

    def __post_init__(self) -> None:
        if not 0 < self.floor < 0.5:
            raise ValueError(f"`floor` must lie in (0, 0.5); got {self.floor}.")
        if self.ratios not in get_args(Ratios):
            raise ValueError(f"`ratios` must be one of {get_args(Ratios)}; got {self.ratios!r}.")

    def terms(self, process: AbstractNoiseProcess, canvas: Canvas) -> tuple[Term, ...]:
        rates = process.rates(canvas.t.clamp(self.floor, 1 - self.floor))
        leaves = torch.where(canvas.x_t == process.mask_id, rates.mask, rates.uniform + rates.release)
        cost = _Jumps(self.floor, self.ratios)
        return (Term(torch.where(leaves > 0, canvas.measure, 0.0), cost),)


@final
@dataclass(frozen=True)
class _Jumps(AbstractCost):
    """The sum over all jumps out of `x_t`; fields as in `ScoreEntropy`."""

    floor: float
    ratios: Ratios

    def __call__(self, prediction: Prediction, canvas: Canvas, at: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        process = prediction.process
        n = process.num_words
        x_0, x_t = canvas.x_0.flatten()[at], canvas.x_t.flatten()[at]
        u = canvas.t.flatten()[at].clamp(self.floor, 1 - self.floor)
        inner = prediction.noise.clamp(self.floor, 1 - self.floor)
        log_s = replace(prediction, noise=inner).log_score(at)
        rates, masked, kept = process.rates(u), x_t == process.mask_id, x_t == x_0
        w = self._weights(process, u, masked)
        # q(y | x_0) for y = x_0, for another word and for the mask, over q(x_t | x_0)
        here = torch.where(masked, w.mask, w.uniform / n + torch.where(kept, w.clean, 0.0))
        other, same, mask = w.uniform / n / here, (w.uniform / n + w.clean) / here, w.mask / here
        # words y != x_t
        words = log_s[:, :n]
        log_own = torch.where(masked, 0.0, log_s.gather(1, x_t[:, None])[:, 0]).to(u.dtype)
        log_true = log_s.gather(1, x_0[:, None])[:, 0].to(u.dtype)
        sum_words = words.exp().sum(-1, dtype=u.dtype) - torch.where(masked, 0.0, log_own.exp())
        log_words = words.sum(-1, dtype=u.dtype) - log_own
        bump = torch.where(kept, 0.0, same - other)
        cost = sum_words - _times(other, log_words) - _times(bump, log_true)
        num_other = torch.where(masked, float(n), n - 1.0) - torch.where(kept, 0.0, 1.0)
        cost = cost + num_other * _negentropy(other) + torch.where(kept, 0.0, _negentropy(same))
        from_words = torch.where(masked, rates.mask, rates.uniform / n)
        # the mask, where noise releases it
        log_mask = torch.where(rates.release > 0, log_s[:, n], 0.0).to(u.dtype)
        cost_mask = log_mask.exp() - mask * log_mask + _negentropy(mask)
        return from_words * cost + torch.where(masked, 0.0, rates.release / n) * cost_mask

    def _weights(self, process: AbstractNoiseProcess, u: Tensor, masked: Tensor) -> Weights:
        """The marginals from which the ratios are computed."""
        if self.ratios == "exact":
            return process.weights(u)
        zero = torch.zeros_like(u)
        return Weights(1 - u, torch.where(masked, zero, u), torch.where(masked, u, zero))


def _negentropy(r: Tensor) -> Tensor:
    """`r log r - r`."""
    return torch.xlogy(r, r) - r


def _times(weight: Tensor, log: Tensor) -> Tensor:
    """`weight * log`, and 0 where the weight is 0."""
    return torch.where(weight > 0, weight * log, 0.0)
