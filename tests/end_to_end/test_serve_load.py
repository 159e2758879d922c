"""The server under fuzzing and load: no answer is a fault, and nothing grows."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings

from hdlm.serve.app import create_app
from hdlm.serve.models import ServedModel
from hdlm.serve.options import ServeOptions
from tests.serving import TEMPLATE, small_checkpoint, small_model

FUZZED = ServeOptions(slots=4, request_timeout=20.0, max_n=4, max_steps=16, no_auth=True, host="0.0.0.0")
MODELS = [ServedModel("small", small_checkpoint(), TEMPLATE)]
SCHEMA = schemathesis.openapi.from_asgi("/openapi.json", create_app(MODELS, FUZZED))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@SCHEMA.parametrize()
@settings(
    max_examples=10,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
    derandomize=True,
)
def test_no_request_is_answered_by_a_fault(case: schemathesis.Case) -> None:
    """Requests that schemathesis makes from the server's own description."""
    response = case.call()
    assert response.status_code < 500, response.text


@pytest.fixture
def server() -> Iterator[tuple[str, int]]:
    """The command itself, in a process of its own, with its process id."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "hdlm", "serve", "--port", str(port), "--queue", "200", "--threads", "1"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                if httpx.get(f"{address}/ready").status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.2)
        yield address, process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) in (0, -signal.SIGTERM)


@pytest.mark.slow
def test_soak_with_clients_that_come_and_go(server: tuple[str, int]) -> None:
    """Some clients close their streams early, read slowly, or are killed; the others get the same bytes every time."""
    address, process = server
    seconds, clients = float(os.environ.get("HDLM_SOAK_SECONDS", "60")), 64
    wanted = {seed: _choices(address, seed) for seed in range(4)}
    outcomes: Counter[str] = Counter()
    end = time.monotonic() + seconds

    def client(number: int) -> None:
        numbers = random.Random(number)
        while time.monotonic() < end:
            seed = numbers.randrange(4)
            kind = numbers.choice(("plain", "plain", "early", "slow", "reset"))
            outcomes[kind] += 1
            if kind == "plain":
                assert _choices(address, seed) == wanted[seed]
                outcomes["equal"] += 1
            else:
                _leave(address, kind, numbers)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    time.sleep(seconds / 2)
    half = _memory(process)
    for thread in threads:
        thread.join()
    assert outcomes["equal"] == outcomes["plain"] > 0, outcomes
    for _ in range(100):
        if "hdlm_requests_open 0.0" in httpx.get(f"{address}/metrics").text:
            break
        time.sleep(0.2)
    text = httpx.get(f"{address}/metrics").text
    assert "hdlm_requests_open 0.0" in text
    assert 'status="500"' not in text
    assert _memory(process) < 1.1 * half + 2**20 * 16
    assert len(list(Path(f"/proc/{process}/fd").iterdir())) < 64
    print(dict(outcomes))


def _choices(address: str, seed: int) -> str:
    body = {"prompt": "In the beginning", "max_tokens": 6 + seed, "seed": seed, "logprobs": 1}
    answer = httpx.post(f"{address}/v1/completions", json=body, timeout=600)
    assert answer.status_code == 200, answer.text
    return json.dumps(answer.json()["choices"])


def _leave(address: str, kind: str, numbers: random.Random) -> None:
    """A client that does not read its stream to the end, or reads it slowly."""
    body = {"prompt": "", "max_tokens": 20, "stream": True, "diffusion_frames": True}
    with httpx.stream("POST", f"{address}/v1/completions", json=body, timeout=600) as stream:
        for count, _ in enumerate(stream.iter_raw(500)):
            if kind == "slow":
                time.sleep(0.02)
            elif count >= numbers.randrange(5):
                if kind == "reset":
                    network = stream.extensions["network_stream"].get_extra_info("socket")
                    network.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                return


def _memory(process: int) -> int:
    """Resident memory in bytes."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) * 1024


@pytest.mark.slow
def test_sigterm_ends_streams_and_the_process(server: tuple[str, int]) -> None:
    address, process = server
    body = {"prompt": "", "max_tokens": 120, "stream": True, "algorithm": "original", "steps": 1000}
    with httpx.stream("POST", f"{address}/v1/completions", json=body, timeout=60) as stream:
        lines = stream.iter_lines()
        next(lines)
        os.kill(process, signal.SIGTERM)
        begin = time.monotonic()
        with contextlib.suppress(httpx.TransportError):
            list(lines)
    assert time.monotonic() - begin < 30


def test_small_model_supports_every_algorithm() -> None:
    assert small_model().unsupported == {}
