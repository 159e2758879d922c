"""Which optimizer moves which weights: Muon the matrices of the blocks, AdamW the rest."""

from __future__ import annotations

from typing import Any

import torch

from hdlm.network import DDiT
from hdlm.training.muon import Muon
from hdlm.training.recipe import OptimizerSettings

__all__ = ["make_optimizers", "set_rates"]

_PEAK = "peak"


def make_optimizers(network: DDiT, settings: OptimizerSettings) -> list[torch.optim.Optimizer]:
    """One or two optimizers over all weights of a network, each of which is in exactly one group."""
    matrices = [weight for weight in network.blocks.parameters() if weight.ndim == 2]
    embedding = list(network.vocab_embed.parameters())
    taken = {id(weight) for weight in (*matrices, *embedding)}
    others = [weight for weight in network.parameters() if id(weight) not in taken]
    groups: list[dict[str, Any]] = [
        {"params": embedding, "lr": settings.embedding_rate, "weight_decay": 0.0},
        {"params": others, "lr": settings.head_rate, "weight_decay": 0.0},
    ]
    if settings.name == "muon":
        muon = Muon(matrices, settings.matrix_rate, weight_decay=settings.weight_decay)
        made: list[torch.optim.Optimizer] = [muon, _adamw(groups, settings)]
    else:
        decayed = {"params": matrices, "lr": settings.matrix_rate, "weight_decay": settings.weight_decay}
        made = [_adamw([decayed, *groups], settings)]
    for optimizer in made:
        for group in optimizer.param_groups:
            group[_PEAK] = group["lr"]
    return made


def set_rates(optimizers: list[torch.optim.Optimizer], share: float) -> None:
    """Set every learning rate to a share of its peak."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = share * group[_PEAK]


def _adamw(groups: list[dict[str, Any]], settings: OptimizerSettings) -> torch.optim.Optimizer:
    betas = (settings.beta1, settings.beta2)
    return torch.optim.AdamW(groups, betas=betas, eps=settings.eps, fused=True)
