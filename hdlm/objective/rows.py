"""Costs of single rows of a prediction, a few rows at a time, forward and backward.

A batch of `b l` positions over a vocabulary of `v` words makes `b l v` numbers, more than the rest of training needs.
Here these numbers exist for only a few rows at a time:

    each     one cost per row; the rows of a piece are projected again in the backward pass
    total    their weighted sum; the gradient of a piece is computed with its value, while its rows are there:
             nothing is projected twice, and the stored tensors are at most as large as the rows and the projection

`total` follows "Cut Your Losses in Large-Vocabulary Language Models" (arXiv 2411.09009) and Liger Kernel (arXiv
2410.10989), for any cost that can be differentiated; the cross-entropy of a softmax is written out, in place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeAlias, final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hdlm.denoiser import Prediction

__all__ = ["Cost", "cross_entropy", "each", "total"]

Cost: TypeAlias = Callable[[Prediction, Tensor], Tensor]
"""Function of a prediction and flattened positions that returns a cost for each position, in nats."""

PIECE = 2**22
"""Numbers per piece (rows times vocabulary): enough for an efficient matrix product, few enough for the caches."""
PIECE_OF_ACCELERATOR = 2**26
"""Numbers per piece on an accelerator, which has thousands of cores to keep busy."""

_Slope: TypeAlias = Callable[[Tensor, slice], tuple[Tensor, Tensor]]
"""Function of raw outputs and their rows that returns the costs, and the derivative of the sum of the costs."""


def each(cost: Cost, prediction: Prediction, at: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """The cost of every row; differentiable.

    Args:
        cost: Function that computes the cost.
        prediction: Prediction that the cost depends on.
        at: Flattened positions to compute.
    """
    pieces = at.split(_size(prediction.process.num_words, at.device))
    if len(pieces) == 1 or not torch.is_grad_enabled():
        return torch.cat([cost(prediction, piece) for piece in pieces])

    def again(piece: Tensor) -> Tensor:
        return cost(prediction, piece)

    costs = [
        checkpoint(again, piece, use_reentrant=False, preserve_rng_state=False, determinism_check="none")
        for piece in pieces
    ]
    return torch.cat(costs)


def total(
    cost: Cost,
    prediction: Prediction,
    at: Int[Tensor, " n"],
    weight: Float[Tensor, " n"],
    targets: Int[Tensor, " m"] | None = None,
    every_row: bool = False,
) -> Float[Tensor, ""]:
    """`sum_n weight_n cost_n`.

    Args:
        cost: Function that computes the cost.
        prediction: Prediction that the cost depends on.
        at: Flattened positions to compute.
        weight: Weight of each position.
        targets: The word of every position, if the cost is the cross-entropy of the softmax over the words with it.
        every_row: Whether that softmax is over all rows, that of the mask included.
    """
    if prediction.projection is None:
        unweighted = each(cost, prediction, at)
        return (weight.to(unweighted.dtype) * unweighted).sum()
    rows = prediction.projection.rows(at)
    matrix, bias = prediction.projection.parameters()
    if targets is not None:
        count = len(matrix) if every_row else prediction.process.num_words
        return cross_entropy(rows, matrix, bias, targets[at], weight, count)

    def slope(raw: Tensor, piece: slice) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            raw = raw.requires_grad_()
            costs = cost(replace(prediction, raw=lambda _: raw), at[piece])
            weighed = weight[piece].to(costs.dtype) * costs
            (derivative,) = torch.autograd.grad(weighed.sum(), raw)
        return weighed.detach(), derivative

    return _sum(rows, matrix, bias, slope)


def cross_entropy(
    rows: Float[Tensor, "n h"],
    matrix: Float[Tensor, "v h"],
    bias: Float[Tensor, " v"] | None,
    targets: Int[Tensor, " n"],
    weight: Float[Tensor, " n"],
    num_words: int,
) -> Float[Tensor, ""]:
    """`sum_n weight_n (-log softmax(rows @ matrix.T + bias)[targets_n])`, the softmax over the first `num_words`.

    Args:
        rows: Hidden vectors of the positions.
        matrix: The projection onto the vocabulary.
        bias: Bias of the projection.
        targets: The word of each row.
        weight: Weight of each row.
        num_words: Number of rows of the projection that are words.
    """

    def slope(raw: Tensor, piece: slice) -> tuple[Tensor, Tensor]:
        words, wanted = raw[:, :num_words], targets[piece, None]
        evidence = words.logsumexp(-1, keepdim=True)
        factor = weight[piece, None].to(raw.dtype)
        weighed = factor * (evidence - words.gather(-1, wanted))
        words.sub_(evidence).exp_()
        words.scatter_add_(-1, wanted, torch.full_like(evidence, -1.0))
        raw.mul_(factor)
        raw[:, num_words:] = 0
        return weighed[:, 0], raw

    return _sum(rows, matrix, bias, slope)


def _size(num_words: int, device: torch.device) -> int:
    """Number of rows in a piece."""
    return max(1, (PIECE if device.type == "cpu" else PIECE_OF_ACCELERATOR) // num_words)


def _sum(rows: Tensor, matrix: Tensor, bias: Tensor | None, slope: _Slope) -> Float[Tensor, ""]:
    loss: Tensor = _WithGradient.apply(rows, matrix, bias, slope)  # type: ignore[no-untyped-call]
    return loss


@final
class _WithGradient(torch.autograd.Function):
    """The sum of a cost of `rows @ matrix.T + bias`, together with its gradient, piece by piece."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, matrix: Tensor, bias: Tensor | None, slope: _Slope) -> Tensor:
        kind = rows.device.type
        autocast = torch.is_autocast_enabled(kind)
        dtype = torch.get_autocast_dtype(kind) if autocast else torch.promote_types(rows.dtype, matrix.dtype)
        exact = torch.promote_types(dtype, torch.float32)
        wanted = any(ctx.needs_input_grad)
        with torch.autocast(kind, enabled=False):
            projection = matrix.to(dtype)
            offset = None if bias is None else bias.to(dtype)
            of_rows = torch.empty_like(rows) if wanted else None
            of_matrix = torch.zeros_like(matrix) if wanted else None
            of_bias = torch.zeros_like(bias) if wanted and bias is not None else None
            loss = torch.zeros((), dtype=torch.float64, device=rows.device)
            size = _size(len(matrix), rows.device)
            for start in range(0, len(rows), size):
                piece = slice(start, start + size)
                some = rows[piece].to(dtype)
                costs, raw = slope(F.linear(some, projection, offset).to(exact), piece)
                loss += costs.sum(dtype=torch.float64)
                if of_rows is None or of_matrix is None:
                    continue
                steep = raw.to(dtype)
                of_rows[piece] = steep @ projection
                _add_product(of_matrix, steep, some)
                if of_bias is not None:
                    of_bias += raw.sum(0)
        ctx.gradients = [part for part in (of_rows, of_matrix, of_bias) if part is not None]
        return loss.to(exact)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError(
                "The gradient of this loss was moved to the caller of the first backward pass, not copied: "
                "compute the loss again."
            )
        gradients = [part.mul_(upstream.to(part.dtype)) for part in ctx.gradients]
        ctx.gradients = None
        return (*gradients, *(None for _ in range(4 - len(gradients))))


def _add_product(into: Tensor, steep: Tensor, rows: Tensor) -> None:
    """`into += steep.T @ rows`, accumulated in the precision of `into`."""
    if into.dtype == steep.dtype:
        into.addmm_(steep.T, rows)
    else:
        into += steep.T @ rows
