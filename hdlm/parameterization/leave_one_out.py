r"""Leave-one-out: raw outputs are logits of the clean token given *all other* positions (MDLM, BD3-LM, Duo, GIDD).

These models use `softmax(raw)` in place of the clean token in `q(x_s | x_t, x_0)`, that is, they step by
`q(x_t | x_s) q(x_s | softmax(raw))`. That is Bayes' rule with `softmax(raw)` as the prior: their output does not use
the noisy token at the position itself, and

    p(x_0 | x_t) = softmax(raw)(x_0) q(x_t | x_0) / sum over y of softmax(raw)(y) q(x_t | y).

A mask is equally likely after every token, so `p(x_0 | x_t)` at a mask is `softmax(raw)` itself, as with `Mean`. A
visible word of the absorbing process is always the clean token, so it is kept (the carry-over of MDLM). Statistical
physics calls `softmax(raw)` the cavity distribution.

References: MDLM (arXiv 2406.07524), GIDD (arXiv 2503.04482), Duo (arXiv 2506.10892).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hdlm.parameterization.base import (
    AbstractParameterization,
    NetworkInputs,
    NoiseDependence,
    max_noise_per_sequence,
)
from hdlm.parameterization.mean import Conditioning, Mean
from hdlm.process import AbstractNoiseProcess

__all__ = ["LeaveOneOut"]


@final
@dataclass(frozen=True)
class LeaveOneOut(AbstractParameterization):
    """`p(x_0 | x_t)` is proportional to `softmax(raw) q(x_t | x_0)`; the mask's row is never read.

    Attributes:
        conditioning: The number of the noise level that the network receives; see `Mean`.
        floor: Distance from 0 and 1 to which the noise fraction is clamped before `sigma` is computed.
        shared: Whether all positions of a sequence receive the largest noise among them (for networks that take one
            number per sequence), or each position its own.
    """

    conditioning: Conditioning = "none"
    floor: float = 1e-4
    shared: bool = False

    def __post_init__(self) -> None:
        Mean(self.conditioning, self.floor)

    @property
    def noise_dependence(self) -> NoiseDependence:
        alone = Mean(self.conditioning, self.floor).noise_dependence
        return "sequence" if self.shared and alone == "position" else alone

    def inputs(self, u: Float[Tensor, "*b"]) -> NetworkInputs:
        return Mean(self.conditioning, self.floor).inputs(max_noise_per_sequence(u) if self.shared else u)

    def log_clean(
        self,
        process: AbstractNoiseProcess,
        raw: Float[Tensor, "*n rows"],
        x_t: Int[Tensor, "*n"],
        u: Float[Tensor, "*n"],
    ) -> Float[Tensor, "*n v"]:
        others = Mean().log_clean(process, raw, x_t, u)
        w = process.weights(u)
        anywhere, kept = (w.uniform / process.num_words).log(), w.clean.log()
        own = others.gather(-1, x_t[..., None])[..., 0].to(u.dtype)
        is_word = (x_t != process.mask_id) & (w.clean + w.uniform > 0)
        anywhere = torch.where(is_word, anywhere, 0.0)
        evidence = torch.logaddexp(torch.where(is_word, own + kept, -torch.inf), anywhere)
        here = torch.where(is_word, own + torch.logaddexp(kept, anywhere) - evidence, own)
        log_p = others + (anywhere - evidence)[..., None].to(others.dtype)
        return log_p.scatter(-1, x_t[..., None], here[..., None].to(others.dtype))

    def log_weights(
        self,
        process: AbstractNoiseProcess,
        raw: Float[Tensor, "*n rows"],
        x_t: Int[Tensor, "*n"],
        u: Float[Tensor, "*n"],
    ) -> Float[Tensor, "*n words"]:
        if (x_t == process.mask_id).all():
            return Mean().log_weights(process, raw, x_t, u)
        return self.log_clean(process, raw, x_t, u)[..., :-1]

    def log_score(
        self,
        process: AbstractNoiseProcess,
        raw: Float[Tensor, "*n rows"],
        x_t: Int[Tensor, "*n"],
        u: Float[Tensor, "*n"],
    ) -> Float[Tensor, "*n v"]:
        words = Mean().log_clean(process, raw, x_t, u)[..., :-1].to(u.dtype)
        w = process.weights(u)
        anywhere = (w.uniform / process.num_words).log()[..., None]
        marginal = torch.cat(
            [torch.logaddexp(w.clean.log()[..., None] + words, anywhere), w.mask.log()[..., None]], -1
        )
        return marginal - marginal.gather(-1, x_t[..., None])
