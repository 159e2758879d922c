"""Objectives: what training minimises and evaluation reports, in nats per position. One file each."""

from hdlm.objective.base import AbstractObjective
from hdlm.objective.canvas import Canvas, Corruption
from hdlm.objective.cross_entropy import WeightedCrossEntropy
from hdlm.objective.nelbo import NELBO, prior_divergence
from hdlm.objective.score_entropy import ScoreEntropy
from hdlm.objective.times import stratified_times

__all__ = [
    "NELBO",
    "AbstractObjective",
    "Canvas",
    "Corruption",
    "ScoreEntropy",
    "WeightedCrossEntropy",
    "prior_divergence",
    "stratified_times",
]
