"""Writes a checkpoint in the published layout, which the published code of the paper reads.

    config.json         the whole training config, resolved; published defaults for what a checkpoint does not record
    config.yaml         the same content
    model.safetensors   tensors under the published names, which are ours
    README.md           the model card
    tokenizer.json      if there is one
    pytorch_model.bin   on demand, a plain state dict

`epsilon_hybrid` is `EpsilonHybrid` noise (or `Absorbing`, its case of epsilon 0) and a network without noise
conditioning; `gamma_hybrid` is `GammaHybrid`, `Absorbing` or `Uniform` noise and log scores. What the published configs
cannot express is an error that names it. A checkpoint that was read from this layout keeps its config. Reference:
Unifying Autoregressive and Diffusion-Based Sequence Generation (arXiv 2504.06416).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as save_tensors
from torch import Tensor

from hdlm.atomic import replacing
from hdlm.checkpoint import Checkpoint
from hdlm.hub.cards.published import PublishedEpsilonCard, PublishedGammaCard
from hdlm.network import DDiTConfig, DecoderConfig, DiffusionGemmaConfig
from hdlm.noise_schedule import AbstractNoiseSchedule, Linear, LogLinear
from hdlm.parameterization import AbstractParameterization, LogScore, Mean
from hdlm.process import Absorbing, EpsilonHybrid, GammaHybrid
from hdlm.published_names import (
    LOG_LINEAR_FLOOR,
    alignment_of,
    annealing_of,
    family_defaults,
    graph_of,
    noise_of,
)
from hdlm.sharing.decoder_layout import decoder_layout
from hdlm.sharing.model_card import LICENCE, model_card
from hdlm.vocabulary import GPT2

__all__ = ["export", "published_config"]

_Table = dict[str, Any]

_MLP_RATIO = 4
_SHARE_OURS = "To share this checkpoint, use the layout of hdlm: `hdlm push`, or in Python `push_to_hub`."


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
    """Write a checkpoint in the published layout; any network but a `DDiT` in that of its format or family.

    Args:
        checkpoint: The model.
        folder: Where; made if it does not exist.
        hyperschedule: Index of the hyperschedule that the config names, counted from 0; a published config names one.
        pickled: Whether to write `pytorch_model.bin` as well as the safetensors.
        source: What users will load it as, for the card; the folder by default.
        licence: Identifier of the licence of the weights, as the hub spells it, for the model card.
        evaluation: Results for the card; see `hdlm.sharing.model_card`.

    Raises:
        ValueError: If something in the checkpoint has no published form; the message names it.
        OSError: If the folder cannot be written.
    """
    import yaml

    folder = Path(folder)
    if isinstance(checkpoint.network.config, DecoderConfig | DiffusionGemmaConfig):
        _write_decoder(checkpoint, folder, pickled, source, licence, evaluation)
        return
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
    _write(folder, contents, tensors if pickled else None)


def _write(folder: Path, contents: Mapping[str, bytes], pickled: Mapping[str, Tensor] | None) -> None:
    """Write files, and the tensors once more as a pickle if they are given."""
    for name, content in contents.items():
        with replacing(folder / name) as aside:
            aside.write_bytes(content)
    if pickled is not None:
        with replacing(folder / "pytorch_model.bin") as aside:
            torch.save(dict(pickled), aside)


def _write_decoder(
    checkpoint: Checkpoint,
    folder: Path,
    pickled: bool,
    source: str | None,
    licence: str,
    evaluation: Mapping[str, Any] | None,
) -> None:
    """Write a decoder in the layout of the format or the family that it belongs to."""
    layout = decoder_layout(checkpoint)
    if licence == LICENCE and "format" in checkpoint.training:
        licence = "other"  # the weights are those of others: their licence holds
    card = model_card(checkpoint, source or str(folder), licence=licence, evaluation=evaluation)
    contents = {
        "model.safetensors": save_tensors(layout.tensors, metadata={"format": "pt"}),
        "README.md": card.encode(),
        "config.json": (json.dumps(layout.config, indent=2) + "\n").encode(),
    }
    if layout.tokenizer is not None:
        contents["tokenizer.json"] = layout.tokenizer.encode()
    _write(folder, contents, layout.tensors if pickled else None)


def published_config(checkpoint: Checkpoint, hyperschedule: int = 0) -> _Table:
    """The published config of a checkpoint: every key, resolved.

    Raises:
        ValueError: If something in the checkpoint has no published form; the message names it.
    """
    alignment, outputs = alignment_of(checkpoint.denoiser.parameterization)
    config = _family(checkpoint, outputs)
    if alignment != "aligned" or "type" in config:
        config["type"] = alignment
    config["tokenizer"] = _tokenizer(checkpoint, config.get("tokenizer", {}))
    config["model"] |= _network(checkpoint)
    config["annealing"] |= _annealing(checkpoint, hyperschedule)
    config["annealing"]["attention"] = {
        "context_type": checkpoint.context,
        "block_type": checkpoint.active,
    }
    _recipe(config, checkpoint.training)
    return config


def _family(checkpoint: Checkpoint, outputs: AbstractParameterization) -> _Table:
    """The config of the published family of a checkpoint, with the options that identify it.

    Raises:
        ValueError: If it belongs to no family.
    """
    process, conditioned = checkpoint.denoiser.process, checkpoint.network.config.timestep_embedding
    if isinstance(process, EpsilonHybrid | Absorbing) and outputs == Mean() and not conditioned:
        if checkpoint.noise_schedule != Linear():
            raise _formless(checkpoint.noise_schedule, "noise schedule", "`Linear()`", _ANY_SCHEDULE)
        config = family_defaults("epsilon_hybrid", _came_with(checkpoint, PublishedEpsilonCard.name))
        config["training"]["epsilon"] = process.epsilon if isinstance(process, EpsilonHybrid) else 0.0
        return config
    graph = graph_of(process)
    if graph is not None and isinstance(outputs, LogScore) and conditioned:
        blend = outputs.blend_rate
        config = family_defaults("gamma_hybrid", _came_with(checkpoint, PublishedGammaCard.name))
        config["graph"]["type"] = graph
        config["graph"]["gamma"] = process.gamma if isinstance(process, GammaHybrid) else blend or 0.0
        config["noise"] |= _noise(checkpoint.noise_schedule)
        config["annealing"]["sampling_eps"] = _earliest(checkpoint.noise_schedule, outputs.floor)
        config["model"] |= _scores(outputs, config["graph"]["gamma"])
        return config
    raise ValueError(
        f"{process!r} noise, outputs {outputs!r} and a network {'with' if conditioned else 'without'} noise "
        "conditioning have no published form. Published are `EpsilonHybrid` or `Absorbing` with `Mean()` and a network "
        "without noise conditioning, and `GammaHybrid`, `Absorbing` or `Uniform` with `LogScore` and a network with "
        f"noise conditioning. {_SHARE_OURS}"
    )


def _came_with(checkpoint: Checkpoint, family: str) -> _Table:
    """The config that a checkpoint was read with, if it was of this family."""
    origin = checkpoint.training
    known = origin.get("format") == family and isinstance(origin.get("config"), Mapping)
    return dict(origin["config"]) if known else {}


_ANY_SCHEDULE = (
    "The schedule determines the pace of generation and not the network: to export with the published one, pass "
    "`dataclasses.replace(checkpoint, noise_schedule=...)`."
)


def _formless(piece: object, what: str, published: str, advice: str) -> ValueError:
    """The error for a piece that published configs cannot express."""
    return ValueError(f"the {what} {piece!r} has no published form; published is {published}. {advice}")


def _noise(schedule: AbstractNoiseSchedule) -> _Table:
    options = noise_of(schedule)
    if options is None:
        published = f"`{LogLinear(LOG_LINEAR_FLOOR)!r}` or any `Geometric`"
        raise _formless(schedule, "noise schedule", published, _ANY_SCHEDULE)
    return options


def _scores(outputs: LogScore, gamma: float) -> _Table:
    """The options of log scores."""
    if outputs.blend_rate not in (None, gamma):
        raise _formless(outputs, "parameterization", f"a `blend_rate` of gamma={gamma}, or none", _SHARE_OURS)
    if outputs.shared:
        own = "one in which every position gets its own noise (`shared=False`)"
        raise _formless(outputs, "parameterization", own, _SHARE_OURS)
    return {
        "scale_by_sigma": outputs.scale_by_sigma,
        "hybrid_sigma_embedding": outputs.blend_rate is not None,
    }


def _earliest(schedule: AbstractNoiseSchedule, floor: float) -> float:
    """The time at which the noise equals the floor of the outputs, to the last digit."""
    time = float(schedule.time(torch.tensor(floor, dtype=torch.float64)))
    for near in (float(f"{time:.12g}"), time, math.nextafter(time, 0), math.nextafter(time, 1)):
        if float(schedule.fraction(torch.tensor(near, dtype=torch.float64))) == floor:
            return near
    return time


def _network(checkpoint: Checkpoint) -> _Table:
    """Sizes and switches of the network."""
    shape = checkpoint.network.config
    if not isinstance(shape, DDiTConfig):
        raise _formless(shape, "network", "a `DDiT`", _SHARE_OURS)
    if shape.condition_output:
        unconditioned = "one whose output layer is not conditioned (`condition_output=False`)"
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


def _tokenizer(checkpoint: Checkpoint, came_with: _Table) -> _Table:
    """Size and name of the tokenizer: `gpt2`, or the name of the file."""
    name: Any = "gpt2"
    if checkpoint.vocabulary != GPT2:
        name = came_with.get("model") if checkpoint.tokenizer_json is None else "tokenizer.json"
    return {**came_with, "tokens": checkpoint.vocabulary.num_words, "model": name}


def _annealing(checkpoint: Checkpoint, index: int) -> _Table:
    """The hyperschedule of the config; if two differ in levels only, the first is that of evaluation.

    Raises:
        ValueError: If it has no published name.
    """
    trained = checkpoint.hyperschedules
    if not trained:
        return dict.fromkeys(("width", "tau", "eval_tau"), checkpoint.length) | {"type": "none"}
    if not 0 <= index < len(trained):
        raise ValueError(
            f"the checkpoint lists {len(trained)} hyperschedules, from 0 to {len(trained) - 1}; got {index}."
        )
    options = [annealing_of(schedule, checkpoint.length) for schedule in trained]
    chosen = options[index]
    if chosen is None:
        others = [f"{i}: {trained[i]!r}" for i, named in enumerate(options) if named is not None]
        advice = (
            f"The checkpoint lists others that have one, choose by number: {'; '.join(others)}."
            if others
            else f"In Python, `dataclasses.replace(checkpoint, hyperschedules=...)` gives another one. {_SHARE_OURS}"
        )
        raise _formless(
            trained[index],
            "hyperschedule",
            "`Block` (block, or none for one block), `Slide` with as many levels as positions in its window, "
            "`PublishedSlide` (simple) or `PublishedWave` (hybrid), over the whole context",
            advice,
        )
    same = [
        other["tau"] for other in options[index + 1 :] if other == chosen | {"tau": other and other["tau"]}
    ]
    return {**chosen, "tau": (*same, chosen["tau"])[0], "eval_tau": chosen["tau"]}


def _recipe(config: _Table, training: Mapping[str, Any]) -> None:
    """Copy what the checkpoint records of its training into options of the published config."""
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
