"""Load on the server: clients, throughput, latency, and time to first block; batching against none, in one run.

    python -m benchmarks.serving --plain                                          the shipped model
    python -m benchmarks.serving --plain --hidden 768 --blocks 12 --requests 1    the base size, random weights

Each number of clients is measured twice, with as many slots as clients and with one slot, which is a server without
batching. With `--plain`, the first row is such requests one after the other with `generate`, without a server and
without the batch-invariant layers, which a server needs for equal bytes. Prints a Markdown table for
docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, final

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
from hdlm.view.report import markdown_table

PROMPT = "In the beginning"
HEADING = (
    *("clients", "slots", "tokens/s", "tokens/s / one slot", "tokens/s / plain"),
    *("p50 s", "p95 s", "p99 s", "first block p50 s", "first block p95 s"),
)


@final
@dataclass(frozen=True)
class Load:
    """The measurements of a number of clients.

    Attributes:
        tokens: Number of generated tokens.
        duration: Seconds from the first request to the last answer.
        seconds: Seconds of each request.
        first: Seconds of each request until its first text was settled.
    """

    tokens: int
    duration: float
    seconds: tuple[float, ...]
    first: tuple[float, ...]

    @property
    def rate(self) -> float:
        """Tokens per second."""
        return self.tokens / self.duration

    def row(self, clients: str, slots: str, single: Load | None, plain: Load | None) -> list[str]:
        """The row of the table, with ratios to a run with one slot and to plain `generate`."""
        ratios = [f"{self.rate / other.rate:.2f}" if other else "" for other in (single, plain)]
        times = [_quantile(self.seconds, share) for share in (50, 95, 99)]
        times += [_quantile(self.first, share) for share in (50, 95)] if self.first else []
        shown = [f"{seconds:.2f}" for seconds in times] + [""] * (5 - len(times))
        return [clients, slots, f"{self.rate:.1f}", *ratios, *shown]


def _quantile(values: Sequence[float], share: int) -> float:
    """The value below which `share` percent of the values are."""
    if len(values) < 2:
        return values[0]
    return statistics.quantiles(values, n=100, method="inclusive")[share - 1]


def main() -> None:
    """Measure each number of clients with and without batching, and print a Markdown table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument(
        "--requests", type=int, default=2, help="requests of each client, one after the other"
    )
    parser.add_argument("--tokens", type=int, default=16, help="tokens of a request")
    parser.add_argument("--hidden", type=int, help="width of a network with random weights")
    parser.add_argument("--blocks", type=int, default=12, help="its blocks")
    parser.add_argument(
        "--algorithm", nargs="+", default=["original"], help="samplers; clients use them in turn"
    )
    parser.add_argument("--steps", type=int, help="steps of a position")
    parser.add_argument("--plain", action="store_true", help="also measure `generate` without a server")
    options = parser.parse_args()
    plain = _plain(_checkpoint(options.hidden, options.blocks), options) if options.plain else None
    rows = [] if plain is None else [plain.row("plain", "", None, None)]
    checkpoint = _checkpoint(options.hidden, options.blocks)
    checkpoint.network.speed_up(batch_invariant=True)
    for clients in options.clients:
        single: Load | None = None
        for slots in sorted({1, clients}):
            with _serving(checkpoint, slots) as address:
                load = asyncio.run(_load(address, clients, options))
            rows.append(load.row(str(clients), str(slots), single, plain))
            print(*rows[-1], sep="  ", file=sys.stderr, flush=True)
            single = load
    count = sum(parameter.numel() for parameter in checkpoint.network.parameters())
    print(
        f"{count / 1e6:.0f} M parameters, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"hdlm {hdlm.__version__}; {options.requests} requests of each client, {options.tokens} tokens each, "
        f"{', '.join(options.algorithm)}\n"
    )
    print(markdown_table([HEADING, *rows]))


def _settings(options: argparse.Namespace, number: int) -> dict[str, Any]:
    """The settings of the client `number`."""
    steps = {} if options.steps is None else {"steps": options.steps}
    return {"algorithm": options.algorithm[number % len(options.algorithm)], **steps}


def _plain(checkpoint: Checkpoint, options: argparse.Namespace) -> Load:
    """The requests of some clients, one after the other, with `generate`."""
    checkpoint.network.speed_up()

    def generate(number: int, seed: int) -> int:
        settings: Mapping[str, Any] = _settings(options, number)
        (passage,) = checkpoint.generate(
            PROMPT, seed=seed, new_tokens=options.tokens, progress=False, **settings
        )
        return len(passage.tokens) - passage.given

    generate(0, 0)
    seconds, tokens = [], 0
    for number in range(max(len(options.algorithm), 4)):
        for index in range(options.requests):
            begin = time.monotonic()
            tokens += generate(number, 1000 * number + index)
            seconds.append(time.monotonic() - begin)
    return Load(tokens, sum(seconds), tuple(seconds), ())


async def _load(address: str, clients: int, options: argparse.Namespace) -> Load:
    """Requests of some clients at a time, after one request to warm up."""
    seconds, first, tokens = list[float](), list[float](), list[int]()
    body = {"prompt": PROMPT, "max_tokens": options.tokens, "ignore_eos": True}

    async def ask(web: httpx.AsyncClient, number: int, seed: int) -> Any:
        asked = body | _settings(options, number) | {"seed": seed}
        answer = await web.post(f"{address}/v1/completions", json=asked)
        answer.raise_for_status()
        return answer.json()["usage"]

    async def client(web: httpx.AsyncClient, number: int) -> None:
        for index in range(options.requests):
            begin = time.monotonic()
            usage = await ask(web, number, 1000 * number + index)
            seconds.append(time.monotonic() - begin)
            first.append(usage["time_to_first_block"])
            tokens.append(usage["completion_tokens"])

    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(timeout=3600, limits=limits) as web:
        await ask(web, 0, 0)
        begin = time.monotonic()
        await asyncio.gather(*(client(web, number) for number in range(clients)))
        duration = time.monotonic() - begin
    return Load(sum(tokens), duration, tuple(seconds), tuple(first))


@contextmanager
def _serving(checkpoint: Checkpoint, slots: int) -> Iterator[str]:
    """The address of a running server."""
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
