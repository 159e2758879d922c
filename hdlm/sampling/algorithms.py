"""Samplers by name: the published five and those of the field, each a composition of steps."""

from __future__ import annotations

import difflib
from collections.abc import Callable

from hdlm.process import Absorbing, AbstractNoiseProcess
from hdlm.sampling.adaptive import ByEntropy, ByThreshold
from hdlm.sampling.ancestral import Ancestral
from hdlm.sampling.base import Chain, Step
from hdlm.sampling.confidence import ByConfidence
from hdlm.sampling.correction import AdaptiveCorrection
from hdlm.sampling.first_hitting import FirstHitting
from hdlm.sampling.gibbs import GibbsCorrection
from hdlm.sampling.remasking import Cap, Confidence, Loop, Remask, RemaskShuffle, ReMDM, Rescale
from hdlm.sampling.scores import Analytic, Euler

__all__ = ["ALGORITHMS", "EXACT", "algorithm"]

Builder = Callable[[AbstractNoiseProcess, float], Step]


def _walk(process: AbstractNoiseProcess) -> AbstractNoiseProcess | None:
    """Where words wait until all masks have fallen (epsilon-hybrid), published samplers walk back by masks alone."""
    return Absorbing(process.num_words) if process.words_wait else None


ALGORITHMS: dict[str, Builder] = {
    "original": lambda process, eta: Ancestral(_walk(process)),
    "exact": lambda process, eta: Ancestral(),
    "acs": lambda process, eta: Chain((Ancestral(_walk(process)), AdaptiveCorrection(eta))),
    "gibbs": lambda process, eta: Chain((Ancestral(), GibbsCorrection(eta or None))),
    "remask": lambda process, eta: Remask(),
    "remask_adhoc_shuffle": lambda process, eta: RemaskShuffle(eta),
    "remdm": lambda process, eta: ReMDM(Cap(eta)),
    "remdm_rescale": lambda process, eta: ReMDM(Rescale(eta)),
    "remdm_confidence": lambda process, eta: ReMDM(Confidence(Cap(eta))),
    "remdm_loop": lambda process, eta: Loop(Cap(eta)),
    "analytic": lambda process, eta: Analytic(),
    "euler": lambda process, eta: Euler(),
    "first_hitting": lambda process, eta: FirstHitting(_walk(process)),
    "confidence": lambda process, eta: ByConfidence(),
    "threshold": lambda process, eta: ByThreshold(1 - eta),
    "entropy": lambda process, eta: ByEntropy(eta),
}
"""Name to builder; a builder takes the denoiser's process and `eta`: the strength of corrections, or how unsure a word
may be that is written."""


EXACT = {
    "original": "exact as steps get small",
    "exact": "exact as steps get small",
    "gibbs": "exact one word at a time, as steps get small",
    "analytic": "exact as steps get small",
    "euler": "exact as steps get small",
    "first_hitting": "exact in any number of steps",
}
"""What is exact about the law of an algorithm; those that are not here are heuristics."""


def algorithm(name: str, process: AbstractNoiseProcess, eta: float = 0.01) -> Step:
    """The step that a name stands for.

    Args:
        name: One of `ALGORITHMS`.
        process: The denoiser's process.
        eta: Strength of corrections and remasking, in [0, 1], where the algorithm has any; for `threshold` and
            `entropy`, 1 minus the threshold, and the bound in nats.

    Raises:
        ValueError: If the name is unknown or `eta` out of range.
    """
    if name not in ALGORITHMS:
        near = difflib.get_close_matches(name, ALGORITHMS, n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"Unknown algorithm {name!r}; known are {', '.join(ALGORITHMS)}.{hint}")
    if not 0 <= eta <= 1:
        raise ValueError(f"`eta` must lie in [0, 1]; got {eta}.")
    return ALGORITHMS[name](process, eta)
