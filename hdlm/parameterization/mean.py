"""The mean parameterization: raw outputs are logits of the clean token (AR, epsilon-hybrid)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hdlm.noise_schedule import total_noise
from hdlm.parameterization.base import AbstractParameterization, NetworkInputs, NoiseDependence
from hdlm.process import AbstractNoiseProcess

__all__ = ["Conditioning", "Mean"]

Conditioning = Literal["none", "sigma", "fraction", "zero"]


@final
@dataclass(frozen=True)
class Mean(AbstractParameterization):
    """`p(x_0 | x_t) = softmax(raw)` over the words; the raw output of the mask is not used.

    Attributes:
        conditioning: The network's number for the noise: none (`"none"`, the published epsilon-hybrids), the total
            noise `sigma` (Duo), the noise fraction itself (GIDD), or the constant 0 (MDLM, BD3-LM).
        floor: Distance from 0 and 1 to which the noise fraction is clamped before `sigma` is computed.
    """

    conditioning: Conditioning = "none"
    floor: float = 1e-4

    def __post_init__(self) -> None:
        if self.conditioning not in get_args(Conditioning):
            raise ValueError(
                f"`conditioning` must be one of {get_args(Conditioning)}; got {self.conditioning!r}."
            )

    @property
    def is_softmax(self) -> bool:
        return True

    @property
    def noise_dependence(self) -> NoiseDependence:
        return "none" if self.conditioning in ("none", "zero") else "position"

    def inputs(self, u: Float[Tensor, "*b"]) -> NetworkInputs:
        match self.conditioning:
            case "none":
                return NetworkInputs()
            case "sigma":
                return NetworkInputs(total_noise(u.clamp(self.floor, 1 - self.floor)))
            case "fraction":
                return NetworkInputs(u)
            case "zero":
                return NetworkInputs(torch.zeros_like(u))

    def log_clean(
        self,
        process: AbstractNoiseProcess,
        raw: Float[Tensor, "*n rows"],
        x_t: Int[Tensor, "*n"],
        u: Float[Tensor, "*n"],
    ) -> Float[Tensor, "*n v"]:
        words = raw[..., : process.num_words]
        dtype = torch.promote_types(raw.dtype, torch.float32)
        log_p = torch.log_softmax(words, dim=-1, dtype=dtype)
        return torch.nn.functional.pad(log_p, (0, 1), value=-torch.inf)

    def log_weights(
        self,
        process: AbstractNoiseProcess,
        raw: Float[Tensor, "*n rows"],
        x_t: Int[Tensor, "*n"],
        u: Float[Tensor, "*n"],
    ) -> Float[Tensor, "*n words"]:
        return raw[..., : process.num_words].to(torch.promote_types(raw.dtype, torch.float32))

    def log_score(
        self,
        process: AbstractNoiseProcess,
        raw: Float[Tensor, "*n rows"],
        x_t: Int[Tensor, "*n"],
        u: Float[Tensor, "*n"],
    ) -> Float[Tensor, "*n v"]:
        clean = self.log_clean(process, raw, x_t, u).to(u.dtype).exp()
        return process.score_from_clean(x_t, clean, u).log()
