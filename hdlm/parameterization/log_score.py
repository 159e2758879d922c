"""The score parameterization: raw outputs are log ratios `p_u(y) / p_u(x_t)` (SEDD, gamma-hybrid)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hdlm.noise_schedule import total_noise
from hdlm.parameterization.base import (
    AbstractParameterization,
    NetworkInputs,
    NoiseDependence,
    max_noise_per_sequence,
)
from hdlm.process import AbstractNoiseProcess

__all__ = ["LogScore"]


@final
@dataclass(frozen=True)
class LogScore(AbstractParameterization):
    """`log score = raw - log(e^sigma - 1) - log(rows - 1)`, and 0 at the current token.

    Reference: SEDD (arXiv 2310.16834).

    Attributes:
        scale_by_sigma: Whether the two terms are subtracted (published weights: yes).
        blend_rate: The network gets `e^{-rate sigma} E[x] + (1 - e^{-rate sigma}) E[mask]`; the gamma-hybrids'
            `hybrid_sigma_embedding` with `rate = gamma`. None for plain embeddings.
        floor: Distance from 0 and 1 to which the noise fraction is clamped; `sigma` would be 0 or infinite there.
        shared: Whether all positions get the largest noise among them, for networks with one number per sequence
            (SEDD), or each its own.
    """

    scale_by_sigma: bool = True
    blend_rate: float | None = None
    floor: float = 1e-4
    shared: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.floor < 0.5:
            raise ValueError(f"`floor` must lie in (0, 0.5); got {self.floor}.")
        if self.blend_rate is not None and self.blend_rate < 0:
            raise ValueError(f"`blend_rate` must not be negative; got {self.blend_rate}.")

    def _inner(self, u: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        return u.clamp(self.floor, 1 - self.floor)

    @property
    def noise_dependence(self) -> NoiseDependence:
        return "sequence" if self.shared else "position"

    def inputs(self, u: Float[Tensor, "*b"]) -> NetworkInputs:
        sigma = total_noise(self._inner(u))
        blend = None if self.blend_rate is None else -torch.expm1(-self.blend_rate * sigma)
        return NetworkInputs(max_noise_per_sequence(sigma) if self.shared else sigma, blend)

    def log_score(
        self,
        process: AbstractNoiseProcess,
        raw: Float[Tensor, "*n rows"],
        x_t: Int[Tensor, "*n"],
        u: Float[Tensor, "*n"],
    ) -> Float[Tensor, "*n v"]:
        log_score = raw.to(torch.promote_types(raw.dtype, torch.float32))
        if self.scale_by_sigma:
            scale = torch.expm1(total_noise(self._inner(u))).log() + math.log(raw.shape[-1] - 1)
            log_score = log_score - scale[..., None].to(log_score.dtype)
        if raw.shape[-1] == process.num_words:
            log_score = torch.nn.functional.pad(log_score, (0, 1), value=-torch.inf)
        return log_score.scatter(-1, x_t[..., None], 0.0)

    def log_clean(
        self,
        process: AbstractNoiseProcess,
        raw: Float[Tensor, "*n rows"],
        x_t: Int[Tensor, "*n"],
        u: Float[Tensor, "*n"],
    ) -> Float[Tensor, "*n v"]:
        score = self.log_score(process, raw, x_t, u).double().exp()
        clean = process.clean_from_score(x_t, score, self._inner(u).double())
        possible = clean > 0
        # The logarithm is taken of positive numbers only: at 0 its gradient would be NaN, and spoil all others.
        return torch.where(possible, torch.where(possible, clean, 1.0).log(), -torch.inf)
