"""Tensors that FSDP may have sharded: by their names in a checkpoint, gathered, and sharded again.

Gathering and sharding are collective: every process must call them for the same tensors in the same order.
"""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["full_tensor", "named_parameters", "spread_like"]

_WRAPPERS = ("_checkpoint_wrapped_module.", "_orig_mod.")
"""What activation checkpointing and compilation insert into names."""


def named_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of a module, by their names in a checkpoint."""
    return {_plain(name): parameter for name, parameter in module.named_parameters()}


def full_tensor(value: Tensor) -> Tensor:
    """The whole of a tensor, detached."""
    whole: Tensor = value.detach()
    return whole.full_tensor() if hasattr(whole, "full_tensor") else whole


def spread_like(value: Tensor, target: Tensor) -> Tensor:
    """A whole tensor, sharded as another one of its shape is; unchanged if that one is whole."""
    mesh = getattr(target, "device_mesh", None)
    if mesh is None or value.shape != target.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    spread: Tensor = distribute_tensor(value.to(target.device), mesh, target.placements)  # type: ignore[attr-defined]
    return spread


def _plain(name: str) -> str:
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name
