"""Training: recipes in, checkpoints out. The engine is `accelerate`; nothing distributed is home-made."""

from __future__ import annotations

from hdlm.training.ema import ExponentialMovingAverage
from hdlm.training.interrupt import PREEMPTED, StopRequest, listening
from hdlm.training.loop import StepReport, Trainer, Watcher
from hdlm.training.mixture import Mixture
from hdlm.training.muon import Muon, orthogonalise
from hdlm.training.optimizers import make_optimizers
from hdlm.training.parts import AbstractPart, NextToken, Noisy
from hdlm.training.precision import choose_precision
from hdlm.training.recipe import Recipe
from hdlm.training.run import Run, prepare
from hdlm.training.session import Session, Unfinished, unfinished
from hdlm.training.watchers import MetricsLog, progress_bar

__all__ = [
    "PREEMPTED",
    "AbstractPart",
    "ExponentialMovingAverage",
    "MetricsLog",
    "Mixture",
    "Muon",
    "NextToken",
    "Noisy",
    "Recipe",
    "Run",
    "Session",
    "StepReport",
    "StopRequest",
    "Trainer",
    "Unfinished",
    "Watcher",
    "choose_precision",
    "listening",
    "make_optimizers",
    "orthogonalise",
    "prepare",
    "progress_bar",
    "unfinished",
]
