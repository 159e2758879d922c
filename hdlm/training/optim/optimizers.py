"""The optimizer of each weight: Muon for the matrices of the blocks, AdamW for the rest.

| weights | rate | decay "matrices" | decay "all" |
|---|---|---|---|
| matrices of the blocks | `matrix_rate` | yes | yes |
| embedding | `embedding_rate` | no | yes |
| other matrices: output layer, conditioning | `head_rate` | yes | yes |
| norms and biases | `head_rate`; those of the blocks too | no | yes |
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from hdlm.network import AbstractNetwork
from hdlm.training.optim.muon import Muon
from hdlm.training.recipe import OptimizerSettings

__all__ = ["make_optimizers", "set_rates"]

_PEAK = "peak"


def make_optimizers(network: AbstractNetwork, settings: OptimizerSettings) -> list[torch.optim.Optimizer]:
    """One or two optimizers that together move each weight of a network once."""
    matrices = [weight for weight in network.blocks.parameters() if weight.ndim == 2 and weight.requires_grad]
    embedding = [weight for weight in network.vocab_embed.parameters() if weight.requires_grad]
    taken = {id(weight) for weight in (*matrices, *embedding)}
    others = [weight for weight in network.parameters() if id(weight) not in taken and weight.requires_grad]
    wide, narrow = ([w for w in others if (w.ndim == 2) is matrix] for matrix in (True, False))
    decay, everything = settings.weight_decay, settings.decay == "all"
    blocks = {"params": matrices, "lr": settings.matrix_rate, "weight_decay": decay}
    groups: list[dict[str, Any]] = [
        {"params": embedding, "lr": settings.embedding_rate, "weight_decay": decay if everything else 0.0},
        {"params": wide, "lr": settings.head_rate, "weight_decay": decay},
        {"params": narrow, "lr": settings.head_rate, "weight_decay": decay if everything else 0.0},
    ]
    if settings.name == "muon":
        made = [_muon(blocks, settings)]
        if any(group["params"] for group in groups):
            made.append(_adamw(groups, settings))
    else:
        made = [_adamw([blocks, *groups], settings)]
    for optimizer in made:
        for group in optimizer.param_groups:
            group[_PEAK] = group["lr"]
    return made


def set_rates(optimizers: list[torch.optim.Optimizer], share: float) -> None:
    """Set every learning rate to a share of its peak."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = share * group[_PEAK]


def _muon(group: dict[str, Any], settings: OptimizerSettings) -> torch.optim.Optimizer:
    """Muon of torch on accelerators, our own on a CPU."""
    matrices: list[nn.Parameter] = group["params"]
    kind = Muon if all(matrix.device.type == "cpu" for matrix in matrices) else torch.optim.Muon
    return kind([group], weight_decay=settings.weight_decay, adjust_lr_fn=settings.muon_scale)


def _adamw(groups: list[dict[str, Any]], settings: OptimizerSettings) -> torch.optim.Optimizer:
    """AdamW in one kernel, which on a CPU is four to eight times as fast as a loop over the weights."""
    betas = (settings.beta1, settings.beta2)
    return torch.optim.AdamW(groups, betas=betas, eps=settings.eps, fused=True)
