"""Generation along a block hyperschedule: the key-value cache, and what correction costs."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.timing import Benchmark
from hdlm import Block, DDiT, DDiTConfig, Denoiser, EpsilonHybrid, Mean, algorithm, sample

NUM_WORDS, LENGTH, WIDTH, NUM_LEVELS, BATCH = 4096, 128, 16, 8, 2


def benchmarks() -> Iterator[Benchmark]:
    """Two sequences from a small untrained network."""
    torch.manual_seed(0)
    network = DDiT(DDiTConfig(vocab_size=NUM_WORDS + 1, hidden_size=128, num_blocks=4, num_heads=4))
    process = EpsilonHybrid(NUM_WORDS, epsilon=0.01)
    denoiser = Denoiser(network.eval(), process, Mean())
    for name, use_cache in (("original", False), ("original", True), ("acs", True), ("first_hitting", True)):
        yield _generation(denoiser, name, use_cache)


def _generation(denoiser: Denoiser, name: str, use_cache: bool) -> Benchmark:
    schedule, step = Block(LENGTH, WIDTH, NUM_LEVELS), algorithm(name, denoiser.process)
    return Benchmark(
        f"{name}, {BATCH} x {LENGTH}, {schedule.num_steps} steps{', cache' if use_cache else ''}",
        lambda: sample(denoiser, schedule, step, num_sequences=BATCH, use_cache=use_cache),
        BATCH * LENGTH,
        "tokens",
    )
