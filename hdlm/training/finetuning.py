"""Finetuning: the recipe that continues a checkpoint, and a line for each difference between checkpoint and recipe.

Weights are copied unchanged; process, parameterization, hyperschedule and attention may differ. A next-token predictor
is a model whose hyperschedule has windows of width 1: with shifted outputs, it predicts at the first step of finetuning
what it predicted before.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from hdlm.checkpoint import Checkpoint, describe
from hdlm.denoiser import Denoiser
from hdlm.hyperschedule import AbstractHyperschedule, packing
from hdlm.network import DDiTConfig, NetworkShape
from hdlm.objective import NELBO, CleanStream, Combination, CrossEntropy, ScoreEntropy, WeightedCrossEntropy
from hdlm.parameterization import AbstractParameterization, LogScore
from hdlm.process import AbstractNoiseProcess
from hdlm.training.checkpoints.state import TrainingState
from hdlm.training.checkpoints.store import CheckpointStore
from hdlm.training.recipe import Recipe

__all__ = ["describe_changes", "memory_of", "recipe_of"]


def memory_of(run: str, say: Callable[[str], object] = lambda line: None) -> TrainingState:
    """The optimizer state of another run, with the weights that belong to it; see `Trainer.inherit`.

    Args:
        run: The folder of the run.
        say: Called with a line for each damaged checkpoint; the newest intact one is used.

    Raises:
        ValueError: If the folder holds no training state.
    """
    newest = CheckpointStore(Path(run)).newest(say)
    if newest is None:
        raise ValueError(
            f"{run} has no optimizer state (no training/ folder; only run folders written by hdlm have one): train "
            "without the state of its optimizers."
        )
    return newest[1]


def recipe_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """The recipe that continues the training of a checkpoint, without text and length of the run.

    Objective and mixture are the recorded ones. A checkpoint without a record gets the matching bound: the score
    entropy for log scores, the weighted cross-entropy for a process that only masks, `NELBO` for any other.
    """
    denoiser, shape = checkpoint.denoiser, checkpoint.network.config
    process = describe(denoiser.process)
    del process["num_words"]
    context = checkpoint.length
    if not isinstance(shape, DDiTConfig):  # decoders read many thousand positions, too many for a batch
        context = max((plan.length for plan in checkpoint.hyperschedules), default=context)
    table: dict[str, Any] = {
        "data": {"vocabulary": checkpoint.vocabulary.num_words, "context": context},
        "network": _network(shape) | {"context": checkpoint.context, "active": checkpoint.active},
        "process": process,
        "noise_schedule": describe(checkpoint.noise_schedule),
        "parameterization": describe(denoiser.parameterization),
        "optimizer": _RATES,
    }
    if "recipe" in checkpoint.training:
        recorded = Recipe.recorded(checkpoint.training["recipe"])
        return table | {"objective": recorded.objective, "mixture": recorded.to_table()["mixture"]}
    objective = _objective(denoiser)
    continuous = objective["type"] != "NELBO"
    parts = [_part(checkpoint, plan, continuous=continuous) for plan in checkpoint.hyperschedules]
    return table | {"objective": objective, "mixture": parts}


def _network(shape: NetworkShape) -> dict[str, Any]:
    """The network as a table of a recipe."""
    table = shape.to_dict()
    kind = table.pop("type", "DDiT")
    if kind == "DiffusionGemma":
        sizes = {
            "hidden_size": shape.hidden_size,
            "num_blocks": shape.num_blocks,
            "num_heads": shape.num_heads,
        }
        return {"type": kind, **sizes, "decoder": table}
    del table["vocab_size"]
    if kind == "Decoder":
        shared = {name: table.pop(name) for name in ("hidden_size", "num_blocks", "num_heads", "dropout")}
        return {"type": kind, **shared, "decoder": table}
    names = ("hidden_size", "num_blocks", "num_heads", "mlp_ratio", "dropout")
    conditioning = ("condition_blocks", "condition_output", "cond_dim") if shape.timestep_embedding else ()
    return {name: table[name] for name in (*names, *conditioning)}


_RATES = {"matrix_rate": 0.002, "embedding_rate": 0.0005, "head_rate": 0.0005}
"""A tenth of the default rates of the optimizer."""


def _objective(denoiser: Denoiser) -> dict[str, Any]:
    """The bound that matches a process and a parameterization, or the published loss of a self-conditioned network."""
    process, parameterization = denoiser.process, denoiser.parameterization
    if denoiser.self_conditioned:
        parts = ((1.0, CrossEntropy(worst=torch.inf)), (1.0, CleanStream("tokens")))
        return describe(Combination(parts))
    if isinstance(parameterization.aligned, LogScore):
        return describe(ScoreEntropy())
    half = process.weights(torch.tensor(0.5, dtype=torch.float64))
    return describe(WeightedCrossEntropy(0.0) if half.uniform == 0 else NELBO())


def _part(
    checkpoint: Checkpoint, hyperschedule: AbstractHyperschedule, *, continuous: bool
) -> dict[str, Any]:
    """A part of a mixture, in two streams if every position then has a target and would not in one canvas."""
    described = describe(hyperschedule)
    described.pop("length", None)
    two_stream = checkpoint.context != "full" and not hyperschedule.settles_together
    if checkpoint.denoiser.lookback:
        two_stream = two_stream and packing(hyperschedule).left_to_right
    return {"hyperschedule": described, "two_stream": two_stream, "continuous": continuous}


def describe_changes(before: Checkpoint, after: Checkpoint) -> tuple[str, ...]:
    """Describe how the training of a model changes, one line per difference, with its consequence."""
    old, new = before.denoiser, after.denoiser
    lines = [
        _process(old.process, new.process),
        _outputs(old.parameterization, new.parameterization),
        _hyperschedules(before.hyperschedules, after.hyperschedules),
    ]
    if (before.context, before.active) != (after.context, after.active):
        lines.append(
            f"attention {before.context}/{before.active} -> {after.context}/{after.active}: positions attend to "
            "others than in the training so far"
        )
    if after.length > before.length:
        lines.append(
            f"context {before.length} -> {after.length}: the network has not seen such distances between positions"
        )
    if describe(before.noise_schedule) != describe(after.noise_schedule):
        lines.append("another noise schedule: only the frequency of each noise level changes")
    return tuple(line for line in lines if line)


def _process(old: AbstractNoiseProcess, new: AbstractNoiseProcess) -> str:
    if type(old) is not type(new):
        return f"process {type(old).__name__} -> {type(new).__name__}: another kind of noise than so far"
    if old == new:
        return ""
    name = new.strength_field
    if name is None:
        return f"process {old!r} -> {new!r}: another amount of noise than so far"
    was, is_now = getattr(old, name), getattr(new, name)
    if was == is_now:
        return ""
    if was == 0:
        meaning = "the network has never seen wrong words: it trusts every visible one and must learn not to"
    elif is_now == 0:
        meaning = "there are no wrong words any more: the network will forget how to correct them"
    else:
        more = "more" if is_now > was else "fewer"
        meaning = f"{more} of the visible words are wrong than so far"
    return f"{name} {was:g} -> {is_now:g}: {meaning}"


def _outputs(old: AbstractParameterization, new: AbstractParameterization) -> str:
    was, is_now = old.lookback > 0, new.lookback > 0
    if was != is_now:
        there, here = ("next", "own") if was else ("own", "next")
        return (
            f"the output of a position described the {there} position and now describes its {here}: all outputs "
            f"must be learned again (type={'shifted' if was else 'aligned'} keeps them)"
        )
    kinds = [type(parameterization.aligned).__name__ for parameterization in (old, new)]
    if kinds[0] != kinds[1]:
        return f"outputs {kinds[0]} -> {kinds[1]}: they have another meaning and must be learned again"
    return ""


def _hyperschedules(old: tuple[AbstractHyperschedule, ...], new: tuple[AbstractHyperschedule, ...]) -> str:
    seen = [_named(plan) for plan in old]
    fresh = [_named(plan) for plan in new if _named(plan) not in seen]
    if not old or not fresh:
        return ""
    autoregressive = all(plan.num_levels == 1 and plan.window_size == 1 for plan in old)
    meaning = (
        "the network has only predicted next words and has never seen a mask"
        if autoregressive
        else "other positions are noisy together than so far"
    )
    return f"hyperschedule {', '.join(dict.fromkeys(seen))} -> {', '.join(dict.fromkeys(fresh))}: {meaning}"


def _named(hyperschedule: AbstractHyperschedule) -> str:
    """A hyperschedule without its length, which is the context."""
    fields = {
        name: value for name, value in describe(hyperschedule).items() if name not in ("type", "length")
    }
    numbers = ", ".join(f"{name} {value}" for name, value in fields.items() if isinstance(value, int))
    return f"{type(hyperschedule).__name__} ({numbers})"
