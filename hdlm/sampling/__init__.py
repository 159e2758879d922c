"""Sampling: the way back from noise to text. Small steps that can be chained; one loop for every hyperschedule.

`sample(denoiser, regime, step)` with `step` one of

| step | what it is | law |
|---|---|---|
| `Ancestral` | a draw from the exact posterior | exact as steps get small |
| `FirstHitting` | masks fall one at a time | exact |
| `Analytic`, `Euler` | along the score | exact as steps get small |
| `AdaptiveCorrection` | chained: ACS, redraws visible words | heuristic |
| `DoubtCorrection` | chained: redraws words, noises them again | heuristic |
| `GibbsCorrection` | chained: redraws words, law unchanged | exact (one at a time) |
| `ReMDM`, `Loop`, `Remask`, `RemaskShuffle` | replace words by masks again | heuristic, marginals of masks kept |
| `ByConfidence` | the words with the highest confidence first | heuristic |
| `ByThreshold`, `ByFactor`, `ByEntropy` | all words with enough confidence in each call | heuristic |
| `JointThreshold` | also replaces its own words | heuristic |
| `EntropyRenoising` | accepts words of low entropy, renoises all others, until they are stable | heuristic |
| `InParts` | another step, in blocks or sub-blocks | heuristic |
| `Speculative` | drafts words in parallel, verifies them causally | exactly that of autoregression |

or by name, `algorithm("acs", denoiser.process, eta=0.01)`.
"""

from hdlm.sampling.algorithms import ALGORITHMS, RULES, algorithm, exactness
from hdlm.sampling.base import Answer, Chain, Move, Planned, Reading, RowTransforms, Step, Transform
from hdlm.sampling.draws import draw_index, draw_word
from hdlm.sampling.engine.engine import Engine, EngineRequest, Finished, Stop
from hdlm.sampling.engine.sample import Generation, sample
from hdlm.sampling.engine.speculative import Speculative, SpeculativeEngine, new_engine
from hdlm.sampling.engine.window import ApproximateCache, Execution
from hdlm.sampling.frame import Frame, Reads
from hdlm.sampling.loop import sample_plainly
from hdlm.sampling.prompt import Prompt
from hdlm.sampling.steps.adaptive import ByEntropy, ByFactor, ByThreshold
from hdlm.sampling.steps.ancestral import Ancestral
from hdlm.sampling.steps.confidence import ByConfidence
from hdlm.sampling.steps.correction import AdaptiveCorrection
from hdlm.sampling.steps.doubt import DoubtCorrection
from hdlm.sampling.steps.editing import EntropyRenoising, JointThreshold
from hdlm.sampling.steps.first_hitting import FirstHitting
from hdlm.sampling.steps.gibbs import GibbsCorrection
from hdlm.sampling.steps.parts import InParts
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
from hdlm.sampling.transforms import MinP, RepetitionPenalty, Suppress, Temperature, TopK, TopP

__all__ = [
    "ALGORITHMS",
    "RULES",
    "AbstractRemaskSchedule",
    "AdaptiveCorrection",
    "Analytic",
    "Ancestral",
    "Answer",
    "ApproximateCache",
    "ByConfidence",
    "ByEntropy",
    "ByFactor",
    "ByThreshold",
    "Cap",
    "Chain",
    "Change",
    "Confidence",
    "DoubtCorrection",
    "Engine",
    "EngineRequest",
    "EntropyRenoising",
    "Euler",
    "Execution",
    "Finished",
    "FirstHitting",
    "Frame",
    "Generation",
    "GibbsCorrection",
    "InParts",
    "JointThreshold",
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
    "RowTransforms",
    "Speculative",
    "SpeculativeEngine",
    "Step",
    "Stop",
    "Suppress",
    "Temperature",
    "TopK",
    "TopP",
    "Trace",
    "Transform",
    "algorithm",
    "draw_index",
    "draw_word",
    "exactness",
    "new_engine",
    "sample",
    "sample_plainly",
]
