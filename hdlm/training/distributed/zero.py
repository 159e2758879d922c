"""What DeepSpeed's ZeRO 1 and 2 lay on one process each, by the parameters' own names, whole, and laid out again.

ZeRO flattens each group of parameters into one vector and gives every process a piece of it: the weights that the
optimizer moves, and what it remembers of them. The weights that the network computes with stay whole everywhere. It
is DeepSpeed's own interface (`deepspeed.utils.safe_get_full_*`) that finds a parameter in the pieces.

Every process must ask for the same parameters in the same order.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

__all__ = ["gather_zero", "is_zero", "set_weight", "spread_zero"]

_STEP = "step"
"""The one thing an AdamW remembers that is no vector; ZeRO has one for each group."""


def is_zero(parameter: nn.Parameter) -> bool:
    """Whether ZeRO has laid out what moves a parameter."""
    return hasattr(parameter, "_hp_mapping")


def gather_zero(
    parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> dict[str, dict[str, Tensor]]:
    """What the optimizer remembers of each parameter: tensors by key; nothing before its first step.

    Args:
        parameters: All that it moves, by name.
        optimizer: The one that DeepSpeed was given; its parameters are the pieces.
    """
    pieces = [memory for memory in optimizer.state.values() if memory]
    if not pieces:
        return {}
    from deepspeed.utils import safe_get_full_optimizer_state

    _link(parameters, optimizer)
    vectors = sorted(pieces[0].keys() - {_STEP})
    return {
        name: {
            _STEP: pieces[0][_STEP].clone(),
            **{key: safe_get_full_optimizer_state(parameter, key) for key in vectors},
        }
        for name, parameter in parameters.items()
    }


def spread_zero(
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    memory: Mapping[str, Mapping[str, Tensor]],
) -> None:
    """Give the optimizer back what `gather_zero` found, or what one without ZeRO remembers.

    Raises:
        ValueError: If it has not taken as many steps of one parameter as of another.
    """
    if not memory:
        return
    from deepspeed.utils import safe_set_full_optimizer_state

    steps = {float(entries[_STEP]) for entries in memory.values()}
    if len(steps) != 1 or memory.keys() != parameters.keys():
        raise ValueError(
            "ZeRO moves all weights at each step, and this run has not: begin another with --from."
        )
    vectors = sorted(next(iter(memory.values())).keys() - {_STEP})
    for group in optimizer.param_groups:
        for piece in group["params"]:
            table = {key: torch.zeros_like(piece) for key in vectors}
            optimizer.state[piece] = {_STEP: torch.tensor(max(steps), device=piece.device), **table}
    _link(parameters, optimizer)
    for name, parameter in parameters.items():
        for key in vectors:
            safe_set_full_optimizer_state(parameter, memory[name][key].to(parameter.device), key)


def set_weight(parameter: nn.Parameter, value: Tensor) -> None:
    """Set the piece that the optimizer moves; the parameter itself must be set besides."""
    from deepspeed.utils import safe_set_full_fp32_param

    safe_set_full_fp32_param(parameter, value.to(parameter.device))


def _link(parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
    """Tell parameters where their part of the optimizer's memory is.

    DeepSpeed does so once, after the first group's first step, when the other groups have nothing to find yet.
    """
    for parameter in parameters.values():
        mapping = parameter._hp_mapping  # type: ignore[attr-defined]
        if mapping is not None:
            [piece] = optimizer.param_groups[mapping.param_group_index]["params"]
            mapping.set_optim_state_fragment(piece, optimizer.state[piece])
