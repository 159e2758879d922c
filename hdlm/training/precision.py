"""The choice of the faster precision."""

from __future__ import annotations

import functools
import time

import torch

__all__ = ["choose_precision"]

_SIZE, _ROUNDS = 192, 4


def choose_precision(asked: str, device: torch.device) -> str:
    """`"bf16"` or `"no"`, as `accelerate` calls them.

    Args:
        asked: `"bf16"`, `"no"` or `"auto"`. With `"auto"`, an accelerator uses bf16 if it supports it in hardware. A
            CPU uses it if a matrix product is faster in it, which is measured once in a process: processors without
            bf16 units emulate it up to a hundred times slower than float32.
        device: Device of the training.
    """
    if asked != "auto":
        return asked
    fast = _is_faster_on_cpu() if device.type == "cpu" else _has_units(device)
    return "bf16" if fast else "no"


def _has_units(device: torch.device) -> bool:
    """Whether an accelerator computes in bfloat16 without emulation; False if its backend cannot answer."""
    backend = torch.get_device_module(device)
    if not hasattr(backend, "is_bf16_supported"):
        return False
    with backend.device(device):
        return bool(backend.is_bf16_supported(including_emulation=False))


@functools.cache
def _is_faster_on_cpu() -> bool:
    return _seconds(torch.bfloat16) < _seconds(torch.float32)


def _seconds(dtype: torch.dtype) -> float:
    """The least time of a few matrix products, the first of which only warms up.

    It is the time of one thread at work, not of the clock on the wall: where other programs take turns with ours,
    waiting would otherwise hide a hundredfold difference.
    """
    matrix = torch.ones(_SIZE, _SIZE, dtype=dtype)
    threads = torch.get_num_threads()
    times = []
    try:
        torch.set_num_threads(1)
        for _ in range(_ROUNDS + 1):
            start = time.thread_time()
            (matrix @ matrix)[0, 0].item()
            times.append(time.thread_time() - start)
    finally:
        torch.set_num_threads(threads)
    return min(times[1:])
