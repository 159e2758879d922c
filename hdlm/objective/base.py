"""An objective turns a denoiser's answer on a noised batch into nats per position.

It is a sum of terms, `weight * cost`: what a position costs is read off the prediction, row by row, and only where its
weight is not zero. `hdlm.objective.rows` does so a few rows at a time, so that no tensor holds every position's
vocabulary, forward or backward.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hdlm.denoiser import AbstractDenoiser, Prediction
from hdlm.objective import rows
from hdlm.objective.canvas import Canvas
from hdlm.process import AbstractNoiseProcess
from hdlm.transfer import moved

__all__ = ["AbstractCost", "AbstractObjective", "CleanToken", "Term"]


class AbstractCost(abc.ABC):
    """What a position costs, in nats."""

    @abc.abstractmethod
    def __call__(self, prediction: Prediction, canvas: Canvas, at: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The cost of the flattened positions `at`; differentiable in what the prediction's `raw` gives."""


@final
@dataclass(frozen=True)
class CleanToken(AbstractCost):
    """`-log p(x_0 | x_t)`, at most `worst` nats."""

    worst: float = torch.inf

    def __call__(self, prediction: Prediction, canvas: Canvas, at: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        log_p = prediction.log_clean(at).gather(-1, canvas.x_0.flatten()[at][:, None])[:, 0]
        return -log_p if self.worst == torch.inf else (-log_p).clamp_max(self.worst)


@final
@dataclass(frozen=True)
class Term:
    """One part of an objective.

    Attributes:
        weight: Of each position, at least 0; where it is 0 the network is not asked.
        cost: What it multiplies.
    """

    weight: Float[Tensor, "b l"]
    cost: AbstractCost


class AbstractObjective(abc.ABC):
    """A loss of each position, in nats, weighted so that the sum over a sequence estimates the objective."""

    @abc.abstractmethod
    def terms(self, process: AbstractNoiseProcess, canvas: Canvas) -> tuple[Term, ...]:
        """What is added up, before anybody asks the network.

        Args:
            process: The denoiser's noise.
            canvas: A noised batch.
        """

    @final
    def __call__(self, denoiser: AbstractDenoiser, canvas: Canvas) -> Float[Tensor, "b l"]:
        """The loss of every position of `canvas.x_t`; differentiable in the denoiser's weights."""
        canvas = canvas.without_lookback_positions(denoiser)
        prediction = canvas.predict(denoiser)
        losses = []
        for term in self.terms(denoiser.process, canvas):
            weight = term.weight.flatten()
            at = (weight > 0).nonzero()[:, 0]
            cost = rows.each(_reader(term.cost, canvas), prediction, at)
            weighed = weight[at].to(cost.dtype) * cost
            losses.append(weighed.new_zeros(weight.shape).index_put((at,), weighed))
        return torch.stack(torch.broadcast_tensors(*losses)).sum(0).view(canvas.x_0.shape)

    @final
    def mean(
        self, denoiser: AbstractDenoiser, canvas: Canvas, device: torch.device | None = None
    ) -> Float[Tensor, ""]:
        """The mean of the loss over all positions, those of weight 0 among them.

        The same as `self(denoiser, canvas).mean()`, and cheaper: the gradient is computed with the value, where the
        network ends in a linear layer.

        Args:
            denoiser: Whose loss.
            canvas: A noised batch.
            device: Where the denoiser is, if not where the canvas is. The rows of a canvas on the host are chosen
                there, so that nothing waits for the device.
        """
        canvas = canvas.without_lookback_positions(denoiser)
        chosen = []
        for term in self.terms(denoiser.process, canvas):
            weight = term.weight.flatten()
            at = (weight > 0).nonzero()[:, 0]
            chosen.append((term.cost, at, weight[at] / weight.numel()))
        canvas = canvas if device is None else canvas.to(device)
        numbers = moved([one for _, at, weight in chosen for one in (at, weight)], canvas.x_0.device)
        prediction = canvas.predict(denoiser)
        totals = [
            rows.total(
                _reader(cost, canvas), prediction, at, weight, targets=_targets(cost, prediction, canvas)
            )
            for (cost, _, _), at, weight in zip(chosen, numbers[::2], numbers[1::2], strict=True)
        ]
        return torch.stack(torch.broadcast_tensors(*totals)).sum()


def _reader(cost: AbstractCost, canvas: Canvas) -> rows.Cost:
    return lambda prediction, at: cost(prediction, canvas, at)


def _targets(cost: AbstractCost, prediction: Prediction, canvas: Canvas) -> Int[Tensor, " n"] | None:
    """Clean tokens, if the cost is the plain cross-entropy of logits with them."""
    plain = cost == CleanToken() and prediction.parameterization.is_softmax
    return canvas.x_0.flatten() if plain else None
