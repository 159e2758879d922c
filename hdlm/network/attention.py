"""Attention: every query gets the average of the values, weighted by `softmax(q . k / sqrt(d))`.

A mask is a Bool `[#b q k]` (True = may attend), FlexAttention's `BlockMask`, or `None` (all attend to all). A tensor of
size `[b heads q k]` is never made: a mask broadcasts over heads, and over rows that share it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_mask, flex_attention

from hdlm.network.pieces import Pieces, cut
from hdlm.network.rotary import Rotation

__all__ = ["Attention", "SharedMask", "attend", "prepare_mask", "unmask_empty_rows"]

Attention: TypeAlias = Bool[Tensor, "#b q k"] | BlockMask | None
"""The keys that each query may attend to, as callers give them."""

SharedMask: TypeAlias = Bool[Tensor, "#b 1 q k"] | Pieces | BlockMask | None
"""A mask as the layers use it: without empty rows, and broadcast over heads."""


def prepare_mask(
    attention: Attention, rotation: Rotation, num_queries: int, num_keys: int
) -> tuple[SharedMask, Rotation]:
    """Prepare a mask once for all layers.

    A query that may attend to no key attends to all keys equally: see `unmask_empty_rows`. A `BlockMask` is passed on
    to its kernel (where such a query reads zeros), except on a CPU, where FlexAttention has no backward pass: there the
    mask is made dense and, if much of it is empty, cut into pieces.

    Args:
        attention: The keys that each query may attend to.
        rotation: The rotation of the queries' positions.
        num_queries: Expected number of queries.
        num_keys: Expected number of keys: the cached ones, then the current ones.

    Returns:
        The mask and the rotation for `attend`.

    Raises:
        ValueError: If the mask has other numbers of queries or keys, or differs between heads.
    """
    if attention is None:
        return None, rotation
    if tuple(attention.shape[-2:]) != (num_queries, num_keys):
        raise ValueError(
            f"`attention` must have shape [.., {num_queries}, {num_keys}], for {num_queries} queries and "
            f"{num_keys} keys (cached, then current); got shape {tuple(attention.shape)}."
        )
    if isinstance(attention, BlockMask):
        if attention.shape[1] != 1:
            raise ValueError(
                f"A `BlockMask` must be shared by the heads (H=None); got H={attention.shape[1]}."
            )
        if rotation.cos.device.type != "cpu":
            return attention, rotation
        rows = attention.shape[0]
        attention = create_mask(attention.mask_mod, rows, 1, num_queries, num_keys, device="cpu")[:, 0]
    mask, rotation = unmask_empty_rows(attention, rotation)
    whole = mask.device.type != "cpu" or torch.compiler.is_compiling()
    return mask if whole else cut(mask), rotation


def unmask_empty_rows(
    attention: Bool[Tensor, "#b q k"], rotation: Rotation
) -> tuple[Bool[Tensor, "#b 1 q k"], Rotation]:
    """A mask without empty rows: a query that may attend to no key attends to all, and is set to zero."""
    blind = ~attention.any(dim=-1)
    return (attention | blind[..., None])[:, None], rotation.zero_queries(blind)


def attend(
    query: Float[Tensor, "b heads q d"],
    key: Float[Tensor, "b kv_heads k d"],
    value: Float[Tensor, "b kv_heads k d"],
    attention: SharedMask,
) -> Float[Tensor, "b heads q d"]:
    """Attend with the kernel that the kind of mask asks for.

    If there are fewer heads of keys than of queries, neighbouring heads of queries share one (grouped-query attention).
    """
    grouped = query.shape[1] != key.shape[1]
    if isinstance(attention, BlockMask):
        return _flex()(query, key, value, block_mask=attention, enable_gqa=grouped)
    if isinstance(attention, Pieces):
        kernel = functools.partial(F.scaled_dot_product_attention, enable_gqa=grouped)
        return attention.attend(query, key, value, kernel)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=attention, enable_gqa=grouped)


@functools.cache
def _flex() -> Callable[..., Tensor]:
    """FlexAttention, which is a fused kernel only when it is compiled.

    The compiled code is wrapped in an operator that selective recomputation recognises; otherwise the backward pass
    would compute attention a second time.
    """
    compiled: Callable[..., Tensor] = torch.compile(
        flex_attention, options={"wrap_inductor_compiled_regions": True}
    )
    return compiled
