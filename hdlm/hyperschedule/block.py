"""Blocks: the positions of a block count down together, then the next block begins (BD3-LM).

    starts[i] = (i // width) T

One block over the whole canvas is *flat* generation (MDLM, SEDD); blocks of one position with one level are
*autoregressive* generation (GPT).  The published configs call it `block`.

Reference: Block Diffusion (arXiv 2503.09573).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Int
from torch import Tensor

from hdlm.hyperschedule.base import Windowed
from hdlm.hyperschedule.countdown import AbstractCountdown


@final
@dataclass(frozen=True)
class Block(Windowed, AbstractCountdown):
    """Blocks of `width` positions, one after the other, `num_levels` steps each."""

    @property
    def starts(self) -> Int[Tensor, " l"]:
        """`(i // width) num_levels`."""
        return torch.arange(self.length) // self.width * self.num_levels


def autoregressive(length: int) -> Block:
    """One position per step, left to right, from noise to text at once (GPT)."""
    return Block(length, width=1, num_levels=1)


def flat(length: int, num_levels: int) -> Block:
    """All positions together, `num_levels` steps (MDLM, SEDD)."""
    return Block(length, width=length, num_levels=num_levels)
