"""A ramp over `width` positions that moves to the right, by about `width` positions in `T` steps.

    starts[i] = i T // width

The published configs call it `simple`, which is `PublishedSlide` if `T` is not `width`.
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
class Slide(Windowed, AbstractCountdown):
    """A window of `width` positions, the left ones nearly settled, the right ones nearly worthless."""

    @property
    def starts(self) -> Int[Tensor, " l"]:
        """`i num_levels // width`."""
        return torch.arange(self.length) * self.num_levels // self.width
