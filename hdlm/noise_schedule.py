r"""How fast noise comes: a map from time `t` in [0, 1] to the noise fraction `u` in [0, 1].

A noise process is a function of `u` alone (`hdlm.process`); a schedule says when each `u` is reached.
`fraction(t)` rises with `t` from (about) 0 to (about) 1. The *total noise* is `sigma = -log(1 - u)`, so for the
processes that speak of rates (SEDD, gamma-hybrid) `u = 1 - exp(-sigma)`, and for those that speak of masking
probabilities (MDLM, epsilon-hybrid) `u = 1 - alpha`.
"""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["LINEAR", "AbstractNoiseSchedule", "Cosine", "Geometric", "Linear", "LogLinear", "total_noise"]


def total_noise(u: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """Total noise `sigma = -log(1 - u)` of a noise fraction `u` in [0, 1); infinite at 1."""
    return -torch.log1p(-u)


class AbstractNoiseSchedule(abc.ABC):
    """A rising map `t -> u` and its derivative and inverse."""

    @abc.abstractmethod
    def fraction(self, t: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        """Noise fraction `u(t)`, for `t` in [0, 1]."""

    @abc.abstractmethod
    def rate(self, t: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        """Derivative `du/dt` at `t` in [0, 1]."""

    @abc.abstractmethod
    def time(self, u: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        """Inverse of `fraction`, for `u` in its range."""


@final
@dataclass(frozen=True)
class Linear(AbstractNoiseSchedule):
    """`u(t) = t`: the masking probability itself is the time (MDLM, arXiv 2406.07524)."""

    def fraction(self, t: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        return t

    def rate(self, t: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        return torch.ones_like(t)

    def time(self, u: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        return u


LINEAR = Linear()
"""The default everywhere."""


@final
@dataclass(frozen=True)
class LogLinear(AbstractNoiseSchedule):
    """`sigma(t) = -log(1 - (1 - floor) t)`, that is `u(t) = (1 - floor) t` (SEDD, arXiv 2310.16834).

    Attributes:
        floor: What is left of the data at `t = 1`, in [0, 1). Published gamma models use 5e-3.
    """

    floor: float = 1e-3

    def __post_init__(self) -> None:
        if not 0 <= self.floor < 1:
            raise ValueError(f"`floor` must lie in [0, 1); got {self.floor}.")

    def fraction(self, t: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        return (1 - self.floor) * t

    def rate(self, t: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        return torch.full_like(t, 1 - self.floor)

    def time(self, u: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        return u / (1 - self.floor)


@final
@dataclass(frozen=True)
class Cosine(AbstractNoiseSchedule):
    """`alpha(t) = 1 - cos(pi/2 (1 - t))`, that is `u(t) = cos(pi/2 (1 - t))` (MDLM, appendix)."""

    def fraction(self, t: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        return torch.sin(math.pi / 2 * t)

    def rate(self, t: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        return math.pi / 2 * torch.cos(math.pi / 2 * t)

    def time(self, u: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        return 2 / math.pi * torch.asin(u)


@final
@dataclass(frozen=True)
class Geometric(AbstractNoiseSchedule):
    """`sigma(t) = sigma_min^(1-t) sigma_max^t` (SEDD, arXiv 2310.16834).

    Attributes:
        sigma_min: Total noise at `t = 0`, positive.
        sigma_max: Total noise at `t = 1`, above `sigma_min`.
    """

    sigma_min: float = 1e-4
    sigma_max: float = 20.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max:
            raise ValueError(
                f"Geometric noise needs 0 < sigma_min < sigma_max; got {self.sigma_min} and {self.sigma_max}."
            )

    def _sigma(self, t: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        return self.sigma_min ** (1 - t) * self.sigma_max**t

    def fraction(self, t: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        return -torch.expm1(-self._sigma(t))

    def rate(self, t: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        sigma = self._sigma(t)
        return torch.exp(-sigma) * sigma * math.log(self.sigma_max / self.sigma_min)

    def time(self, u: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        return torch.log(total_noise(u) / self.sigma_min) / math.log(self.sigma_max / self.sigma_min)
