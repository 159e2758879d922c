"""Weights of the world: published checkpoints in, this project's out.

What reads is here at once; what shares, and the classes for `transformers`, are imported when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hdlm.hub.card import AbstractCard, Blueprint, Evidence
from hdlm.hub.cards import CARDS
from hdlm.hub.load import Found, inspect, load

if TYPE_CHECKING:
    from hdlm.hub.modeling import HDLMConfig, HDLMForDiffusionLM
    from hdlm.hub.push import push_to_hub, save_pretrained

__all__ = [
    "CARDS",
    "AbstractCard",
    "Blueprint",
    "Evidence",
    "Found",
    "HDLMConfig",
    "HDLMForDiffusionLM",
    "inspect",
    "load",
    "push_to_hub",
    "save_pretrained",
]

_LATER = {
    "HDLMConfig": "modeling",
    "HDLMForDiffusionLM": "modeling",
    "push_to_hub": "push",
    "save_pretrained": "push",
}


def __getattr__(name: str) -> Any:
    """Import a name on first use."""
    if name not in _LATER:
        raise AttributeError(f"module 'hdlm.hub' has no attribute {name!r}; it offers {', '.join(__all__)}.")
    return getattr(import_module(f"hdlm.hub.{_LATER[name]}"), name)
