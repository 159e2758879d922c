"""Time a piece of work: warm up, repeat for a while, report the median and the spread."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

__all__ = ["Benchmark", "Measurement", "measure"]

FEWEST_RUNS = 3


@final
@dataclass(frozen=True)
class Benchmark:
    """A piece of work that can be repeated.

    Attributes:
        name: What the benchmark does, and at which size.
        run: Runs the piece of work once.
        amount: Number of units that one run handles.
        unit: The unit that `amount` counts: positions, tokens, steps.
    """

    name: str
    run: Callable[[], object]
    amount: int
    unit: str


@final
@dataclass(frozen=True)
class Measurement:
    """The duration of one run, in seconds.

    Attributes:
        name: The benchmark's name.
        median: Median over the runs.
        fastest: The shortest run.
        slowest: The longest run.
        num_runs: Number of runs after the warm-up.
        per_second: Units handled in a second, at the median.
        unit: The unit that `per_second` counts.
    """

    name: str
    median: float
    fastest: float
    slowest: float
    num_runs: int
    per_second: float
    unit: str


def measure(benchmark: Benchmark, seconds: float) -> Measurement:
    """Run a benchmark once to warm up, then at least three times and for at least `seconds`."""
    benchmark.run()
    times: list[float] = []
    while len(times) < FEWEST_RUNS or sum(times) < seconds:
        begin = time.perf_counter()
        benchmark.run()
        times.append(time.perf_counter() - begin)
    median = statistics.median(times)
    return Measurement(
        name=benchmark.name,
        median=median,
        fastest=min(times),
        slowest=max(times),
        num_runs=len(times),
        per_second=benchmark.amount / median,
        unit=benchmark.unit,
    )
