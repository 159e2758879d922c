"""A wave inside each block: its positions start one step apart, and the next block starts after the last one.

    starts[i] = (i // width)(T + width - 1) + i mod width

The published configs call it `hybrid`, which opens its blocks as `PublishedWave` does.
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
class Wave(Windowed, AbstractCountdown):
    """Blocks of `width` positions; inside one, position `j` begins at its local step `j`."""

    @property
    def starts(self) -> Int[Tensor, " l"]:
        """`(i // width)(num_levels + width - 1) + i mod width`."""
        positions = torch.arange(self.length)
        return positions // self.width * (self.num_levels + self.width - 1) + positions % self.width
