"""Time hyperschedules at a size where a loop over positions or steps would be slow."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.timing import Benchmark
from hdlm import AbstractHyperschedule, Block, Slide, Wave

LENGTH, NUM_LEVELS, WIDTH = 8192, 4096, 64


def benchmarks() -> Iterator[Benchmark]:
    """Benchmarks of the levels of every position at 64 steps, one for each family."""
    for schedule in (cls(LENGTH, WIDTH, NUM_LEVELS) for cls in (Block, Slide, Wave)):
        steps = torch.linspace(0, schedule.num_steps, 64).long()
        yield _levels(schedule, steps)


def _levels(schedule: AbstractHyperschedule, steps: torch.Tensor) -> Benchmark:
    name = f"{type(schedule).__name__} levels, L={LENGTH}, T={NUM_LEVELS}, {len(steps)} steps"
    return Benchmark(name, lambda: schedule.levels(steps), LENGTH * len(steps), "positions")
