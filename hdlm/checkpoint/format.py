"""Checkpoints: a folder with weights, a configuration and a tokenizer."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, final, get_args

import torch
from safetensors.torch import save as save_tensors
from torch import Tensor

from hdlm import hyperschedule as hyperschedules
from hdlm import noise_schedule as noise_schedules
from hdlm import parameterization as parameterizations
from hdlm import process as processes
from hdlm.atomic import replacing
from hdlm.attention import Active, Context
from hdlm.checkpoint.pieces import (
    build,
    describe,
)
from hdlm.checkpoint.weights import Safetensors, fill, skeleton
from hdlm.denoiser import Denoiser
from hdlm.hyperschedule import AbstractHyperschedule
from hdlm.network import DDiT, DDiTConfig
from hdlm.noise_schedule import AbstractNoiseSchedule, Linear
from hdlm.process import AbstractNoiseProcess
from hdlm.vocabulary import Vocabulary

__all__ = [
    "FORMAT",
    "MODEL_TYPE",
    "Checkpoint",
    "WeightsName",
    "assemble",
    "load_checkpoint",
    "makes_masks",
    "save_checkpoint",
]

FORMAT = 1

"""Version of the layout of `config.json`."""

MODEL_TYPE = "hdlm"

"""What `transformers` knows these models by: see `hdlm.integrations.transformers`."""

WeightsName = Literal["averaged", "raw"]

_FILES: Mapping[WeightsName, str] = {"averaged": "model.safetensors", "raw": "raw.safetensors"}

_CONFIG, _TOKENIZER = "config.json", "tokenizer.json"

_TABLES = ("network", "vocabulary", "process", "parameterization", "noise_schedule")

_LISTS = ("hyperschedules",)


@final
@dataclass(frozen=True)
class Checkpoint:
    """A model and what is known of it.

    Attributes:
        denoiser: Network, process and parameterization; the network is a `DDiT`.
        vocabulary: What its tokens mean.
        noise_schedule: How fast noise came in training.
        hyperschedules: What it was trained on, the one it generates best by first.
        tokenizer: Text of a `tokenizer.json`, or None for a model of bare ids.
        training: How it came about: plain values for people to read.
        context: What settled positions saw of one another in training; see `hdlm.attention`.
        active: What active positions saw of one another in training.
    """

    denoiser: Denoiser
    vocabulary: Vocabulary
    noise_schedule: AbstractNoiseSchedule = field(default_factory=Linear)
    hyperschedules: tuple[AbstractHyperschedule, ...] = ()
    tokenizer: str | None = None
    training: Mapping[str, Any] = field(default_factory=dict)
    context: Context = "block_causal"
    active: Active = "full"

    def __post_init__(self) -> None:
        words, process, rows = (
            self.vocabulary.num_words,
            self.denoiser.process,
            self.network.config.vocab_size,
        )
        fits = (words + 1,) if makes_masks(process) else (words, words + 1)
        if process.num_words != words or rows not in fits:
            raise ValueError(
                f"the vocabulary does not match: it has {words} words, the process {process.num_words}, and the "
                f"network {rows} rows (one for each word, and one for the mask, where there is one)."
            )
        for name, value, choices in (("context", self.context, Context), ("active", self.active, Active)):
            if value not in get_args(choices):
                raise ValueError(f"`{name}` must be one of {', '.join(get_args(choices))}; got {value!r}.")

    @property
    def network(self) -> DDiT:
        """The network inside the denoiser."""
        backbone = self.denoiser.backbone
        if not isinstance(backbone, DDiT):
            raise ValueError(f"a checkpoint holds a DDiT; got {type(backbone).__name__}.")
        return backbone

    @property
    def length(self) -> int:
        """Number of positions the network is meant for."""
        return self.network.config.max_length

    def config(self) -> dict[str, Any]:
        """What `config.json` says."""
        return {
            "format": FORMAT,
            "model_type": MODEL_TYPE,
            "network": self.network.config.to_dict(),
            "vocabulary": dataclasses.asdict(self.vocabulary),
            "process": describe(self.denoiser.process),
            "parameterization": describe(self.denoiser.parameterization),
            "noise_schedule": describe(self.noise_schedule),
            "hyperschedules": [describe(hyperschedule) for hyperschedule in self.hyperschedules],
            "context": self.context,
            "active": self.active,
            "training": dict(self.training),
        }


def makes_masks(process: AbstractNoiseProcess) -> bool:
    """Whether noise ever turns a word into the mask."""
    return bool(process.weights(torch.linspace(0, 1, 5, dtype=torch.float64)).mask.any())


def save_checkpoint(
    folder: Path,
    checkpoint: Checkpoint,
    *,
    averaged: Mapping[str, Tensor] | None = None,
    raw: Mapping[str, Tensor] | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write a checkpoint into a folder, over the one that was there.

    Args:
        folder: Where; made if it does not exist.
        checkpoint: The model; without `averaged`, its weights are the ones to use.
        averaged: The weights to use; the model's own are then kept beside them, as `raw`.
        raw: The model's own weights, where they are not in the model because processes share them.
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
    if checkpoint.tokenizer is not None:
        _write(folder / _TOKENIZER, checkpoint.tokenizer.encode())
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
        folder: Where `save_checkpoint` put it.
        device: Where the model goes.
        weights: Which weights, the moving average or the raw ones of the last step.
        dtype: Precision of the weights.

    Raises:
        ValueError: If anything is missing, damaged or contradictory; the message names the file and what is wrong.
    """
    if not folder.is_dir():
        raise ValueError(f"there is no checkpoint folder {folder}.")
    config, tokenizer = _read_config(folder / _CONFIG), _read_tokenizer(folder / _TOKENIZER)
    tensors = Safetensors(folder / _FILES[weights])
    try:
        network = skeleton(DDiTConfig.from_dict(config["network"]), tensors)
        checkpoint = assemble(config, network, tokenizer)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / _CONFIG}: {error}") from error
    fill(network, tensors, dtype=dtype)
    checkpoint.denoiser.to(device).eval()
    return checkpoint


def assemble(config: Mapping[str, Any], network: DDiT, tokenizer: str | None = None) -> Checkpoint:
    """The checkpoint that `Checkpoint.config` described, around a network.

    Args:
        config: What `config.json` says.
        network: The network, of the shape that it says.
        tokenizer: Text of a `tokenizer.json`, or None.

    Raises:
        ValueError: If a piece is unknown or has not these fields, or the pieces do not fit.
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
    """The JSON of `config.json`, with all that is required."""
    if not path.is_file():
        raise ValueError(f"{path.parent} is no checkpoint: it has no {path.name}.")
    try:
        config = json.loads(path.read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged: {error}.") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        found = config.get("format") if isinstance(config, dict) else type(config).__name__
        raise ValueError(
            f"{path} must have `format` {FORMAT}; got {found!r}. Is it a checkpoint of this program?"
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
    """The text of `tokenizer.json`, where there is one."""
    if not path.is_file():
        return None
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is damaged: {error}.") from error


def _write(path: Path, content: bytes) -> None:
    with replacing(path) as aside:
        aside.write_bytes(content)
