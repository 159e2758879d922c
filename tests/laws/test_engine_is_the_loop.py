"""The engine writes the tokens and traces of the plain loop, which has no cache and computes all at every step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

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
    algorithm,
)
from tests.along import sample_along, sample_plainly_along
from tests.laws.test_every_way_of_writing import LENGTH, SCHEDULES, WORDS, fits, prompt_of
from tests.tiny import tiny_denoiser

PROCESSES: tuple[AbstractNoiseProcess, ...] = (
    Absorbing(WORDS),
    EpsilonHybrid(WORDS, 0.3),
    GammaHybrid(WORDS, 0.3),
    GIDD(WORDS, 0.3),
)
CONTEXTS: tuple[Context, ...] = ("block_causal", "causal", "full")
ACTIVES: tuple[Active, ...] = ("full", "causal")


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
    seed: int,
    parameterization: AbstractParameterization | None = None,
    *,
    every: bool = False,
) -> None:
    """Compare engine and loop. The seed selects context, prompt, transforms and noise schedule."""
    generator = torch.Generator().manual_seed(seed)

    def one_of(things: Any) -> Any:
        return things[int(torch.randint(len(things), (), generator=generator))]

    told = isinstance(parameterization, LogScore)
    denoiser = tiny_denoiser(process, parameterization, conditioned=told, seed=seed % 5)
    prompt = prompt_of(one_of(("none", "prefix", "infill")), schedule, generator)
    if denoiser.lookback:
        prompt = Prompt.prefix([1, 2], LENGTH)
    how = {
        "seed": seed,
        "prompt": prompt,
        "transforms": one_of(((), (Temperature(0.7),))),
        "noise_schedule": one_of((LINEAR, Cosine())),
        "sampling_eps": one_of((None, 1e-3)),
        "context": one_of(CONTEXTS),
        "active": one_of(ACTIVES),
    }
    reference = Trace(process.mask_id, alternatives=2)
    expected = sample_plainly_along(denoiser, schedule, step, num_sequences=3, watch=reference, **how)
    ways: list[dict[str, Any]] = [{}, {"batch_size": 2}, {"together": True}, {"use_cache": False}]
    for options in ways if every else [ways[seed % 4]]:
        trace = Trace(process.mask_id, alternatives=2)
        found = sample_along(denoiser, schedule, step, num_sequences=3, watch=trace, **how, **options).tokens
        assert torch.equal(found, expected), (options, how, seed)
        assert_same_changes(trace.changes, reference.changes)
    trace = Trace(process.mask_id, alternatives=2)
    alone = sample_along(denoiser, schedule, step, first_sequence=2, watch=trace, **how).tokens
    assert torch.equal(alone[0], expected[2])
    assert_same_changes(trace.changes, [change for change in reference.changes if change.sequence == 2])


PAIRS = [(name, process) for name in ALGORITHMS for process in PROCESSES if fits(name, process)]


@pytest.mark.parametrize(("name", "process"), PAIRS[::2], ids=str)
def test_engine_equals_plain_loop(name: str, process: AbstractNoiseProcess) -> None:
    place = PAIRS.index((name, process))
    assert_engine_equals_loop(
        algorithm(name, process, 0.3), process, SCHEDULES[place % len(SCHEDULES)], place
    )


@pytest.mark.parametrize("place", [0, 1, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 3))])
@pytest.mark.parametrize("name", OWN_STEPS)
@pytest.mark.parametrize("process", PROCESSES[:2], ids=str)
def test_engine_equals_plain_loop_with_compound_and_user_steps(
    name: str, process: AbstractNoiseProcess, place: int
) -> None:
    assert_engine_equals_loop(OWN_STEPS[name], process, SCHEDULES[place], place)


@pytest.mark.parametrize("parameterization", [Shifted(Mean()), LogScore()], ids=str)
@pytest.mark.parametrize("name", ["original", "acs", "remask", "confidence"])
def test_engine_equals_plain_loop_with_shifted_and_score_networks(
    name: str, parameterization: AbstractParameterization
) -> None:
    for schedule in (SCHEDULES[1], SCHEDULES[6]):
        assert_engine_equals_loop(
            algorithm(name, PROCESSES[1], 0.3), PROCESSES[1], schedule, 5, parameterization
        )


@pytest.mark.slow
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize(("name", "process"), PAIRS, ids=str)
def test_engine_equals_plain_loop_with_many_seeds(
    name: str, process: AbstractNoiseProcess, schedule: AbstractHyperschedule
) -> None:
    for seed in range(100, 104):
        assert_engine_equals_loop(algorithm(name, process, 0.3), process, schedule, seed, every=True)
