"""Generalized interpolating discrete diffusion, GIDD (arXiv 2503.04482): masks with a hump of uniform noise.

With time `u`, `c(u) = B (u (1 - u))^(exponent / 2)` and `C = 1 + c`, the weights are `((1 - u)/C, c/C, u/C)`. `B` is
chosen so that the uniform part has its maximum `p_uniform` in the middle. Unlike the hybrids, its noise redraws masks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, final

from jaxtyping import Float
from torch import Tensor

from hdlm.process.base import AbstractNoiseProcess, Weights


@final
@dataclass(frozen=True)
class GIDD(AbstractNoiseProcess):
    """Weights `((1 - u)/C, c/C, u/C)`.

    Attributes:
        num_words: Number of words.
        p_uniform: Share of uniform words at `u = 1/2`, in [0, 1). 0 is the absorbing process.
        exponent: Exponent of the hump, positive (the paper's gamma; 1 in its experiments).
    """

    num_words: int
    p_uniform: float
    exponent: float = 1.0
    absorbs: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 <= self.p_uniform < 1:
            raise ValueError(f"`p_uniform` must lie in [0, 1); got {self.p_uniform}.")
        if not 0 < self.exponent < math.inf:
            raise ValueError(f"`exponent` must be positive and finite; got {self.exponent}.")

    def weights(self, u: Float[Tensor, "*b"]) -> Weights:
        height = 2**self.exponent * self.p_uniform / (1 - self.p_uniform)
        hump = height * (u * (1 - u)) ** (self.exponent / 2)
        return Weights((1 - u) / (1 + hump), hump / (1 + hump), u / (1 + hump))
