"""Linear layers that multiply few rows as fast as their weights can be read.

On a CPU, a product of few rows and a large matrix takes the time of reading the matrix, which the general kernels do
slowly. oneDNN reads a copy in blocks that suit its kernels: on two cores with AVX2, one to four rows take a third to a
half of the time, 16 rows two thirds; from 128 rows on there is no gain. The copy needs as much memory as the matrix.
"""

from __future__ import annotations

from typing import Any, final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["PackedLinear"]

_FEW = 128
"""Largest number of rows for which the copy is used."""
_LARGE = 2**21
"""Matrices of at most this many bytes stay in the processor's cache and are not copied."""
_TYPICAL = 16
"""Number of rows for which the blocks are chosen."""


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

    def pack(self) -> None:
        """Use a copy of a large weight for products with few rows; no effect except on a CPU with oneDNN."""
        known = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        self.packs = known and self.weight.nbytes > _LARGE

    def forward(self, input: Float[Tensor, "*n i"]) -> Float[Tensor, "*n o"]:
        """The linear map."""
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
