"""The losses of the published recipes that turn causal models into masked diffusion models.

They are sums of `weight * -log p(x_0 | x_t)` over masked tokens. They differ in the weight, in what the sum is divided
by, and in the rows that `p` is normalised over:

| recipe | weight | divided by | source |
|---|---|---|---|
| LLaDA | `inverse` | positions | arXiv 2502.09992 |
| DiffuGPT, DiffuLLaMA | `inverse` | masked tokens | arXiv 2410.17891 |
| Dream | `context` | tokens | arXiv 2508.15487 |
| SDAR, A2D | `inverse` | tokens | arXiv 2510.06303 |
| Fast-dLLM v2 | `flat` | masked tokens | arXiv 2509.26328 |

With `inverse` and `positions` it is the bound of masked diffusion, as `WeightedCrossEntropy` with `unmasked = 0`, on a
flat canvas and in two streams with linear noise. For other hyperschedules and noise schedules use the latter, whose
weights have the frequency of each noise level as well.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, final, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hdlm.objective.base import AbstractObjective, CleanToken, Term
from hdlm.objective.canvas import Canvas
from hdlm.process import AbstractNoiseProcess
from hdlm.strict_config import require

__all__ = ["CleanStream", "MaskedCrossEntropy"]

MaskWeight = Literal["inverse", "flat", "context"]
Divisor = Literal["positions", "tokens", "masked", "sequences"]
_COUNTING = ("tokens", "masked")
"""Divisors that are a number of tokens of the batch."""


@final
@dataclass(frozen=True)
class MaskedCrossEntropy(AbstractObjective):
    """The cross-entropy of masked tokens.

    A sum that is divided by a number of tokens is divided by that of the whole batch of an optimizer step, over all of
    its passes and processes.

    Attributes:
        weight: Weight of a masked token: one over the masking probability (`"inverse"`), 1 (`"flat"`), or the
            nearness of visible tokens (`"context"`, CART).
        divisor: What the sum is divided by: all positions; the `"tokens"` that have a loss when masked, so without
            prompts and padding; the `"masked"` ones among them; or the tokens of each sequence, and then the number
            of sequences (`"sequences"`).
        every_row: Whether outputs are normalised over all rows, that of the mask included, as published.
        max_weight: Cap on the `"inverse"` weight.
        nearness: The `p` of `"context"`: a visible token at distance `d` counts `p (1 - p)^(d - 1) / 2`.
    """

    weight: MaskWeight = "inverse"
    divisor: Divisor = "positions"
    every_row: bool = False
    max_weight: float = torch.inf
    nearness: float = 0.3

    def __post_init__(self) -> None:
        for name, choices in (("weight", MaskWeight), ("divisor", Divisor)):
            value = getattr(self, name)
            require(value in get_args(choices), name, f"one of {', '.join(get_args(choices))}", value)
        require(self.max_weight > 0, "max_weight", "positive", self.max_weight)
        require(0 < self.nearness < 1, "nearness", "in (0, 1)", self.nearness)

    @property
    def divides_by_tokens(self) -> bool:
        return self.divisor in _COUNTING

    def terms(self, process: AbstractNoiseProcess, canvas: Canvas) -> tuple[Term, ...]:
        tokens = canvas.measure > 0
        masked = tokens & (canvas.x_t == process.mask_id)
        weight = torch.where(masked, self._weights(process, canvas), 0.0)
        cost, counted = CleanToken(every_row=self.every_row), masked if self.divisor == "masked" else tokens
        return (_divided(Term(weight, cost), self.divisor, counted),)

    def _weights(self, process: AbstractNoiseProcess, canvas: Canvas) -> Float[Tensor, "b l"]:
        if self.weight == "flat":
            return torch.ones_like(canvas.t)
        if self.weight == "inverse":
            return (1 / process.weights(canvas.t).mask).clamp_max(self.max_weight)
        return nearness(canvas.x_t != process.mask_id, canvas.documents, self.nearness)


@final
@dataclass(frozen=True)
class CleanStream(AbstractObjective):
    """The next-token loss of the clean stream, to be combined with the loss of the noisy one (NBDiff, I-DLM).

    The clean stream must be causal (`network.context = "causal"`), else it contains what it is to predict.

    Attributes:
        divisor: As in `MaskedCrossEntropy`; every token counts as masked.
        every_row: As in `MaskedCrossEntropy`.
    """

    divisor: Divisor = "positions"
    every_row: bool = False

    def __post_init__(self) -> None:
        MaskedCrossEntropy(divisor=self.divisor)

    @property
    def divides_by_tokens(self) -> bool:
        return self.divisor in _COUNTING

    def terms(self, process: AbstractNoiseProcess, canvas: Canvas) -> tuple[Term, ...]:
        if not canvas.num_clean:
            raise ValueError(
                "CleanStream needs two streams: a single canvas has no clean one (two_stream=true)."
            )
        tokens = (canvas.measure > 0) & (torch.arange(canvas.num_clean, device=canvas.x_0.device) > 0)
        if canvas.documents is not None:  # the first token of a document follows no other
            tokens[:, 1:] &= canvas.documents[:, 1:] == canvas.documents[:, :-1]
        term = Term(tokens.to(canvas.t.dtype), CleanToken(every_row=self.every_row), clean=True)
        return (_divided(term, self.divisor, tokens),)


def nearness(
    visible: Bool[Tensor, "b l"], documents: Int[Tensor, "b l"] | None, p: float
) -> Float[Tensor, "b l"]:
    """The weights of CART: the sum over visible tokens at distance `d` of `p (1 - p)^(d - 1) / 2`.

    Args:
        visible: Tokens that are not masked.
        documents: Document of each token; tokens of other documents do not count.
        p: Share of the kernel that is at the distance 1.
    """
    place = torch.arange(visible.shape[1], device=visible.device)
    distance = (place[:, None] - place).abs()
    kernel = torch.where(distance > 0, p / 2 * (1 - p) ** (distance - 1.0), 0.0).double()
    if documents is None:
        return visible.double() @ kernel
    rows = [
        (kernel * (own[:, None] == own)) @ row.double() for row, own in zip(visible, documents, strict=True)
    ]
    return torch.stack(rows)


def _divided(term: Term, divisor: Divisor, counted: Bool[Tensor, "b l"]) -> Term:
    """A term whose mean over all positions is its sum over the divisor."""
    weight = term.weight
    if divisor == "positions":
        return term
    if divisor == "sequences":
        return replace(term, weight=weight * weight.shape[1] / counted.sum(1, keepdim=True).clamp_min(1))
    count = counted.sum()
    return replace(term, weight=weight * weight.numel() / count.clamp_min(1), count=count)
