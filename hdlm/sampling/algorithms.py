"""Samplers by name: the five published ones and those of the literature, each a composition of steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from hdlm.process import Absorbing, AbstractNoiseProcess
from hdlm.sampling.base import Chain, Step
from hdlm.sampling.steps.adaptive import ByEntropy, ByFactor, ByThreshold
from hdlm.sampling.steps.ancestral import Ancestral
from hdlm.sampling.steps.confidence import ByConfidence
from hdlm.sampling.steps.correction import AdaptiveCorrection
from hdlm.sampling.steps.doubt import DoubtCorrection
from hdlm.sampling.steps.editing import EntropyRenoising, JointThreshold
from hdlm.sampling.steps.first_hitting import FirstHitting
from hdlm.sampling.steps.gibbs import GibbsCorrection
from hdlm.sampling.steps.parts import InParts
from hdlm.sampling.steps.remasking import Cap, Confidence, Loop, Remask, RemaskShuffle, ReMDM, Rescale
from hdlm.sampling.steps.scores import Analytic, Euler
from hdlm.strict_config import nearest

__all__ = [
    "ALGORITHMS",
    "ANY_STEPS",
    "RULES",
    "SMALL_STEPS",
    "SPECULATIVE",
    "WRITES_LIKELIEST",
    "algorithm",
    "corrects",
    "exactness",
]

Builder = Callable[[AbstractNoiseProcess, float], Step]


def _walk(process: AbstractNoiseProcess) -> AbstractNoiseProcess | None:
    """If words wait until all masks have fallen (epsilon-hybrid), published samplers use the process of masks only."""
    return Absorbing(process.num_words) if process.words_stay else None


ALGORITHMS: dict[str, Builder] = {
    "original": lambda process, eta: Ancestral(_walk(process)),
    "exact": lambda process, eta: Ancestral(),
    "acs": lambda process, eta: Chain((Ancestral(_walk(process)), AdaptiveCorrection(eta))),
    "doubt": lambda process, eta: Chain((Ancestral(), DoubtCorrection(eta))),
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
    "factor": lambda process, eta: ByFactor(eta),
    "entropy": lambda process, eta: ByEntropy(eta),
    "joint_threshold": lambda process, eta: JointThreshold(1 - eta, 1 - eta),
    "entropy_renoising": lambda process, eta: EntropyRenoising(eta),
}
"""Name to builder; a builder takes the denoiser's process and `eta`: the strength of corrections, or how unsure a word
may be that is written."""
RULES: dict[str, Builder] = {
    "low_confidence": lambda process, eta: ByConfidence(quota="even"),
    "low_confidence_static": lambda process, eta: ByConfidence(quota="even"),
    "low_confidence_dynamic": lambda process, eta: ByConfidence(quota="even", threshold=1 - eta),
    "sequential": lambda process, eta: ByConfidence("position", "even"),
    "maskgit_plus": lambda process, eta: ByConfidence(quota="truncated"),
    "topk_margin": lambda process, eta: ByConfidence("margin", "truncated"),
    "neg_entropy": lambda process, eta: ByConfidence("entropy", "truncated"),
    "diffugpt": lambda process, eta: ByConfidence(quota="standing"),
    "diffusion_gemma": lambda process, eta: EntropyRenoising(eta, hot=0.8, cold=0.4, greedy=True),
}
"""Settings of `ByConfidence` by the names of LLaDA and SDAR (the first four), Dream (three) and DiffuGPT, and of
`EntropyRenoising` by that of DiffusionGemma; all are heuristics, and names of algorithms like those of `ALGORITHMS`."""
SPECULATIVE = "speculative"
"""Name of the algorithm that is not a step: `hdlm.sampling.Speculative`."""
WRITES_LIKELIEST = frozenset(
    {"confidence", "threshold", "factor", "entropy", "joint_threshold", "entropy_renoising", *RULES}
)
"""Algorithms that write the likeliest words at temperature 0, in the order of the model's own probabilities."""
_REDRAW = frozenset({"acs", "doubt", "gibbs", "remask_adhoc_shuffle"})
"""Algorithms that redraw words which the noise may have replaced."""
_MASK_AGAIN = frozenset({"remask", "remdm", "remdm_rescale", "remdm_confidence", "remdm_loop"})
"""Algorithms that mask words, right or wrong, and write them again."""
_EDIT = frozenset({"joint_threshold", "entropy_renoising", "diffusion_gemma"})
"""Algorithms for networks that were trained to replace visible words, whatever the noise is."""

ANY_STEPS = "exact in any number of steps"
"""A claim of `exactness`: an exact denoiser gives the data distribution, for every number of steps."""
SMALL_STEPS = "exact as steps get small"
"""A claim of `exactness`: the distribution converges to that of the data as the number of steps grows."""
_AS_CAUSAL = "exactly the distribution of autoregressive sampling, whatever the drafts are"
_HEURISTIC = "a heuristic"
_UNREPAIRED = (
    "not exact in the limit of small steps: words that the process replaced at u = 0+ are never repaired"
)
_REPAIRED_APART = (
    "not exact in the limit of small steps: the last step repairs the words that the process replaced at u = 0+, each "
    "on its own"
)
_REDRAWN_TOGETHER = (
    "not exact in the limit of small steps: words that are redrawn in one step do not see one another; eta = 0 redraws "
    "one word a step and is exact"
)


def exactness(name: str, process: AbstractNoiseProcess, eta: float = 0.01) -> str:
    """Whether an algorithm's distribution is exact if its denoiser is exact and sees everything.

    One position at a time, in one step each (autoregression), every algorithm is exact.

    Args:
        name: One of `ALGORITHMS`, or `SPECULATIVE`.
        process: The denoiser's process.
        eta: As for `algorithm`.

    Returns:
        `ANY_STEPS`, `SMALL_STEPS`, what holds instead, or the reason why neither holds.
    """
    just_above = torch.full((), torch.finfo(torch.float64).tiny, dtype=torch.float64)
    jumps = bool(process.weights(just_above).clean < 1)  # data are noisy at once: the epsilon-hybrid
    if name == SPECULATIVE:
        return _AS_CAUSAL
    if name == "first_hitting":
        return _UNREPAIRED if jumps else ANY_STEPS
    if name == "original":
        return _UNREPAIRED if jumps else SMALL_STEPS
    if name in ("exact", "analytic", "euler"):
        return _REPAIRED_APART if jumps else SMALL_STEPS
    if name == "gibbs":
        acts = eta > 0 and bool(process.weights(torch.full((), 0.5, dtype=torch.float64)).uniform > 0)
        return _REPAIRED_APART if jumps else _REDRAWN_TOGETHER if acts else SMALL_STEPS
    return _HEURISTIC


def corrects(name: str, process: AbstractNoiseProcess) -> bool:
    """Whether an algorithm can correct a finished text: a text that has words at all positions, some of them wrong.

    Args:
        name: One of `ALGORITHMS` or of `RULES`, or `SPECULATIVE`.
        process: The denoiser's process.
    """
    if name in _REDRAW or name in ("exact", "analytic", "euler"):
        return not process.only_masks  # otherwise the network never saw a wrong word
    if name == "original":
        return not process.words_stay
    return name in _EDIT or (name in _MASK_AGAIN and process.makes_masks)


def algorithm(
    name: str,
    process: AbstractNoiseProcess,
    eta: float = 0.01,
    *,
    sub_block: int | None = None,
    block: int | None = None,
    greedy: bool = False,
    passes: int | None = None,
) -> Step:
    """The step of the algorithm with this name.

    Args:
        name: One of `ALGORITHMS` or of `RULES`.
        process: The denoiser's process.
        eta: Strength of corrections and remasking, in [0, 1], where the algorithm has any; for thresholds, 1 minus the
            threshold; for `entropy`, `entropy_renoising` and `diffusion_gemma`, the bound in nats; for `factor`, the
            factor.
        sub_block: Number of positions of a sub-block; sub-blocks are written one after the other; see `InParts`.
        block: Width of blocks whose sub-blocks they are; None for those of a flat canvas.
        greedy: Whether the likeliest words are written, for an algorithm of `WRITES_LIKELIEST`.
        passes: Largest number of calls of the network for a block, for `diffusion_gemma`; by default 48.

    Raises:
        ValueError: If the name is unknown, `eta` is out of range, or the algorithm has no sub-blocks.
    """
    builders = ALGORITHMS | RULES
    if name == SPECULATIVE:
        raise ValueError(
            f"The algorithm {name!r} is not a step of a hyperschedule: use `hdlm sample`, `checkpoint.generate` or "
            "`hdlm.sample(..., hdlm.Speculative(width))`."
        )
    if name not in builders:
        meant = nearest(name, builders)
        raise ValueError(
            f"Unknown algorithm {name!r}; known are {', '.join(builders)}. Did you mean {meant!r}?"
        )
    if not 0 <= eta <= 1:
        raise ValueError(f"`eta` must lie in [0, 1]; got {eta}.")
    built: Any = builders[name](process, eta)
    if name == "diffusion_gemma" and passes is not None:
        built = replace(built, passes=passes)
    if sub_block is not None and name not in WRITES_LIKELIEST:
        raise ValueError(
            f"The algorithm {name!r} does not write in sub-blocks; {', '.join(sorted(WRITES_LIKELIEST))} do."
        )
    step: Step = replace(built, greedy=True) if greedy and name in WRITES_LIKELIEST else built
    if sub_block is None:
        return step
    if isinstance(step, ByConfidence) and block is None:
        return replace(step, block=sub_block)
    return InParts(step, sub_block, block)
