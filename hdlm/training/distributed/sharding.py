"""Tensors that FSDP may have spread over processes: by their plain names, whole, and spread again.

Every process must ask for the same tensors in the same order: gathering and spreading are done by all of them together.
"""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["full_tensor", "named_parameters", "spread_like"]

_WRAPPERS = ("_checkpoint_wrapped_module.", "_orig_mod.")
"""What activation checkpointing and compilation put into names."""


def named_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of a module, by the names that they have in a checkpoint."""
    return {_plain(name): parameter for name, parameter in module.named_parameters()}


def full_tensor(value: Tensor) -> Tensor:
    """All of a tensor, without its gradient."""
    gather = getattr(value.detach(), "full_tensor", None)
    found: Tensor = value.detach() if gather is None else gather()
    return found


def spread_like(value: Tensor, target: Tensor) -> Tensor:
    """A whole tensor, spread over processes as another one of its shape is.

    Args:
        value: The tensor.
        target: How it is to be spread; a tensor that is whole leaves `value` as it is.
    """
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
