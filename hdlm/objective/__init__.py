"""Objectives: the losses of training and the bounds of evaluation, in nats per position. One file each."""

from hdlm.objective.base import AbstractCost, AbstractObjective, CleanToken, Term
from hdlm.objective.canvas import Canvas, Corruption, CorruptionLayout, Opening, document_ids
from hdlm.objective.combination import Combination, CrossEntropy
from hdlm.objective.cross_entropy import WeightedCrossEntropy
from hdlm.objective.masked import CleanStream, MaskedCrossEntropy
from hdlm.objective.nelbo import NELBO, prior_divergence
from hdlm.objective.score_entropy import ScoreEntropy
from hdlm.objective.times import stratified_times

__all__ = [
    "NELBO",
    "AbstractCost",
    "AbstractObjective",
    "Canvas",
    "CleanStream",
    "CleanToken",
    "Combination",
    "Corruption",
    "CorruptionLayout",
    "CrossEntropy",
    "MaskedCrossEntropy",
    "Opening",
    "ScoreEntropy",
    "Term",
    "WeightedCrossEntropy",
    "document_ids",
    "prior_divergence",
    "stratified_times",
]
