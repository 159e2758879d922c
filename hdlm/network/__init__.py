"""The network: tokens to numbers. It does not depend on noise and needs only torch."""

from __future__ import annotations

from hdlm.network.build import build_network, read_network_config
from hdlm.network.cache import KVCache
from hdlm.network.config import DDiTConfig, NetworkShape
from hdlm.network.ddit import DDiT
from hdlm.network.decoder import Decoder, DecoderConfig
from hdlm.network.diffusion_gemma import DiffusionGemma, DiffusionGemmaConfig
from hdlm.network.passes import Pass, Previous
from hdlm.network.rotary import RotaryScaling
from hdlm.network.static import StaticBatch
from hdlm.network.transformer import AbstractNetwork, AbstractTransformer, has_compiler

__all__ = [
    "AbstractNetwork",
    "AbstractTransformer",
    "DDiT",
    "DDiTConfig",
    "Decoder",
    "DecoderConfig",
    "DiffusionGemma",
    "DiffusionGemmaConfig",
    "KVCache",
    "NetworkShape",
    "Pass",
    "Previous",
    "RotaryScaling",
    "StaticBatch",
    "build_network",
    "has_compiler",
    "read_network_config",
]
