"""The parts of a mixture: ways to turn a clean batch into a loss."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hdlm.denoiser import Denoiser
from hdlm.objective import AbstractObjective, Corruption, CrossEntropy
from hdlm.objective.canvas import next_tokens
from hdlm.parameterization import AbstractParameterization, Mean, NetworkInputs, NoiseDependence
from hdlm.process import AbstractNoiseProcess
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

    It is a layout like the others, `next_tokens`: one causal pass over clean text, in which every position has a
    target. The pass costs half of a two-stream pass, and the network keeps what it learns when noise comes.

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
        canvas = next_tokens(x_0, self.document_end)
        reading = _NextTokenLogits(denoiser.parameterization)
        return _NEXT_TOKEN.mean(Denoiser(denoiser.backbone, denoiser.process, reading), canvas)


_NEXT_TOKEN = CrossEntropy(worst=torch.inf)


@final
@dataclass(frozen=True)
class _NextTokenLogits(AbstractParameterization):
    """Outputs that are logits of the next token, of a network that gets what another parameterization gives it."""

    own: AbstractParameterization

    @property
    def is_softmax(self) -> bool:
        return True

    @property
    def noise_dependence(self) -> NoiseDependence:
        return self.own.noise_dependence

    def inputs(self, u: Float[Tensor, "*b"]) -> NetworkInputs:
        return self.own.inputs(u)

    def log_clean(
        self,
        process: AbstractNoiseProcess,
        raw: Float[Tensor, "*n rows"],
        x_t: Int[Tensor, "*n"],
        u: Float[Tensor, "*n"],
    ) -> Float[Tensor, "*n v"]:
        return Mean().log_clean(process, raw, x_t, u)

    def log_score(
        self,
        process: AbstractNoiseProcess,
        raw: Float[Tensor, "*n rows"],
        x_t: Int[Tensor, "*n"],
        u: Float[Tensor, "*n"],
    ) -> Float[Tensor, "*n v"]:
        return Mean().log_score(process, raw, x_t, u)
