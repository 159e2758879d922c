"""An objective computes nats per position from a denoiser's answer on a noised batch.

It is a sum of terms, `weight * cost`. The cost of a position is computed from the prediction, row by row, and only
where the weight is not zero. `hdlm.objective.rows` computes a few rows at a time, so that no tensor holds the
vocabulary of every position, forward or backward.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
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
    """The cost of a position, in nats."""

    @abc.abstractmethod
    def __call__(self, prediction: Prediction, canvas: Canvas, at: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The cost of the flattened positions `at`; differentiable in the prediction's raw outputs."""


@final
@dataclass(frozen=True)
class CleanToken(AbstractCost):
    """`-log p(x_0 | x_t)`, at most `worst` nats.

    Attributes:
        worst: Cap on the cost, in nats.
        every_row: Whether raw outputs are normalised over all rows, that of the mask included, as in the published
            losses of converted models: this adds `-log(1 - p(mask))`. They must be logits.
    """

    worst: float = torch.inf
    every_row: bool = False

    def __call__(self, prediction: Prediction, canvas: Canvas, at: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        logs = prediction.raw(at).float().log_softmax(-1) if self.every_row else prediction.log_clean(at)
        log_p = logs.gather(-1, canvas.x_0.flatten()[at][:, None])[:, 0]
        return -log_p if self.worst == torch.inf else (-log_p).clamp_max(self.worst)


@final
@dataclass(frozen=True)
class Term:
    """One part of an objective.

    Attributes:
        weight: Weight of each position, at least 0; where it is 0 the cost is not computed.
        cost: The cost that the weight multiplies.
        clean: Whether it is a cost of the clean stream, in which a token is predicted from those before it.
        count: Number of tokens of this canvas that the sum is divided by; None if it is divided by the number of all
            positions, or of the tokens of each sequence.
    """

    weight: Float[Tensor, "b l"]
    cost: AbstractCost
    clean: bool = False
    count: Int[Tensor, ""] | None = None


class AbstractObjective(abc.ABC):
    """A loss per position, in nats, weighted so that the sum over a sequence estimates the objective."""

    @property
    def divides_by_tokens(self) -> bool:
        """Whether a sum is divided by a number of tokens, which may differ between the passes of an optimizer step."""
        return False

    @abc.abstractmethod
    def terms(self, process: AbstractNoiseProcess, canvas: Canvas) -> tuple[Term, ...]:
        """The terms of the objective; the weights are known before the network is called.

        Args:
            process: The denoiser's noise process.
            canvas: A noised batch.
        """

    @final
    def __call__(self, denoiser: AbstractDenoiser, canvas: Canvas) -> Float[Tensor, "b l"]:
        """The loss of every position of `canvas.x_t`; differentiable in the denoiser's weights."""
        canvas = canvas.without_lookback_positions(denoiser)
        streams = canvas.predict_streams(denoiser)
        losses = []
        for term in self.terms(denoiser.process, canvas):
            weight = term.weight.flatten()
            at = (weight > 0).nonzero()[:, 0]
            cost = rows.each(_reader(term.cost, canvas), streams[term.clean], at)
            weighed = weight[at].to(cost.dtype) * cost
            losses.append(weighed.new_zeros(weight.shape).index_put((at,), weighed))
        return torch.stack(torch.broadcast_tensors(*losses)).sum(0).view(canvas.x_0.shape)

    @final
    def counts(self, denoiser: AbstractDenoiser, canvas: Canvas) -> Float[Tensor, " terms"]:
        """The number of tokens that the sum of each term is divided by; 0 for a term without such a number."""
        terms = self.terms(denoiser.process, canvas.without_lookback_positions(denoiser))
        numbers = [canvas.x_0.new_zeros(()) if term.count is None else term.count for term in terms]
        return torch.stack(numbers).double()

    @final
    def mean(
        self,
        denoiser: AbstractDenoiser,
        canvas: Canvas,
        device: torch.device | None = None,
        counts: Sequence[float] | None = None,
    ) -> Float[Tensor, ""]:
        """The mean of the loss over all positions, including positions of weight 0.

        Equal to `self(denoiser, canvas).mean()`, and cheaper: the gradient is computed together with the value, if the
        network ends in a linear layer.

        Args:
            denoiser: The denoiser to evaluate.
            canvas: A noised batch.
            device: Device of the denoiser, if it differs from that of the canvas. The rows of a canvas on the host are
                chosen there, so that nothing waits for the device.
            counts: For each term, the mean of `counts` over the passes of an optimizer step, by which its sum is
                divided in the place of that of this canvas. Then the mean over the passes is the loss of one batch.
        """
        canvas = canvas.without_lookback_positions(denoiser)
        chosen = []
        for number, term in enumerate(self.terms(denoiser.process, canvas)):
            weight = term.weight.flatten()
            at = (weight > 0).nonzero()[:, 0]
            share = weight[at] / weight.numel()
            if counts is not None and term.count is not None:
                share = share * (term.count / max(counts[number], 1e-9))
            chosen.append((term, at, share))
        canvas = canvas if device is None else canvas.to(device)
        numbers = moved([tensor for _, at, weight in chosen for tensor in (at, weight)], canvas.x_0.device)
        streams = canvas.predict_streams(denoiser)
        totals = [
            _total(term.cost, streams[term.clean], canvas, at, weight)
            for (term, _, _), at, weight in zip(chosen, numbers[::2], numbers[1::2], strict=True)
        ]
        return torch.stack(torch.broadcast_tensors(*totals)).sum()


def _reader(cost: AbstractCost, canvas: Canvas) -> rows.Cost:
    return lambda prediction, at: cost(prediction, canvas, at)


def _total(cost: AbstractCost, prediction: Prediction, canvas: Canvas, at: Tensor, weight: Tensor) -> Tensor:
    """The weighted sum of a cost; the plain cross-entropy of logits with clean tokens takes a shorter way."""
    plain = (
        isinstance(cost, CleanToken) and cost.worst == torch.inf and prediction.parameterization.is_softmax
    )
    targets = canvas.x_0.flatten() if plain else None
    every_row = isinstance(cost, CleanToken) and cost.every_row
    return rows.total(_reader(cost, canvas), prediction, at, weight, targets=targets, every_row=every_row)
