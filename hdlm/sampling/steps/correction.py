"""ACS, the adaptive correction sampler of HDLM (arXiv 2504.06416, section 5): redraws words that are written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from jaxtyping import Bool, Int
from torch import Tensor

from hdlm.sampling.base import Move

__all__ = ["AdaptiveCorrection"]

_CHOICE, _MODEL = 0, 1


@final
@dataclass(frozen=True)
class AdaptiveCorrection:
    """Redraws each visible word from `p(x_0 | x_t)` with probability `eta` times a mask's probability to remain.

    It corrects the words that were visible at the start of the move and still are; words that the move has unmasked
    stay. Towards the end, when few masks remain, corrections become rare.

    Attributes:
        eta: Strength in [0, 1]; the paper uses about 0.01.
    """

    eta: float
    remasks: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(f"`eta` of the correction must lie in [0, 1]; got {self.eta}.")

    def __call__(self, x: Int[Tensor, "b l"], move: Move) -> Int[Tensor, "b l"]:
        redraw = move.events_of(self) & move.visible & (x == move.x)
        if not redraw.any():
            return x
        new = x.clone()
        new[redraw] = move.reading.draw(redraw, move.uniform(_MODEL))
        return new

    def events(self, move: Move) -> Bool[Tensor, "b l"]:
        """Where words are redrawn, if there are words that earlier steps of the chain have not changed."""
        return move.moving & (move.uniform(_CHOICE) < self.eta * move.still_masked)
