"""Which precision is the faster one here."""

from __future__ import annotations

import time

import torch

__all__ = ["choose_precision"]

_SIZE, _ROUNDS = 192, 4


def choose_precision(asked: str, device: torch.device) -> str:
    """`"bf16"` or `"no"`, as `accelerate` calls them.

    Args:
        asked: One of these, or `"auto"`: bf16 if a matrix product takes less time in it. Processors without units
            for it emulate it, up to a hundred times slower than float32.
        device: Where training runs.
    """
    if asked != "auto":
        return asked
    return "bf16" if _seconds(torch.bfloat16, device) < _seconds(torch.float32, device) else "no"


def _seconds(dtype: torch.dtype, device: torch.device) -> float:
    """The least time of a few matrix products, the first of which only warms up.

    On a CPU it is the time of one thread at work, not of the clock on the wall: where other programs take turns with
    ours, waiting would otherwise hide a hundredfold difference.
    """
    on_cpu = device.type == "cpu"
    clock = time.thread_time if on_cpu else time.perf_counter
    matrix = torch.ones(_SIZE, _SIZE, dtype=dtype, device=device)
    threads = torch.get_num_threads()
    times = []
    try:
        torch.set_num_threads(1 if on_cpu else threads)
        for _ in range(_ROUNDS + 1):
            start = clock()
            (matrix @ matrix)[0, 0].item()
            times.append(clock() - start)
    finally:
        torch.set_num_threads(threads)
    return min(times[1:])
