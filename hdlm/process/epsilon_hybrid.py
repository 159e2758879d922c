"""The epsilon-hybrid process of HDLM (arXiv 2504.06416): it interpolates the *evolution operators*.

A token is first kept or replaced by a uniform word, then masked. All replacement happens at `u = 0+`, so data (`u = 0`)
are clean, and every noisy state has the same share `epsilon` of wrong words.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from jaxtyping import Float
from torch import Tensor

from hdlm.process.base import AbstractNoiseProcess, Weights


@final
@dataclass(frozen=True)
class EpsilonHybrid(AbstractNoiseProcess):
    """Weights `((1 - u)(1 - epsilon), (1 - u) epsilon, u)` for `u > 0`, and `(1, 0, 0)` at `u = 0`.

    Attributes:
        num_words: Number of words.
        epsilon: Share of uniform words among the visible ones, in [0, 1). 0 is the absorbing process (MDLM).
    """

    num_words: int
    epsilon: float
    strength_field: ClassVar[str | None] = "epsilon"

    def __post_init__(self) -> None:
        if not 0 <= self.epsilon < 1:
            raise ValueError(f"`epsilon` must lie in [0, 1); got {self.epsilon}.")

    def weights(self, u: Float[Tensor, "*b"]) -> Weights:
        replaced = self.epsilon * (u > 0).to(u.dtype)
        return Weights((1 - u) * (1 - replaced), (1 - u) * replaced, u)
