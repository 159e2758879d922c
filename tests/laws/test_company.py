"""The tokens of a request are equal alone and in any company: with other requests that join and leave at any step."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import final

import pytest
import torch
from torch import Tensor

from hdlm.denoiser import Denoiser
from hdlm.hyperschedule import Block, Slide, flat
from hdlm.hyperschedule.base import AbstractHyperschedule
from hdlm.process import Absorbing, AbstractNoiseProcess, EpsilonHybrid
from hdlm.regime import Regime
from hdlm.sampling import (
    ALGORITHMS,
    Engine,
    EngineRequest,
    Execution,
    Frame,
    MinP,
    Prompt,
    RepetitionPenalty,
    Step,
    Temperature,
    TopK,
    TopP,
    Transform,
    sample,
)
from tests.laws.test_every_way_of_writing import fits
from tests.tiny import tiny_algorithm, tiny_denoiser

WORDS, LENGTH = 7, 10
CHAINS: tuple[tuple[Transform, ...], ...] = (
    (),
    (Temperature(0.5),),
    (RepetitionPenalty(1.5), Temperature(2.0), TopK(3)),
    (TopP(0.7),),
    (Temperature(0.0),),
    (MinP(0.3),),
)
SCHEDULES = (Block(LENGTH, 3, 3), Slide(LENGTH, 4, 2), flat(LENGTH, 6))
PROCESSES: tuple[AbstractNoiseProcess, ...] = (Absorbing(WORDS), EpsilonHybrid(WORDS, 0.3))
PAIRS = [(name, process) for name in ALGORITHMS for process in PROCESSES if fits(name, process)]


@final
@dataclass(frozen=True)
class Wish:
    """A request for one sequence: its seed, length, prompt, transforms and the token that stops it."""

    seed: int
    length: int
    given: int
    transforms: tuple[Transform, ...]
    stop_at: int | None

    @staticmethod
    def draw(numbers: random.Random) -> Wish:
        stop_at = numbers.choice((None, 3))
        return Wish(
            numbers.randrange(2**64),
            numbers.randint(4, LENGTH),
            numbers.randint(0, 3),
            numbers.choice(CHAINS),
            stop_at,
        )

    def stop(self, sequence: int, tokens: Tensor) -> int | None:
        places = [] if self.stop_at is None else (tokens[self.given :] == self.stop_at).nonzero()
        return None if not len(places) else self.given + int(places[0]) + 1

    def prompt(self, length: int) -> Prompt | None:
        return Prompt.prefix([1, 2, 3][: self.given], length) if self.given else None

    def alone(self, denoiser: Denoiser, schedule: AbstractHyperschedule, step: Step) -> list[int]:
        done = sample(
            denoiser,
            Regime(schedule.first_positions(self.length)),
            step,
            seed=self.seed,
            prompt=self.prompt(self.length),
            transforms=self.transforms,
            stop=self.stop,
            execution=Execution(first_sequence=4),
        )
        return done.tokens[0, : int(done.lengths)].tolist()


def write_in_company(
    denoiser: Denoiser,
    schedule: AbstractHyperschedule,
    step: Step,
    wishes: list[Wish],
    numbers: random.Random,
) -> dict[Wish, list[int]]:
    """The tokens of wishes that arrive at random steps, and of which some are removed at random steps."""
    engine, frames = Engine(denoiser, Regime(schedule), step), list[Frame]()
    asked: dict[EngineRequest, Wish] = {}
    done: dict[Wish, list[int]] = {}
    waiting = list(wishes)
    with torch.no_grad():
        while waiting or len(engine):
            while waiting and (not len(engine) or numbers.random() < 0.4):
                wish = waiting.pop()
                watch = numbers.choice((None, frames.append))
                request = EngineRequest(wish.transforms, wish.stop, watch)
                prompt = wish.prompt(LENGTH)
                given = {} if prompt is None else {"tokens": prompt.tokens, "fixed": prompt.fixed}
                engine.add(torch.tensor([4]), length=wish.length, seed=wish.seed, request=request, **given)
                asked[request] = wish
            for finished in engine.advance():
                done[asked.pop(finished.request)] = finished.tokens[: finished.length].tolist()
            if asked and numbers.random() < 0.03:
                gone = numbers.choice(list(asked))
                engine.remove(gone)
                del asked[gone]
    assert all(len(frame.sequence) == 1 for frame in frames)
    return done


@pytest.mark.parametrize(("name", "process"), PAIRS[::4], ids=str)
def test_tokens_of_a_request_do_not_depend_on_company(name: str, process: AbstractNoiseProcess) -> None:
    seed = PAIRS.index((name, process))
    _assert_equal_alone_and_in_company(name, process, SCHEDULES[seed % len(SCHEDULES)], seed, count=4)


@pytest.mark.slow
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize(("name", "process"), PAIRS, ids=str)
def test_tokens_of_many_requests_do_not_depend_on_company(
    name: str, process: AbstractNoiseProcess, schedule: AbstractHyperschedule
) -> None:
    for seed in range(100, 104):
        _assert_equal_alone_and_in_company(name, process, schedule, seed, count=12)


def _assert_equal_alone_and_in_company(
    name: str, process: AbstractNoiseProcess, schedule: AbstractHyperschedule, seed: int, count: int
) -> None:
    numbers = random.Random(seed)
    denoiser, step = tiny_denoiser(process, seed=seed % 5), tiny_algorithm(name, process, 0.3)
    wishes = [Wish.draw(numbers) for _ in range(count)]
    done = write_in_company(denoiser, schedule, step, wishes, numbers)
    assert len(done) > count // 2
    for wish, tokens in done.items():
        assert tokens == wish.alone(denoiser, schedule, step), wish
