"""Sampling with options in one table, for tests that vary them: parts of the regime, of the execution, and the rest."""

from __future__ import annotations

from typing import Any

from jaxtyping import Int
from torch import Tensor

from hdlm.denoiser import AbstractDenoiser
from hdlm.hyperschedule import AbstractHyperschedule
from hdlm.regime import Regime
from hdlm.sampling import Execution, Generation, Step, sample, sample_plainly

REGIME = ("noise_schedule", "context", "active", "sampling_eps")
EXECUTION = ("batch_size", "first_sequence", "together", "use_cache", "approximate", "device")


def regime_of(plan: AbstractHyperschedule, options: dict[str, Any]) -> Regime:
    """The regime along a hyperschedule; its parts are taken out of the options."""
    return Regime(plan, **{name: options.pop(name) for name in REGIME if name in options})


def sample_along(
    denoiser: AbstractDenoiser, plan: AbstractHyperschedule, step: Step, **options: Any
) -> Generation:
    """`sample` with all options in one table."""
    regime = regime_of(plan, options)
    execution = Execution(**{name: options.pop(name) for name in EXECUTION if name in options})
    return sample(denoiser, regime, step, execution=execution, **options)


def sample_plainly_along(
    denoiser: AbstractDenoiser, plan: AbstractHyperschedule, step: Step, **options: Any
) -> Int[Tensor, "n l"]:
    """`sample_plainly` with all options in one table."""
    regime = regime_of(plan, options)
    return sample_plainly(denoiser, regime, step, **options)
