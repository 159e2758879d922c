"""Time counter-based random numbers and those of torch's own generator."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.timing import Benchmark
from hdlm import Randomness

BATCH, LENGTH = 64, 1024


def benchmarks() -> Iterator[Benchmark]:
    """Benchmarks of one uniform number for each position of a batch."""
    randomness, generator = Randomness(0), torch.Generator().manual_seed(0)
    sequence, position = torch.arange(BATCH)[:, None], torch.arange(LENGTH)[None]
    size = f"{BATCH} x {LENGTH}"
    yield Benchmark(
        f"Philox, {size}", lambda: randomness.uniform(sequence, 0, position), BATCH * LENGTH, "numbers"
    )
    yield Benchmark(
        f"torch.rand, {size}",
        lambda: torch.rand(BATCH, LENGTH, generator=generator, dtype=torch.float64),
        BATCH * LENGTH,
        "numbers",
    )
