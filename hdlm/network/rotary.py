"""Rotary positions: a head's coordinates `(i, i + d/2)` are rotated by the angle `position * base^(-2i/d)`.

The inner product of a rotated query and a rotated key depends on their distance only (Su et al., "RoFormer",
https://arxiv.org/abs/2104.09864). Angles are computed in every pass from the positions of each row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

__all__ = ["Rotary", "Rotation"]


@final
class Rotation(NamedTuple):
    """Cosines and sines that rotate queries and keys, shared by all layers of a pass.

    The axes are `[#b q two one half]`: `two` is (query, key), or 1 if both have one rotation; heads broadcast.
    """

    cos: Float[Tensor, "#b q #two 1 half"]
    sin: Float[Tensor, "#b q #two 1 half"]

    def zero_queries(self, blind: Bool[Tensor, "#b q"]) -> Rotation:
        """Set the queries of `blind` rows to zero, and rotate those of all other rows as before.

        A zero query scores all keys equally. With zeros in the tables, this costs the layers nothing.
        """
        seeing = torch.stack([~blind, torch.ones_like(blind)], dim=-1)[..., None, None]
        return Rotation(self.cos * seeing, self.sin * seeing)

    @staticmethod
    def join(rotations: Sequence[Rotation], shapes: Sequence[tuple[int, int]]) -> Rotation:
        """Rotations of several passes, each `[b q]` as in `shapes`, one after another in one row."""
        apart = max(rotation.cos.shape[2] for rotation in rotations)

        def flat(table: Tensor, shape: tuple[int, int]) -> Tensor:
            return table.expand(*shape, apart, -1, -1).flatten(0, 1)

        pairs = list(zip(rotations, shapes, strict=True))
        return Rotation(
            torch.cat([flat(rotation.cos, shape) for rotation, shape in pairs])[None],
            torch.cat([flat(rotation.sin, shape) for rotation, shape in pairs])[None],
        )

    def __call__(self, pair: Float[Tensor, "b q 2 heads d"]) -> Float[Tensor, "b q 2 heads d"]:
        """Rotate stacked queries and keys."""
        cos, sin = self.cos.to(pair.dtype), self.sin.to(pair.dtype)
        first, second = pair.chunk(2, dim=-1)
        return torch.cat(
            [torch.addcmul(first * cos, second, sin, value=-1), torch.addcmul(second * cos, first, sin)],
            dim=-1,
        )


@final
class Rotary(nn.Module):
    """Positions to rotations.

    Args:
        head_dim: Width `d` of a head; even.
        base: Base of the geometric progression of frequencies.
    """

    inv_freq: Float[Tensor, " half"]

    def __init__(self, head_dim: int, base: float = 10_000.0) -> None:
        super().__init__()
        # Computed on the CPU: `arange` on the meta device imports torch's compiler, which takes seconds.
        exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device="cpu") / head_dim
        self.register_buffer("inv_freq", (base**-exponents).to(torch.get_default_device()))

    def forward(self, positions: Int[Tensor, "#b q"]) -> Rotation:
        """The rotation of every position, in the precision of the frequencies (float32)."""
        angles = (positions[..., None] * self.inv_freq)[:, :, None, None, :]
        return Rotation(angles.cos(), angles.sin())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Rotary:
        """Move to another device, but never to another precision, because frequencies must not be rounded."""
        exact = self.inv_freq
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if not exact.is_meta:
            self.inv_freq = exact.to(self.inv_freq.device)
        return self
