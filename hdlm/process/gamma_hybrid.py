"""The gamma-hybrid process of HDLM (arXiv 2504.06416): it interpolates the *transition rates*.

`Q = (1 - gamma) Q_absorb + gamma Q_uniform`. With total noise `sigma = -log(1 - u)` a token is neither masked nor
replaced with probability `exp(-sigma) = 1 - u`, and not masked with probability `exp(-(1 - gamma) sigma)`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from hdlm.process.base import AbstractNoiseProcess, Weights


@final
@dataclass(frozen=True)
class GammaHybrid(AbstractNoiseProcess):
    """Weights `(1 - u, (1 - u)^(1 - gamma) - (1 - u), 1 - (1 - u)^(1 - gamma))`.

    Attributes:
        num_words: Number of words.
        gamma: Share of the uniform rate, in [0, 1]. 0 is SEDD-absorb, 1 is SEDD-uniform.
    """

    num_words: int
    gamma: float
    strength_field: ClassVar[str | None] = "gamma"

    def __post_init__(self) -> None:
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"`gamma` must lie in [0, 1]; got {self.gamma}.")

    def weights(self, u: Float[Tensor, "*b"]) -> Weights:
        clean, visible = 1 - u, (1 - u) ** (1 - self.gamma)
        few = u.clamp_max(0.5)  # differences of numbers near 1 have no digits left where `u` is tiny
        kept = torch.log1p(-few)
        masks = torch.expm1((1 - self.gamma) * kept)
        uniform = torch.where(u < 0.5, (1 - few) * torch.expm1(-self.gamma * kept), visible - clean)
        return Weights(clean, uniform, torch.where(u < 0.5, -masks, 1 - visible))
