"""Shifted outputs: the output at a position describes the *next* position, as in GPT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from jaxtyping import Float, Int
from torch import Tensor

from hdlm.parameterization.base import AbstractParameterization, NetworkInputs, NoiseDependence
from hdlm.process import AbstractNoiseProcess

__all__ = ["Shifted"]


@final
@dataclass(frozen=True)
class Shifted(AbstractParameterization):
    """Gives the output at position `i - 1` the meaning that `inner` gives the one at `i`. Position 0 has no output.

    Attributes:
        inner: Meaning of the outputs without the shift.
    """

    inner: AbstractParameterization

    @property
    def lookback(self) -> int:
        return 1 + self.inner.lookback

    @property
    def aligned(self) -> AbstractParameterization:
        return self.inner

    @property
    def is_softmax(self) -> bool:
        return self.inner.is_softmax

    @property
    def noise_dependence(self) -> NoiseDependence:
        return self.inner.noise_dependence

    def inputs(self, u: Float[Tensor, "*b"]) -> NetworkInputs:
        return self.inner.inputs(u)

    def log_clean(
        self,
        process: AbstractNoiseProcess,
        raw: Float[Tensor, "*n rows"],
        x_t: Int[Tensor, "*n"],
        u: Float[Tensor, "*n"],
    ) -> Float[Tensor, "*n v"]:
        return self.inner.log_clean(process, raw, x_t, u)

    def log_weights(
        self,
        process: AbstractNoiseProcess,
        raw: Float[Tensor, "*n rows"],
        x_t: Int[Tensor, "*n"],
        u: Float[Tensor, "*n"],
    ) -> Float[Tensor, "*n words"]:
        return self.inner.log_weights(process, raw, x_t, u)

    def log_score(
        self,
        process: AbstractNoiseProcess,
        raw: Float[Tensor, "*n rows"],
        x_t: Int[Tensor, "*n"],
        u: Float[Tensor, "*n"],
    ) -> Float[Tensor, "*n v"]:
        return self.inner.log_score(process, raw, x_t, u)
