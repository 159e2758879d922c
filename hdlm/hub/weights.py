"""Which tensors a file of weights offers: its own, or the moving average that lies beside them without names.

| file | holds |
|---|---|
| `.safetensors`, one or several | one set of weights |
| a state dict (`.bin`, `.pth`, `.pt`) | one set of weights |
| a published run's `.pth` | `model`, `ema.shadow_params`, `optimizer`, `step` |
| a Lightning `.ckpt` | `state_dict`, `ema.shadow_params`, ... |

A moving average is a list in the order of the network's parameters, which is that of the names beside it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, final

import torch
from torch import Tensor

from hdlm.checkpoint import WeightsName
from hdlm.hub.pickles import PickledTensors, load_pickle
from hdlm.weights import AbstractTensors, Safetensors

__all__ = ["PICKLES", "StoredWeights", "open_weights"]

PICKLES = (".bin", ".pth", ".pt", ".ckpt")
"""Suffixes of what torch pickled."""

_WRAPPERS = ("module.", "_orig_mod.")
"""What distributed training and compilation put before every name."""


@final
@dataclass(frozen=True)
class StoredWeights:
    """Weights in files.

    Attributes:
        tensors: The tensors that have names.
        shadow: Their moving average, in the order of the parameters among them, or None if it was not kept.
        trained: Whether the file says that its named tensors are those of the last training step.
        step: Training steps done, where the file says it.
    """

    tensors: AbstractTensors
    shadow: Sequence[Tensor] | None = None
    trained: bool = False
    step: int | None = None
    _names: tuple[str, ...] = field(default=())

    def choose(
        self, weights: WeightsName, parameters: Collection[str]
    ) -> tuple[AbstractTensors, Literal["averaged", "raw", "only"]]:
        """The tensors to use, and what they are: `"only"` if there is one set and the file does not say which.

        Args:
            weights: Which are wanted.
            parameters: Names, in the file, of the network's parameters.

        Raises:
            ValueError: If there are none of that kind, or the average is not one of these parameters.
        """
        where = self.tensors.origin
        if not self.trained:
            if weights == "raw":
                raise ValueError(
                    f"{where} holds one set of weights and no raw ones beside it: leave `weights` out."
                )
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
                    "moving average: it is that of another network, or in another order."
                )
        return PickledTensors(f"{where} (moving average)", averaged), "averaged"


def open_weights(*paths: Path) -> StoredWeights:
    """Look into one file of weights, or the safetensors files that make up one.

    Raises:
        ValueError: If it is damaged, unsafe, or holds no weights.
    """
    if paths[0].suffix == ".safetensors":
        return StoredWeights(Safetensors(*paths))
    (path,) = paths
    if path.suffix not in PICKLES:
        raise ValueError(
            f"{path} is no file of weights that is known here: .safetensors, {', '.join(PICKLES)}."
        )
    content = load_pickle(path)
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds no weights by name but a {type(content).__name__}.")
    if tensors := _tensors(content):
        return StoredWeights(PickledTensors(str(path), tensors))
    for key in ("model", "state_dict"):
        if tensors := _tensors(content.get(key)):
            step = content.get("step", content.get("global_step"))
            return StoredWeights(
                PickledTensors(str(path), tensors),
                shadow=_shadow(content.get("ema"), path),
                trained=True,
                step=step if isinstance(step, int) else None,
                _names=tuple(tensors),
            )
    keys = ", ".join(sorted(str(key) for key in content)[:8])
    raise ValueError(
        f"{path} holds no weights that are known here: neither tensors by name, nor `model`, nor `state_dict`; its "
        f"keys are {keys or 'none'}."
    )


def _tensors(table: Any) -> dict[str, Tensor]:
    """A state dict without the names of wrappers; empty if it is none."""
    if not isinstance(table, Mapping) or not table:
        return {}
    if not all(isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in table.items()):
        return {}
    tensors: dict[str, Tensor] = dict(table)
    for wrapper in _WRAPPERS:
        if all(name.startswith(wrapper) for name in tensors):
            tensors = {name.removeprefix(wrapper): value for name, value in tensors.items()}
    return tensors


def _shadow(average: Any, path: Path) -> Sequence[Tensor] | None:
    """The list of a moving average, as both trainers of the field write it."""
    if average is None:
        return None
    shadow = average.get("shadow_params") if isinstance(average, Mapping) else None
    if not isinstance(shadow, list | tuple) or not all(isinstance(part, torch.Tensor) for part in shadow):
        raise ValueError(f"{path}: its `ema` has no list of tensors `shadow_params`.")
    return tuple(shadow)
