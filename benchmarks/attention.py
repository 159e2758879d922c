"""Attention of two-stream training: the ranks, the dense mask and the block mask."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.timing import Benchmark
from hdlm import Block
from hdlm.attention import two_stream

LENGTH, WIDTH, NUM_LEVELS = 1024, 16, 16


def benchmarks() -> Iterator[Benchmark]:
    """Benchmarks of the visibility over `[clean | noisy]`, and of its two kinds of mask."""
    schedule = Block(LENGTH, WIDTH, NUM_LEVELS)
    steps = schedule.packed_steps(torch.zeros(1, schedule.num_epochs, dtype=torch.long))[0]
    visibility = two_stream(schedule, steps)
    size, pairs = f"2 x {LENGTH}", (2 * LENGTH) ** 2
    yield Benchmark(f"two-stream ranks, {size}", lambda: two_stream(schedule, steps), 2 * LENGTH, "positions")
    yield Benchmark(f"dense mask, {size}", visibility.dense, pairs, "pairs")
    yield Benchmark(f"block mask, {size}", visibility.block_mask, pairs, "pairs")
