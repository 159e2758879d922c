"""How the published models are measured: along which hyperschedule, and under which bound."""

from __future__ import annotations

import torch

from hdlm.evaluation.result import BoundName
from hdlm.hyperschedule import AbstractHyperschedule, PublishedWave, Wave
from hdlm.process import AbstractNoiseProcess

__all__ = ["bound_of", "measurable"]


def bound_of(process: AbstractNoiseProcess) -> BoundName:
    """The paper's bound, or that of the process itself where noise is not all masks in the end."""
    full = process.weights(torch.ones((), dtype=torch.float64))
    return "absorbing" if bool(full.mask == 1) else "hybrid"


def measurable(plan: AbstractHyperschedule) -> AbstractHyperschedule:
    """A hyperschedule that begins in pure noise, as a bound needs it.

    The published `hybrid` does not, quite: its first block begins at a lower level. `Wave` is the same but for that.
    """
    if isinstance(plan, PublishedWave):
        return Wave(plan.length, plan.width, plan.num_levels)
    return plan
