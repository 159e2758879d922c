"""The network's forward pass: all positions, the vocabulary projection on a few, and new positions on a cache."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.timing import Benchmark
from hdlm import DDiT, DDiTConfig

LENGTH, NEW = 512, 16
CONFIG = DDiTConfig(vocab_size=16385, hidden_size=256, num_blocks=6, num_heads=4, max_length=LENGTH)


def benchmarks() -> Iterator[Benchmark]:
    """Three ways to compute the logits of the last positions; the most expensive is the first."""
    torch.manual_seed(0)
    network = DDiT(CONFIG).eval().requires_grad_(False)
    tokens = torch.randint(CONFIG.vocab_size, (1, LENGTH))
    cache = network.new_cache()
    network.features(tokens[:, :-NEW], cache=cache, store=torch.arange(LENGTH - NEW))
    size = f"{CONFIG.num_blocks} blocks of {CONFIG.hidden_size}"

    def of_a_few() -> torch.Tensor:
        return network.head(network.features(tokens)[:, -NEW:])

    def on_a_cache() -> torch.Tensor:
        return network(tokens[:, -NEW:], cache=cache)

    yield Benchmark(f"logits of all {LENGTH}, {size}", lambda: network(tokens), LENGTH, "tokens")
    yield Benchmark(f"logits of {NEW} of {LENGTH}, {size}", of_a_few, LENGTH, "tokens")
    yield Benchmark(f"logits of {NEW} on a cache of {LENGTH - NEW}, {size}", on_a_cache, NEW, "tokens")
