"""Several objectives at once, and the plainest of them, the cross-entropy of the clean token.

The published gamma-hybrids are trained on the score entropy plus a cross-entropy (HDLM, arXiv 2504.06416).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hdlm.denoiser import AbstractDenoiser, Context, Prediction
from hdlm.objective.base import AbstractObjective, clean_cross_entropy
from hdlm.objective.canvas import Canvas
from hdlm.process import AbstractNoiseProcess

__all__ = ["Combination", "CrossEntropy"]


@final
@dataclass(frozen=True)
class CrossEntropy(AbstractObjective):
    """`measure * -log p(x_0 | x_t)`: every active position teaches, masked or not, at every noise alike.

    Attributes:
        worst: Cap on `-log p`, in nats: scores that no distribution has give some words the probability 0.
    """

    worst: float = 30.0

    def __call__(self, denoiser: AbstractDenoiser, canvas: Canvas) -> Float[Tensor, "b l"]:
        canvas = canvas.spoken(denoiser)
        loss = clean_cross_entropy(denoiser, canvas).clamp_max(self.worst)
        return torch.where(canvas.measure > 0, canvas.measure.to(loss.dtype) * loss, 0.0)


@final
@dataclass(frozen=True)
class Combination(AbstractObjective):
    """`sum_k weight_k objective_k`; the network is asked once.

    Attributes:
        terms: Each weight, positive and finite, and its objective.

    Raises:
        ValueError: If there is no term, or a weight is out of range.
    """

    terms: tuple[tuple[float, AbstractObjective], ...]

    def __post_init__(self) -> None:
        weights = [weight for weight, _ in self.terms]
        if not weights or not all(0 < weight < math.inf for weight in weights):
            raise ValueError(
                f"`terms` needs at least one, each with a weight above 0; got weights {weights}."
            )

    def __call__(self, denoiser: AbstractDenoiser, canvas: Canvas) -> Float[Tensor, "b l"]:
        asked = _AskedOnce(denoiser)
        losses = [weight * objective(asked, canvas) for weight, objective in self.terms]
        return torch.stack(torch.broadcast_tensors(*losses)).sum(0)


@dataclass
class _AskedOnce(AbstractDenoiser):
    """A denoiser that answers about one canvas, and remembers its answer."""

    inner: AbstractDenoiser
    answers: list[Prediction] = field(default_factory=list)

    @property
    def process(self) -> AbstractNoiseProcess:  # type: ignore[override]
        return self.inner.process

    @property
    def lookback(self) -> int:
        return self.inner.lookback

    def new_cache(self) -> Any:
        return self.inner.new_cache()

    def predict(
        self, tokens: Int[Tensor, "b q"], noise: Float[Tensor, "b q"], context: Context
    ) -> Prediction:
        if not self.answers:
            self.answers.append(self.inner.predict(tokens, noise, context))
        return self.answers[0]
