"""A regime is a hyperschedule, a noise schedule and the attention masks between positions.

Training, generation and evaluation of a model must use the same regime, so it is one object. `Checkpoint.regime()`
returns that of a checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hdlm import attention
from hdlm.attention import Active, Context, Visibility
from hdlm.hyperschedule import AbstractHyperschedule, Regions
from hdlm.noise_schedule import LINEAR, AbstractNoiseSchedule
from hdlm.parameterization import NoiseDependence

__all__ = ["Regime", "settled_lasts"]


def settled_lasts(context: Context, dependence: NoiseDependence) -> bool:
    """Whether the keys and values of a settled position never change, so that keeping them is exact.

    Args:
        context: The settled positions that a settled position attends to.
        dependence: What the network's inputs depend on.
    """
    return context != "full" and dependence != "sequence"


@final
@dataclass(frozen=True)
class Regime:
    """A hyperschedule, a noise schedule, and which positions attend to which.

    Attributes:
        hyperschedule: The noise level of each position in each step; its length is that of the sequences.
        noise_schedule: Maps the time of a position, `level / num_levels`, to its noise fraction.
        context: The settled positions that a settled position attends to; see `hdlm.attention`.
        active: The active positions that an active position attends to.
        sampling_eps: In generation, times come from the published grid with this margin, if it is given
            (`AbstractHyperschedule.time_grid`).

    Raises:
        ValueError: If `context` or `active` is unknown.
    """

    hyperschedule: AbstractHyperschedule
    noise_schedule: AbstractNoiseSchedule = LINEAR
    context: Context = "block_causal"
    active: Active = "full"
    sampling_eps: float | None = None

    def __post_init__(self) -> None:
        attention.check_views(self.context, self.active)

    @property
    def length(self) -> int:
        """Number of positions."""
        return self.hyperschedule.length

    def along(self, hyperschedule: AbstractHyperschedule) -> Regime:
        """This regime with another hyperschedule."""
        return replace(self, hyperschedule=hyperschedule)

    def begin_in_noise(self) -> Regime:
        """This regime with the nearest hyperschedule that begins in pure noise, as a likelihood needs."""
        return self.along(self.hyperschedule.begin_in_noise())

    def first_positions(self, length: int) -> Regime:
        """This regime on the first positions alone; see `AbstractHyperschedule.first_positions`."""
        return self.along(self.hyperschedule.first_positions(length))

    @property
    def final_noise(self) -> float:
        """The noise fraction at which generation begins."""
        return float(self.noise_schedule.fraction(torch.ones((), dtype=torch.float64)))

    def noise_of_levels(self) -> Float[Tensor, " levels"]:
        """The noise fraction of each level in generation; exactly 0 where a position is settled."""
        levels = torch.arange(self.hyperschedule.num_levels + 1)
        if self.sampling_eps is None:
            times = levels.double() / self.hyperschedule.num_levels
        else:
            times = self.hyperschedule.time_grid(self.sampling_eps)
        return torch.where(levels > 0, self.noise_schedule.fraction(times), 0.0)

    def generation_attention(self, n: int | Int[Tensor, "*b"], regions: Regions | None = None) -> Visibility:
        """The attention mask of the step from `n` to `n + 1`; see `hdlm.attention.generation_attention`."""
        return attention.generation_attention(self.hyperschedule, n, self.context, self.active, regions)

    def two_stream(self, n: Int[Tensor, "*b l"]) -> Visibility:
        """The attention mask of a packed pass over `[clean | noisy]`; see `hdlm.attention.two_stream`."""
        return attention.two_stream(self.hyperschedule, n, self.context, self.active)

    def fits_one_pass(self, dependence: NoiseDependence) -> bool:
        """Whether one pass can give every position the input that it has in generation; see `Corruption`.

        A network that is conditioned on one noise level a sequence cannot read several blocks in one pass.

        Args:
            dependence: What the network's inputs depend on.
        """
        return settled_lasts(self.context, dependence) or self.hyperschedule.is_flat
