"""From a checkpoint to the published layout: files that the published code of the paper reads as its own.

    config.json         the whole training config, resolved; published defaults for what a checkpoint does not say
    config.yaml         the same
    model.safetensors   tensors under the published names, which are ours
    README.md           the model card
    tokenizer.json      where there is one
    pytorch_model.bin   on demand, a plain state dict

`epsilon_hybrid` is `EpsilonHybrid` noise (or `Absorbing`, its case of epsilon 0) and a network that is told no time;
`gamma_hybrid` is `GammaHybrid`, `Absorbing` or `Uniform` noise and log scores. What the published configs have no words
for is an error that names it. A checkpoint that was read from this layout keeps what its config said. Reference:
Unifying Autoregressive and Diffusion-Based Sequence Generation (arXiv 2504.06416).
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as save_tensors

from hdlm.atomic import replacing
from hdlm.checkpoint import Checkpoint
from hdlm.hub.cards.published import LOG_LINEAR_FLOOR, PublishedEpsilon, PublishedGamma
from hdlm.hyperschedule import AbstractHyperschedule, Block, PublishedSlide, PublishedWave, Slide
from hdlm.noise_schedule import AbstractNoiseSchedule, Geometric, Linear, LogLinear
from hdlm.parameterization import AbstractParameterization, LogScore, Mean, Shifted
from hdlm.process import Absorbing, AbstractNoiseProcess, EpsilonHybrid, GammaHybrid, Uniform
from hdlm.sharing.model_card import LICENCE, model_card
from hdlm.vocabulary import GPT2

__all__ = ["export", "published_config"]

Table = dict[str, Any]

_LOG_LINEAR = LogLinear(LOG_LINEAR_FLOOR)
"""What published configs call `loglinear`."""
_GRAPHS: dict[type[AbstractNoiseProcess], str] = {
    GammaHybrid: "QGamma",
    Absorbing: "absorb",
    Uniform: "uniform",
}
_MLP_RATIO = 4
_SHARE_OURS = "To share this checkpoint, use the layout of hdlm (`save_pretrained`, `push_to_hub`)."
_COMMON: Table = {
    "ngpus": 1,
    "gradient_accumulation_steps": 1,
    "training": {
        "batch_size": 512,
        "accum": 1,
        "n_iters": 1_000_000,
        "log_freq": 500,
        "eval_freq": 5000,
        "snapshot_freq_for_preemption": 5000,
        "snapshot_sampling": True,
        "ema": 0.9999,
        "warmup_iter": 50_000,
    },
    "data": {
        "train": "openwebtext-train",
        "valid": "wikitext103",
        "cache_dir": "~/cache_data",
        "debug": False,
    },
    "annealing": {
        "efficient": False,
        "sampling_method": "SAR",
        "sampling_eps": 1e-4,
        "match_inference": True,
    },
    "eval": {"batch_size": 4, "perplexity": True, "perplexity_batch_size": 16},
    "optim": {
        "optimizer": "AdamW",
        "lr": 3e-4,
        "beta1": 0.9,
        "eps": 1e-8,
        "warmup": 10_000,
        "grad_clip": 1.0,
    },
    "model": {"type": "ddit"},
}
_EPSILON: Table = {
    "model_type": "epsilon_hybrid",
    "reset_step_for_finetuning": True,
    "type": "aligned",
    "training": {"snapshot_freq": 5000, "loss_type": "hybrid", "lambda": 1.0},
    "optim": {"weight_decay": 0.1, "beta2": 0.95, "scheduler": "cosine"},
    "experiment": {"name": "epsilon-hdlm-1", "wandb_project": "hdlm-experiments"},
    "model": {
        "name": "epsilon_hdlm",
        "scale_by_sigma": False,
        "hybrid_sigma_embedding": False,
        "post_process_logits": False,
    },
}
_GAMMA: Table = {
    "model_type": "gamma_hybrid",
    "training": {"snapshot_freq": 10_000, "weight": "standard"},
    "graph": {"type": "QGamma", "report_all": False, "expanded_sigma": True},
    "noise": {
        "type": "loglinear",
        "sigma_min": 1e-4,
        "sigma_max": 10.0,
        "ar_diffusion": False,
        "expanded_sigma": True,
    },
    "sampling": {
        "predictor": "analytic",
        "steps_per_level": 1,
        "noise_removal": True,
        "strategy": "direct",
        "strategy_param": 0.9,
    },
    "annealing": {"steps_per_level": 1, "diffusion_loss_weight": 1.0, "ce_loss_weight": 1.0},
    "optim": {"weight_decay": 0.0, "beta2": 0.999, "scheduler": "lambda"},
    "experiment": {"name": "gamma-hdlm-1", "wandb_project": "hdlm-experiments"},
    "model": {"name": "gamma_hdlm", "post_process_logits": True},
}


def export(
    checkpoint: Checkpoint,
    folder: str | Path,
    *,
    hyperschedule: int = 0,
    pickled: bool = False,
    source: str | None = None,
    licence: str = LICENCE,
    evaluation: Mapping[str, Any] | None = None,
) -> None:
    """Write a checkpoint in the published layout.

    Args:
        checkpoint: The model.
        folder: Where; made if it does not exist.
        hyperschedule: Index of the one that the config names; a published config names one.
        pickled: Write `pytorch_model.bin` besides.
        source: What users will load it as, for the card; the folder by default.
        licence: Identifier of the weights' licence, as the hub spells it.
        evaluation: Results for the card; see `hdlm.sharing.model_card`.

    Raises:
        ValueError: If something of the checkpoint has no published form; the message names it.
        OSError: If nothing can be written there.
    """
    import yaml

    folder = Path(folder)
    config = published_config(checkpoint, hyperschedule)
    card = model_card(
        checkpoint, source or str(folder), layout="published", licence=licence, evaluation=evaluation
    )
    tensors = {
        name: value.detach().cpu().contiguous() for name, value in checkpoint.network.state_dict().items()
    }
    contents = {
        "model.safetensors": save_tensors(tensors, metadata={"format": "pt"}),
        "config.yaml": yaml.safe_dump(config, sort_keys=False).encode(),
        "README.md": card.encode(),
        "config.json": (json.dumps(config, indent=2) + "\n").encode(),
    }
    if checkpoint.tokenizer_json is not None:
        contents["tokenizer.json"] = checkpoint.tokenizer_json.encode()
    for name, content in contents.items():
        with replacing(folder / name) as aside:
            aside.write_bytes(content)
    if pickled:
        with replacing(folder / "pytorch_model.bin") as aside:
            torch.save(tensors, aside)


def published_config(checkpoint: Checkpoint, hyperschedule: int = 0) -> Table:
    """The published config of a checkpoint: every key, resolved.

    Args:
        checkpoint: The model.
        hyperschedule: Index of the one that the config names.

    Raises:
        ValueError: If something of the checkpoint has no published form; the message names it.
    """
    reading, shifted = _unshifted(checkpoint.denoiser.parameterization)
    config = _family(checkpoint, reading)
    if shifted or "type" in config:
        config["type"] = "shifted" if shifted else "aligned"
    config["tokenizer"] = _tokenizer(checkpoint, config.get("tokenizer", {}))
    config["model"] |= _network(checkpoint)
    config["annealing"] |= _annealing(checkpoint, hyperschedule)
    config["annealing"]["attention"] = {
        "context_type": checkpoint.context,
        "block_type": checkpoint.active,
    }
    _recipe(config, checkpoint.training)
    return config


def _unshifted(parameterization: AbstractParameterization) -> tuple[AbstractParameterization, bool]:
    """What the outputs mean, and whether they speak of the next position."""
    if isinstance(parameterization, Shifted):
        return parameterization.inner, True
    return parameterization, False


def _family(checkpoint: Checkpoint, reading: AbstractParameterization) -> Table:
    """The config of the published family that a checkpoint belongs to, with what says which member it is.

    Raises:
        ValueError: If it belongs to none.
    """
    process, told = checkpoint.denoiser.process, checkpoint.network.config.timestep_embedding
    if isinstance(process, EpsilonHybrid | Absorbing) and reading == Mean() and not told:
        if checkpoint.noise_schedule != Linear():
            raise _formless(checkpoint.noise_schedule, "noise schedule", "`Linear()`", _ANY_SCHEDULE)
        config = _merged(_COMMON, _EPSILON, _came_with(checkpoint, PublishedEpsilon.name))
        config["training"]["epsilon"] = process.epsilon if isinstance(process, EpsilonHybrid) else 0.0
        return config
    if isinstance(process, tuple(_GRAPHS)) and isinstance(reading, LogScore) and told:
        blend = reading.blend_rate
        config = _merged(_COMMON, _GAMMA, _came_with(checkpoint, PublishedGamma.name))
        config["graph"]["type"] = _GRAPHS[type(process)]
        config["graph"]["gamma"] = process.gamma if isinstance(process, GammaHybrid) else blend or 0.0
        config["noise"] |= _noise(checkpoint.noise_schedule)
        config["annealing"]["sampling_eps"] = _earliest(checkpoint.noise_schedule, reading.floor)
        config["model"] |= _scores(reading, config["graph"]["gamma"])
        return config
    raise ValueError(
        f"{process!r} noise, outputs that mean {reading!r} and a network that is told {'the' if told else 'no'} noise "
        "have no published form. Published are `EpsilonHybrid` or `Absorbing` with `Mean()` and a network that is told "
        "no noise, and `GammaHybrid`, `Absorbing` or `Uniform` with `LogScore` and one that is told. "
        f"{_SHARE_OURS}"
    )


def _came_with(checkpoint: Checkpoint, family: str) -> Table:
    """The config that a checkpoint was read with, if it was one of this family."""
    origin = checkpoint.training
    known = origin.get("format") == family and isinstance(origin.get("config"), Mapping)
    return dict(origin["config"]) if known else {}


_ANY_SCHEDULE = (
    "The schedule says how fast generation goes, not what the network is: to export with the published one, pass "
    "`dataclasses.replace(checkpoint, noise_schedule=...)`."
)


def _formless(piece: object, what: str, published: str, advice: str) -> ValueError:
    """The error for a piece that published configs have no words for."""
    return ValueError(f"the {what} {piece!r} has no published form; published is {published}. {advice}")


def _merged(*tables: Table) -> Table:
    """A copy of nested tables in one; later ones win."""
    merged: Table = {}
    for table in tables:
        for name, value in copy.deepcopy(table).items():
            both = isinstance(value, dict) and isinstance(merged.get(name), dict)
            merged[name] = _merged(merged[name], value) if both else value
    return merged


def _noise(schedule: AbstractNoiseSchedule) -> Table:
    if schedule == _LOG_LINEAR:
        return {"type": "loglinear"}
    if isinstance(schedule, Geometric):
        return {"type": "geometric", "sigma_min": schedule.sigma_min, "sigma_max": schedule.sigma_max}
    raise _formless(schedule, "noise schedule", f"`{_LOG_LINEAR!r}` or any `Geometric`", _ANY_SCHEDULE)


def _scores(reading: LogScore, gamma: float) -> Table:
    """How log scores are read."""
    if reading.blend_rate not in (None, gamma):
        raise _formless(reading, "reading", f"a `blend_rate` of gamma={gamma}, or none", _SHARE_OURS)
    if reading.shared:
        told = "one that tells every position its own noise (`shared=False`)"
        raise _formless(reading, "reading", told, _SHARE_OURS)
    return {
        "scale_by_sigma": reading.scale_by_sigma,
        "hybrid_sigma_embedding": reading.blend_rate is not None,
    }


def _earliest(schedule: AbstractNoiseSchedule, floor: float) -> float:
    """The earliest time that a network is told of: when the noise is at the floor of its outputs, to the last digit."""
    time = float(schedule.time(torch.tensor(floor, dtype=torch.float64)))
    for near in (float(f"{time:.12g}"), time, math.nextafter(time, 0), math.nextafter(time, 1)):
        if float(schedule.fraction(torch.tensor(near, dtype=torch.float64))) == floor:
            return near
    return time


def _network(checkpoint: Checkpoint) -> Table:
    """Sizes and switches."""
    shape = checkpoint.network.config
    if shape.condition_output:
        unconditioned = "one whose output layer is never conditioned (`condition_output=False`)"
        raise _formless(shape, "network", unconditioned, _SHARE_OURS)
    if shape.mlp_ratio != _MLP_RATIO:
        raise _formless(shape, "network", f"one of `mlp_ratio={_MLP_RATIO}`", _SHARE_OURS)
    return {
        "hidden_size": shape.hidden_size,
        "cond_dim": shape.cond_dim,
        "length": shape.max_length,
        "n_blocks": shape.num_blocks,
        "n_heads": shape.num_heads,
        "dropout": shape.dropout,
        "transformer_sigma_conditioning": shape.condition_blocks,
        "use_timestep_embedding": shape.timestep_embedding,
    }


def _tokenizer(checkpoint: Checkpoint, came_with: Table) -> Table:
    """Size and name of the tokenizer: GPT-2's has its own name, another that of its file."""
    name: Any = "gpt2"
    if checkpoint.vocabulary != GPT2:
        name = came_with.get("model") if checkpoint.tokenizer_json is None else "tokenizer.json"
    return {**came_with, "tokens": checkpoint.vocabulary.num_words, "model": name}


def _annealing(checkpoint: Checkpoint, index: int) -> Table:
    """The hyperschedule that the config names; of two that differ in levels only, the first is that of evaluation.

    Raises:
        ValueError: If it has no published name.
    """
    trained = checkpoint.hyperschedules
    if not trained:
        return {
            "type": "none",
            "width": checkpoint.length,
            "tau": checkpoint.length,
            "eval_tau": checkpoint.length,
        }
    if not 0 <= index < len(trained):
        raise ValueError(
            f"the checkpoint lists {len(trained)} hyperschedules, from 0 to {len(trained) - 1}; got {index}."
        )
    name = _published_name(trained[index], checkpoint.length)
    if name is None:
        others = [
            f"{i}: {schedule!r}"
            for i, schedule in enumerate(trained)
            if _published_name(schedule, checkpoint.length)
        ]
        advice = (
            f"The checkpoint lists others that have one, choose by number: {'; '.join(others)}."
            if others
            else f"Say another with `dataclasses.replace(checkpoint, hyperschedules=...)`. {_SHARE_OURS}"
        )
        raise _formless(
            trained[index],
            "hyperschedule",
            "`Block` (block, or none for one block), `Slide` with as many levels as positions in its window, "
            "`PublishedSlide` (simple) or `PublishedWave` (hybrid), over the whole context",
            advice,
        )
    chosen = trained[index]
    width, levels = getattr(chosen, "width", checkpoint.length), chosen.num_levels
    same = [
        other.num_levels
        for other in trained[index + 1 :]
        if _published_name(other, checkpoint.length) == name and getattr(other, "width", None) == width
    ]
    return {"type": name, "width": width, "tau": (*same, levels)[0], "eval_tau": levels}


def _published_name(schedule: AbstractHyperschedule, length: int) -> str | None:
    """What published configs call a hyperschedule, or None."""
    if schedule.length != length:
        return None
    match schedule:
        case Block(width=width):
            return "none" if width == length else "block"
        case PublishedSlide():
            return "simple"
        case Slide(width=width, num_levels=levels) if width == levels:
            return "simple"
        case PublishedWave():
            return "hybrid"
    return None


def _recipe(config: Table, training: Mapping[str, Any]) -> None:
    """Enter what the checkpoint records of its training where the published config has the same word for it."""
    recipe = training.get("recipe")
    if not isinstance(recipe, Mapping):
        return
    run, optimizer = recipe.get("run", {}), recipe.get("optimizer", {})
    if "batch_size" in run:
        config["training"]["batch_size"] = run["batch_size"]
    if "accumulation" in run:
        config["gradient_accumulation_steps"] = config["training"]["accum"] = run["accumulation"]
    if run.get("steps") is not None:
        config["training"]["n_iters"] = run["steps"]
        if "warmup" in optimizer:
            config["training"]["warmup_iter"] = round(optimizer["warmup"] * run["steps"])
    if "ema" in optimizer:
        config["training"]["ema"] = optimizer["ema"]
    if "clip" in optimizer:
        config["optim"]["grad_clip"] = optimizer["clip"]
    if optimizer.get("name") == "adamw":
        config["optim"] |= {"lr": optimizer["matrix_rate"], "weight_decay": optimizer["weight_decay"]}
    if "lambda" in config["training"] and "unmasked" in recipe.get("objective", {}):
        config["training"]["lambda"] = recipe["objective"]["unmasked"]
