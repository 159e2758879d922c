"""How a model is measured unless the user says otherwise: along which hyperschedule, and under which bound."""

from __future__ import annotations

from hdlm.checkpoint import Checkpoint
from hdlm.evaluation.likelihood.result import BoundName
from hdlm.generation import Settings
from hdlm.hyperschedule import AbstractHyperschedule, flat
from hdlm.process import AbstractNoiseProcess

__all__ = ["bound_of", "plan_of"]


def bound_of(process: AbstractNoiseProcess) -> BoundName:
    """The paper's bound, or that of the process itself where noise is not all masks in the end."""
    return "absorbing" if process.ends_in_masks else "hybrid"


def plan_of(
    checkpoint: Checkpoint,
    length: int | None = None,
    *,
    hyperschedule: str | None = None,
    width: int | None = None,
    steps: int | None = None,
) -> AbstractHyperschedule:
    """The hyperschedule of a checkpoint on windows of some length, or another, beginning in pure noise.

    Args:
        checkpoint: The model. If it lists no hyperschedule, all positions are noisy together.
        length: Tokens in a window; the model's context by default.
        hyperschedule: Name of a family, as in `hdlm.generation.Settings`.
        width: Positions that are noisy together.
        steps: Steps that each takes from noise to word.

    Raises:
        ValueError: If it has no such length, or the family no such option.
    """
    length = checkpoint.length if length is None else length
    if not checkpoint.hyperschedules and (hyperschedule, width) == (None, None):
        return flat(length, steps or length)
    settings = Settings(hyperschedule=hyperschedule, width=width, steps=steps)
    return settings.plan(checkpoint.hyperschedules, length).begin_in_noise()
