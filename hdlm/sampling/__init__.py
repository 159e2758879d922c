"""Sampling: the way back from noise to text. Small steps that can be chained; one loop for every hyperschedule.

`sample(denoiser, regime, step)` with `step` one of

| step | what it is | law |
|---|---|---|
| `Ancestral` | a draw from the exact posterior | exact as steps get small |
| `FirstHitting` | masks fall one at a time | exact |
| `Analytic`, `Euler` | along the score | exact as steps get small |
| `AdaptiveCorrection` | chained: ACS, redraws visible words | heuristic |
| `GibbsCorrection` | chained: redraws words, law unchanged | exact (one at a time) |
| `ReMDM`, `Loop`, `Remask`, `RemaskShuffle` | take words back | heuristic, marginals of masks kept |
| `ByConfidence` | surest words first | heuristic |
| `ByThreshold`, `ByEntropy` | as many words a call as are sure | heuristic |

or by name, `algorithm("acs", denoiser.process, eta=0.01)`.
"""

from hdlm.sampling.algorithms import ALGORITHMS, algorithm, exactness
from hdlm.sampling.base import Answer, Chain, Move, Planned, Reading, Step, Transform
from hdlm.sampling.draws import draw_index, draw_word
from hdlm.sampling.engine.engine import Engine, Finished, Stop
from hdlm.sampling.engine.sample import Generation, sample
from hdlm.sampling.engine.window import ApproximateCache, Execution
from hdlm.sampling.frame import Frame, Reads
from hdlm.sampling.loop import sample_plainly
from hdlm.sampling.prompt import Prompt
from hdlm.sampling.steps.adaptive import ByEntropy, ByThreshold
from hdlm.sampling.steps.ancestral import Ancestral
from hdlm.sampling.steps.confidence import ByConfidence
from hdlm.sampling.steps.correction import AdaptiveCorrection
from hdlm.sampling.steps.first_hitting import FirstHitting
from hdlm.sampling.steps.gibbs import GibbsCorrection
from hdlm.sampling.steps.remasking import (
    AbstractRemaskSchedule,
    Cap,
    Confidence,
    Loop,
    Remask,
    RemaskShuffle,
    ReMDM,
    Rescale,
)
from hdlm.sampling.steps.scores import Analytic, Euler
from hdlm.sampling.trace import Change, Reason, Trace
from hdlm.sampling.transforms import MinP, RepetitionPenalty, Temperature, TopK, TopP

__all__ = [
    "ALGORITHMS",
    "AbstractRemaskSchedule",
    "AdaptiveCorrection",
    "Analytic",
    "Ancestral",
    "Answer",
    "ApproximateCache",
    "ByConfidence",
    "ByEntropy",
    "ByThreshold",
    "Cap",
    "Chain",
    "Change",
    "Confidence",
    "Engine",
    "Euler",
    "Execution",
    "Finished",
    "FirstHitting",
    "Frame",
    "Generation",
    "GibbsCorrection",
    "Loop",
    "MinP",
    "Move",
    "Planned",
    "Prompt",
    "ReMDM",
    "Reading",
    "Reads",
    "Reason",
    "Remask",
    "RemaskShuffle",
    "RepetitionPenalty",
    "Rescale",
    "Step",
    "Stop",
    "Temperature",
    "TopK",
    "TopP",
    "Trace",
    "Transform",
    "algorithm",
    "draw_index",
    "draw_word",
    "exactness",
    "sample",
    "sample_plainly",
]
