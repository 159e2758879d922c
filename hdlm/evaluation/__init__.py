"""Evaluation: bounds on `-log p` of text, each with its standard error and the protocol it was made under."""

from hdlm.evaluation.likelihood.bounds import AbsorbingBound, AbstractBound, HybridBound
from hdlm.evaluation.likelihood.estimator import EvaluationProgress, Likelihood, estimate_likelihood
from hdlm.evaluation.likelihood.precision import until_precise
from hdlm.evaluation.likelihood.result import LikelihoodResult
from hdlm.evaluation.likelihood.windows import Stack, WindowedText, windows

__all__ = [
    "AbsorbingBound",
    "AbstractBound",
    "EvaluationProgress",
    "HybridBound",
    "Likelihood",
    "LikelihoodResult",
    "Stack",
    "WindowedText",
    "estimate_likelihood",
    "until_precise",
    "windows",
]
