"""The parts of a mixture: each turns a clean batch into a loss."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hdlm.data.packing import Samples
from hdlm.denoiser import Denoiser
from hdlm.objective import AbstractObjective, Corruption, CrossEntropy, Opening
from hdlm.objective.canvas import Canvas, next_tokens
from hdlm.parameterization import AbstractParameterization, Mean, NetworkInputs, NoiseDependence
from hdlm.process import AbstractNoiseProcess
from hdlm.randomness import Randomness
from hdlm.transfer import moved

__all__ = ["AbstractPart", "NextToken", "Noisy"]


class AbstractPart(abc.ABC):
    """One way to train on a batch.

    Attributes:
        batch_size: Sequences in an optimizer step, over all processes and passes.
    """

    batch_size: int

    def at(self, step: int, progress: float, randomness: Randomness) -> AbstractPart:
        """The part as it is trained in one step.

        Args:
            step: Number of the optimizer step.
            progress: Share of the run that is done before it, in [0, 1].
            randomness: Random numbers of the run.
        """
        return self

    @property
    def num_times(self) -> int:
        """Number of times drawn for each sequence."""
        return 1

    @property
    def divides_by_tokens(self) -> bool:
        """Whether the loss is divided by numbers of tokens, which may differ between passes; see `counts`."""
        return False

    def counts(
        self,
        denoiser: Denoiser,
        x_0: Int[Tensor, "b l"],
        times: Float[Tensor, "b e"],
        draw: Float[Tensor, "b l"],
        samples: Samples | None = None,
    ) -> Float[Tensor, " terms"]:
        """The numbers of tokens by which the terms of the loss of a pass are divided; see `loss` for the arguments."""
        return torch.zeros(0, dtype=torch.float64)

    @abc.abstractmethod
    def loss(
        self,
        denoiser: Denoiser,
        x_0: Int[Tensor, "b l"],
        times: Float[Tensor, "b e"],
        draw: Float[Tensor, "b l"],
        samples: Samples | None = None,
        counts: Sequence[float] | None = None,
    ) -> Float[Tensor, ""]:
        """Mean loss per position, in nats.

        Tokens on the host are noised there, whatever the device of the denoiser, so that nothing waits for the device.

        Args:
            denoiser: The model that is trained.
            x_0: Ids of clean tokens.
            times: `num_times` stratified numbers in [0, 1) for each sequence.
            draw: A uniform number in [0, 1) for each position.
            samples: The samples in each window, if they are packed or have prompts.
            counts: The mean of `counts` over all passes of the optimizer step; by default those of this pass alone.
        """


@final
@dataclass(frozen=True)
class Noisy(AbstractPart):
    """Noise from a hyperschedule, and an objective.

    Attributes:
        corruption: Turns a clean batch into a noisy canvas.
        objective: Loss on that canvas.
        batch_size: Sequences in an optimizer step.
        share: Share of the steps, relative to the other parts.
        begins: Share of the run that is done when it begins.
        ends: Share of the run that is done when it ends.
        opens: Share of the run in which its attention opens.
        opening: How far attention is open in the current step; None if it is as the regime says.
    """

    corruption: Corruption
    objective: AbstractObjective
    batch_size: int
    share: float
    begins: float = 0.0
    ends: float = 1.0
    opens: float = 0.0
    opening: Opening | None = None

    def at(self, step: int, progress: float, randomness: Randomness) -> Noisy:
        if progress >= self.opens:
            return self
        return replace(self, opening=Opening(progress / self.opens, randomness, step))

    @property
    def num_times(self) -> int:
        return self.corruption.num_times

    @property
    def divides_by_tokens(self) -> bool:
        return self.objective.divides_by_tokens

    def counts(
        self,
        denoiser: Denoiser,
        x_0: Int[Tensor, "b l"],
        times: Float[Tensor, "b e"],
        draw: Float[Tensor, "b l"],
        samples: Samples | None = None,
    ) -> Float[Tensor, " terms"]:
        return self.objective.counts(denoiser, self._canvas(denoiser, x_0, times, draw, samples))

    def loss(
        self,
        denoiser: Denoiser,
        x_0: Int[Tensor, "b l"],
        times: Float[Tensor, "b e"],
        draw: Float[Tensor, "b l"],
        samples: Samples | None = None,
        counts: Sequence[float] | None = None,
    ) -> Float[Tensor, ""]:
        canvas = self._canvas(denoiser, x_0, times, draw, samples)
        return self.objective.mean(denoiser, canvas, denoiser.device, counts)

    def _canvas(
        self, denoiser: Denoiser, x_0: Tensor, times: Tensor, draw: Tensor, samples: Samples | None
    ) -> Canvas:
        """The noised batch."""
        given, documents = (None, None) if samples is None else (samples.given, samples.documents)
        canvas = self.corruption(
            x_0, times, draw, denoiser.device, given=given, documents=documents, opening=self.opening
        )
        if denoiser.self_conditioned:  # half of the sequences; the last bit of a number decides nothing else
            canvas = replace(canvas, conditioned=(draw[:, 0] * 2.0**53).long() % 2 == 1)
        return canvas


@final
@dataclass(frozen=True)
class NextToken(AbstractPart):
    """Next-token prediction without noise, for the warm start.

    It uses the layout `next_tokens`: one causal pass over clean text, in which every position has a target. The pass
    costs half of a two-stream pass.

    Attributes:
        batch_size: Sequences in an optimizer step.
        document_end: Token that ends a document; see `Corruption`.
    """

    batch_size: int
    document_end: int | None = None

    def loss(
        self,
        denoiser: Denoiser,
        x_0: Int[Tensor, "b l"],
        times: Float[Tensor, "b e"],
        draw: Float[Tensor, "b l"],
        samples: Samples | None = None,
        counts: Sequence[float] | None = None,
    ) -> Float[Tensor, ""]:
        given, documents = (None, None) if samples is None else (samples.given, samples.documents)
        (x_0,), (given, documents) = moved([x_0], denoiser.device), moved([given, documents], denoiser.device)
        canvas = next_tokens(x_0, self.document_end, given=given, documents=documents)
        reading = _NextTokenLogits(denoiser.parameterization)
        return _NEXT_TOKEN.mean(Denoiser(denoiser.backbone, denoiser.process, reading), canvas)


_NEXT_TOKEN = CrossEntropy(worst=torch.inf)


@final
@dataclass(frozen=True)
class _NextTokenLogits(AbstractParameterization):
    """Outputs that are logits of the next token, with the network inputs of another parameterization."""

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
