"""The checkpoint folder: weights, a configuration and a tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save as save_tensors
from torch import Tensor

from hdlm import hyperschedule as hyperschedules
from hdlm import noise_schedule as noise_schedules
from hdlm import parameterization as parameterizations
from hdlm import process as processes
from hdlm.atomic import replacing
from hdlm.checkpoint.checkpoint import FORMAT, Checkpoint
from hdlm.checkpoint.pieces import build
from hdlm.checkpoint.weights import Safetensors, fill, skeleton
from hdlm.denoiser import Denoiser
from hdlm.network import AbstractNetwork, read_network_config
from hdlm.vocabulary import Vocabulary

__all__ = ["WeightsName", "assemble", "load_checkpoint", "save_checkpoint"]

WeightsName = Literal["averaged", "raw"]

_FILES: Mapping[WeightsName, str] = {"averaged": "model.safetensors", "raw": "raw.safetensors"}

_CONFIG, _TOKENIZER = "config.json", "tokenizer.json"

_TABLES = ("network", "vocabulary", "process", "parameterization", "noise_schedule")

_LISTS = ("hyperschedules",)


def save_checkpoint(
    folder: Path,
    checkpoint: Checkpoint,
    *,
    averaged: Mapping[str, Tensor] | None = None,
    raw: Mapping[str, Tensor] | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write a checkpoint into a folder; one that is there is replaced.

    Args:
        folder: The folder; it is made if it does not exist.
        checkpoint: The model; without `averaged`, its weights are the ones to use.
        averaged: The weights to use; the model's own are then stored as well, as `raw`.
        raw: The model's own weights, if they are not in the model because they are sharded.
        dtype: Precision of the weights to use; raw ones keep their own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    own = checkpoint.network.state_dict() if raw is None else raw
    weights = {
        name: value.detach().to("cpu", dtype).contiguous() for name, value in (averaged or own).items()
    }
    _write(folder / _FILES["averaged"], save_tensors(weights))
    if averaged is not None:
        kept = {name: value.detach().cpu().contiguous() for name, value in own.items()}
        _write(folder / _FILES["raw"], save_tensors(kept))
    if checkpoint.tokenizer_json is not None:
        _write(folder / _TOKENIZER, checkpoint.tokenizer_json.encode())
    _write(folder / _CONFIG, (json.dumps(checkpoint.config(), indent=2) + "\n").encode())


def load_checkpoint(
    folder: Path,
    device: torch.device | str = "cpu",
    *,
    weights: WeightsName = "averaged",
    dtype: torch.dtype = torch.float32,
) -> Checkpoint:
    """Read a checkpoint, strictly; the model is in evaluation mode.

    Args:
        folder: The folder that `save_checkpoint` wrote.
        device: Device of the model.
        weights: The moving average, or the raw weights of the last step.
        dtype: Precision of the weights.

    Raises:
        ValueError: If anything is missing, damaged or contradictory; the message names the file and the fault.
    """
    if not folder.is_dir():
        raise ValueError(f"there is no checkpoint folder {folder}.")
    config, tokenizer = _read_config(folder / _CONFIG), _read_tokenizer(folder / _TOKENIZER)
    tensors = Safetensors(folder / _FILES[weights])
    try:
        network = skeleton(read_network_config(config["network"]), tensors)
        checkpoint = assemble(config, network, tokenizer)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / _CONFIG}: {error}") from error
    fill(network, tensors, dtype=dtype)
    checkpoint.denoiser.to(device).eval()
    return checkpoint


def assemble(config: Mapping[str, Any], network: AbstractNetwork, tokenizer: str | None = None) -> Checkpoint:
    """Build the checkpoint that `Checkpoint.config` described, around a network.

    Args:
        config: The content of `config.json`.
        network: The network, of the shape that it describes.
        tokenizer: Text of a `tokenizer.json`, or None.

    Raises:
        ValueError: If a piece is unknown or has other fields, or the pieces do not fit together.
    """
    process = build(processes, config["process"])
    parameterization = build(parameterizations, config["parameterization"])
    return Checkpoint(
        Denoiser(network, process, parameterization),
        Vocabulary(**config["vocabulary"]),
        build(noise_schedules, config["noise_schedule"]),
        tuple(build(hyperschedules, description) for description in config["hyperschedules"]),
        tokenizer,
        config["training"],
        config.get("context", "block_causal"),
        config.get("active", "full"),
    )


def _read_config(path: Path) -> dict[str, Any]:
    """The content of `config.json`, checked for completeness."""
    if not path.is_file():
        raise ValueError(f"{path.parent} is not a checkpoint: it has no {path.name}.")
    try:
        config = json.loads(path.read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged: {error}.") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        version = config.get("format") if isinstance(config, dict) else type(config).__name__
        raise ValueError(
            f"{path} must have `format` {FORMAT}; got {version!r}. Is it a checkpoint of this program?"
        )
    config.setdefault("training", {})
    missing = [name for name in (*_TABLES, *_LISTS) if name not in config]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}.")
    for names, kind, what in (((*_TABLES, "training"), dict, "a table"), (_LISTS, list, "a list")):
        for name in names:
            if not isinstance(config[name], kind):
                raise ValueError(f"{path}: `{name}` must be {what}; got {config[name]!r}.")
    return config


def _read_tokenizer(path: Path) -> str | None:
    """The text of `tokenizer.json`, if there is one."""
    if not path.is_file():
        return None
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is damaged: {error}.") from error


def _write(path: Path, content: bytes) -> None:
    with replacing(path) as aside:
        aside.write_bytes(content)
