"""Networks small enough to run in every test: random weights, nothing left at zero."""

from __future__ import annotations

import torch

from hdlm.denoiser import Denoiser
from hdlm.network import DDiT, DDiTConfig
from hdlm.parameterization import AbstractParameterization, Mean
from hdlm.process import AbstractNoiseProcess


def tiny_denoiser(
    process: AbstractNoiseProcess,
    parameterization: AbstractParameterization | None = None,
    *,
    conditioned: bool = False,
    seed: int = 0,
) -> Denoiser:
    """A float64 DDiT of two blocks whose every parameter is random, as a denoiser.

    Args:
        process: Its noise process.
        parameterization: What its outputs mean; `Mean` by default.
        conditioned: Whether it is told the noise.
        seed: Of the weights.
    """
    config = DDiTConfig(
        vocab_size=process.num_words + 1,
        hidden_size=16,
        num_blocks=2,
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
