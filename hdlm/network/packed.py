"""Linear layers that multiply few rows as fast as their weights can be read.

On a CPU, a product of few rows and a large matrix takes the time of reading the matrix, which the general kernels do
slowly. oneDNN reads a copy in blocks that suit its kernels: on two cores with AVX2, one to four rows take a third to a
half of the time, 16 rows two thirds; from 128 rows on there is no gain. The copy needs as much memory as the matrix.

General kernels choose the order of their sums by the number of rows, so the last digits of a row depend on how many
other rows there are. `in_blocks` makes a product batch-invariant: it multiplies blocks of a few fixed sizes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["PackedLinear", "block_rows", "in_blocks"]

_FEW = 128
"""Largest number of rows for which the copy is used."""
_LARGE = 2**21
"""Matrices of at most this many bytes stay in the processor's cache and are not copied."""
_TYPICAL = 16
"""Number of rows for which the blocks are chosen."""

_BLOCK = 16
"""Number of rows of the smallest block of a batch-invariant product; blocks are multiples of it, up to `_FEW`."""
_Product = Callable[[Tensor], Tensor]


def block_rows(product: _Product, num_inputs: int, like: Tensor) -> int:
    """The largest block for which a product of rows is batch-invariant: no digit of a row depends on the size.

    Args:
        product: The product of a matrix with some rows.
        num_inputs: Number of columns of the rows.
        like: A tensor with the device and the dtype of the rows.

    Returns:
        `_FEW` if blocks of all sizes give the same digits at all places, `_BLOCK` otherwise. A single size is
        batch-invariant by construction.
    """
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(_FEW, num_inputs, generator=generator).to(like)
    whole = product(rows)
    for size in range(_BLOCK, _FEW, _BLOCK):
        if not torch.equal(product(rows[:size].contiguous()), whole[:size]):
            return _BLOCK
        if not torch.equal(product(rows[-size:].contiguous()), whole[-size:]):
            return _BLOCK
    return _FEW


def in_blocks(product: _Product, rows: Float[Tensor, "*n i"], largest: int) -> Float[Tensor, "*n o"]:
    """A batch-invariant product of rows with a matrix.

    Args:
        product: The product of the matrix with some rows.
        rows: The rows to multiply.
        largest: Largest number of rows in a block; see `block_rows`.
    """
    flat = rows.reshape(-1, rows.shape[-1])
    if not len(flat):
        return product(rows)
    padded = F.pad(flat, (0, 0, 0, -len(flat) % _BLOCK)).contiguous()
    parts = [product(part) for part in padded.split(largest)]
    return torch.cat(parts)[: len(flat)].view(*rows.shape[:-1], -1)


@final
class PackedLinear(nn.Linear):
    """`x W^T + b`, with a copy of `W` for few rows after `pack` was called.

    The copy is not a parameter: it is neither saved nor moved, it is not used when gradients are needed, and it is made
    again when the weight has changed. Only float32 weights are copied.
    """

    _packed: tuple[Tensor, int, Tensor] | None = None
    """The weight, its version when it was copied, and the copy."""
    packs = False
    """Whether a copy is used."""

    _largest: int | None = None
    """Largest block of a batch-invariant product; None if products are not batch-invariant."""

    @torch.no_grad()
    def make_batch_invariant(self) -> None:
        """Compute each row so that no digit depends on other rows; slower for few rows. It needs disabled gradients."""
        self._largest = block_rows(self._product, self.in_features, self.weight)

    def pack(self) -> None:
        """Use a copy of a large weight for products with few rows; no effect except on a CPU with oneDNN."""
        known = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        self._largest = None
        self.packs = known and self.weight.nbytes > _LARGE

    def forward(self, input: Float[Tensor, "*n i"]) -> Float[Tensor, "*n o"]:
        """The linear map."""
        if self._largest is None or torch.is_grad_enabled():
            return self._product(input)
        return in_blocks(self._product, input, self._largest)

    def _product(self, input: Float[Tensor, "*n i"]) -> Float[Tensor, "*n o"]:
        if not (self.packs and self._fits(input)):
            return F.linear(input, self.weight, self.bias)
        product: Tensor = torch.ops.mkldnn._linear_pointwise(input, self._copy(), self.bias, "none", [], "")
        return product

    def _fits(self, input: Tensor) -> bool:
        """Whether the copy's kernel supports and speeds up this product."""
        few = 0 < input.numel() <= _FEW * self.in_features
        plain = input.dtype == self.weight.dtype == torch.float32 and input.device.type == "cpu"
        return few and plain and not (torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"))

    def _copy(self) -> Tensor:
        """The copy, up to date."""
        weight, packed = self.weight, self._packed
        if packed is None or packed[0].data_ptr() != weight.data_ptr() or packed[1] != weight._version:
            copy: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), _TYPICAL)
            packed = self._packed = weight.detach(), weight._version, copy
        return packed[2]

    def __getstate__(self) -> dict[str, Any]:
        """The state without the copy, which cannot be copied or pickled."""
        return {name: value for name, value in self.__dict__.items() if name != "_packed"}
