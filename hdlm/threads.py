"""The number of CPU threads of PyTorch.

OpenMP threads wait for each other at every operation. If another program uses one of the cores, all threads wait for
the one on that core, and a single thread can be many times faster. So a program measures the speed of a small
workload with 1, 2, 4 ... threads at its start, and uses the fastest number.

The number of threads changes the order in which float32 numbers are added, and so the last bits of a result.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from functools import cache
from math import inf
from statistics import median

import torch

__all__ = ["at_most", "fastest", "is_fixed", "measure", "set_num_threads"]

_VARIABLE = "OMP_NUM_THREADS"
_SECONDS = 0.3
"""Duration of a measurement, for all numbers of threads together."""
_ROUNDS, _ENOUGH = 5, 2
"""Rounds of a measurement, and the number of rounds after which it may end if its time is over."""
_WORTH = 1.15
"""Factor by which more threads must be faster."""
_SMALL = 1e9
"""FLOPs of a small command, whose threads are not measured; see `set_num_threads`."""


def set_num_threads(given: int | None = None, recorded: int = 0, *, flops: float = inf) -> int:
    """Set the number of threads of this process.

    `given` comes first, then the environment variable `OMP_NUM_THREADS`, then `recorded`. Without any of them, a small
    command has one thread, because the measurement and a second thread cost it more than they give. Otherwise the
    number is measured; if several processes were launched together, each takes an equal share of the cores.

    Args:
        given: The number that the user gives.
        recorded: The number in the run to resume; 0 if it is unknown.
        flops: FLOPs of one pass of the network over all tokens of the command.

    Returns:
        The number of threads.
    """
    if given is not None:
        torch.set_num_threads(given)
    elif not is_fixed():
        at_most()  # PyTorch's own number, before it is changed
        torch.set_num_threads(recorded or (1 if flops < _SMALL else _measured_once()))
    return torch.get_num_threads()


def is_fixed(given: int | None = None) -> bool:
    """Whether the user has set the number of threads, so that no measurement may change it."""
    return given is not None or bool(os.environ.get(_VARIABLE))


@cache
def at_most() -> int:
    """The largest number of threads to try: PyTorch's own number, divided among the processes of this machine."""
    return max(1, torch.get_num_threads() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def measure() -> int:
    """The fastest number of threads at this moment; several processes do not measure and use `at_most`."""
    most = at_most()
    if most == 1 or int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 1:
        return most
    counts = [*(2**power for power in range((most - 1).bit_length())), most]
    before, step = torch.get_num_threads(), _workload()

    def work(count: int) -> None:
        torch.set_num_threads(count)
        step()

    try:
        return fastest(counts, work)
    finally:
        torch.set_num_threads(before)


@cache
def _measured_once() -> int:
    return measure()


def fastest(
    counts: Sequence[int],
    work: Callable[[int], object],
    clock: Callable[[], float] = time.perf_counter,
    seconds: float = _SECONDS,
) -> int:
    """The number of threads that does most work per second; the smallest of those that are about equally fast.

    The numbers take turns in several rounds, and the median over the rounds counts: a disturbance that is shorter than
    half of the measurement changes nothing.

    Args:
        counts: Numbers of threads to try.
        work: Does a small piece of work with a number of threads.
        clock: Returns the time in seconds.
        seconds: Duration of the measurement. If pieces of work take longer than their turns, there are fewer rounds.
    """
    began, turn = clock(), seconds / (_ROUNDS * len(counts))
    speeds: dict[int, list[float]] = {count: [] for count in counts}
    for number in range(_ROUNDS):
        if number >= _ENOUGH and clock() - began > seconds:
            break
        for count in counts:
            speeds[count].append(_speed(count, work, clock, turn))
    typical = {count: median(values) for count, values in speeds.items()}
    enough = max(typical.values()) / _WORTH
    return min(count for count in counts if typical[count] >= enough)


def _speed(count: int, work: Callable[[int], object], clock: Callable[[], float], turn: float) -> float:
    """Pieces of work per second, over at least the time of a turn."""
    began, done, passed = clock(), 0, 0.0
    while passed < turn:
        work(count)
        done, passed = done + 1, clock() - began
    return done / passed


def _workload() -> Callable[[], object]:
    """A layer of a small network: products of matrices and elementwise operations, about a millisecond."""
    rows, wide, narrow = torch.ones(64, 256), torch.ones(256, 1024), torch.ones(1024, 256)

    @torch.no_grad()
    def step() -> object:
        hidden = torch.nn.functional.gelu(torch.nn.functional.layer_norm(rows, (256,)) @ wide)
        return (hidden @ narrow).softmax(-1)

    step()
    return step
