"""The paper's objective: a weighted cross-entropy of the clean token (HDLM, arXiv 2504.06416, section 4).

With masking probability `p` and a share `e` of wrong words among the visible ones, `-log p(x_0 | x_t)` is weighted

    masked: 1 / p        visible and wrong: lambda (1 - e) / (1 - p)        visible and right: lambda e / (1 - p)

so that the network also learns which visible words are wrong. With `lambda = 0` it is the continuous-time bound of
masked diffusion (MDLM, arXiv 2406.07524), and the loss of block diffusion (BD3-LM, arXiv 2503.09573) on a block
hyperschedule.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from hdlm.objective.base import AbstractObjective, CleanToken, Term
from hdlm.objective.canvas import Canvas
from hdlm.process import AbstractNoiseProcess

__all__ = ["WeightedCrossEntropy"]

UnmaskedWeight = Literal["paper", "published_code"]


@final
@dataclass(frozen=True)
class WeightedCrossEntropy(AbstractObjective):
    """`measure * weight * -log p(x_0 | x_t)`.

    Attributes:
        unmasked: Weight of the visible tokens, the paper's lambda, at least 0.
        unmasked_weight: `"paper"` divides the weight of visible tokens by `1 - p`; `"published_code"` does not, like
            the published code with a hyperschedule.
        max_weight: Cap on `1 / p` and `1 / (1 - p)`, above 0; infinite for the unbiased objective.
    """

    unmasked: float = 1.0
    unmasked_weight: UnmaskedWeight = "paper"
    max_weight: float = torch.inf

    def __post_init__(self) -> None:
        if self.unmasked < 0:
            raise ValueError(f"`unmasked` (the paper's lambda) must not be negative; got {self.unmasked}.")
        if self.unmasked_weight not in get_args(UnmaskedWeight):
            raise ValueError(
                f"`unmasked_weight` must be one of {get_args(UnmaskedWeight)}; got {self.unmasked_weight!r}."
            )
        if self.max_weight <= 0:
            raise ValueError(f"`max_weight` must be positive; got {self.max_weight}.")

    def weights(self, process: AbstractNoiseProcess, canvas: Canvas) -> Float[Tensor, "b l"]:
        """Weight of each position's cross-entropy, without the measure."""
        w = process.weights(canvas.t)
        visible = w.clean + w.uniform
        wrong = w.uniform / visible.clamp_min(torch.finfo(visible.dtype).tiny)
        share = torch.where(canvas.x_t == canvas.x_0, wrong, 1 - wrong)
        per_visible = (1 / visible).clamp_max(self.max_weight) if self.unmasked_weight == "paper" else 1.0
        of_masked = (1 / w.mask).clamp_max(self.max_weight)
        return torch.where(canvas.x_t == process.mask_id, of_masked, self.unmasked * share * per_visible)

    def terms(self, process: AbstractNoiseProcess, canvas: Canvas) -> tuple[Term, ...]:
        return (Term(canvas.measure * self.weights(process, canvas), CleanToken()),)
