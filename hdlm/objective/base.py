"""An objective turns a denoiser's answer on a noised batch into nats per position."""

from __future__ import annotations

import abc

from jaxtyping import Float
from torch import Tensor

from hdlm.denoiser import AbstractDenoiser
from hdlm.objective.canvas import Canvas

__all__ = ["AbstractObjective", "clean_cross_entropy"]


class AbstractObjective(abc.ABC):
    """A loss of each position, in nats, weighted so that the sum over a sequence estimates the objective."""

    @abc.abstractmethod
    def __call__(self, denoiser: AbstractDenoiser, canvas: Canvas) -> Float[Tensor, "b l"]:
        """The loss of every position of `canvas.x_t`; differentiable in the denoiser's weights."""


def clean_cross_entropy(denoiser: AbstractDenoiser, canvas: Canvas) -> Float[Tensor, "b l"]:
    """`-log p(x_0 | x_t)` at every position, in nats."""
    prediction = canvas.predict(denoiser)
    log_p = prediction.log_clean(prediction.everywhere())
    return -log_p.gather(-1, canvas.x_0.flatten()[:, None])[:, 0].view(canvas.x_0.shape)
