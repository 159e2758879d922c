"""`SharedWriter` gives every request the text that `write` gives it, for each algorithm and its settings."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from hdlm.generation import Settings, write
from hdlm.generation.company import SharedWriter, WriteRequest
from hdlm.sampling.algorithms import ALGORITHMS, WRITES_LIKELIEST
from tests.serving import small_checkpoint, small_model

SUPPORTED = small_model().supported
PLAN = {"hyperschedule": "block", "width": 8, "steps": 4, "length": 16}


def written(requests: Iterable[WriteRequest]) -> dict[WriteRequest, str]:
    """The texts of requests that share a writer."""
    writer, texts = SharedWriter(slots=4), {}
    for request in requests:
        writer.add(request)
    while writer.num_running or writer.num_waiting:
        for done in writer.advance():
            assert done.error is None
            assert done.passage is not None
            texts[done.request] = done.passage.text
    return texts


@pytest.mark.parametrize("name", SUPPORTED)
def test_shared_writer_gives_the_text_of_write(name: str) -> None:
    checkpoint = small_checkpoint()
    chosen = [Settings(algorithm=name, temperature=temperature, **PLAN) for temperature in (0.0, 1.0)]
    if name in WRITES_LIKELIEST:
        chosen += [Settings(algorithm=name, temperature=0.0, sub_block=4, **PLAN)]
    requests = {WriteRequest(checkpoint, "In the", settings, seed=3): settings for settings in chosen}
    texts = written(requests)
    for request, settings in requests.items():
        assert texts[request] == write(checkpoint, "In the", settings, seed=3)[0].text, settings


def test_requests_that_differ_in_the_step_do_not_share_an_engine() -> None:
    checkpoint = small_checkpoint()
    name = next(name for name in ("threshold", "confidence") if name in SUPPORTED)
    ways = {
        WriteRequest(checkpoint, "", Settings(algorithm=name, **PLAN, **more)).way[0]
        for more in ({}, {"temperature": 0.0}, {"sub_block": 4}, {"eta": 0.5})
    }
    assert len(ways) == 4
    assert set(SUPPORTED) <= set(ALGORITHMS)
