"""The laws of each kind of object, and the built-in objects that are tested against them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from hdlm.denoiser import AbstractDenoiser, Denoiser
from hdlm.hyperschedule import (
    AbstractHyperschedule,
    Block,
    PromptedBlock,
    PublishedSlide,
    PublishedWave,
    Slide,
    Table,
    Wave,
    autoregressive,
    flat,
)
from hdlm.network import DDiT, DDiTConfig
from hdlm.noise_schedule import (
    AbstractNoiseSchedule,
    Composed,
    ConstantRate,
    Cosine,
    CosinePower,
    Geometric,
    Interpolated,
    Linear,
    Logarithmic,
    LogLinear,
    Power,
)
from hdlm.objective import (
    NELBO,
    AbstractObjective,
    Combination,
    CrossEntropy,
    ScoreEntropy,
    WeightedCrossEntropy,
)
from hdlm.parameterization import AbstractParameterization, LeaveOneOut, LogScore, Mean, Shifted
from hdlm.process import GIDD, Absorbing, AbstractNoiseProcess, EpsilonHybrid, GammaHybrid, Uniform
from hdlm.sampling import ALGORITHMS, Step, algorithm
from hdlm.verification import laws
from hdlm.verification.exact import ExactDenoiser
from hdlm.verification.finding import Law, Trial, Verdict, try_laws
from hdlm.verification.world import agreeing_world

__all__ = ["GROUPS", "built_in", "laws_of", "subject_of", "verify"]

MOST_WORDS = 5
"""Larger vocabularies cannot be enumerated in reasonable time."""

GROUPS = (
    "noise_schedule",
    "process",
    "hyperschedule",
    "parameterization",
    "objective",
    "denoiser",
    "sampling",
)
"""Kinds of built-in objects, by their modules."""

_KINDS: tuple[tuple[type, tuple[Law, ...]], ...] = (
    (AbstractNoiseSchedule, laws.NOISE_SCHEDULE_LAWS),
    (AbstractNoiseProcess, laws.PROCESS_LAWS + laws.PROCESS_BOUND_LAWS + laws.PROCESS_SAMPLING_LAWS),
    (AbstractHyperschedule, laws.HYPERSCHEDULE_LAWS),
    (AbstractParameterization, laws.PARAMETERIZATION_LAWS),
    (AbstractObjective, laws.OBJECTIVE_LAWS),
    (AbstractDenoiser, laws.DENOISER_LAWS),
    (laws.Sampler, laws.SAMPLER_LAWS),
)


_PARAMETERIZATIONS: tuple[AbstractParameterization, ...] = (
    Mean(),
    Mean("sigma"),
    LeaveOneOut("sigma"),
    LeaveOneOut("fraction", shared=True),
    LogScore(),
    LogScore(blend_rate=0.1),
    LogScore(shared=True),
    Shifted(Mean()),
)


def built_in() -> Mapping[str, Any]:
    """Examples of all classes of the package, by name; names begin with one of `GROUPS`."""
    return {f"{group}: {name}": example for group, name, example in _built_in()}


def _built_in() -> Iterator[tuple[str, str, Any]]:
    for schedule in (
        Linear(),
        LogLinear(),
        Cosine(),
        CosinePower(),
        Power(2.0),
        Logarithmic(),
        ConstantRate(),
        Geometric(),
        Interpolated((0.1, 0.4, 1.0)),
        Composed(LogLinear(), Cosine()),
    ):
        yield "noise_schedule", repr(schedule), schedule
    for process in (
        Absorbing(3),
        Uniform(3),
        EpsilonHybrid(3, epsilon=0.2),
        GammaHybrid(3, gamma=0.3),
        GIDD(3, p_uniform=0.3),
    ):
        yield "process", repr(process), process
    yield from _hyperschedules()
    for parameterization in _PARAMETERIZATIONS:
        yield "parameterization", repr(parameterization), parameterization
    both = Combination(((1.0, ScoreEntropy()), (0.5, CrossEntropy())))
    for objective in (NELBO(), ScoreEntropy(), WeightedCrossEntropy(unmasked=0.0), CrossEntropy(), both):
        yield "objective", repr(objective), objective
    yield from _denoisers()
    yield from _samplers()


def _denoisers() -> Iterator[tuple[str, str, AbstractDenoiser]]:
    """Small networks with random weights, with different kinds of inputs, and exact denoisers."""
    for outputs in (Mean(), LogScore(blend_rate=0.1), LeaveOneOut("fraction", shared=True), Shifted(Mean())):
        yield "denoiser", f"a network with {outputs!r}", _network(outputs)
    world = agreeing_world(2, 6)
    yield "denoiser", "the exact denoiser", ExactDenoiser(world, EpsilonHybrid(2, epsilon=0.2))
    yield "denoiser", "exact scores", ExactDenoiser(world, GammaHybrid(2, gamma=0.3), "score")


def _network(outputs: AbstractParameterization) -> Denoiser:
    """A float64 network of two blocks."""
    process, conditioned = GammaHybrid(4, gamma=0.3), outputs.inputs(torch.zeros(1, 1)).condition is not None
    config = DDiTConfig(
        vocab_size=process.num_words + 1,
        hidden_size=16,
        num_blocks=2,
        num_heads=2,
        cond_dim=8,
        timestep_embedding=conditioned,
        condition_blocks=conditioned,
    )
    network = DDiT(config).double().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0.0, 0.4, generator=generator)
            parameter.add_(float(parameter.ndim == 1))
    return Denoiser(network, process, outputs)


def _hyperschedules() -> Iterator[tuple[str, str, AbstractHyperschedule]]:
    yield "hyperschedule", "autoregressive(9)", autoregressive(9)
    yield "hyperschedule", "flat(9, 5)", flat(9, 5)
    for family in (Block, PromptedBlock, Slide, Wave, PublishedSlide, PublishedWave):
        schedule = family(9, width=4, num_levels=5)
        yield "hyperschedule", repr(schedule), schedule
    table = Table(torch.tensor([[3, 2, 3], [1, 2, 3], [1, 0, 2], [0, 0, 0]]))
    yield "hyperschedule", repr(table), table


def _samplers() -> Iterator[tuple[str, str, laws.Sampler]]:
    """Every algorithm by name, with a process that it can reverse."""
    masks, words = EpsilonHybrid(3, epsilon=0.2), GammaHybrid(3, gamma=0.3)
    for name in ALGORITHMS:
        process = Absorbing(3) if name == "euler" else masks
        yield "sampling", f"{name} on {process!r}", laws.Sampler(algorithm(name, process, 0.1), process)
    for name in ("exact", "acs", "doubt", "gibbs", "analytic"):
        yield "sampling", f"{name} on {words!r}", laws.Sampler(algorithm(name, words, 0.1), words)


def laws_of(subject: Any) -> tuple[Law, ...]:
    """The laws of an object's kind.

    Raises:
        ValueError: If its kind has no laws, or it is a process with too many words to enumerate.
    """
    for kind, kind_laws in _KINDS:
        if isinstance(subject, kind):
            if isinstance(subject, AbstractNoiseProcess) and not 2 <= subject.num_words <= MOST_WORDS:
                raise ValueError(
                    f"Processes are verified by enumeration, with 2 to {MOST_WORDS} words; got num_words="
                    f"{subject.num_words}."
                )
            return kind_laws
    known = ", ".join(kind.__name__ for kind, _ in _KINDS)
    raise ValueError(
        f"There are no laws for {subject!r}, a {type(subject).__name__}; there are for {known}, and for sampling steps."
    )


def subject_of(thing: Any) -> Any:
    """The object that laws are tested on: a step (any other callable) with a process, or the object itself."""
    kinds = tuple(kind for kind, _ in _KINDS)
    if isinstance(thing, Step) and not isinstance(thing, (*kinds, type)):
        return laws.Sampler(thing, Absorbing(3))
    return thing


def verify(subject: Any, trial: Trial | None = None, name: str | None = None) -> list[Verdict]:
    """Test an object against the laws of its kind.

    Args:
        subject: A noise schedule, process, hyperschedule, parameterization, objective, denoiser, sampling step, or a
            `Sampler`, which is a step with the process to test it on.
        trial: The effort of the test; the default is quick.
        name: Name of the object; its `repr` by default.

    Raises:
        ValueError: If its kind has no laws.
    """
    tested = subject_of(subject)
    return try_laws(laws_of(tested), tested, trial or Trial(), name or repr(subject))
