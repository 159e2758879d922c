"""Copies from main memory to an accelerator.

Such a copy runs beside the program only if it starts in pinned memory; from any other memory the program waits for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

__all__ = ["moved"]

Maybe = TypeVar("Maybe", Tensor, Tensor | None)


def moved(tensors: Sequence[Maybe], device: torch.device) -> list[Maybe]:
    """Some tensors on a device; what lies on it already is returned as it is.

    What goes from main memory to an accelerator goes through one pinned buffer for each type of number, so that the
    number of copies does not grow with the number of tensors, and the program does not wait for them.

    Args:
        tensors: Any tensors; None stays None.
        device: Where they are wanted.
    """
    found = list(tensors)
    packed: dict[torch.dtype, list[tuple[int, Tensor]]] = {}
    for place, one in enumerate(found):
        if one is None:
            continue
        if one.device.type == "cpu" and device.type not in ("cpu", "meta"):
            packed.setdefault(one.dtype, []).append((place, one))
        else:
            found[place] = one.to(device)
    for some in packed.values():
        buffer = torch.cat([one.detach().flatten() for _, one in some]).pin_memory()
        parts = buffer.to(device, non_blocking=True).split([one.numel() for _, one in some])
        for (place, one), part in zip(some, parts, strict=True):
            found[place] = part.view(one.shape)
    return found
