"""Low-rank adapters (LoRA, arXiv 2106.09685) by `peft`: a small part of the weights is trained.

Every checkpoint has the weights with the adapters merged into them, so that it is an ordinary model. The adapters
themselves, and the weights below them, are part of the training state.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from hdlm.network import AbstractNetwork
from hdlm.training.recipe import LoraSettings

__all__ = ["adapters_of", "add_adapters", "merged"]

_BASE, _ADAPTERS = ".base_layer.", (".lora_A.default.weight", ".lora_B.default.weight")


def add_adapters(network: AbstractNetwork, settings: LoraSettings) -> None:
    """Add adapters to the layers of the blocks, in place; the other weights are no longer trained.

    The second matrix of an adapter is 0, so the outputs of the network do not change.

    Raises:
        ValueError: If `peft` is not installed, or no layer has such a name.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ModuleNotFoundError as error:
        raise ValueError("adapters are made by the package `peft`: pip install 'hdlm[lora]'.") from error
    names = [name for name, module in network.blocks.named_modules() if isinstance(module, nn.Linear)]
    kinds = sorted({name.rpartition(".")[2] for name in names})
    wanted = settings.layers or tuple(kinds)
    if unknown := sorted(set(wanted) - set(kinds)):
        raise ValueError(f"`lora.layers` must be among {', '.join(kinds)}; got {', '.join(unknown)}.")
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=rf"blocks\.\d+\.(.*\.)?({'|'.join(wanted)})",
    )
    inject_adapter_in_model(config, network)
    if settings.embeddings:
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(parameter.requires_grad or name in network.token_rows)


def adapters_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The adapters among the tensors of a network, and the weights below them; empty without adapters."""
    return {name: value for name, value in tensors.items() if _BASE in name or name.endswith(_ADAPTERS)}


def merged(network: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a network with adapters, under the names and with the values of the network without them.

    Args:
        network: The network, which has the scale of each adapter.
        tensors: Its tensors by name, for example averaged ones.
    """
    adapters = adapters_of(tensors)
    result = {name: value for name, value in tensors.items() if name not in adapters}
    scales = {
        name: module.scaling["default"]
        for name, module in network.named_modules()
        if hasattr(module, "lora_A")
    }
    for layer, scale in scales.items():
        first, second = (tensors[layer + end] for end in _ADAPTERS)
        base = tensors[f"{layer}{_BASE}weight"]
        change = (second.double() @ first.double()) * scale
        result[f"{layer}.weight"] = (base.double() + change.to(base.device)).to(base.dtype)
        if (bias := tensors.get(f"{layer}{_BASE}bias")) is not None:
            result[f"{layer}.bias"] = bias
    return result
