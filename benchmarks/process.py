"""Time one reverse step with a vocabulary of real size: the closed form, and the generic posterior that it equals."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.timing import Benchmark
from hdlm import AbstractNoiseProcess, EpsilonHybrid, GammaHybrid
from hdlm.vocabulary import GPT2

NUM_POSITIONS = 64


def benchmarks() -> Iterator[Benchmark]:
    """Benchmarks of the generic and the closed-form reverse steps of the two hybrid processes."""
    for process in (EpsilonHybrid(GPT2.num_words, 0.01), GammaHybrid(GPT2.num_words, 0.05)):
        yield from _reverse_steps(process)


def _reverse_steps(process: AbstractNoiseProcess) -> Iterator[Benchmark]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(NUM_POSITIONS, process.num_words, generator=generator, dtype=torch.float64)
    clean = torch.nn.functional.pad(logits.softmax(-1), (0, 1))
    t = torch.full((NUM_POSITIONS,), 0.5, dtype=torch.float64)
    s = t / 2
    x_0 = torch.randint(process.num_words, (NUM_POSITIONS,), generator=generator)
    x_t = process.corrupt(x_0, t, torch.rand(NUM_POSITIONS, generator=generator, dtype=torch.float64))
    own = clean.gather(-1, x_t[:, None])[:, 0]
    size = f"{type(process).__name__}, N={process.num_words}"
    yield Benchmark(
        f"posterior, {size}", lambda: process.posterior(x_t, clean, s, t), NUM_POSITIONS, "tokens"
    )
    yield Benchmark(f"closed form, {size}", lambda: process.reverse(x_t, own, s, t), NUM_POSITIONS, "tokens")
