r"""Noise schedules: maps from time `t` in [0, 1] to the noise fraction `u` in [0, 1].

A noise process is a function of `u` alone (`hdlm.process`); a schedule determines when each `u` is reached.
`fraction(t)` rises with `t` from (about) 0 to (about) 1. The *total noise* is `sigma = -log(1 - u)`. For processes that
are defined by rates (SEDD, gamma-hybrid), `u = 1 - exp(-sigma)`; for those that are defined by masking probabilities
(MDLM, epsilon-hybrid), `u = 1 - alpha`.

A *time grid* of a sampler is such a map too: it maps the even steps `k / K` to the times that are used instead. To
generate with few steps that are not evenly spaced, sample with `Composed(trained, grid)`, which changes only the times
of the steps.
"""

from __future__ import annotations

import abc
import itertools
import math
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = [
    "LINEAR",
    "AbstractNoiseSchedule",
    "Composed",
    "ConstantRate",
    "Cosine",
    "CosinePower",
    "Geometric",
    "Interpolated",
    "Linear",
    "LogLinear",
    "Logarithmic",
    "Power",
    "time_grid",
    "total_noise",
]


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
"""The default noise schedule."""


@final
@dataclass(frozen=True)
class LogLinear(AbstractNoiseSchedule):
    """`sigma(t) = -log(1 - (1 - floor) t)`, that is `u(t) = (1 - floor) t` (SEDD, arXiv 2310.16834).

    Attributes:
        floor: Weight of the data that is left at `t = 1`, in [0, 1). Published gamma models use 5e-3.
    """

    floor: float = 1e-3

    def __post_init__(self) -> None:
        _check_floor(self.floor)

    def fraction(self, t: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        return (1 - self.floor) * t

    def rate(self, t: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        return torch.full_like(t, 1 - self.floor)

    def time(self, u: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        return u / (1 - self.floor)


@final
@dataclass(frozen=True)
class Cosine(AbstractNoiseSchedule):
    """`u(t) = cos(pi/2 (1 - (1 - floor) t))` (MaskGIT, arXiv 2202.04200; Duo, arXiv 2506.10892, with a floor).

    Attributes:
        floor: Share of time that is left at `t = 1`, in [0, 1).
    """

    floor: float = 0.0

    def __post_init__(self) -> None:
        _check_floor(self.floor)

    @property
    def _angle(self) -> float:
        return math.pi / 2 * (1 - self.floor)

    def fraction(self, t: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        return torch.sin(self._angle * t)

    def rate(self, t: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        return self._angle * torch.cos(self._angle * t)

    def time(self, u: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        return torch.asin(u) / self._angle


@final
@dataclass(frozen=True)
class CosinePower(AbstractNoiseSchedule):
    """`1 - u(t) = floor + (1 - floor) cos(pi/2 t)^exponent` (MDLM, arXiv 2406.07524, appendix).

    Attributes:
        exponent: At least 1; 2 is the schedule of Nichol and Dhariwal (arXiv 2102.09672).
        floor: Weight of the data that is left at `t = 1`, in [0, 1).
    """

    exponent: float = 1.0
    floor: float = 1e-3

    def __post_init__(self) -> None:
        _check_floor(self.floor)
        if not 1 <= self.exponent < math.inf:
            raise ValueError(f"`exponent` must be finite and at least 1; got {self.exponent}.")

    def fraction(self, t: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        return (1 - self.floor) * (1 - torch.cos(math.pi / 2 * t).clamp_min(0) ** self.exponent)

    def rate(self, t: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        cos, sin = torch.cos(math.pi / 2 * t).clamp_min(0), torch.sin(math.pi / 2 * t)
        return (1 - self.floor) * math.pi / 2 * self.exponent * cos ** (self.exponent - 1) * sin

    def time(self, u: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        return 2 / math.pi * torch.acos((1 - u / (1 - self.floor)).clamp_min(0) ** (1 / self.exponent))


@final
@dataclass(frozen=True)
class Power(AbstractNoiseSchedule):
    """`u(t) = t^exponent` (BD3-LM, arXiv 2503.09573: square and square root).

    Attributes:
        exponent: A positive number; below 1 most of the noise comes early.
    """

    exponent: float

    def __post_init__(self) -> None:
        if not 0 < self.exponent < math.inf:
            raise ValueError(f"`exponent` must be positive; got {self.exponent}.")

    def fraction(self, t: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        return t**self.exponent

    def rate(self, t: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        return self.exponent * t ** (self.exponent - 1)

    def time(self, u: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        return u ** (1 / self.exponent)


@final
@dataclass(frozen=True)
class Logarithmic(AbstractNoiseSchedule):
    """`u(t) = log(1 + t) / log 2` (BD3-LM, arXiv 2503.09573)."""

    def fraction(self, t: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        return torch.log1p(t) / math.log(2)

    def rate(self, t: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        return 1 / ((1 + t) * math.log(2))

    def time(self, u: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        return torch.expm1(u * math.log(2))


@final
@dataclass(frozen=True)
class ConstantRate(AbstractNoiseSchedule):
    """`sigma(t) = sigma_min + (sigma_max - sigma_min) t` (the `linear` noise of MDLM, arXiv 2406.07524).

    Attributes:
        sigma_min: Total noise at `t = 0`, not negative.
        sigma_max: Total noise at `t = 1`, greater than `sigma_min`.
    """

    sigma_min: float = 0.0
    sigma_max: float = 10.0

    def __post_init__(self) -> None:
        if not 0 <= self.sigma_min < self.sigma_max < math.inf:
            raise ValueError(
                f"A constant rate needs 0 <= sigma_min < sigma_max < inf; got {self.sigma_min} and {self.sigma_max}."
            )

    def fraction(self, t: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        return -torch.expm1(-(self.sigma_min + (self.sigma_max - self.sigma_min) * t))

    def rate(self, t: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        return (self.sigma_max - self.sigma_min) * (1 - self.fraction(t))

    def time(self, u: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        return (total_noise(u) - self.sigma_min) / (self.sigma_max - self.sigma_min)


@final
@dataclass(frozen=True)
class Geometric(AbstractNoiseSchedule):
    """`sigma(t) = sigma_min^(1-t) sigma_max^t` (SEDD, arXiv 2310.16834).

    Attributes:
        sigma_min: Total noise at `t = 0`, positive.
        sigma_max: Total noise at `t = 1`, greater than `sigma_min`.
    """

    sigma_min: float = 1e-4
    sigma_max: float = 20.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise ValueError(
                f"Geometric noise needs 0 < sigma_min < sigma_max < inf; got {self.sigma_min} and {self.sigma_max}."
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


@final
@dataclass(frozen=True)
class Interpolated(AbstractNoiseSchedule):
    """Given values at even times, `u(k / K) = values[k - 1]`, and linear interpolation between them.

    Attributes:
        values: `K` numbers that rise from above 0 to exactly 1.
    """

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        ends = [0.0, *self.values]
        if len(ends) < 2 or ends[-1] != 1 or not all(a < b for a, b in itertools.pairwise(ends)):
            raise ValueError(
                f"A grid needs numbers that rise from above 0 to exactly 1, as 0.2,0.6,1; got {list(self.values)}."
            )

    def fraction(self, t: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        return self._line(t, self._times(t), self._values(t))

    def rate(self, t: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        times, values = self._times(t), self._values(t)
        part = self._part(t, times)
        return (values[part + 1] - values[part]) / (times[part + 1] - times[part])

    def time(self, u: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        return self._line(u, self._values(u), self._times(u))

    def _times(self, like: Tensor) -> Tensor:
        count = torch.arange(len(self.values) + 1, dtype=like.dtype, device=like.device)
        return count / len(self.values)

    def _values(self, like: Tensor) -> Tensor:
        return torch.tensor([0.0, *self.values], dtype=like.dtype, device=like.device)

    def _part(self, at: Tensor, knots: Tensor) -> Tensor:
        """The index of the interval of each number; a knot belongs to the interval that it begins."""
        return (torch.searchsorted(knots, at.contiguous(), right=True) - 1).clamp(0, len(self.values) - 1)

    def _line(self, at: Tensor, knots: Tensor, values: Tensor) -> Tensor:
        part = self._part(at, knots)
        return torch.lerp(
            values[part], values[part + 1], (at - knots[part]) / (knots[part + 1] - knots[part])
        )


@final
@dataclass(frozen=True)
class Composed(AbstractNoiseSchedule):
    """`u(t) = outer(inner(t))`: the noise of `outer` at the times of the grid `inner`.

    Attributes:
        outer: The noise schedule of training.
        inner: The grid, from [0, 1] onto [0, 1].
    """

    outer: AbstractNoiseSchedule
    inner: AbstractNoiseSchedule

    def __post_init__(self) -> None:
        ends = self.inner.fraction(torch.tensor([0.0, 1.0], dtype=torch.float64))
        if not torch.allclose(ends, torch.tensor([0.0, 1.0], dtype=torch.float64), rtol=0, atol=1e-12):
            raise ValueError(
                f"A grid must begin at 0 and end at 1; {self.inner!r} goes from {float(ends[0])} to {float(ends[1])}."
            )

    def fraction(self, t: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        return self.outer.fraction(self.inner.fraction(t))

    def rate(self, t: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        return self.outer.rate(self.inner.fraction(t)) * self.inner.rate(t)

    def time(self, u: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        return self.inner.time(self.outer.time(u))


def time_grid(text: str) -> AbstractNoiseSchedule:
    """The time grid that a text describes.

    Args:
        text: `"uniform"`; `"cosine"`, which begins with small steps (MaskGIT, arXiv 2202.04200); `"power:P"`, the times
            `(k / K)^P`; or the times themselves after 0, as `"0.2,0.6,1"`, which are interpolated for other numbers of
            steps.

    Raises:
        ValueError: If it is not a grid.
    """
    name, _, exponent = text.partition(":")
    try:
        if name in ("uniform", "cosine") and not exponent:
            return LINEAR if name == "uniform" else Cosine()
        if name == "power":
            return Power(float(exponent))
        numbers = tuple(float(number) for number in text.split(","))
    except ValueError:
        raise ValueError(
            f"a grid must be uniform, cosine, power:P with P above 0, or times that rise to 1, as 0.2,0.6,1; "
            f"got {text!r}."
        ) from None
    return Interpolated(numbers)


def _check_floor(floor: float) -> None:
    if not 0 <= floor < 1:
        raise ValueError(f"`floor` must lie in [0, 1); got {floor}.")
