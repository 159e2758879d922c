"""Linear layers that multiply few rows as fast as their weights can be read.

On a CPU a product of a few rows and a large matrix spends its time on reading the matrix, and the general kernels read
it badly. oneDNN reads a copy in blocks that suit its kernels: measured on two cores with AVX2, one to four rows take a
third to a half of the time, 16 rows two thirds; from 128 rows on nothing is won. The copy costs as much memory again.
"""

from __future__ import annotations

from typing import Any, final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["PackedLinear"]

_FEW = 128
"""Up to so many rows the copy is used."""
_LARGE = 2**21
"""Matrices of fewer bytes stay near the core: they are not copied."""
_TYPICAL = 16
"""The number of rows that its blocks are chosen for."""


@final
class PackedLinear(nn.Linear):
    """`x W^T + b`, and a copy of `W` for few rows once `pack` has been called.

    The copy is no parameter: it is neither saved nor moved, it is left out where gradients are wanted, and made anew
    when the weight has changed. It is of float32 weights only.
    """

    _packed: tuple[Tensor, int, Tensor] | None = None
    """The weight, which version of it was copied, and the copy."""
    packs = False
    """Whether a copy is used."""

    def pack(self) -> None:
        """Use a copy of a large weight for products with few rows; without effect off the CPU, or without oneDNN."""
        known = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        self.packs = known and self.weight.nbytes > _LARGE

    def forward(self, input: Float[Tensor, "*n i"]) -> Float[Tensor, "*n o"]:
        """Multiply."""
        if not (self.packs and self._fits(input)):
            return F.linear(input, self.weight, self.bias)
        product: Tensor = torch.ops.mkldnn._linear_pointwise(input, self._copy(), self.bias, "none", [], "")
        return product

    def _fits(self, input: Tensor) -> bool:
        """Whether the copy's kernel may and should multiply this."""
        few = 0 < input.numel() <= _FEW * self.in_features
        plain = input.dtype == self.weight.dtype == torch.float32 and input.device.type == "cpu"
        return few and plain and not (torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"))

    def _copy(self) -> Tensor:
        """The copy, up to date."""
        weight, packed = self.weight, self._packed
        if packed is None or packed[0].data_ptr() != weight.data_ptr() or packed[1] != weight._version:
            found: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), _TYPICAL)
            packed = self._packed = weight.detach(), weight._version, found
        return packed[2]

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the copy, which cannot be copied or pickled."""
        return {name: value for name, value in self.__dict__.items() if name != "_packed"}
