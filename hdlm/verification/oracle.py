"""Every sampler with an exact denoiser: how far its text is from the truth, over the number of network evaluations.

No network is trained. The denoiser is the exact one, so all that is measured is the error of the sampler: words that
are written in one step do not see one another, and corrections may make the text too likely.

Where a sampler chooses each position independently and the world can be enumerated, its distribution is computed
exactly (`chain`). Elsewhere sequences are drawn, with errors by the bootstrap over sequences.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hdlm.atomic import replacing
from hdlm.hyperschedule import AbstractHyperschedule, Block, Slide, Wave, flat
from hdlm.process import GIDD, Absorbing, AbstractNoiseProcess, EpsilonHybrid, GammaHybrid, Uniform
from hdlm.regime import Regime
from hdlm.sampling import algorithm, sample
from hdlm.verification.chain import chain, position_law, text_law
from hdlm.verification.exact import ExactDenoiser
from hdlm.verification.hidden_markov import HiddenMarkov, phrases
from hdlm.verification.world import AbstractWorld, World, agreeing_world, mirrored_world, random_world

__all__ = [
    "QUICK_EFFORT",
    "Effort",
    "SamplerArm",
    "SamplerPoint",
    "measure_arm",
    "oracle_arms",
    "oracle_document",
    "oracle_worlds",
]

WORDS, LENGTH, RUN = 3, 4, 3
_MASKS = ("remask", "remask_adhoc_shuffle", "remdm", "remdm_rescale", "remdm_confidence", "remdm_loop")
_WHOLE = ("first_hitting", "threshold", "entropy")
"""Samplers that choose the number of calls themselves: one step."""
STRENGTHS: Mapping[str, tuple[float, ...]] = {
    "original": (0.0,),
    "exact": (0.0,),
    "acs": (0.1, 0.5, 1.0),
    "doubt": (0.25, 0.5, 1.0),
    "gibbs": (0.0, 0.1, 0.5),
    "remask": (0.0,),
    "remask_adhoc_shuffle": (0.5,),
    "remdm": (0.1, 0.3),
    "remdm_rescale": (0.3, 0.7),
    "remdm_confidence": (0.3,),
    "remdm_loop": (0.3,),
    "analytic": (0.0,),
    "euler": (0.0,),
    "first_hitting": (0.0,),
    "confidence": (0.0,),
    "threshold": (0.1, 0.3),
    "entropy": (0.1, 0.5),
}
"""The strengths (`eta`) of each algorithm that are compared."""


_ALONG = (
    ("absorbing", "original", 0.0),
    ("absorbing", "remdm", 0.3),
    ("epsilon 0.01", "exact", 0.0),
    ("epsilon 0.01", "acs", 0.5),
    ("epsilon 0.01", "doubt", 0.5),
    ("gamma 0.1", "exact", 0.0),
    ("gamma 0.1", "doubt", 0.5),
)
"""The samplers that are compared along other hyperschedules."""


@final
@dataclass(frozen=True)
class Effort:
    """The size of the measurement.

    Attributes:
        steps: Numbers of generation steps that are compared.
        draws: Number of sequences that are drawn in an enumerable world.
        long_draws: Number of sequences that are drawn from the hidden Markov model.
        length: Number of positions of the hidden Markov model.
        seed: Seed of all random numbers.
    """

    steps: tuple[int, ...] = (2, 4, 8, 16, 32, 64)
    draws: int = 4000
    long_draws: int = 128
    length: int = 64
    seed: int = 0


QUICK_EFFORT = Effort(steps=(4,), draws=200, long_draws=20, length=8)


@final
@dataclass(frozen=True)
class SamplerArm:
    """A sampler with its strength, the noise process of its denoiser, and its hyperschedule.

    Attributes:
        world: Name of the world.
        process: Name of the noise process.
        plan: Family of the hyperschedule.
        sampler: Name of the algorithm.
        eta: Strength of the algorithm.
        steps: Number of generation steps.
    """

    world: str
    process: str
    plan: str
    sampler: str
    eta: float
    steps: int


@final
@dataclass(frozen=True)
class SamplerPoint:
    """The distance of a sampler from the truth; errors are 0 where the distribution was computed.

    Attributes:
        arm: The sampler, its process and its hyperschedule.
        evaluations: Calls of the network for a sequence (NFE), when a batch is in step.
        distance: Total variation from the truth: of whole sequences, or of runs of three words for long ones.
        distance_error: Standard error of the distance.
        floor: Distance that as many sequences from the truth have; 0 if the distribution was computed.
        excess: Mean of `-log p` minus the entropy of the truth, in nats per token; negative if the text is too likely.
        excess_error: Standard error of the excess.
        entropy: Entropy of what is written minus that of the truth, in nats per token; of a word given the two before
            it for long sequences.
        entropy_error: Standard error of the entropy.
    """

    arm: SamplerArm
    evaluations: float
    distance: float
    distance_error: float
    floor: float
    excess: float
    excess_error: float
    entropy: float
    entropy_error: float


@functools.cache
def oracle_worlds(effort: Effort) -> dict[str, AbstractWorld]:
    """The worlds by name: a Potts chain, no structure, long-range agreement, and a hidden Markov model."""
    return {
        "chain": agreeing_world(WORDS, LENGTH, 3.0),
        "random": random_world(WORDS, LENGTH, temperature=0.5),
        "mirrored": mirrored_world(WORDS, LENGTH),
        "phrases": phrases(effort.length),
    }


def oracle_processes(num_words: int) -> dict[str, AbstractNoiseProcess]:
    """The noise processes by name."""
    return {
        "absorbing": Absorbing(num_words),
        "epsilon 0.01": EpsilonHybrid(num_words, 0.01),
        "epsilon 0.1": EpsilonHybrid(num_words, 0.1),
        "gamma 0.1": GammaHybrid(num_words, 0.1),
        "GIDD 0.05": GIDD(num_words, 0.05),
        "uniform": Uniform(num_words),
    }


def oracle_plan(family: str, length: int, steps: int) -> AbstractHyperschedule | None:
    """The hyperschedule of a family with the most levels in at most `steps` steps; None if there is none."""
    if family == "flat":
        return flat(length, steps)
    width = max(2, length // 4)
    families: dict[str, Callable[[int, int, int], AbstractHyperschedule]]
    families = {"block": Block, "slide": Slide, "wave": Wave}
    fitting = [families[family](length, width, levels) for levels in range(1, steps + 1)]
    return next((plan for plan in reversed(fitting) if plan.num_steps <= steps), None)


def _fits(sampler: str, process: AbstractNoiseProcess) -> bool:
    """Whether a sampler is for a process, and is not equal to another that is measured."""
    plain = process.only_masks
    if sampler in _MASKS:
        return process.ends_in_masks and process.words_stay
    if sampler in ("confidence", "threshold", "entropy", "analytic", "euler", "first_hitting"):
        return plain
    if sampler in ("acs", "doubt", "gibbs", "exact"):
        return not plain and (sampler != "acs" or process.makes_masks)
    return process.words_stay


def oracle_arms(effort: Effort) -> list[SamplerArm]:
    """All points to measure: every sampler along the flat hyperschedule, and some along the others.

    The short worlds are first. Each of their points takes about a second, and one of `phrases` up to a minute.
    """
    arms = []
    for world in ("chain", "random", "mirrored", "phrases"):
        for process, noise in oracle_processes(2).items():
            for sampler, strengths in STRENGTHS.items():
                if _fits(sampler, noise):
                    steps = (1,) if sampler in _WHOLE else effort.steps
                    some = [(eta, count) for eta in strengths for count in steps]
                    arms += [SamplerArm(world, process, "flat", sampler, *one) for one in some]
    for plan in ("block", "slide", "wave"):
        for world in ("chain", "phrases"):
            for process, sampler, eta in _ALONG:
                arms += [SamplerArm(world, process, plan, sampler, eta, count) for count in effort.steps]
    return arms


def measure_arm(arm: SamplerArm, effort: Effort) -> SamplerPoint | None:
    """Measure one point; None if the hyperschedule needs more steps."""
    world = oracle_worlds(effort)[arm.world]
    plan = oracle_plan(arm.plan, world.length, arm.steps)
    if plan is None:
        return None
    process = oracle_processes(world.num_words)[arm.process]
    step, denoiser, regime = (
        algorithm(arm.sampler, process, arm.eta),
        ExactDenoiser(world, process),
        Regime(plan),
    )
    law = position_law(step)
    if isinstance(world, World) and law is not None:
        calls = sample(denoiser, regime, step, num_sequences=32, seed=effort.seed).evaluations
        *_, last = chain(denoiser, regime, law)
        return SamplerPoint(arm, float(calls.double().mean()), *_exact(world, last))
    count = effort.draws if isinstance(world, World) else effort.long_draws
    drawn = sample(denoiser, regime, step, num_sequences=count, seed=effort.seed)
    return SamplerPoint(
        arm, float(drawn.evaluations.double().mean()), *_drawn(world, drawn.tokens, effort.seed)
    )


def _exact(world: World, law: Float[Tensor, " z"]) -> tuple[float, ...]:
    """The numbers of a point from the distribution of its text."""
    text = text_law(law, world.num_words, world.length)
    cross = -float(text @ world.law.log())
    entropy = float(torch.special.entr(text).sum())
    distance = float((text - world.law).abs().sum() / 2)
    excess, own = ((value - world.entropy) / world.length for value in (cross, entropy))
    return distance, 0.0, 0.0, excess, 0.0, own, 0.0


def _drawn(world: AbstractWorld, tokens: Int[Tensor, "b l"], seed: int) -> tuple[float, ...]:
    """The numbers of a point from drawn sequences, with bootstrap errors."""
    law, counts_of, entropy_of = _view(world)
    log_p, counts = -world.log_probability(tokens) / world.length, counts_of(tokens)
    centre, centre_error, floor = _truth(world, len(tokens), seed)
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(200, len(tokens), generator=generator, dtype=torch.float64)
    again = torch.multinomial(torch.ones_like(weights), len(tokens), replacement=True, generator=generator)
    resampled = torch.zeros_like(weights).scatter_add(1, again, torch.ones_like(weights)) @ counts
    whole = counts.sum(0, keepdim=True)
    distances, entropies = _distance(resampled, law), entropy_of(resampled)
    error = float(log_p.std()) / len(log_p) ** 0.5
    return (
        float(_distance(whole, law)),
        float(distances.std()),
        floor,
        float(log_p.mean()) - centre,
        (error**2 + centre_error**2) ** 0.5,
        float(entropy_of(whole)) - float(entropy_of(law[None] * 1e9)),
        float(entropies.std()),
    )


@functools.cache
def _truth(world: AbstractWorld, count: int, seed: int) -> tuple[float, float, float]:
    """Entropy per token and its standard error; and the mean distance of `count` sequences from the truth."""
    law, counts_of, _ = _view(world)
    floors = [_distance(counts_of(world.draw(count, seed + n)).sum(0)[None], law) for n in range(2, 12)]
    floor = float(torch.cat(floors).mean())
    if isinstance(world, World):
        return world.entropy / world.length, 0.0, floor
    log_p = -world.log_probability(world.draw(20_000, seed + 1)) / world.length
    return float(log_p.mean()), float(log_p.std()) / len(log_p) ** 0.5, floor


def _distance(counts: Float[Tensor, "r c"], law: Float[Tensor, " c"]) -> Float[Tensor, " r"]:
    return (counts / counts.sum(-1, keepdim=True) - law).abs().sum(-1) / 2


def _view(
    world: AbstractWorld,
) -> tuple[Float[Tensor, " c"], Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """What is counted: its law, the counts of each sequence, and the entropy per token of a row of counts."""
    n = world.num_words
    if isinstance(world, World):
        size = len(world.law)
        one_hot = torch.nn.functional.one_hot
        length = world.length
        return world.law, lambda x: one_hot(world.index(x), size).double(), lambda c: _entropy(c) / length
    assert isinstance(world, HiddenMarkov)

    def counts_of(tokens: Tensor) -> Tensor:
        runs = (tokens.unfold(1, RUN, 1) * n ** torch.arange(RUN - 1, -1, -1)).sum(-1)
        zeros = torch.zeros(len(tokens), n**RUN, dtype=torch.float64)
        return zeros.scatter_add(1, runs, torch.ones(runs.shape, dtype=torch.float64))

    def conditional(counts: Tensor) -> Tensor:
        return _entropy(counts) - _entropy(counts.unflatten(1, (-1, n)).sum(-1))

    return world.law_of_run(RUN), counts_of, conditional


def _entropy(counts: Float[Tensor, "r c"]) -> Float[Tensor, " r"]:
    """Entropy of each row with the bias correction of Miller and Madow."""
    total = counts.sum(-1, keepdim=True)
    plain: Tensor = torch.special.entr(counts / total).sum(-1)
    return plain + ((counts > 0).sum(-1) - 1) / (2 * total[:, 0])


def oracle_document(
    effort: Effort,
    output: Path | None = None,
    progress: Callable[[float, str], None] = lambda share, now: None,
    arms: Sequence[SamplerArm] | None = None,
) -> dict[str, Any]:
    """Measure all arms; what the output file already has is not measured again.

    Args:
        effort: Size of the measurement.
        output: JSON file, which is written after every few points, so that a run that was stopped resumes.
        progress: Called with the share that is done and the name of the work.
        arms: The points to measure; by default all of `oracle_arms`.

    Raises:
        ValueError: If the file has the results of another effort.
    """
    points = {} if output is None else dict(_read(output, effort))
    todo = oracle_arms(effort) if arms is None else list(arms)
    for done, arm in enumerate(todo):
        if arm not in points:
            progress(done / len(todo), f"{arm.world}, {arm.process}, {arm.plan}, {arm.sampler}")
            point = measure_arm(arm, effort)
            if point is not None:
                points[arm] = point
            if output is not None and (done % 10 == 0 or arm.world == "phrases"):
                _write(output, _document(effort, points.values()))
    document = _document(effort, points.values())
    if output is not None:
        _write(output, document)
    return document


def _document(effort: Effort, points: Any) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(
        json.dumps({"effort": asdict(effort), "points": [asdict(point) for point in points]})
    )
    return plain


def _write(output: Path, document: Mapping[str, Any]) -> None:
    with replacing(output) as path:
        path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _read(output: Path, effort: Effort) -> Iterator[tuple[SamplerArm, SamplerPoint]]:
    """The points of a file, if it is there."""
    if not output.exists():
        return
    document = json.loads(output.read_text(encoding="utf-8"))
    if document["effort"] != json.loads(json.dumps(asdict(effort))):
        raise ValueError(
            f"{output} has the results of another effort, {document['effort']}; give another place."
        )
    for point in document["points"]:
        arm = SamplerArm(**point["arm"])
        yield arm, SamplerPoint(**{**point, "arm": arm})
