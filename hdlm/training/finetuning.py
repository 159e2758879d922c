"""Finetuning: what it means that a network is trained on as something else than it was.

Weights carry over as they are; what they are asked changes with the process, the meaning of the outputs, the
hyperschedule and who sees whom. Autoregression is a hyperschedule too: a network of next-token prediction is one that
has met windows of width 1 alone, and with shifted outputs it says at the first step what it said before.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from hdlm.checkpoint import Checkpoint, describe
from hdlm.hyperschedule import AbstractHyperschedule, packing
from hdlm.objective import NELBO, ScoreEntropy, WeightedCrossEntropy
from hdlm.parameterization import AbstractParameterization, LogScore
from hdlm.process import AbstractNoiseProcess
from hdlm.training.checkpoints.state import TrainingState
from hdlm.training.checkpoints.store import CheckpointStore
from hdlm.training.recipe import Recipe

__all__ = ["describe_changes", "memory_of", "recipe_of"]


def memory_of(run: str, say: Callable[[str], object] = lambda line: None) -> TrainingState:
    """What the optimizers of another run remember, with the weights that belong to it; see `Trainer.inherit`.

    Args:
        run: Its folder.
        say: Told of checkpoints that are damaged; the newest that is whole is taken.

    Raises:
        ValueError: If it is no run that was trained here.
    """
    found = CheckpointStore(Path(run)).newest(say)
    if found is None:
        raise ValueError(
            f"{run} has no memory of its optimizers (no training/ folder), which only folders of runs that were "
            "trained here have: let them begin anew."
        )
    return found[1]


def recipe_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """The recipe that trains a checkpoint further as what it is, but for the text and the length of the run.

    Objective and mixture are those that it records. A checkpoint that records none gets the bound that suits it: the
    score entropy for log scores, the weighted cross-entropy for a process that only masks, `NELBO` for any other.

    Args:
        checkpoint: The model.
    """
    denoiser, shape = checkpoint.denoiser, checkpoint.network.config
    process = describe(denoiser.process)
    del process["num_words"]
    network = {
        name: getattr(shape, name)
        for name in ("hidden_size", "num_blocks", "num_heads", "mlp_ratio", "dropout")
    }
    if shape.timestep_embedding:
        network |= {
            name: getattr(shape, name) for name in ("condition_blocks", "condition_output", "cond_dim")
        }
    table: dict[str, Any] = {
        "data": {"vocabulary": checkpoint.vocabulary.num_words, "context": checkpoint.length},
        "network": network | {"context": checkpoint.context, "active": checkpoint.active},
        "process": process,
        "noise_schedule": describe(checkpoint.noise_schedule),
        "parameterization": describe(denoiser.parameterization),
        "optimizer": _RATES,
    }
    if "recipe" in checkpoint.training:
        recorded = Recipe.recorded(checkpoint.training["recipe"])
        return table | {"objective": recorded.objective, "mixture": recorded.to_table()["mixture"]}
    objective = _objective(denoiser.process, denoiser.parameterization)
    parts = [
        _part(checkpoint, one, continuous=objective["type"] != "NELBO") for one in checkpoint.hyperschedules
    ]
    return table | {"objective": objective, "mixture": parts}


_RATES = {"matrix_rate": 0.002, "embedding_rate": 0.0005, "head_rate": 0.0005}
"""A tenth of the default rates of the optimizer."""


def _objective(process: AbstractNoiseProcess, parameterization: AbstractParameterization) -> dict[str, Any]:
    """The bound that suits a process and outputs."""
    if isinstance(parameterization.aligned, LogScore):
        return describe(ScoreEntropy())
    half = process.weights(torch.tensor(0.5, dtype=torch.float64))
    return describe(WeightedCrossEntropy(0.0) if half.uniform == 0 else NELBO())


def _part(
    checkpoint: Checkpoint, hyperschedule: AbstractHyperschedule, *, continuous: bool
) -> dict[str, Any]:
    """A part of a mixture; in two streams where every position then has a target and could not have in one canvas."""
    described = describe(hyperschedule)
    described.pop("length", None)
    two = checkpoint.context != "full" and not hyperschedule.settles_together
    if checkpoint.denoiser.lookback:
        two = two and packing(hyperschedule).left_to_right
    return {"hyperschedule": described, "two_stream": two, "continuous": continuous}


def describe_changes(before: Checkpoint, after: Checkpoint) -> tuple[str, ...]:
    """A line for each thing that the network is asked otherwise than before, and what that means for it.

    Args:
        before: The model that training begins with.
        after: The same weights, as they are to be trained.
    """
    old, new = before.denoiser, after.denoiser
    found = [
        _process(old.process, new.process),
        _outputs(old.parameterization, new.parameterization),
        _hyperschedules(before.hyperschedules, after.hyperschedules),
    ]
    if (before.context, before.active) != (after.context, after.active):
        found.append(
            f"attention {before.context}/{before.active} -> {after.context}/{after.active}: positions see others than "
            "those that the network has learnt to look at"
        )
    if after.length > before.length:
        found.append(f"context {before.length} -> {after.length}: it has never seen positions so far apart")
    if describe(before.noise_schedule) != describe(after.noise_schedule):
        found.append("noise comes at another pace: only how often each noise is met changes")
    return tuple(line for line in found if line)


def _process(old: AbstractNoiseProcess, new: AbstractNoiseProcess) -> str:
    """What another process or another strength means."""
    if type(old) is not type(new):
        return f"process {type(old).__name__} -> {type(new).__name__}: noise of another kind than the network has met"
    name = new.strength_field
    if name is None:
        same = old == new
        return (
            ""
            if same
            else f"process {old!r} -> {new!r}: more or less noise of a kind than the network has learnt"
        )
    strengths = getattr(old, name), getattr(new, name)
    if strengths[0] == strengths[1]:
        return ""
    if strengths[0] == 0:
        meaning = "the network has never seen wrong words: it trusts every visible one and must learn not to"
    elif strengths[1] == 0:
        meaning = "there are no wrong words any more: it will unlearn to correct them"
    else:
        more = "more" if strengths[1] > strengths[0] else "fewer"
        meaning = f"{more} of the visible words are wrong than it has learnt to expect"
    return f"{name} {strengths[0]:g} -> {strengths[1]:g}: {meaning}"


def _outputs(old: AbstractParameterization, new: AbstractParameterization) -> str:
    """What another reading of the outputs means."""
    was, is_now = old.lookback > 0, new.lookback > 0
    if was != is_now:
        there, here = ("next", "own") if was else ("own", "next")
        return (
            f"outputs spoke of the {there} position and shall speak of their {here}: all of them are unlearnt first "
            f"(type={'shifted' if was else 'aligned'} keeps them)"
        )
    kinds = [type(outputs.aligned).__name__ for outputs in (old, new)]
    if kinds[0] != kinds[1]:
        return f"outputs {kinds[0]} -> {kinds[1]}: they mean something else, so they are unlearnt first"
    return ""


def _hyperschedules(old: tuple[AbstractHyperschedule, ...], new: tuple[AbstractHyperschedule, ...]) -> str:
    """What other hyperschedules mean."""
    seen = [_named(one) for one in old]
    fresh = [_named(one) for one in new if _named(one) not in seen]
    if not old or not fresh:
        return ""
    autoregressive = all(one.num_levels == 1 and one.window_size == 1 for one in old)
    meaning = (
        "it has predicted next words alone and has never seen a mask"
        if autoregressive
        else "other positions are noisy together than it has met"
    )
    return f"hyperschedule {', '.join(dict.fromkeys(seen))} -> {', '.join(dict.fromkeys(fresh))}: {meaning}"


def _named(hyperschedule: AbstractHyperschedule) -> str:
    """A hyperschedule without its length, which is the context's."""
    fields = {
        name: value for name, value in describe(hyperschedule).items() if name not in ("type", "length")
    }
    numbers = ", ".join(f"{name} {value}" for name, value in fields.items() if isinstance(value, int))
    return f"{type(hyperschedule).__name__} ({numbers})"
