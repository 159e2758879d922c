"""Training: recipes in, checkpoints out. The engine is `accelerate`; nothing distributed is home-made."""

from __future__ import annotations

from hdlm.training.interrupt import PREEMPTED, StopRequest, listening
from hdlm.training.loop import StepReport, Trainer, Watcher
from hdlm.training.mixture import Mixture
from hdlm.training.monitor.watchers import MetricsLog, progress_bar
from hdlm.training.optim.ema import ExponentialMovingAverage
from hdlm.training.optim.muon import Muon, orthogonalise
from hdlm.training.optim.optimizers import make_optimizers
from hdlm.training.parts import AbstractPart, NextToken, Noisy
from hdlm.training.precision import choose_precision
from hdlm.training.recipe import Recipe
from hdlm.training.session import ResumePoint, Session, find_resume_point
from hdlm.training.setup import TrainingSetup, build_setup

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
    "ResumePoint",
    "Session",
    "StepReport",
    "StopRequest",
    "Trainer",
    "TrainingSetup",
    "Watcher",
    "build_setup",
    "choose_precision",
    "find_resume_point",
    "listening",
    "make_optimizers",
    "orthogonalise",
    "progress_bar",
]
