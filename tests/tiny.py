"""Pieces small enough for every test: denoisers, and algorithms that call the network a few times."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor

from hdlm.denoiser import AbstractDenoiser, Denoiser, ForwardContext, Prediction
from hdlm.network import DDiT, DDiTConfig
from hdlm.parameterization import AbstractParameterization, Mean
from hdlm.process import AbstractNoiseProcess
from hdlm.sampling import EntropyRenoising, InParts, Step, algorithm


def tiny_denoiser(
    process: AbstractNoiseProcess,
    parameterization: AbstractParameterization | None = None,
    *,
    conditioned: bool = False,
    num_blocks: int = 2,
    seed: int = 0,
) -> Denoiser:
    """A float64 DDiT of a few blocks whose every parameter is random, as a denoiser.

    Args:
        process: Its noise process.
        parameterization: What its outputs mean; `Mean` by default.
        conditioned: Whether it is told the noise.
        num_blocks: How many blocks.
        seed: Of the weights.
    """
    config = DDiTConfig(
        vocab_size=process.num_words + 1,
        hidden_size=16,
        num_blocks=num_blocks,
        num_heads=2,
        cond_dim=8,
        timestep_embedding=conditioned,
        condition_blocks=conditioned,
    )
    network = DDiT(config).double().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.copy_(0.4 * noise + (1.0 if parameter.ndim == 1 else 0.0))
    return Denoiser(network, process, parameterization or Mean())


def tiny_algorithm(name: str, process: AbstractNoiseProcess, eta: float, **options: Any) -> Step:
    """An algorithm by its name. Renoising calls the network at most 4 times in a move, not 48 times."""
    return with_few_passes(algorithm(name, process, eta, **options))


def with_few_passes(step: Any) -> Step:
    """The step; renoising calls the network at most 4 times in a move."""
    if isinstance(step, InParts):
        return replace(step, inner=with_few_passes(step.inner))
    return replace(step, passes=4) if isinstance(step, EntropyRenoising) else step


@final
@dataclass(frozen=True)
class FixedAnswer(AbstractDenoiser):
    """Returns fixed raw outputs for any input, so that parameterizations and losses can be tested on any numbers.

    Attributes:
        process: Its noise process.
        parameterization: What the numbers mean.
        raw: One row for each position of the canvas, in any leading shape.
    """

    process: AbstractNoiseProcess
    parameterization: AbstractParameterization
    raw: Tensor

    def predict(self, tokens: Tensor, noise: Tensor, context: ForwardContext) -> Prediction:
        rows = self.raw.reshape(-1, self.raw.shape[-1])
        return Prediction(self.process, self.parameterization, tokens, noise, lambda at: rows[at])
