"""A server in a thread, with a model that is small enough for every test."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace

import httpx
import torch
import uvicorn

from hdlm.checkpoint import Checkpoint
from hdlm.data import train_tokenizer
from hdlm.denoiser import Denoiser
from hdlm.hyperschedule import Block, flat
from hdlm.network import DDiT, DDiTConfig
from hdlm.noise_schedule import LINEAR
from hdlm.parameterization import Mean
from hdlm.process import AbstractNoiseProcess, EpsilonHybrid
from hdlm.serve.app import create_app
from hdlm.serve.models import ServedModel
from hdlm.serve.options import ServeOptions

HTTP = SimpleNamespace(
    get=partial(httpx.get, verify=False),
    post=partial(httpx.post, verify=False),
    stream=partial(httpx.stream, verify=False),
)
"""Requests without TLS: each call that verifies certificates first reads those of the system, which takes 50 ms."""

DOCUMENTS = ["In the beginning was the word, and the word was with the people of the land."] * 3
LENGTH = 48
TEMPLATE = "{% for message in messages %}{{ message.role }}: {{ message.content }} {% endfor %}"


def small_checkpoint(process: AbstractNoiseProcess | None = None, num_words: int = 300) -> Checkpoint:
    """A float32 network with random weights, and a tokenizer of a few words."""
    tokenizer = train_tokenizer(DOCUMENTS, num_words)
    words = tokenizer.vocabulary.num_words
    network = DDiT(DDiTConfig(words + 1, 32, 1, 2, 8, max_length=LENGTH)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            noise = 0.3 * torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise + (1.0 if parameter.ndim == 1 else 0.0))
    network.speed_up(batch_invariant=True)
    denoiser = Denoiser(network, process or EpsilonHybrid(words, 0.1), Mean())
    plans = (Block(LENGTH, 4, 3), flat(LENGTH, 6))
    return Checkpoint(denoiser, tokenizer.vocabulary, LINEAR, plans, tokenizer.to_json())


def small_model(name: str = "small", chat_template: str | None = None) -> ServedModel:
    """`small_checkpoint` under a name."""
    return ServedModel(name, small_checkpoint(), chat_template)


@contextmanager
def serving(
    models: Sequence[ServedModel],
    options: ServeOptions = ServeOptions(),  # noqa: B008
    *,
    send_buffer: int | None = None,
) -> Iterator[str]:
    """The address of a running server; with `send_buffer`, the size of the socket buffer of each connection."""
    config = uvicorn.Config(
        create_app(models, options), port=0, http="h11", ws="none", log_level="critical", access_log=False
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        listening = server.servers[0].sockets[0]
        if send_buffer is not None:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
