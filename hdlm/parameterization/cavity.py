r"""The cavity: raw outputs are logits of the clean token as seen from *all other* positions (MDLM, BD3-LM, Duo, GIDD).

These models put `softmax(raw)` in the place of the clean token in `q(x_s | x_t, x_0)`, that is, they step by
`q(x_t | x_s) q(x_s | softmax(raw))`. Which is Bayes' rule with `softmax(raw)` as the prior: their output leaves out
what the noisy token says of its own origin, and

    p(x_0 | x_t) = softmax(raw)(x_0) q(x_t | x_0) / sum over y of softmax(raw)(y) q(x_t | y).

A mask says nothing of its origin, so there `p(x_0 | x_t)` is `softmax(raw)` itself, as with `Mean`. A visible word of
the absorbing process says everything: it is kept (the carry-over of MDLM).

References: MDLM (arXiv 2406.07524), GIDD (arXiv 2503.04482), Duo (arXiv 2506.10892).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hdlm.parameterization.base import AbstractParameterization, NetworkInputs, NoiseDependence, loudest
from hdlm.parameterization.mean import Conditioning, Mean
from hdlm.process import AbstractNoiseProcess

__all__ = ["Cavity"]


@final
@dataclass(frozen=True)
class Cavity(AbstractParameterization):
    """`p(x_0 | x_t)` is proportional to `softmax(raw) q(x_t | x_0)`; the mask's row is never read.

    Attributes:
        conditioning: What the network is told of time; see `Mean`.
        floor: `sigma` is read at a noise fraction kept this far from 0 and 1.
        shared: Whether all positions are told the greatest noise among them, as networks are that know one number a
            sequence, or each its own.
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
        return Mean(self.conditioning, self.floor).inputs(loudest(u) if self.shared else u)

    def log_clean(
        self,
        process: AbstractNoiseProcess,
        raw: Float[Tensor, "*n rows"],
        x_t: Int[Tensor, "*n"],
        u: Float[Tensor, "*n"],
    ) -> Float[Tensor, "*n v"]:
        cavity = Mean().log_clean(process, raw, x_t, u)
        w = process.weights(u)
        anywhere, kept = (w.uniform / process.num_words).log(), w.clean.log()
        own = cavity.gather(-1, x_t[..., None])[..., 0].to(u.dtype)
        speaks = (x_t != process.mask_id) & (w.clean + w.uniform > 0)
        anywhere = torch.where(speaks, anywhere, 0.0)
        evidence = torch.logaddexp(torch.where(speaks, own + kept, -torch.inf), anywhere)
        here = torch.where(speaks, own + torch.logaddexp(kept, anywhere) - evidence, own)
        others = cavity + (anywhere - evidence)[..., None].to(cavity.dtype)
        return others.scatter(-1, x_t[..., None], here[..., None].to(cavity.dtype))

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
