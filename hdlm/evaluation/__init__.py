"""Evaluation: bounds on `-log p` of text, each with its standard error and the protocol it was made under."""

from hdlm.evaluation.bounds import AbsorbingBound, AbstractBound, HybridBound
from hdlm.evaluation.likelihood import Likelihood, Progress, evaluate
from hdlm.evaluation.precision import until_precise
from hdlm.evaluation.result import LikelihoodResult
from hdlm.evaluation.windows import Stack, first_positions, windows

__all__ = [
    "AbsorbingBound",
    "AbstractBound",
    "HybridBound",
    "Likelihood",
    "LikelihoodResult",
    "Progress",
    "Stack",
    "evaluate",
    "first_positions",
    "until_precise",
    "windows",
]
