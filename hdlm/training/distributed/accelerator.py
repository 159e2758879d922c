"""The engine of training: `accelerate`, as its launcher was told to set it up, and nothing that would train wrongly.

| launched with | engine | what each process holds |
|---|---|---|
| nothing, `single.yaml`, `multi*.yaml` | one process, or DDP | everything |
| `fsdp.yaml` | FSDP2 | a part of weights, gradients and memory of the optimizers |

The rest of accelerate's setups change what a process is (tensor, context and pipeline parallelism), or what is
trained (DeepSpeed, which drives one optimizer only), and are refused.
"""

from __future__ import annotations

import warnings
from typing import TypeVar

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

__all__ = ["agree", "agreed", "agreed_precision", "make_engine"]

_T = TypeVar("_T")


def make_engine(run: RunSettings, device: torch.device) -> Accelerator:
    """The engine that the launcher asked for.

    Args:
        run: How much at a time.
        device: Where; the processes of the launcher that have no accelerator talk by gloo.

    Raises:
        ValueError: If that engine would train something else than the recipe says; it says what to do.
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


def _place(engine: Accelerator, device: torch.device) -> None:
    """Have a single process use the device that it was given: `accelerate` takes the current one of its kind.

    Raises:
        ValueError: If there are several processes, each of which has a device of its own, and this one was given
            another.
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
    """What `choose_precision` finds in the main process, for all of them: clocks differ, and weights must not."""
    return agreed(choose_precision(asked, device))


def agreed(mine: _T) -> _T:
    """What the main process has found, for all of them; all must ask."""
    found: _T = broadcast_object_list([mine])[0]
    return found


def agree(mine: object, name: str) -> None:
    """Refuse to go on if a process has found something else than the main one; all processes must ask.

    Args:
        mine: What this one has found.
        name: What that is.

    Raises:
        ValueError: If the main one has found something else: the file systems of machines may lag behind each other.
    """
    theirs = agreed(mine)
    if mine != theirs:
        raise ValueError(
            f"{name} is {mine} to this process and {theirs} to the main one: all must see the same folder."
        )


def _refuse_model_parallelism() -> None:
    """Processes share batches here, and FSDP2 shards a network; there is no other way of sharing work.

    Raises:
        ValueError: If the launcher was told of one.
    """
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
    """Refuse FSDP1, and say so if `accelerate` fell back to DDP, which it does without a word.

    Raises:
        ValueError: If the version is not 2.
    """
    if FullyShardedDataParallelPlugin().fsdp_version != 2:
        raise ValueError("FSDP1 flattens weights, and checkpoints need them whole: set `fsdp_version: 2`.")
    if engine.distributed_type != DistributedType.FSDP and engine.is_main_process:
        warnings.warn(
            "accelerate has no FSDP on processors, so every process holds the whole network (DDP): the same steps, "
            "but no memory is saved.",
            stacklevel=2,
        )
