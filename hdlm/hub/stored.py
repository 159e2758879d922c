"""The tensors in a file of weights: the named ones, or the moving average that is stored without names.

| file | holds |
|---|---|
| `.safetensors`, one or several | one set of weights |
| a state dict (`.bin`, `.pth`, `.pt`) | one set of weights |
| a published run's `.pth` | `model`, `ema.shadow_params`, `optimizer`, `step` |
| a Lightning `.ckpt` | `state_dict`, `ema.shadow_params`, `hyper_parameters`, ... |

Wrappers of a network (`module.`, `_orig_mod.`, `model.`, `backbone.`, ...) insert their names into the names of
tensors. They are removed in any order and at any depth; the names that remain must fit the network exactly.

A moving average is a list in the order of the network's parameters, which is the order of the names in the file.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, final

import torch
from torch import Tensor

from hdlm.checkpoint import WeightsName
from hdlm.checkpoint.weights import AbstractTensors, Safetensors
from hdlm.hub.lightning import training_config
from hdlm.hub.pickles import PickledTensors, StandIn, load_pickle

__all__ = ["PICKLES", "StoredWeights", "Unwrapped", "open_weights"]

PICKLES = (".bin", ".pth", ".pt", ".ckpt")
"""Suffixes of files that torch pickled."""

_WRAPPERS = frozenset(
    {"_checkpoint_wrapped_module", "_forward_module", "_fsdp_wrapped_module", "_orig_mod"}
    | {"backbone", "model", "module"}
)
"""Names that training and compilation insert. No part of the network has such a name."""


@final
@dataclass(frozen=True)
class StoredWeights:
    """Weights in files.

    Attributes:
        tensors: The named tensors.
        shadow: Their moving average, in the order of the parameters among them, or None if it was not stored.
        trained: Whether the named tensors are known to be those of the last training step.
        step: Training steps done, if the file records them.
        settings: The configuration of the training in the file, as plain values, or None.
    """

    tensors: AbstractTensors
    shadow: Sequence[Tensor] | None = None
    trained: bool = False
    step: int | None = None
    settings: Mapping[str, Any] | None = None
    _names: tuple[str, ...] = field(default=())

    def choose(
        self, weights: WeightsName, parameters: Collection[str]
    ) -> tuple[AbstractTensors, Literal["averaged", "raw", "only"]]:
        """The tensors to use, and their kind: `"only"` if there is one set and the file does not record which it is.

        Raises:
            ValueError: If that set is missing, or the average does not belong to these parameters.
        """
        where = self.tensors.origin
        if not self.trained:
            if weights == "raw":
                raise ValueError(f"{where} holds one set of weights and no raw ones: leave `weights` out.")
            return self.tensors, "only"
        if weights == "raw":
            return self.tensors, "raw"
        if self.shadow is None:
            raise ValueError(f"{where} holds no moving average of its weights; ask for weights='raw'.")
        names = [name for name in self._names if name in parameters]
        if len(names) != len(self.shadow):
            raise ValueError(
                f"{where}: its moving average has {len(self.shadow)} tensors, the network {len(names)} parameters."
            )
        averaged = dict(zip(names, self.shadow, strict=True))
        for name, tensor in averaged.items():
            if tuple(tensor.shape) != self.tensors.shapes[name]:
                raise ValueError(
                    f"{where}: {name} has shape {list(self.tensors.shapes[name])}, but {list(tensor.shape)} in the "
                    "moving average, which belongs to another network or has another order."
                )
        return PickledTensors(f"{where} (moving average)", averaged), "averaged"


@final
class Unwrapped(AbstractTensors):
    """Tensors under the names of the network, without the names of wrappers.

    Args:
        tensors: The tensors under the names in the file.

    Raises:
        ValueError: If two names in the file become one name of the network.
    """

    def __init__(self, tensors: AbstractTensors) -> None:
        self.origin, self._tensors = tensors.origin, tensors
        self._stored: dict[str, str] = {}
        for stored, bare in zip(tensors.shapes, _bare(tensors.shapes), strict=True):
            if bare in self._stored:
                raise ValueError(
                    f"{self.origin} holds {self._stored[bare]} and {stored}, which are one parameter of the network "
                    f"when wrappers ({', '.join(sorted(_WRAPPERS))}) are removed. Keep one of them."
                )
            self._stored[bare] = stored
        self.shapes = {bare: tensors.shapes[stored] for bare, stored in self._stored.items()}

    @property
    def copies(self) -> bool:
        return self._tensors.copies

    def read(self, name: str, dtype: torch.dtype) -> Tensor:
        return self._tensors.read(self._stored[name], dtype)


def _bare(names: Collection[str]) -> list[str]:
    """Names without wrappers, and without a first part that all of them share."""
    parts = [[part for part in name.split(".") if part not in _WRAPPERS] or [name] for name in names]
    while parts and all(len(own) > 1 and own[0] == parts[0][0] for own in parts):
        parts = [own[1:] for own in parts]
    return [".".join(own) for own in parts]


def open_weights(*paths: Path) -> StoredWeights:
    """Open one file of weights, or the safetensors files that make up one set.

    Raises:
        ValueError: If it is damaged, unsafe, or holds no weights.
    """
    if paths[0].suffix == ".safetensors":
        return StoredWeights(Unwrapped(Safetensors(*paths)))
    (path,) = paths
    if path.suffix not in PICKLES:
        raise ValueError(f"{path} is not a file of weights; these are .safetensors, {', '.join(PICKLES)}.")
    content = load_pickle(path)
    if not isinstance(content, Mapping):
        kind = repr(content) if isinstance(content, StandIn) else f"a {type(content).__name__}"
        raise ValueError(f"{path} holds no weights by name but {kind}.")
    if tensors := _tensors(content):
        return StoredWeights(Unwrapped(PickledTensors(str(path), tensors)))
    for key in ("model", "state_dict"):
        if tensors := _tensors(content.get(key)):
            step = content.get("step", content.get("global_step"))
            named = Unwrapped(PickledTensors(str(path), tensors))
            return StoredWeights(
                named,
                shadow=_shadow(content.get("ema"), path),
                trained=True,
                step=step if isinstance(step, int) else None,
                settings=training_config(content.get("hyper_parameters")),
                _names=tuple(named.shapes),
            )
    keys = ", ".join(sorted(str(key)[:40] for key in content)[:8])
    raise ValueError(
        f"{path} holds no weights that hdlm can read: neither tensors by name, nor `model`, nor `state_dict`; its "
        f"keys are {keys or 'none'}."
    )


def _tensors(table: Any) -> dict[str, Tensor]:
    """A state dict; empty if the value is not one."""
    if not isinstance(table, Mapping) or not table:
        return {}
    if not all(isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in table.items()):
        return {}
    return dict(table)


def _shadow(average: Any, path: Path) -> Sequence[Tensor] | None:
    """The list of a moving average, in the layout of the published trainer and of Lightning."""
    if average is None:
        return None
    shadow = average.get("shadow_params") if isinstance(average, Mapping) else None
    if not isinstance(shadow, list | tuple) or not all(isinstance(part, torch.Tensor) for part in shadow):
        raise ValueError(f"{path}: its `ema` has no list of tensors `shadow_params`.")
    return tuple(shadow)
