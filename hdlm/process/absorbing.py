"""Masking: a token stays, or becomes the mask (D3PM absorbing, MDLM arXiv 2406.07524, SEDD-absorb)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from hdlm.process.base import AbstractNoiseProcess, Weights


@final
@dataclass(frozen=True)
class Absorbing(AbstractNoiseProcess):
    """Weights `(1 - u, 0, u)`: `u` is the masking probability."""

    num_words: int

    def weights(self, u: Float[Tensor, "*b"]) -> Weights:
        return Weights(1 - u, torch.zeros_like(u), u)
