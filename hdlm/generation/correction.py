"""Correction of a finished text: its words are a draft at a noise fraction, and a sampler takes its usual steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from hdlm.checkpoint import Checkpoint
from hdlm.generation.settings import Settings, planned
from hdlm.noise_schedule import LogLinear
from hdlm.process import AbstractNoiseProcess
from hdlm.regime import Regime
from hdlm.sampling import Prompt

__all__ = ["correction_regime", "draft_of", "matching_noise"]

_MIDDLE = 0.5
"""Noise fraction for a process that has an equal share of wrong words at every noise."""
_USUAL_SHARE = 0.05
"""Share of wrong words that a correction expects unless the caller gives a noise fraction."""


def matching_noise(process: AbstractNoiseProcess, wrong: float = _USUAL_SHARE) -> float:
    """The smallest noise fraction at which this share of the visible words is wrong.

    Args:
        process: The noise process.
        wrong: Share of uniform words among the visible words.

    Returns:
        The fraction; 0.5 for a process that has fewer wrong words at every noise (absorbing) or more (epsilon-hybrid).
    """
    u = torch.linspace(0, 1, 1001, dtype=torch.float64)[1:-1]
    w = process.weights(u)
    enough = (w.uniform / (w.uniform + w.clean) >= wrong).nonzero()[:, 0]
    return _MIDDLE if not len(enough) or int(enough[0]) == 0 else float(u[enough[0]])


def correction_regime(checkpoint: Checkpoint, settings: Settings, length: int, noise: float) -> Regime:
    """The regime of a correction: all positions begin at one noise fraction, which falls to 0 with the levels.

    Args:
        checkpoint: The checkpoint of the model.
        settings: Settings of the sampler.
        length: Number of positions of the text.
        noise: Noise fraction at which every position begins, in (0, 1].

    Raises:
        ValueError: If the noise or a setting is out of range, or the text does not fit.
    """
    if not 0 < noise <= 1:
        raise ValueError(f"a text is corrected from a noise fraction in (0, 1]; got {noise}.")
    regime = planned(checkpoint, settings, length, infilling=True)
    return replace(regime, noise_schedule=settings.noise(LogLinear(floor=1 - noise)), sampling_eps=None)


def draft_of(tokens: Sequence[int]) -> Prompt:
    """A draft of one text, whose first token is given."""
    row = torch.tensor([list(tokens)])
    return Prompt(row, torch.arange(row.shape[1])[None] == 0, is_draft=True)
