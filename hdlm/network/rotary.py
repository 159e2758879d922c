"""Rotary positions: a head's coordinates `(i, i + d/2)` are rotated by the angle `position * base^(-2i/d)`.

The inner product of a rotated query and a rotated key depends on their distance only (Su et al., "RoFormer",
https://arxiv.org/abs/2104.09864). Angles are computed in every pass from the positions of each row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hdlm.strict_config import require

__all__ = ["Rotary", "RotaryScaling", "Rotation"]


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
        return _turned(pair, self.cos, self.sin)

    def turn(
        self, query: Float[Tensor, "b q heads d"], key: Float[Tensor, "b q kv_heads d"]
    ) -> tuple[Float[Tensor, "b q heads d"], Float[Tensor, "b q kv_heads d"]]:
        """Rotate queries and keys of different numbers of heads."""
        cos, sin = self.cos, self.sin
        return _turned(query, cos[:, :, 0], sin[:, :, 0]), _turned(key, cos[:, :, -1], sin[:, :, -1])


def _turned(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    cos, sin = cos.to(heads.dtype), sin.to(heads.dtype)
    first, second = heads.chunk(2, dim=-1)
    return torch.cat(
        [torch.addcmul(first * cos, second, sin, value=-1), torch.addcmul(second * cos, first, sin)], dim=-1
    )


@final
@dataclass(frozen=True)
class RotaryScaling:
    """How the frequencies of rotary positions are changed, so that a network reads longer texts than it was trained on.

    `"linear"` divides all frequencies by `factor` (Chen et al., arXiv 2306.15595). `"llama3"` divides those whose
    wavelength is longer than `original_length / low_frequency`, keeps those that are shorter than
    `original_length / high_frequency`, and interpolates between (Llama 3.1, arXiv 2407.21783). `"yarn"` interpolates
    between the divided and the kept ones by the number of turns in the original length, and scales the attention
    (Peng et al., arXiv 2309.00071).

    Attributes:
        type: `"linear"`, `"llama3"` or `"yarn"`.
        factor: How many times longer texts are, at least 1.
        original_length: Length in training, in tokens; not used by `"linear"`.
        low_frequency: Turns in the original length below which `"llama3"` divides.
        high_frequency: Turns in the original length above which `"llama3"` keeps.
        beta_slow: Turns in the original length below which `"yarn"` divides.
        beta_fast: Turns in the original length above which `"yarn"` keeps.
        attention_factor: What multiplies rotated queries and keys with `"yarn"`; None for `0.1 log(factor) + 1`.

    Raises:
        ValueError: If a number is out of range, or the type is unknown.
    """

    type: Literal["linear", "llama3", "yarn"]
    factor: float
    original_length: int = 8192
    low_frequency: float = 1.0
    high_frequency: float = 4.0
    beta_slow: float = 1.0
    beta_fast: float = 32.0
    attention_factor: float | None = None

    def __post_init__(self) -> None:
        types = ("linear", "llama3", "yarn")
        require(self.type in types, "rotary_scaling.type", f"one of {', '.join(types)}", self.type)
        require(self.factor >= 1, "rotary_scaling.factor", "at least 1", self.factor)
        require(
            self.original_length >= 1, "rotary_scaling.original_length", "at least 1", self.original_length
        )

    @property
    def magnitude(self) -> float:
        """What multiplies the cosines and sines."""
        if self.type != "yarn":
            return 1.0
        return 0.1 * math.log(self.factor) + 1 if self.attention_factor is None else self.attention_factor

    def __call__(self, frequencies: Float[Tensor, " half"], base: float) -> Float[Tensor, " half"]:
        """The changed frequencies, in radians per position."""
        divided = frequencies / self.factor
        if self.type == "linear":
            return divided
        if self.type == "llama3":
            turns = self.original_length * frequencies / (2 * math.pi)
            kept = ((turns - self.low_frequency) / (self.high_frequency - self.low_frequency)).clamp(0, 1)
            return divided + kept * (frequencies - divided)
        half = len(frequencies)
        low, high = (
            half * math.log(self.original_length / (turns * 2 * math.pi)) / math.log(base)
            for turns in (self.beta_fast, self.beta_slow)
        )
        first, last = max(math.floor(low), 0), min(math.ceil(high), 2 * half - 1)
        steps = torch.arange(half, dtype=frequencies.dtype, device=frequencies.device)
        kept = 1 - ((steps - first) / max(last - first, 1e-3)).clamp(0, 1)
        return divided + kept * (frequencies - divided)


@final
class Rotary(nn.Module):
    """Positions to rotations.

    Args:
        head_dim: Width `d` of a head; even.
        base: Base of the geometric progression of frequencies.
        scaling: How the frequencies are changed for longer texts.
    """

    inv_freq: Float[Tensor, " half"]

    def __init__(self, head_dim: int, base: float = 10_000.0, scaling: RotaryScaling | None = None) -> None:
        super().__init__()
        # Computed on the CPU: `arange` on the meta device imports torch's compiler, which takes seconds.
        exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device="cpu") / head_dim
        frequencies = base**-exponents
        self.magnitude = 1.0 if scaling is None else scaling.magnitude
        if scaling is not None:
            frequencies = scaling(frequencies, base)
        self.register_buffer("inv_freq", frequencies.to(torch.get_default_device()))

    @classmethod
    def identity(cls, head_dim: int) -> Rotary:
        """No rotation at any position, for networks that know positions otherwise."""
        rotary = cls(head_dim)
        rotary.inv_freq = torch.zeros_like(rotary.inv_freq)
        return rotary

    def forward(self, positions: Int[Tensor, "#b q"]) -> Rotation:
        """The rotation of every position, in the precision of the frequencies (float32)."""
        angles = (positions[..., None] * self.inv_freq)[:, :, None, None, :]
        if self.magnitude == 1:
            return Rotation(angles.cos(), angles.sin())
        return Rotation(self.magnitude * angles.cos(), self.magnitude * angles.sin())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Rotary:
        """Move to another device, but never to another precision, because frequencies must not be rounded."""
        exact = self.inv_freq
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if not exact.is_meta:
            self.inv_freq = exact.to(self.inv_freq.device)
        return self
