"""Networks by their configuration: which class belongs to which table of sizes and switches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hdlm.network.config import DDiTConfig, NetworkShape
from hdlm.network.ddit import DDiT
from hdlm.network.decoder import Decoder, DecoderConfig
from hdlm.network.diffusion_gemma import DiffusionGemma, DiffusionGemmaConfig
from hdlm.network.transformer import AbstractNetwork
from hdlm.strict_config import OptionError

__all__ = ["build_network", "read_network_config"]

_CONFIGS: Mapping[str, type[DDiTConfig | DecoderConfig | DiffusionGemmaConfig]] = {
    "DDiT": DDiTConfig,
    "Decoder": DecoderConfig,
    "DiffusionGemma": DiffusionGemmaConfig,
}


def read_network_config(table: Mapping[str, Any]) -> DDiTConfig | DecoderConfig | DiffusionGemmaConfig:
    """Read the configuration of a network.

    Args:
        table: What `to_dict` of a configuration gave. Without a `type`, the network is a `DDiT`.

    Raises:
        ValueError: If the type is unknown, or an option is unknown, missing or out of range.
    """
    kind = table.get("type", "DDiT")
    if kind not in _CONFIGS:
        raise OptionError("type", kind, f"be one of {', '.join(_CONFIGS)}")
    return _CONFIGS[kind].from_dict({name: value for name, value in table.items() if name != "type"})


def build_network(config: NetworkShape) -> AbstractNetwork:
    """A network with new weights.

    Raises:
        ValueError: If no network has such a configuration.
    """
    if isinstance(config, DDiTConfig):
        return DDiT(config)
    if isinstance(config, DecoderConfig):
        return Decoder(config)
    if isinstance(config, DiffusionGemmaConfig):
        return DiffusionGemma(config)
    raise ValueError(
        f"a network needs one of {', '.join(_CONFIGS)} as its type; got {type(config).__name__}."
    )
