"""Verification: the laws that every piece must obey, tested on built-in pieces or on yours.

In an enumerable world (`World`, a few words and positions) nothing is estimated: `ExactDenoiser` answers every request
by a sum over all sequences. So losses can be compared with entropies, samplers with the distribution that they should
reproduce, and closed forms with direct computation.

    from hdlm.verification import verify
    for verdict in verify(MyProcess(num_words=3)):
        print(verdict.law, verdict.finding)

`hdlm verify` does this for all built-in pieces, `hdlm verify mypkg.MyProcess --kwargs num_words=3` for one of yours.
"""

from hdlm.verification.chain import (
    Board,
    ancestral_law,
    chain,
    corrected_law,
    doubted_law,
    position_law,
    remasked_law,
    text_law,
)
from hdlm.verification.exact import ExactDenoiser
from hdlm.verification.expectation import every_canvas, expected_loss, nelbo_by_hand, quadrature
from hdlm.verification.finding import Finding, Trial, Verdict
from hdlm.verification.hidden_markov import HiddenMarkov, phrases
from hdlm.verification.laws import Sampler
from hdlm.verification.statistics import FAILURE_RATE, chi_square, mean_p_value
from hdlm.verification.suite import GROUPS, built_in, laws_of, subject_of, verify
from hdlm.verification.world import AbstractWorld, World, agreeing_world, mirrored_world, random_world

__all__ = [
    "FAILURE_RATE",
    "GROUPS",
    "AbstractWorld",
    "Board",
    "ExactDenoiser",
    "Finding",
    "HiddenMarkov",
    "Sampler",
    "Trial",
    "Verdict",
    "World",
    "agreeing_world",
    "ancestral_law",
    "built_in",
    "chain",
    "chi_square",
    "corrected_law",
    "doubted_law",
    "every_canvas",
    "expected_loss",
    "laws_of",
    "mean_p_value",
    "mirrored_world",
    "nelbo_by_hand",
    "phrases",
    "position_law",
    "quadrature",
    "random_world",
    "remasked_law",
    "subject_of",
    "text_law",
    "verify",
]
