"""Which device a command or a verb computes on."""

from __future__ import annotations

import torch

__all__ = ["find_device"]

_WITHOUT_FLOAT64 = frozenset({"mps"})
"""Accelerators on which random numbers, draws and bounds cannot be computed."""


def find_device(name: str = "auto") -> torch.device:
    """The device of a name.

    Args:
        name: `"cpu"`, an accelerator such as `"xpu:1"`, or `"auto"`: an accelerator if there is one that computes in
            float64, else the CPU.

    Raises:
        ValueError: If there is no such device here, or it does not compute in float64.
    """
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator is not None and accelerator.type in _WITHOUT_FLOAT64:
        if _type_of(name) == accelerator.type:
            raise ValueError(
                f"{name} computes nothing in float64, which random numbers, draws and bounds need: "
                "give --device cpu, or leave it out."
            )
        accelerator = None
    if name == "auto":
        return accelerator or torch.device("cpu")
    here = {"cpu"} | ({accelerator.type} if accelerator else set())
    if _type_of(name) not in here:
        absent = f": torch finds no {kind} device here" if (kind := _type_of(name)) else ""
        raise ValueError(f"must be auto or one of {', '.join(sorted(here))}; got {name!r}{absent}.")
    device = torch.device(name)
    count = 1 if device.type == "cpu" else torch.accelerator.device_count()
    if device.index is not None and device.index >= count:
        raise ValueError(f"{name}: there are {count} of them here, counted from 0.")
    return device


def _type_of(name: str) -> str | None:
    """The kind of device of a name; None if there is no such kind."""
    try:
        return torch.device(name).type
    except RuntimeError:
        return None
