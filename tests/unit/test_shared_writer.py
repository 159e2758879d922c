"""`SharedWriter` gives every request the text that `write` gives it, alone and in any company."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, final

import pytest
import torch
from torch import Tensor

from hdlm.generation import Settings, write
from hdlm.generation.company import SharedWriter, WriteRequest, Written
from hdlm.sampling import EntropyRenoising, Frame, Move, Step
from hdlm.sampling.algorithms import ALGORITHMS, WRITES_LIKELIEST
from tests.serving import small_checkpoint, small_model

MODEL = small_model()
CHECKPOINT, SUPPORTED = MODEL.checkpoint, MODEL.supported
DRAFT = "In the land was the word, and the people was with the beginning."
PLAN: dict[str, Any] = {"hyperschedule": "block", "width": 8, "steps": 3, "length": 12}


def written(requests: Iterable[WriteRequest]) -> dict[WriteRequest, str]:
    """The texts of requests that share a writer."""
    texts = {}
    for done in results(requests):
        assert done.error is None
        assert done.passage is not None
        texts[done.request] = done.passage.text
    return texts


def results(requests: Iterable[WriteRequest]) -> list[Written]:
    """What a writer returns for requests that are added together."""
    writer, done = SharedWriter(slots=4), list[Written]()
    for request in requests:
        writer.add(request)
    while writer.num_running or writer.num_waiting:
        done += writer.advance()
    return done


@pytest.mark.parametrize("name", SUPPORTED)
def test_shared_writer_gives_the_text_of_write(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ALGORITHMS, "entropy_renoising", lambda _, bound: EntropyRenoising(bound, passes=4))
    chosen = [Settings(algorithm=name, temperature=temperature, **PLAN) for temperature in (0.0, 1.0)]
    if name in WRITES_LIKELIEST:
        chosen += [Settings(algorithm=name, temperature=0.0, sub_block=4, **PLAN)]
    requests = {WriteRequest(CHECKPOINT, "In the", settings, seed=3): settings for settings in chosen}
    texts = written(requests)
    for request, settings in requests.items():
        assert texts[request] == write(CHECKPOINT, "In the", settings, seed=3)[0].text, settings


def test_requests_that_differ_in_the_step_do_not_share_an_engine() -> None:
    name = next(name for name in ("threshold", "confidence") if name in SUPPORTED)
    ways = {
        WriteRequest(CHECKPOINT, "", Settings(algorithm=name, **PLAN, **more)).way[0]
        for more in ({}, {"temperature": 0.0}, {"sub_block": 4}, {"eta": 0.5})
    }
    assert len(ways) == 4
    assert set(SUPPORTED) <= set(ALGORITHMS)


PLANS: tuple[dict[str, Any], ...] = (
    PLAN,
    {"hyperschedule": "block", "width": 4, "steps": 3},
    {"hyperschedule": "block", "width": 4, "steps": 2, "length": 22},
    {"hyperschedule": "slide", "width": 4, "steps": 3, "length": 16},
    {"hyperschedule": "flat", "steps": 5, "length": 20},
    {"hyperschedule": "autoregressive", "length": 12},
    {"hyperschedule": "published-slide", "width": 4, "steps": 3, "length": 16},
)


def drawn(numbers: random.Random) -> tuple[WriteRequest, Settings]:
    """A random request for one passage, with any algorithm, hyperschedule, number of steps and transform."""
    settings = Settings(
        algorithm=numbers.choice(SUPPORTED),
        eta=numbers.choice((0.05, 0.3)),
        temperature=numbers.choice((0.0, 0.7, 1.0)),
        guidance=numbers.choice((0.0, 0.0, 0.0, 0.5)),
        **numbers.choice(PLANS),
    )
    prompt = numbers.choice(("", "In the", "a [MASK:4] the land", DRAFT))
    noise = numbers.choice((0.3, 0.7)) if prompt == DRAFT else None
    settings = replace(settings, length=None) if "[MASK" in prompt or prompt == DRAFT else settings
    return WriteRequest(CHECKPOINT, prompt, settings, seed=numbers.randrange(100), noise=noise), settings


def assert_equal_in_company(seed: int, count: int) -> None:
    """Requests of all algorithms come and go at random steps; their texts and costs are those of `write`."""
    numbers, writer = random.Random(seed), SharedWriter(slots=5)
    requests = dict(drawn(numbers) for _ in range(count))
    waiting, running, done = list(requests), list[WriteRequest](), list[Written]()
    while waiting or writer.num_running or writer.num_waiting:
        if waiting and numbers.random() < 0.4:
            running.append(waiting.pop())
            writer.add(running[-1])
        done += writer.advance()
        if running and numbers.random() < 0.02:
            writer.remove(running.pop(numbers.randrange(len(running))))
    assert len(done) > count // 2
    for written in done:
        assert written.passage is not None, written.error
        request, passage = written.request, written.passage
        alone = write(CHECKPOINT, request.prompt, requests[request], seed=request.seed, noise=request.noise)[
            0
        ]
        assert replace(passage, num_evaluations=0) == replace(alone, num_evaluations=0), requests[request]


def test_text_does_not_depend_on_company_of_other_algorithms() -> None:
    assert_equal_in_company(0, count=6)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 130))
def test_texts_of_many_requests_do_not_depend_on_company_of_other_algorithms(seed: int) -> None:
    assert_equal_in_company(seed, count=16)


def test_algorithms_and_numbers_of_steps_share_calls() -> None:
    """A step of each of them reads the network once, so eight requests need hardly more calls than the longest."""
    writer = SharedWriter(slots=8)
    ways = [
        {"algorithm": name, "hyperschedule": "block", "width": 8, "steps": steps, "length": 16}
        for name in ("original", "acs", "remdm", "analytic")
        for steps in (4, 6)
    ]
    longest = 0
    for way in ways:
        request = WriteRequest(CHECKPOINT, "", Settings(**way))
        longest = max(longest, write(CHECKPOINT, "", Settings(**way))[0].evaluations)
        writer.add(request)
    while writer.num_running:
        writer.advance()
    assert writer.num_evaluations <= 1.2 * longest


def test_requests_for_two_models_do_not_share_an_engine() -> None:
    other = small_checkpoint()
    with torch.no_grad():
        for parameter in other.network.parameters():
            parameter.mul_(0.7)
    requests = {
        WriteRequest(model, "In the", Settings(**PLAN), seed=3): model for model in (CHECKPOINT, other)
    }
    texts = written(requests)
    assert len(set(texts.values())) == 2
    for request, model in requests.items():
        assert texts[request] == write(model, "In the", Settings(**PLAN), seed=3)[0].text


@final
@dataclass(frozen=True)
class Failing:
    """A step that fails in the rows with one seed, at one generation step."""

    inner: Step
    seed: int

    def __call__(self, x: Tensor, move: Move) -> Tensor:
        steps = torch.as_tensor(move.step).flatten().tolist()
        if (self.seed, 2) in zip(move.randomness.seeds_of(len(x)), steps, strict=True):
            raise KeyError("injected")
        return self.inner(x, move)


def companions(seen: list[tuple[int, int, list[int]]]) -> list[WriteRequest]:
    """Requests that share calls, whose frames are recorded."""

    def record(number: int, frame: Frame) -> None:
        seen.append((number, frame.step, frame.after[0].tolist()))

    return [
        WriteRequest(
            CHECKPOINT,
            "In the",
            Settings(algorithm=name, **PLAN),
            num=2,
            seed=number,
            watch=lambda frame, number=number: record(number, frame),
        )
        for number, name in enumerate(("acs", "original"))
    ]


@pytest.mark.parametrize("fault", ["step", "watch", "stream", "passage", "call"])
def test_a_failure_ends_one_request_and_no_other(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, wanted = [], []

    def fail(*_: object) -> None:
        raise KeyError("injected")

    results(companions(wanted))
    bad = WriteRequest(
        CHECKPOINT,
        "In the",
        Settings(**PLAN),
        seed=77,
        num=2,
        watch=fail if fault == "watch" else None,
        stream=fail if fault == "stream" else None,
    )
    if fault == "step":
        for request in (good := companions(seen)):
            request.step = Failing(request.step, 77) if request.settings.algorithm == "acs" else request.step
        bad.step = Failing(bad.step, 77)
    else:
        good = companions(seen)
    if fault == "passage":
        monkeypatch.setattr(bad, "passage", fail)
    if fault == "call":
        _fail_once(monkeypatch)
    done = results([*good, bad])
    failed = [one for one in done if one.passage is None]
    assert [one.request for one in failed] == ([] if fault == "call" else [bad])
    assert all(isinstance(one.error, KeyError) for one in failed)
    assert sorted(seen) == sorted(wanted)
    for request in good:
        texts = [one.passage.text for one in done if one.request is request and one.passage is not None]
        assert sorted(texts) == sorted(
            p.text for p in write(CHECKPOINT, "In the", request.settings, num=2, seed=request.seed)
        )


def _fail_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second shared call of the network fails."""
    network, calls = CHECKPOINT.network, []
    inner = network.features_of_many

    def features_of_many(passes: Any) -> Any:
        calls.append(len(passes))
        if len(calls) == 2:
            raise RuntimeError("injected")
        return inner(passes)

    monkeypatch.setattr(network, "features_of_many", features_of_many)
