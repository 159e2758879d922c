"""The engine of training: `accelerate`, as its launcher was told to set it up, and nothing that would train wrongly.

| launched with | engine | what each process holds |
|---|---|---|
| nothing, `single.yaml`, `multi*.yaml` | one process, or DDP | everything |
| `fsdp.yaml` | FSDP2 | a part of weights, gradients and memory of the optimizers |
| `deepspeed.yaml` | ZeRO 1 or 2 | all weights, a part of the memory of the optimizer (and of gradients) |

The rest of accelerate's setups change what a process is (tensor, context and pipeline parallelism), or what is
trained (weights in half precision, an optimizer of DeepSpeed), and are refused.
"""

from __future__ import annotations

import warnings
from typing import TypeVar

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import (
    DeepSpeedPlugin,
    DistributedType,
    FullyShardedDataParallelPlugin,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
    broadcast_object_list,
    parse_flag_from_env,
)

from hdlm.training.precision import choose_precision
from hdlm.training.recipe import OptimizerSettings, RunSettings

__all__ = ["agree", "agreed", "agreed_precision", "make_engine"]

T = TypeVar("T")

_STAGES = (1, 2)
_OURS = frozenset(
    {
        "train_batch_size",
        "train_micro_batch_size_per_gpu",
        "gradient_accumulation_steps",
        "gradient_clipping",
        "zero_optimization",
        "zero_allow_untested_optimizer",
        "steps_per_print",
        "wall_clock_breakdown",
    }
)
"""What a DeepSpeed file may say; batches, accumulation and clipping are the recipe's, whatever it says of them."""


def make_engine(optimizer: OptimizerSettings, run: RunSettings, device: torch.device) -> Accelerator:
    """The engine that the launcher asked for.

    Args:
        optimizer: How weights move.
        run: How much at a time.
        device: Where; the processes of the launcher that have no accelerator talk by gloo.

    Raises:
        ValueError: If that engine would train something else than the recipe says; it says what to do.
    """
    _refuse_model_parallelism()
    accumulation = GradientAccumulationPlugin(run.accumulation, sync_with_dataloader=False)
    if parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"):
        return _deepspeed(optimizer, run, device, accumulation)
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


def agreed(mine: T) -> T:
    """What the main process has found, for all of them; all must ask."""
    found: T = broadcast_object_list([mine])[0]
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
    """Processes share batches here; there is no other way of sharing work.

    Raises:
        ValueError: If the launcher was told of one.
    """
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


def _deepspeed(
    optimizer: OptimizerSettings,
    run: RunSettings,
    device: torch.device,
    accumulation: GradientAccumulationPlugin,
) -> Accelerator:
    """ZeRO 1 or 2, with the batches, accumulation and clipping of the recipe.

    `accelerate` takes DeepSpeed for something of accelerators alone, and on a processor would fall back to DDP;
    naming the backend is what keeps it from that.
    """
    plugin = DeepSpeedPlugin(gradient_accumulation_steps=run.accumulation, gradient_clipping=optimizer.clip)
    _check_deepspeed(plugin, optimizer)
    gloo = [InitProcessGroupKwargs(backend="gloo")] if device.type == "cpu" else []
    engine = Accelerator(
        mixed_precision="no",
        gradient_accumulation_plugin=accumulation,
        deepspeed_plugin=plugin,
        kwargs_handlers=gloo,
    )
    if engine.device.type != device.type:
        raise ValueError(
            f"DeepSpeed trains on {engine.device.type}, not on {device.type}: leave --device out."
        )
    passes = engine.num_processes * run.accumulation
    plugin.deepspeed_config |= {
        "train_micro_batch_size_per_gpu": max(1, run.batch_size // passes),
        "train_batch_size": max(1, run.batch_size // passes) * passes,
        "gradient_accumulation_steps": run.accumulation,
        "gradient_clipping": optimizer.clip,
    }
    return engine


def _check_deepspeed(plugin: DeepSpeedPlugin, optimizer: OptimizerSettings) -> None:
    """Refuse what DeepSpeed would do otherwise than the recipe says.

    Raises:
        ValueError: It says what, and what to do instead.
    """
    zero = plugin.deepspeed_config["zero_optimization"]
    stage = zero["stage"]
    if stage not in _STAGES:
        instead = "multi8.yaml does what stage 0 does" if stage == 0 else "fsdp.yaml shards what stage 3 does"
        raise ValueError(f"`zero_stage` of DeepSpeed must be 1 or 2; got {stage}: {instead}.")
    for part in ("offload_optimizer", "offload_param"):
        if zero.get(part, {}).get("device", "none") != "none":
            raise ValueError(
                f"`{part}` of DeepSpeed trains by another AdamW, on the processor: leave it out, and use fsdp.yaml "
                "if memory is short."
            )
    if optimizer.name == "muon":
        raise ValueError(
            "DeepSpeed drives one optimizer and would leave out Muon without a word: set `optimizer.name` to "
            '"adamw" (optim.optimizer=AdamW), or use fsdp.yaml, which runs both.'
        )
    table = plugin.deepspeed_config
    acting = sorted(
        name
        for name, value in table.items()
        if name not in _OURS and not (isinstance(value, dict) and value.get("enabled") in (False, "auto"))
    )
    if acting:
        raise ValueError(
            f"DeepSpeed's {', '.join(f'`{name}`' for name in acting)} would act besides the recipe: leave it out; the "
            "recipe has the optimizer, its schedule and the precision."
        )
