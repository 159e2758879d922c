"""Defaults of a measurement: the hyperschedule and the bound for a model."""

from __future__ import annotations

from hdlm.checkpoint import Checkpoint
from hdlm.evaluation.likelihood.result import BoundName
from hdlm.generation import Settings
from hdlm.hyperschedule import AbstractHyperschedule, flat
from hdlm.process import AbstractNoiseProcess

__all__ = ["bound_of", "plan_of"]


def bound_of(process: AbstractNoiseProcess) -> BoundName:
    """The paper's bound, or the bound of the process if its noise does not end in masks only."""
    return "absorbing" if process.ends_in_masks else "hybrid"


def plan_of(
    checkpoint: Checkpoint,
    length: int | None = None,
    *,
    hyperschedule: str | None = None,
    width: int | None = None,
    steps: int | None = None,
) -> AbstractHyperschedule:
    """The hyperschedule of a checkpoint on windows of some length, or another one, starting in pure noise.

    Args:
        checkpoint: The model. If it lists no hyperschedule, all positions are noisy together.
        length: Tokens in a window; the model's context by default.
        hyperschedule: Name of a family, as in `hdlm.generation.Settings`.
        width: Positions that are noisy together.
        steps: Steps that each position takes from noise to word.

    Raises:
        ValueError: If the model does not support the length, or the family lacks an option.
    """
    length = checkpoint.length if length is None else length
    if not checkpoint.hyperschedules and (hyperschedule, width) == (None, None):
        return flat(length, steps or length)
    settings = Settings(hyperschedule=hyperschedule, width=width, steps=steps)
    return settings.plan(checkpoint.hyperschedules, length).begin_in_noise()
