"""The training state of a run, in a folder that is also a checkpoint of its model.

    model.safetensors, raw.safetensors, config.json, tokenizer.json    the checkpoint: average, weights, recipe
    adapters.safetensors     low-rank adapters and the weights below them, if the run trains some
    optimizer.safetensors    the state of the optimizers, each tensor as "OPTIMIZER/KEY/PARAMETER"
    state.json               step, sequences (the place in the text), seconds, ticks of the average, versions of
                             software, and size and SHA-256 of every other file; written last

Random numbers and learning rates need no state, because both are functions of the seed and the step. No tensor depends
on the number of processes, so a run may be resumed with another number.

`accelerate.save_state` is not used: its folder is incomplete while it is written, it stores optimizers and random
numbers in pickles, which can run code, and its random state is per process, which fixes the number of processes.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, final

import torch
from safetensors.torch import load_file
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from hdlm import __version__
from hdlm.atomic import replacing
from hdlm.training.distributed.sharding import full_tensor, named_parameters, spread_like

__all__ = ["TrainingState", "gather_optimizers", "group_names", "spread_optimizers", "whole_state_dicts"]

FORMAT = 1
"""Version of the layout of `state.json`."""

_STATE, _OPTIMIZER, _ADAPTERS = "state.json", "optimizer.safetensors", "adapters.safetensors"
STATE_FILES = frozenset({_STATE, _OPTIMIZER, _ADAPTERS})
"""Files of such a folder that do not belong to the checkpoint of the model."""
_SOFTWARE = ("torch", "accelerate", "safetensors")


@final
@dataclass(frozen=True)
class TrainingState:
    """The training state of a run.

    Attributes:
        step: Optimizer steps done.
        sequences: Windows of text that these steps used; the next step uses those that follow.
        seconds: Time spent on these steps.
        ticks: Number of updates of the averaged weights.
        precision: Precision of the network's computation, `"bf16"` or `"no"`.
        device: Type of the device.
        processes: Number of processes, for information only.
        weights: The network's parameters and buffers.
        average: Averaged parameters, and the buffers.
        optimizers: State tensors of the optimizers, by `"OPTIMIZER/KEY/PARAMETER"`.
        text: Fingerprint of the training text.
        threads: Number of CPU threads in the last step; 0 if it was not recorded.
        adapters: Low-rank adapters and the weights below them, by `"weights/NAME"` and `"average/NAME"`; `weights` and
            `average` then have the sums of both.
    """

    step: int
    sequences: int
    seconds: float
    ticks: int
    precision: str
    device: str
    processes: int
    weights: Mapping[str, Tensor]
    average: Mapping[str, Tensor]
    optimizers: Mapping[str, Tensor]
    text: str = ""
    threads: int = 0
    adapters: Mapping[str, Tensor] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Add the state to a folder that holds the checkpoint of the model."""
        with replacing(folder / _OPTIMIZER) as aside:
            aside.write_bytes(save_tensors({name: v.contiguous() for name, v in self.optimizers.items()}))
        if self.adapters:
            with replacing(folder / _ADAPTERS) as aside:
                aside.write_bytes(save_tensors({name: v.contiguous() for name, v in self.adapters.items()}))
        files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != _STATE)
        table = {
            "format": FORMAT,
            **{name: getattr(self, name) for name in _PLAIN},
            "versions": {
                "hdlm": __version__,
                "python": platform.python_version(),
                **{name: version(name) for name in _SOFTWARE},
            },
            "files": {path.name: {"size": path.stat().st_size, "sha256": _digest(path)} for path in files},
        }
        with replacing(folder / _STATE) as aside:
            aside.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> TrainingState:
        """Read a folder, and compare every file with its recorded size and hash.

        Raises:
            ValueError: If a file is missing or damaged; it names the file.
        """
        table = _read_table(folder / _STATE)
        for name, expected in table["files"].items():
            path = folder / name
            if not path.is_file():
                raise ValueError(f"{path} is missing.")
            if path.stat().st_size != expected["size"]:
                raise ValueError(f"{path} has {path.stat().st_size:,} bytes instead of {expected['size']:,}.")
            if _digest(path) != expected["sha256"]:
                raise ValueError(f"{path} is damaged: its SHA-256 is not the one in {_STATE}.")
        plain: dict[str, Any] = {name: table[name] for name in _PLAIN}
        tensors = {name: load_file(folder / file) for name, file in _TENSORS.items()}
        adapters = load_file(folder / _ADAPTERS) if (folder / _ADAPTERS).is_file() else {}
        return cls(**plain, **tensors, adapters=adapters)  # type: ignore[arg-type]


_TENSORS = {"weights": "raw.safetensors", "average": "model.safetensors", "optimizers": _OPTIMIZER}
_PLAIN = tuple(name for name in TrainingState.__dataclass_fields__ if name not in (*_TENSORS, "adapters"))


def gather_optimizers(network: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """The state of optimizers, whole and on the CPU; every process must call this."""
    gathered = {}
    names = {id(parameter): name for name, parameter in named_parameters(network).items()}
    for number, optimizer in enumerate(optimizers):
        for parameter, state in optimizer.state.items():
            for key, value in state.items():
                gathered[f"{number}/{key}/{names[id(parameter)]}"] = full_tensor(value).cpu()
    return gathered


def spread_optimizers(
    network: nn.Module, optimizers: Sequence[torch.optim.Optimizer], memory: Mapping[str, Tensor]
) -> None:
    """Load what `gather_optimizers` returned into optimizers; every process must call this.

    Raises:
        ValueError: If it belongs to other optimizers or another network.
    """
    parameters = named_parameters(network)
    states: list[dict[str, dict[str, Tensor]]] = [{} for _ in optimizers]
    for name, value in memory.items():
        number, key, parameter = name.split("/", 2)
        if int(number) >= len(optimizers) or parameter not in parameters:
            raise ValueError(f"{_OPTIMIZER} is of another optimizer or network: there is no {name!r} here.")
        states[int(number)].setdefault(parameter, {})[key] = value
    for optimizer, state, groups in zip(optimizers, states, group_names(network, optimizers), strict=True):
        order = [name for group in groups for name in group]
        table = optimizer.state_dict()
        table["state"] = {
            order.index(parameter): {key: spread_like(v, parameters[parameter]) for key, v in entries.items()}
            for parameter, entries in state.items()
        }
        optimizer.load_state_dict(table)


def group_names(network: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> list[list[list[str]]]:
    """The names of the parameters in each group of each optimizer; to be called before they are sharded."""
    names = {id(parameter): name for name, parameter in named_parameters(network).items()}
    return [
        [[names[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups]
        for optimizer in optimizers
    ]


def whole_state_dicts(
    network: nn.Module, optimizers: Sequence[torch.optim.Optimizer], names: Sequence[Sequence[Sequence[str]]]
) -> list[dict[str, Any]]:
    """The `state_dict` that each optimizer would have without sharding; every process must call this.

    Args:
        network: The network whose parameters they move.
        optimizers: The optimizers, in the order of `names`.
        names: Names of the parameters, as returned by `group_names`.
    """
    places = [
        {name: place for place, name in enumerate(name for group in groups for name in group)}
        for groups in names
    ]
    states: list[dict[int, dict[str, Tensor]]] = [{} for _ in optimizers]
    for entry, value in gather_optimizers(network, optimizers).items():
        number, key, name = entry.split("/", 2)
        states[int(number)].setdefault(places[int(number)][name], {})[key] = value
    return [
        {
            "state": dict(sorted(state.items())),
            "param_groups": [
                group | {"params": [place[name] for name in members]}
                for group, members in zip(optimizer.param_groups, groups, strict=True)
            ],
        }
        for optimizer, state, place, groups in zip(optimizers, states, places, names, strict=True)
    ]


def _read_table(path: Path) -> dict[str, Any]:
    """The table of `state.json`, checked for completeness."""
    if not path.is_file():
        raise ValueError(f"{path} is missing.")
    try:
        table = json.loads(path.read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged: {error}.") from error
    if not isinstance(table, dict) or table.get("format") != FORMAT:
        raise ValueError(f"{path} must be a table with `format` {FORMAT}.")
    table.setdefault("threads", 0)
    if missing := [name for name in (*_PLAIN, "files") if name not in table]:
        raise ValueError(f"{path} lacks {', '.join(missing)}.")
    if not isinstance(table["files"], dict):
        raise ValueError(f"{path} must have a table of `files`.")
    return table


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
