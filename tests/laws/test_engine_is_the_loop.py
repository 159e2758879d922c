"""The engine writes the tokens and traces of the plain loop, which has no cache and computes all at every step."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from hdlm.attention import Active, Context
from hdlm.hyperschedule import AbstractHyperschedule
from hdlm.noise_schedule import LINEAR, Cosine
from hdlm.parameterization import AbstractParameterization, LogScore, Mean, Shifted
from hdlm.process import GIDD, Absorbing, AbstractNoiseProcess, EpsilonHybrid, GammaHybrid
from hdlm.sampling import (
    ALGORITHMS,
    AdaptiveCorrection,
    Ancestral,
    Cap,
    Chain,
    Change,
    Loop,
    Move,
    Prompt,
    Remask,
    ReMDM,
    Step,
    Temperature,
    Trace,
)
from tests.along import sample_along, sample_plainly_along
from tests.covering import Factors, assert_covers, setting_of
from tests.laws.test_every_way_of_writing import LENGTH, SCHEDULES, WORDS, fits, prompt_of
from tests.tiny import tiny_algorithm, tiny_denoiser

PROCESSES: tuple[AbstractNoiseProcess, ...] = (
    Absorbing(WORDS),
    EpsilonHybrid(WORDS, 0.3),
    GammaHybrid(WORDS, 0.3),
    GIDD(WORDS, 0.3),
)
CONTEXTS: tuple[Context, ...] = ("block_causal", "causal", "full")
ACTIVES: tuple[Active, ...] = ("full", "causal")
FACTORS: Factors = {
    "context": CONTEXTS,
    "active": ACTIVES,
    "kind": ("none", "prefix", "infill"),
    "transforms": ((), (Temperature(0.7),)),
    "noise_schedule": (LINEAR, Cosine()),
    "sampling_eps": (None, 1e-3),
    "execution": ({}, {"batch_size": 2}, {"together": True}, {"use_cache": False}),
}
"""What else a run of an algorithm along a hyperschedule can vary."""


def random_rewriting(x: Tensor, move: Move) -> Tensor:
    """A user step without declarations: it writes masks and words at random and then calls an ancestral step."""
    where = move.moving & (move.uniform(0) < 0.3) & (move.s > 0)
    new = torch.where(where, (move.uniform(1) * (WORDS + 1)).long(), x)
    return Ancestral()(new, replace(move, x=new).sub(1))


OWN_STEPS: dict[str, Step] = {
    "ancestral and remasking": Chain((Ancestral(Absorbing(WORDS)), ReMDM(Cap(0.5)))),
    "remasking, then ancestral": Chain((ReMDM(Cap(0.5)), Ancestral(Absorbing(WORDS)))),
    "chain in a chain": Chain(
        (Chain((Ancestral(Absorbing(WORDS)), AdaptiveCorrection(0.8))), Chain((Remask(0.4),)))
    ),
    "early middle": Loop(Cap(0.6), on=0.8, off=0.3, level=0.5),
    "own step": random_rewriting,
}


def assert_same_changes(found: list[Change], expected: list[Change]) -> None:
    """Compare everything but the numbers of evaluations; the network of the tests computes in float64."""
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert _exact(ours) == _exact(theirs)
        assert _probabilities(ours) == pytest.approx(_probabilities(theirs), abs=1e-9)


def _exact(change: Change) -> tuple[object, ...]:
    known = change.alternatives and [token for token, _ in change.alternatives]
    return (
        *(change.step, change.sequence, change.position, change.old, change.new, change.reason, change.noise),
        *(change.p_old is None, change.p_new is None, change.entropy is None, known),
    )


def _probabilities(change: Change) -> list[float]:
    likeliest = [p for _, p in change.alternatives or ()]
    return [p for p in (change.p_old, change.p_new, change.entropy, *likeliest) if p is not None]


def assert_engine_equals_loop(
    step: Step,
    process: AbstractNoiseProcess,
    schedule: AbstractHyperschedule,
    number: int,
    parameterization: AbstractParameterization | None = None,
) -> None:
    """Compare tokens and traces of engine and loop, for all sequences and for the last one alone."""
    how = setting_of(FACTORS, number) | {"seed": number}
    kind, execution = how.pop("kind"), how.pop("execution")
    conditioned = isinstance(parameterization, LogScore)
    denoiser = tiny_denoiser(process, parameterization, conditioned=conditioned, seed=number % 5)
    prompt = prompt_of(kind, schedule, torch.Generator().manual_seed(number))
    how["prompt"] = Prompt.prefix([1, 2], LENGTH) if denoiser.lookback else prompt
    reference, trace, own = (Trace(process.mask_id, alternatives=2) for _ in range(3))
    expected = sample_plainly_along(denoiser, schedule, step, num_sequences=3, watch=reference, **how)
    tokens = sample_along(denoiser, schedule, step, num_sequences=3, watch=trace, **how, **execution).tokens
    assert torch.equal(tokens, expected), (execution, how)
    assert_same_changes(trace.changes, reference.changes)
    alone = sample_along(denoiser, schedule, step, first_sequence=2, watch=own, **how).tokens
    assert torch.equal(alone[0], expected[2]), how
    assert_same_changes(own.changes, [change for change in reference.changes if change.sequence == 2])


PAIRS = [(name, process) for name in ALGORITHMS for process in PROCESSES if fits(name, process)]


def number_of(pair: int, schedule: int) -> int:
    """The number of the setting for a pair of algorithm and process and a hyperschedule, by their places."""
    return 9 * pair + schedule


def test_settings_cover_every_pair_of_values() -> None:
    """Each pair of algorithm and process, and each hyperschedule, also has every value of every factor."""
    assert_covers(
        FACTORS, [[number_of(pair, at) for at in range(len(SCHEDULES))] for pair in range(len(PAIRS))]
    )


@pytest.mark.parametrize(("name", "process"), PAIRS[::2], ids=str)
def test_engine_equals_plain_loop(name: str, process: AbstractNoiseProcess) -> None:
    pair = PAIRS.index((name, process))
    at = pair % len(SCHEDULES)
    assert_engine_equals_loop(tiny_algorithm(name, process, 0.3), process, SCHEDULES[at], number_of(pair, at))


@pytest.mark.parametrize("place", [0, 1, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 3))])
@pytest.mark.parametrize("name", OWN_STEPS)
@pytest.mark.parametrize("process", PROCESSES[:2], ids=str)
def test_engine_equals_plain_loop_with_compound_and_user_steps(
    name: str, process: AbstractNoiseProcess, place: int
) -> None:
    number = number_of(2 * list(OWN_STEPS).index(name) + PROCESSES.index(process), place)
    assert_engine_equals_loop(OWN_STEPS[name], process, SCHEDULES[place], number)


@pytest.mark.parametrize("parameterization", [Shifted(Mean()), LogScore()], ids=str)
@pytest.mark.parametrize("name", ["original", "acs", "remask", "confidence"])
def test_engine_equals_plain_loop_with_shifted_and_score_networks(
    name: str, parameterization: AbstractParameterization
) -> None:
    pair, process = PAIRS.index((name, PROCESSES[1])), PROCESSES[1]
    for at in (1, 6):
        assert_engine_equals_loop(
            tiny_algorithm(name, process, 0.3), process, SCHEDULES[at], number_of(pair, at), parameterization
        )


@pytest.mark.slow
@pytest.mark.parametrize(("name", "process"), PAIRS, ids=str)
def test_engine_equals_plain_loop_along_every_hyperschedule(name: str, process: AbstractNoiseProcess) -> None:
    """The product of algorithms, processes and hyperschedules is full; the other factors are a covering design."""
    pair, step = PAIRS.index((name, process)), tiny_algorithm(name, process, 0.3)
    for at, schedule in enumerate(SCHEDULES):
        assert_engine_equals_loop(step, process, schedule, number_of(pair, at))
