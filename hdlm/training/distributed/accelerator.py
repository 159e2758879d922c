"""The engine of training: `accelerate`, as its launcher configured it; configurations that train wrongly are refused.

| launched with | engine | what each process holds |
|---|---|---|
| nothing, `single.yaml`, `multi*.yaml` | one process, or DDP | everything |
| `fsdp.yaml` | FSDP2 | a shard of weights, gradients and optimizer state |

Other configurations of accelerate are refused: tensor, context and pipeline parallelism split a sequence or a network
over processes, and DeepSpeed drives one optimizer only.
"""

from __future__ import annotations

import os
import warnings
from typing import NoReturn, TypeVar

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import (
    DistributedType,
    FullyShardedDataParallelPlugin,
    GradientAccumulationPlugin,
    broadcast_object_list,
    parse_flag_from_env,
)

from hdlm.training.precision import choose_precision
from hdlm.training.recipe import RunSettings

__all__ = ["agree", "agreed", "agreed_precision", "make_engine", "refuse_fsdp", "shards_networks"]

_T = TypeVar("_T")


def make_engine(run: RunSettings, device: torch.device) -> Accelerator:
    """The engine that the launcher configured.

    Args:
        run: Settings of the run; its accumulation is used.
        device: Device of the training; processes without an accelerator communicate by gloo.

    Raises:
        ValueError: If the engine would train something else than the recipe describes; it says what to do.
    """
    _refuse_model_parallelism()
    accumulation = GradientAccumulationPlugin(run.accumulation, sync_with_dataloader=False)
    engine = Accelerator(
        cpu=device.type == "cpu", mixed_precision="no", gradient_accumulation_plugin=accumulation
    )
    if parse_flag_from_env("ACCELERATE_USE_FSDP"):
        _check_fsdp(engine)
    _place(engine, device)
    return engine


def shards_networks(device: torch.device) -> bool:
    """Whether `make_engine` uses FSDP: accelerate does so in launched processes only, and not on CPUs."""
    fsdp: bool = parse_flag_from_env("ACCELERATE_USE_FSDP")
    return fsdp and device.type != "cpu" and "LOCAL_RANK" in os.environ


def refuse_fsdp(network: str) -> NoReturn:
    """Refuse FSDP for a network that must not be sharded.

    Args:
        network: Name of the class of the network.

    Raises:
        ValueError: Always.
    """
    raise ValueError(
        f"{network} cannot be trained with FSDP, because both of its stacks use the same blocks: use "
        "configs/accelerate/multi8.yaml, in which every process holds the whole network."
    )


def _place(engine: Accelerator, device: torch.device) -> None:
    """Set the device of a single process: `accelerate` would use the current one of its type.

    Raises:
        ValueError: If there are several processes, which use one device each, and this one was given another.
    """
    if engine.num_processes > 1:
        if device.index is not None and device != engine.device:
            raise ValueError(
                f"--device {device} names one device, and {engine.num_processes} processes use one each: give "
                f"--device {device.type}, and choose devices with the launcher (`--gpu_ids`)."
            )
        return
    if device.type != "cpu" and device.index is not None:
        torch.accelerator.set_device_index(device.index)
    engine.state.device = PartialState().device = device


def agreed_precision(asked: str, device: torch.device) -> str:
    """The result of `choose_precision` in the main process, for all processes: their measurements may differ."""
    return agreed(choose_precision(asked, device))


def agreed(mine: _T) -> _T:
    """The value of the main process, for all processes; all must call this."""
    value: _T = broadcast_object_list([mine])[0]
    return value


def agree(mine: object, name: str) -> None:
    """Check that all processes found what the main process found; all must call this.

    Raises:
        ValueError: If the main process found another value, because the file systems of two machines differ.
    """
    theirs = agreed(mine)
    if mine != theirs:
        raise ValueError(
            f"{name} is {mine} in this process and {theirs} in the main one: all must see the same folder."
        )


def _refuse_model_parallelism() -> None:
    """Refuse ways to share work other than batches (DDP) and shards of a network (FSDP2)."""
    if parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"):
        raise ValueError(
            "DeepSpeed is not supported: it would leave out Muon and use its own optimizer. FSDP2 shards weights, "
            "gradients and the state of every optimizer: use configs/accelerate/fsdp.yaml instead."
        )
    for flag, name in (
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "parallelism_config"),
        ("ACCELERATE_USE_MEGATRON_LM", "megatron_lm_config"),
    ):
        if parse_flag_from_env(flag):
            raise ValueError(
                f"`{name}` of accelerate's configuration splits a sequence or a network over processes, and here "
                "each process takes whole sequences: leave it out, and use fsdp.yaml for a large network."
            )


def _check_fsdp(engine: Accelerator) -> None:
    """Refuse FSDP1, and warn if `accelerate` fell back to DDP, which it does without a message."""
    if FullyShardedDataParallelPlugin().fsdp_version != 2:
        raise ValueError("FSDP1 flattens weights, and checkpoints need them whole: set `fsdp_version: 2`.")
    if engine.distributed_type != DistributedType.FSDP and engine.is_main_process:
        warnings.warn(
            "accelerate has no FSDP on CPUs, so every process holds the whole network (DDP): the steps are equal, "
            "but no memory is saved.",
            stacklevel=2,
        )
