"""Uniform noise: a token stays, or becomes any word (D3PM uniform, SEDD-uniform, Duo arXiv 2506.10892)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from hdlm.process.base import AbstractNoiseProcess, Weights


@final
@dataclass(frozen=True)
class Uniform(AbstractNoiseProcess):
    """Weights `(1 - u, u, 0)`. There is no mask."""

    num_words: int

    def weights(self, u: Float[Tensor, "*b"]) -> Weights:
        return Weights(1 - u, u, torch.zeros_like(u))
