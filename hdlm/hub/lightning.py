"""The configuration inside a Lightning checkpoint, as plain values for the cards of the hub.

The trainers of MDLM, Duo and BD3-LM save `hyper_parameters = {"config": DictConfig, "tokenizer": ...}`. The pickle
gives a `StandIn` for each object of OmegaConf, whose values are in its state: `_content` of a container, `_val` of a
node.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

from hdlm.hub.configs import resolve_interpolations
from hdlm.hub.pickles import StandIn

__all__ = ["hub_config", "training_config"]

MOST_VALUES = 100_000
"""Largest number of values in a configuration. Parts that are shared count at each place."""
DEEPEST = 64
"""Largest number of nested tables."""

_LOG_LINEAR = (None, "loglinear", "log-linear")
_SIZES = {
    "hidden_dim": "hidden_size",
    "n_blocks": "n_blocks",
    "n_heads": "n_heads",
    "cond_dim": "cond_dim",
    "model_length": "length",
    "dropout": "dropout",
}
"""Keys of the hub's config, and those of the table `model` in the trainers."""


def training_config(saved: Any) -> dict[str, Any] | None:
    """The configuration in `hyper_parameters` with interpolations resolved; None if there is none.

    Raises:
        ValueError: If it is larger than any configuration, or its keys refer to one another in a circle.
    """
    config = saved.get("config", saved) if isinstance(saved, Mapping) else saved
    plain = _Plain().of(config, 0)
    return resolve_interpolations(plain) if isinstance(plain, dict) and plain else None


@final
class _Plain:
    """Converts stand-ins of OmegaConf into plain values, up to a number of them."""

    def __init__(self) -> None:
        self._left = MOST_VALUES

    def of(self, value: Any, depth: int) -> Any:
        """The plain value; None for values that a configuration does not hold."""
        self._left -= 1
        if self._left < 0 or depth > DEEPEST:
            raise ValueError(
                f"the configuration in it has more than {MOST_VALUES} values or {DEEPEST} levels."
            )
        if isinstance(value, StandIn):
            state = value.state
            if not value.name.startswith("omegaconf.") or not isinstance(state, dict):
                return None
            return self.of(state.get("_content", state.get("_val")), depth + 1)
        if isinstance(value, Mapping):
            return {key: self.of(part, depth + 1) for key, part in value.items() if isinstance(key, str)}
        if isinstance(value, list | tuple):
            return [self.of(part, depth + 1) for part in value]
        return value if isinstance(value, str | bool | int | float) else None


def hub_config(config: Mapping[str, Any], rows: int) -> dict[str, Any] | None:
    """The config that a model of these trainers has on the hub; None if the model is unknown."""
    model, algorithm = config.get("model"), config.get("algo", config)
    if not isinstance(model, Mapping) or not isinstance(algorithm, Mapping):
        return None
    if algorithm.get("backbone") != "dit":
        return None
    noise = config.get("noise")
    if isinstance(noise, Mapping) and noise.get("type") not in _LOG_LINEAR:
        return None
    if "algo" in config:
        name = {"duo_base": "duo"}.get(str(algorithm.get("name")), algorithm.get("name"))
    else:
        name = "mdlm" if config.get("parameterization") == "subs" else None
    converted = {key: model.get(own) for key, own in _SIZES.items()}
    converted |= {"model_type": name, "vocab_size": rows, "causal": algorithm.get("causal_attention", False)}
    match name:
        case "mdlm":
            if converted.pop("causal"):
                return None
            converted["time_conditioning"] = algorithm.get("time_conditioning", False)
        case "bd3lm":
            converted["time_conditioning"] = algorithm.get("time_conditioning", False)
            converted["cross_attn"] = algorithm.get("cross_attn", True)
            converted["block_size"] = config.get("block_size")
        case "duo":
            pass
        case _:
            return None
    return converted
