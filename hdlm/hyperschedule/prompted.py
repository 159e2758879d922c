"""Blocks that begin behind a prompt, wherever the prompt ends (DiffusionGemma).

Along `Block`, the blocks are at fixed positions, and a prompt may end inside of one. Some models are trained with whole
blocks behind a prompt that is settled: for a prompt of `g` tokens, `behind(g)` is the hyperschedule of the positions

    prompt 0 .. g-1: level 0 from the beginning        block k: g + k width .. g + (k + 1) width - 1
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from hdlm.hyperschedule.base import AbstractHyperschedule, Windowed
from hdlm.hyperschedule.block import Block
from hdlm.hyperschedule.countdown import AbstractCountdown


@final
@dataclass(frozen=True)
class PromptedBlock(Windowed, AbstractCountdown):
    """Blocks of `width` positions, one after the other, `num_levels` steps each, behind the prompt if there is one."""

    @property
    def starts(self) -> Int[Tensor, " l"]:
        """`(i // width) num_levels`: without a prompt, those of `Block`."""
        return Block(self.length, self.width, self.num_levels).starts

    def behind(self, given: int) -> AbstractHyperschedule:
        return _Behind(given, self) if 0 < given < self.length else self


@final
@dataclass(frozen=True)
class _Behind(AbstractHyperschedule):
    """A prompt of `given` positions, and blocks behind it, on as many positions as `whole` has."""

    given: int
    whole: PromptedBlock

    def behind(self, given: int) -> AbstractHyperschedule:
        return self.whole.behind(given)

    @property
    def inner(self) -> Block:
        """The blocks behind the prompt."""
        rest = self.whole.length - self.given
        return Block(rest, min(self.whole.width, rest), self.whole.num_levels)

    @property
    def length(self) -> int:  # type: ignore[override]
        return self.whole.length

    @property
    def num_levels(self) -> int:  # type: ignore[override]
        return self.whole.num_levels

    @property
    def window_size(self) -> int:
        return self.inner.window_size

    def levels(self, n: int | Int[Tensor, "*b"]) -> Int[Tensor, "*b l"]:
        return F.pad(self.inner.levels(n), (self.given, 0))

    @property
    def settles(self) -> Int[Tensor, " l"]:
        return F.pad(self.inner.settles, (self.given, 0))
