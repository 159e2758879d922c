"""Evaluation: bounds on `-log p` of text, each with its standard error and the protocol it was made under."""

from hdlm.evaluation.likelihood.bounds import AbsorbingBound, AbstractBound, HybridBound
from hdlm.evaluation.likelihood.estimator import Likelihood, Progress, evaluate
from hdlm.evaluation.likelihood.precision import until_precise
from hdlm.evaluation.likelihood.result import LikelihoodResult
from hdlm.evaluation.likelihood.windows import Stack, first_positions, windows

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
