"""Counter-based random numbers: a uniform number is a function of (seed, sequence, step, position, stream).

Numbers are not drawn in sequence, so sequence `k` gets the same numbers at any batch size and on any device. The
function is Philox4x32-10 (Salmon et al., *Parallel random numbers: as easy as 1, 2, 3*, SC 2011), written with 64-bit
integer tensors, whose products wrap around: bits 32 to 63 of a product are right whatever its sign, and bits that are
shifted in from the left are masked. It reproduces the published known-answer vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias, cast, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["Randomness", "philox"]

_LOW = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


_Key: TypeAlias = tuple[int, int] | tuple[Tensor, Tensor]


def philox(counter: tuple[Tensor, Tensor | int, Tensor, Tensor | int], key: _Key) -> tuple[Tensor, ...]:
    """Philox4x32 with 10 rounds.

    Args:
        counter: Four broadcastable int64 tensors with values in [0, 2^32); the second and the fourth may be integers,
            which need no copy to a device.
        key: Two integers in [0, 2^32), or int64 tensors of them that broadcast with the counter.

    Returns:
        Four int64 tensors of the broadcast shape, with independent values in [0, 2^32).
    """
    c0, c1, c2, c3 = cast(tuple[Tensor, Tensor, Tensor, Tensor], counter)  # integers behave like tensors
    k0, k1 = key
    for _ in range(10):
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1 = ((product1 >> 32) ^ c1 ^ k0) & _LOW, product1
        c2, c3 = ((product0 >> 32) ^ c3 ^ k1) & _LOW, product0
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return c0, c1 & _LOW, c2, c3 & _LOW


@final
@dataclass(frozen=True)
class Randomness:
    """All random numbers of a run, or of several.

    Attributes:
        seed: Any integer in [0, 2^64); or one for each row of `sequence`, which then has the shape `[b 1]`.
    """

    seed: int | tuple[int, ...]

    def __post_init__(self) -> None:
        for seed in self._seeds:
            if not 0 <= seed < 2**64:
                raise ValueError(f"`seed` must lie in [0, 2^64); got {seed}.")

    @staticmethod
    def of_rows(seeds: Sequence[int]) -> Randomness:
        """Random numbers for rows with individual seeds; takes the fast path when all seeds are equal."""
        return Randomness(seeds[0] if len(set(seeds)) == 1 else tuple(seeds))

    def seeds_of(self, num_rows: int) -> tuple[int, ...]:
        """The seed of each of some rows."""
        return self._seeds if len(self._seeds) == num_rows else self._seeds * num_rows

    @property
    def _seeds(self) -> tuple[int, ...]:
        return self.seed if isinstance(self.seed, tuple) else (self.seed,)

    @cached_property
    def _halves(self) -> tuple[Int[Tensor, "b 1"], Int[Tensor, "b 1"]]:
        """Low and high 32 bits of the seeds of rows."""
        return (
            torch.tensor([seed & _LOW for seed in self._seeds], dtype=torch.long)[:, None],
            torch.tensor([seed >> 32 for seed in self._seeds], dtype=torch.long)[:, None],
        )

    def _key(self, device: torch.device) -> _Key:
        if not isinstance(self.seed, tuple):
            return self.seed & _LOW, self.seed >> 32
        low, high = self._halves
        return low.to(device), high.to(device)

    def uniform(
        self,
        sequence: Int[Tensor, "*#b"],
        step: Int[Tensor, "*#b"] | int,
        position: Int[Tensor, "*#b"],
        stream: int = 0,
    ) -> Float[Tensor, "*b"]:
        """Uniform float64 numbers in [0, 1), with 53 random bits each.

        Args:
            sequence: Index of the sequence in the whole run, in [0, 2^32), not in the batch.
            step: Index of the step, in [0, 2^32).
            position: Position in the sequence, in [0, 2^32).
            stream: Number of the purpose, in [0, 2^32): different streams are independent.
        """
        high, low, _, _ = philox((position, step, sequence, stream), self._key(position.device))
        return _uniform(high, low)

    def pair(
        self,
        sequence: Int[Tensor, "*#b"],
        step: Int[Tensor, "*#b"] | int,
        position: Int[Tensor, "*#b"],
        stream: int = 0,
    ) -> tuple[Float[Tensor, "*b"], Float[Tensor, "*b"]]:
        """Two independent uniform numbers for each address, at the cost of one; the first is that of `uniform`."""
        words = philox((position, step, sequence, stream), self._key(position.device))
        return _uniform(*words[:2]), _uniform(*words[2:])


def _uniform(high: Int[Tensor, "*b"], low: Int[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """A float64 number in [0, 1) from two words of 32 random bits."""
    return ((high >> 5) * 2**26 + (low >> 6)).double() * 2.0**-53
