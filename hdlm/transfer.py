"""Copies from main memory to an accelerator.

Such a copy runs in the background only if it starts in pinned memory; from any other memory the program waits for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

__all__ = ["moved"]

Maybe = TypeVar("Maybe", Tensor, Tensor | None)


def moved(tensors: Sequence[Maybe], device: torch.device) -> list[Maybe]:
    """Copies of tensors on a device; those that are already there are returned unchanged.

    Copies from main memory to an accelerator use one pinned buffer for each data type, so that the number of copies
    does not grow with the number of tensors, and the program does not wait for them.

    Args:
        tensors: Any tensors; None stays None.
        device: Device of the result.
    """
    result = list(tensors)
    packed: dict[torch.dtype, list[tuple[int, Tensor]]] = {}
    for place, tensor in enumerate(result):
        if tensor is None:
            continue
        if tensor.device.type == "cpu" and device.type not in ("cpu", "meta"):
            packed.setdefault(tensor.dtype, []).append((place, tensor))
        else:
            result[place] = tensor.to(device)
    for group in packed.values():
        buffer = torch.cat([tensor.detach().flatten() for _, tensor in group]).pin_memory()
        parts = buffer.to(device, non_blocking=True).split([tensor.numel() for _, tensor in group])
        for (place, tensor), part in zip(group, parts, strict=True):
            result[place] = part.view(tensor.shape)
    return result
