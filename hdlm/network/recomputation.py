"""Activation checkpointing: the backward pass recomputes activations, so that the forward pass need not store them.

`"full"` stores only the input of a block (Chen et al., "Training Deep Nets with Sublinear Memory Cost", arXiv
1604.06174). `"selective"` also stores what is expensive relative to its size, matrix products and the outputs of
attention, and recomputes the rest: norms, modulation, rotation, activations, and copies (Korthikanti et al., "Reducing
Activation Recomputation in Large Transformer Models", arXiv 2205.05198, recompute attention instead, because theirs
stored all pairs). Neither changes a number.
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
"""Which activations are recomputed."""

_PRODUCTS = frozenset({torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.bmm.default})
_ATTENTION = frozenset({torch.ops.higher_order.flex_attention, torch.ops.higher_order.inductor_compiled_code})
"""FlexAttention, uncompiled and compiled; see `hdlm.network.attention`."""
_CHEAP = 4
"""A product is cheap if its inner dimension is smaller than its output dimension divided by this number."""


def run_block(recomputation: Recomputation, block: AbstractBlock, *arguments: Any) -> Tensor:
    """The output of a block."""
    if recomputation == "none" or not torch.is_grad_enabled():
        output: Tensor = block(*arguments)
    elif recomputation == "full":
        output = checkpoint(block, *arguments, use_reentrant=False)
    else:
        contexts = functools.partial(create_selective_checkpoint_contexts, functools.partial(_policy, block))
        output = checkpoint(block, *arguments, use_reentrant=False, context_fn=contexts)
    return output


def _policy(
    block: AbstractBlock,
    context: SelectiveCheckpointContext,
    operator: Any,
    *arguments: Any,
    **options: Any,
) -> CheckpointPolicy:
    """Store outputs of attention and products with a large inner dimension; recompute the rest.

    The last projection of a block, whose output is smaller than its inner dimension, is not stored: if its output is
    only added to the residual stream, no gradient needs it.
    """
    if operator in _PRODUCTS:
        left, right = arguments[-2:]
        inner, outer = left.shape[-1], right.shape[-1]
        keep = _CHEAP * inner >= outer and (inner <= outer or block.changes_branches)
    else:
        keep = operator in _ATTENTION or "scaled_dot_product" in operator.name()
    return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE
