"""The parts of a mixture: ways to turn a clean batch into a loss."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hdlm.denoiser import Denoiser
from hdlm.objective import AbstractObjective, Corruption
from hdlm.objective.canvas import documents
from hdlm.objective.rows import cross_entropy
from hdlm.transfer import moved

__all__ = ["AbstractPart", "NextToken", "Noisy"]


class AbstractPart(abc.ABC):
    """One way to learn from a batch.

    Attributes:
        batch_size: Sequences in its optimizer steps, over all processes and passes.
    """

    batch_size: int

    @property
    def num_times(self) -> int:
        """How many times it wants for each sequence."""
        return 1

    @abc.abstractmethod
    def loss(
        self,
        denoiser: Denoiser,
        x_0: Int[Tensor, "b l"],
        times: Float[Tensor, "b e"],
        draw: Float[Tensor, "b l"],
    ) -> Float[Tensor, ""]:
        """Mean loss of a position, in nats.

        What comes on the host is noised there, wherever the denoiser is: then nothing waits for the device.

        Args:
            denoiser: What learns.
            x_0: Clean tokens.
            times: `num_times` stratified numbers in [0, 1) for each sequence.
            draw: A uniform number in [0, 1) for each position.
        """


@final
@dataclass(frozen=True)
class Noisy(AbstractPart):
    """Noise as a hyperschedule says, and an objective.

    Attributes:
        corruption: Clean batch in, noisy canvas out.
        objective: What is minimised on it.
        batch_size: As above.
        share: Part of the steps, relative to the other parts.
    """

    corruption: Corruption
    objective: AbstractObjective
    batch_size: int
    share: float

    @property
    def num_times(self) -> int:
        return self.corruption.num_times

    def loss(
        self,
        denoiser: Denoiser,
        x_0: Int[Tensor, "b l"],
        times: Float[Tensor, "b e"],
        draw: Float[Tensor, "b l"],
    ) -> Float[Tensor, ""]:
        device = denoiser.device
        return self.objective.mean(denoiser, self.corruption(x_0, times, draw, device), device)


@final
@dataclass(frozen=True)
class NextToken(AbstractPart):
    """Next-token prediction without noise: the warm start.

    One causal pass over clean text in which every position teaches costs half of a two-stream pass and says about
    twice as much. What a network so learns of words and contexts it keeps when it turns to noise.

    Attributes:
        batch_size: As above.
        document_end: As of `Corruption`.
    """

    batch_size: int
    document_end: int | None = None

    def loss(
        self,
        denoiser: Denoiser,
        x_0: Int[Tensor, "b l"],
        times: Float[Tensor, "b e"],
        draw: Float[Tensor, "b l"],
    ) -> Float[Tensor, ""]:
        (x_0,) = moved([x_0], denoiser.device)
        before, after = x_0[:, :-1], x_0[:, 1:]
        position = torch.arange(before.shape[1], device=x_0.device)
        causal = position[None, None, :] <= position[None, :, None]
        if self.document_end is not None:
            own = documents(before, self.document_end)
            causal = causal & (own[:, None, :] == own[:, :, None])
        told = denoiser.parameterization.inputs(torch.zeros(before.shape, device=x_0.device))
        rows = denoiser.backbone.features(
            before, condition=told.condition, blend=told.blend, attention=causal
        ).flatten(0, 1)
        share = torch.full((len(rows),), 1 / len(rows), dtype=torch.float64, device=x_0.device)
        matrix, bias = denoiser.backbone.projection()
        return cross_entropy(rows, matrix, bias, after.flatten(), share, denoiser.process.num_words)
