"""Load on the server: clients, throughput, latency and time to first block; batching against none, in one run.

python -m benchmarks.serving                       the shipped model
python -m benchmarks.serving --hidden 768 --blocks 12 --clients 1 16
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import final

import httpx
import torch
import uvicorn

import hdlm
from hdlm.checkpoint import Checkpoint
from hdlm.denoiser import Denoiser
from hdlm.network import DDiT
from hdlm.serve.app import create_app
from hdlm.serve.models import ServedModel
from hdlm.serve.options import ServeOptions


def main() -> None:
    """Measure each number of clients with and without batching, and print a Markdown table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--requests", type=int, default=2, help="requests of each client")
    parser.add_argument("--tokens", type=int, default=16, help="tokens of a request")
    parser.add_argument("--hidden", type=int, help="width of a network with random weights")
    parser.add_argument("--blocks", type=int, default=12, help="its blocks")
    parser.add_argument("--algorithm", default="original")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--plain", action="store_true", help="without batch-invariant layers")
    options = parser.parse_args()
    checkpoint = _checkpoint(options.hidden, options.blocks)
    checkpoint.network.speed_up(batch_invariant=not options.plain)
    count = sum(parameter.numel() for parameter in checkpoint.network.parameters())
    print(f"{count / 1e6:.0f} M parameters, {torch.get_num_threads()} threads\n")
    print(
        "| clients | slots | tokens/s | p50 s | p95 s | p99 s | first block p50 s |\n|---|---|---|---|---|---|---|"
    )
    body = {"prompt": "In the beginning", "max_tokens": options.tokens, "algorithm": options.algorithm}
    body |= {"ignore_eos": True, "steps": options.steps}
    for clients in options.clients:
        rates = []
        for slots in (1, clients) if clients > 1 else (1,):
            with _serving(checkpoint, slots) as address:
                load = asyncio.run(_load(address, clients, options.requests, body))
            rates.append(load.rate)
            print(f"| {clients} | {slots} | {load.rate:.1f} | {load.row()} |", flush=True)
        if len(rates) > 1:
            print(f"| {clients} | ratio | {rates[1] / rates[0]:.2f} | | | | |", flush=True)


@final
class _Load:
    """What clients have measured."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.first: list[float] = []
        self.tokens, self.rate = 0, 0.0

    def row(self) -> str:
        parts = (
            statistics.quantiles(self.seconds, n=100, method="inclusive")
            if len(self.seconds) > 1
            else self.seconds * 99
        )
        shown = [parts[49], parts[94], parts[98], statistics.median(self.first)]
        return " | ".join(f"{value:.2f}" for value in shown)


async def _load(address: str, clients: int, requests: int, body: dict[str, object]) -> _Load:
    load = _Load()

    async def client(web: httpx.AsyncClient, number: int) -> None:
        for index in range(requests):
            begin = time.monotonic()
            answer = await web.post(f"{address}/v1/completions", json=body | {"seed": 1000 * number + index})
            answer.raise_for_status()
            usage = answer.json()["usage"]
            load.seconds.append(time.monotonic() - begin)
            load.first.append(usage["time_to_first_block"])
            load.tokens += usage["completion_tokens"]

    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(timeout=3600, limits=limits) as web:
        await web.post(f"{address}/v1/completions", json=body | {"seed": 0})
        begin = time.monotonic()
        await asyncio.gather(*(client(web, number) for number in range(clients)))
        load.rate = load.tokens / (time.monotonic() - begin)
    return load


@contextmanager
def _serving(checkpoint: Checkpoint, slots: int) -> Iterator[str]:
    app = create_app(
        [ServedModel("model", checkpoint)], ServeOptions(slots=slots, queue=1000, request_timeout=3600.0)
    )
    server = uvicorn.Server(
        uvicorn.Config(app, port=0, http="h11", ws="none", log_level="error", access_log=False)
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def _checkpoint(hidden: int | None, blocks: int) -> Checkpoint:
    """The shipped model; with a width, its description around a larger network with random weights."""
    model = hdlm.load("kjv-epsilon-4m")
    if hidden is None:
        return model
    config = replace(model.network.config, hidden_size=hidden, num_blocks=blocks, num_heads=hidden // 64)
    torch.manual_seed(0)
    network = DDiT(config).eval()
    return replace(model, denoiser=Denoiser(network, model.denoiser.process, model.denoiser.parameterization))


if __name__ == "__main__":
    main()
