"""Tiny models in the published layout, with random weights, for tests without golden data."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from hdlm.network import DDiT, DDiTConfig

WORDS, HIDDEN, LENGTH = 11, 8, 16

EPSILON: dict[str, Any] = {
    "model_type": "epsilon_hybrid",
    "type": "aligned",
    "tokenizer": {"tokens": WORDS, "model": "gpt2"},
    "training": {"epsilon": 0.1, "lambda": 0.0},
    "annealing": {"type": "block", "width": 4, "tau": 2},
    "model": {"hidden_size": HIDDEN, "cond_dim": 6, "n_blocks": 2, "n_heads": 2, "length": LENGTH},
}
GAMMA: dict[str, Any] = {
    **EPSILON,
    "model_type": "gamma_hybrid",
    "training": {},
    "graph": {"type": "QGamma", "gamma": 0.05},
    "noise": {"type": "loglinear"},
    "model": {
        **EPSILON["model"],
        "scale_by_sigma": True,
        "hybrid_sigma_embedding": True,
        "use_timestep_embedding": True,
        "transformer_sigma_conditioning": True,
    },
}


def changed(config: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A config with other values; `model__length=3` for nested ones, None to remove one."""
    config = copy.deepcopy(config)
    for dotted, value in changes.items():
        *tables, last = dotted.split("__")
        table = config
        for name in tables:
            table = table.setdefault(name, {})
        if value is None:
            table.pop(last, None)
        else:
            table[last] = value
    return config


def network(config: dict[str, Any], seed: int = 0) -> DDiT:
    """A network of the shape that a config asks for, with every parameter random."""
    model = config["model"]
    told = model.get("use_timestep_embedding", False)
    made = DDiT(
        DDiTConfig(
            vocab_size=config["tokenizer"]["tokens"] + 1,
            hidden_size=model["hidden_size"],
            num_blocks=model["n_blocks"],
            num_heads=model["n_heads"],
            cond_dim=model["cond_dim"],
            timestep_embedding=told,
            condition_blocks=told,
            max_length=model["length"],
        )
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(0, 0.3, generator=generator)
    return made.eval()


def tensors(config: dict[str, Any], seed: int = 0) -> dict[str, Tensor]:
    """Its state dict."""
    return {name: value.clone() for name, value in network(config, seed).state_dict().items()}


def folder(path: Path, config: dict[str, Any], weights: dict[str, Tensor] | None = None) -> Path:
    """Write a folder as on the hub."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    save_file(tensors(config) if weights is None else weights, path / "model.safetensors")
    return path


def run(path: Path, config: dict[str, Any], step: int = 3, **payload: Any) -> Path:
    """Write the folder of a published run: raw weights of seed 0, averaged ones of seed 1, and an optimizer."""
    (path / ".hydra").mkdir(parents=True, exist_ok=True)
    (path / "checkpoints").mkdir(exist_ok=True)
    (path / ".hydra" / "config.yaml").write_text(json.dumps(config))
    average = {
        "decay": 0.9,
        "shadow_params": [value.detach().clone() for value in network(config, 1).parameters()],
    }
    content = {
        "optimizer": {
            "state": {0: {"exp_avg": torch.ones(5), "step": torch.tensor(3.0)}},
            "param_groups": [{"lr": 0.1}],
        },
        "model": network(config).state_dict(),
        "ema": average,
        "step": step,
    }
    torch.save({**content, **payload}, path / "checkpoints" / f"checkpoint_{step}.pth")
    return path
