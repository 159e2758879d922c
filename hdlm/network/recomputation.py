"""Activation checkpointing: what the backward pass computes again, so that the forward pass need not keep it.

`"full"` keeps the input of a block only (Chen et al., "Training Deep Nets with Sublinear Memory Cost", arXiv
1604.06174). `"selective"` keeps besides what is costly for its size, the products of matrices and what attention
found, and computes the cheap rest again: norms, modulation, rotation, activations, and copies (Korthikanti et al.,
"Reducing Activation Recomputation in Large Transformer Models", arXiv 2205.05198, keep the opposite, because their
attention held all pairs). Neither changes a number.
"""

from __future__ import annotations

import functools
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch.utils.checkpoint import (
    CheckpointPolicy,
    SelectiveCheckpointContext,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from hdlm.network.layers import AbstractBlock

__all__ = ["Recomputation", "run_block"]

Recomputation: TypeAlias = Literal["none", "selective", "full"]
"""How much is computed again."""

_PRODUCTS = frozenset({torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.bmm.default})
_ATTENTION = frozenset({torch.ops.higher_order.flex_attention, torch.ops.higher_order.inductor_compiled_code})
"""FlexAttention, as it is and compiled; see `hdlm.network.attention`."""
_CHEAP = 4
"""A product is cheap if it sums over fewer than one in so many of the numbers that it makes."""


def run_block(recomputation: Recomputation, block: AbstractBlock, *arguments: Any) -> Tensor:
    """The output of a block.

    Args:
        recomputation: What the backward pass is to compute again.
        block: The block.
        *arguments: Its arguments.
    """
    if recomputation == "none" or not torch.is_grad_enabled():
        found: Tensor = block(*arguments)
    elif recomputation == "full":
        found = checkpoint(block, *arguments, use_reentrant=False)
    else:
        contexts = functools.partial(create_selective_checkpoint_contexts, functools.partial(_policy, block))
        found = checkpoint(block, *arguments, use_reentrant=False, context_fn=contexts)
    return found


def _policy(
    block: AbstractBlock,
    context: SelectiveCheckpointContext,
    operator: Any,
    *arguments: Any,
    **options: Any,
) -> CheckpointPolicy:
    """Keep what attention found, and products that sum over much, but for one that nothing in the block asks for again.

    That one is the last, which makes fewer numbers than it sums over: what is merely added has no say in any gradient.
    """
    if operator in _PRODUCTS:
        left, right = arguments[-2:]
        summed, made = left.shape[-1], right.shape[-1]
        keep = _CHEAP * summed >= made and (summed <= made or block.changes_branches)
    else:
        keep = operator in _ATTENTION or "scaled_dot_product" in operator.name()
    return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE
