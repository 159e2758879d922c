"""Which noise each optimizer step trains on, and with how many sequences: functions of the step alone.

Part `k` of a mixture owns an interval of [0, 1) as long as its share, and step `n` trains the part in whose interval
`n / golden ratio mod 1` falls. These points are as even as points can be, so shares hold over every few steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch
from jaxtyping import Int
from torch import Tensor

from hdlm import hyperschedule as hyperschedules
from hdlm.checkpoint import build
from hdlm.objective import Corruption
from hdlm.process import AbstractNoiseProcess
from hdlm.training.recipe import MixturePart

__all__ = ["Mixture", "Part"]

_GOLDEN = (math.sqrt(5) - 1) / 2


@final
@dataclass(frozen=True)
class Part:
    """One way to noise a batch.

    Attributes:
        corruption: Clean batch in, noisy canvas out.
        batch_size: Sequences in its optimizer steps, over all processes and passes.
        share: Part of the steps, relative to the other parts.
    """

    corruption: Corruption
    batch_size: int
    share: float


@final
@dataclass(frozen=True)
class Mixture:
    """Parts, and who is next."""

    parts: tuple[Part, ...]

    @classmethod
    def of(
        cls, described: Sequence[MixturePart], process: AbstractNoiseProcess, length: int, batch_size: int
    ) -> Mixture:
        """The mixture of a recipe.

        Args:
            described: Its parts.
            process: How tokens are noised.
            length: Tokens in a window.
            batch_size: Sequences in an optimizer step of a part with `batch_scale = 1`.

        Raises:
            ValueError: If a hyperschedule is unknown or does not fit the length.
        """
        return cls(
            tuple(
                Part(
                    Corruption(
                        process,
                        build(hyperschedules, {**part.hyperschedule, "length": length}),
                        two_stream=part.two_stream,
                        continuous=part.continuous,
                    ),
                    batch_size * part.batch_scale,
                    part.share,
                )
                for part in described
            )
        )

    def which(self, steps: Int[Tensor, "*s"]) -> Int[Tensor, "*s"]:
        """Index of the part that each step trains."""
        bounds = self._bounds.to(steps.device)
        return torch.bucketize(steps.double() * _GOLDEN % 1, bounds[:-1], right=True)

    def at(self, step: int) -> tuple[int, Part]:
        """Index and part of one step."""
        index = int(self.which(torch.tensor(step)))
        return index, self.parts[index]

    def sequences_before(self, step: int) -> int:
        """Sequences that all earlier steps took."""
        sizes = torch.tensor([part.batch_size for part in self.parts])
        return int(sizes[self.which(torch.arange(step))].sum())

    @cached_property
    def _bounds(self) -> Tensor:
        shares = torch.tensor([part.share for part in self.parts], dtype=torch.float64)
        return (shares / shares.sum()).cumsum(0)
