"""Loads weights from files into a network: strictly, and with hardly more memory than the weights themselves.

A network is made without memory, on the meta device; then each tensor is read from its file into its place. Names and
shapes are compared before anything is read.
"""

from __future__ import annotations

import abc
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hdlm.network import AbstractNetwork, NetworkShape, build_network

__all__ = ["AbstractTensors", "Safetensors", "Stored", "fill", "skeleton", "stored_names"]

FREQUENCIES = "rotary_emb.inv_freq"
"""The one buffer of a network. It is computed, and one in a file is only compared with it."""

_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
_MOST_NAMES = 8
_MOST_NUMBERS = 2**25
"""Numbers of a tensor that are read at a time."""


class AbstractTensors(abc.ABC):
    """Named tensors in a file, read one by one.

    Attributes:
        origin: Name of the file in messages.
        shapes: Name and shape of each tensor.
    """

    origin: str
    shapes: Mapping[str, tuple[int, ...]]

    @property
    def copies(self) -> bool:
        """Whether each tensor is read into memory of its own, which the caller may change."""
        return False

    @abc.abstractmethod
    def read(self, name: str, dtype: torch.dtype) -> Tensor:
        """One tensor, on the CPU.

        Raises:
            ValueError: If it cannot be read, or does not hold floating-point numbers.
        """


@final
@dataclass(frozen=True)
class Stored:
    """How a file stores one parameter, where it is not one tensor of the same shape.

    Attributes:
        names: Tensors of the file. Joined along their rows they are the parameter.
        transposed: Whether the file stores the transpose of each (the `Conv1D` of GPT-2).
    """

    names: tuple[str, ...]
    transposed: bool = False

    def shape(self, tensors: AbstractTensors) -> tuple[int, ...]:
        """Shape of the parameter, as the file has it."""
        shapes = [tensors.shapes[name][:: -1 if self.transposed else 1] for name in self.names]
        return (sum(rows for rows, *_ in shapes), *shapes[0][1:])

    def read(self, tensors: AbstractTensors, dtype: torch.dtype) -> Tensor:
        """The parameter.

        Raises:
            ValueError: If a tensor cannot be read, or holds a number that is not finite.
        """
        parts = [_finite(tensors, name, dtype) for name in self.names]
        parts = [part.T.contiguous() for part in parts] if self.transposed else parts
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def stored_names(names: Mapping[str, str | Stored]) -> frozenset[str]:
    """All tensors of a file that a key table names."""
    return frozenset(name for value in names.values() for name in _stored(value).names)


def _stored(value: str | Stored) -> Stored:
    return Stored((value,)) if isinstance(value, str) else value


@final
@dataclass(frozen=True)
class _Place:
    """The file, type and shape of a tensor."""

    path: Path
    kind: str
    shape: tuple[int, ...]


@final
class Safetensors(AbstractTensors):
    """Tensors of one safetensors file, or of several that make up one set.

    Every tensor is copied into memory of its own, so the file may be replaced afterwards.

    Args:
        paths: Paths of the files.

    Raises:
        ValueError: If one is missing or damaged, or two hold tensors of one name.
    """

    def __init__(self, *paths: Path) -> None:
        self.origin = str(paths[0] if len(paths) == 1 else paths[0].parent)
        self._places: dict[str, _Place] = {}
        for path in paths:
            places = _directory(path)
            if shared := sorted(self._places.keys() & places.keys()):
                raise ValueError(f"{path} holds {_listed(shared)}, and so does another file of the set.")
            self._places |= places
        self.shapes = {name: place.shape for name, place in self._places.items()}

    @property
    def copies(self) -> bool:
        return True

    def read(self, name: str, dtype: torch.dtype) -> Tensor:
        place = self._places[name]
        if place.kind not in _FLOATS:
            raise ValueError(
                f"{place.path}: {name} is of type {place.kind}; weights are floating-point numbers."
            )
        value = torch.empty(place.shape, dtype=dtype)
        if not place.shape:
            with _opened(place.path) as file:
                return value.copy_(file.get_tensor(name))
        rows = max(1, _MOST_NUMBERS * place.shape[0] // max(value.numel(), 1))
        for begin in range(0, place.shape[0], rows):
            # pages of a mapped file count as memory until the file is closed
            with _opened(place.path) as file:
                value[begin : begin + rows] = file.get_slice(name)[begin : begin + rows]
        return value


def skeleton(config: NetworkShape, tensors: AbstractTensors) -> AbstractNetwork:
    """A network without memory, for `fill`.

    Raises:
        ValueError: If there are fewer tensors than blocks.
    """
    if config.num_blocks > len(tensors.shapes):
        raise ValueError(
            f"{tensors.origin} does not fit the network of its config, which has {config.num_blocks} blocks: the file "
            f"holds only {len(tensors.shapes)} tensors."
        )
    with torch.device("meta"):
        return build_network(config).eval()


def fill(
    network: AbstractNetwork,
    tensors: AbstractTensors,
    names: Mapping[str, str | Stored] | None = None,
    *,
    ignored: Collection[str] = (FREQUENCIES,),
    mask_row: int | None = None,
    padding: int = 0,
    adds_mask: bool = False,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Give a `skeleton` its weights, strictly.

    Args:
        network: Network to be filled.
        tensors: Source of the weights.
        names: Name in the file of each parameter; by default its own name.
        ignored: Names in the file that are not needed. Frequencies of rotary positions are compared nevertheless.
        mask_row: Row of the mask in the file's embedding and output, if it is not the last.
        padding: Unused rows of the file's embedding and output after the words and the mask; they are removed.
        adds_mask: Whether the file has no row for the mask. A row is added: the mean of the others.
        dtype: Precision of the weights.

    Raises:
        ValueError: If a tensor is missing, unexpected, of another shape or not finite; the message names it.
    """
    parameters = dict(network.named_parameters())
    names = {name: name for name in parameters} if names is None else names
    if names.keys() != parameters.keys():
        lacks, more = _listed(parameters.keys() - names.keys()), _listed(names.keys() - parameters.keys())
        raise ValueError(
            f"{tensors.origin}: the key table of its format lacks {lacks}; not parameters of the network: {more}."
        )
    _check_names(tensors, stored_names(names), ignored)
    sources = {name: _stored(value) for name, value in names.items()}
    for name, parameter in parameters.items():
        rows, *rest = parameter.shape
        expected = (rows + padding - adds_mask if name in network.token_rows else rows, *rest)
        if (shape := sources[name].shape(tensors)) != expected:
            raise ValueError(
                f"{tensors.origin}: {_listed(sources[name].names)} has shape {list(shape)}, but the config needs "
                f"{list(expected)}."
            )
    state = _frequencies(network, tensors, ignored)
    for name, parameter in parameters.items():
        state[name] = sources[name].read(tensors, dtype)
        if name not in network.token_rows:
            continue
        if padding:
            state[name] = state[name][: len(parameter)].clone()
        if mask_row is not None:
            own = state[name] if tensors.copies else state[name].clone()
            state[name] = _moved_last(own, mask_row, f"{tensors.origin}: {sources[name].names[0]}")
        if adds_mask:
            state[name] = torch.cat([state[name], state[name].mean(0, keepdim=True)])
    network.load_state_dict(state, assign=True)
    network.compute_buffers()


def _check_names(tensors: AbstractTensors, needed: Iterable[str], ignored: Collection[str]) -> None:
    wanted, there = set(needed), set(tensors.shapes)
    missing, unexpected = wanted - there, there - wanted - set(ignored)
    if missing or unexpected:
        raise ValueError(
            f"{tensors.origin} does not fit the network of its config: missing {_listed(missing)}; unexpected "
            f"{_listed(unexpected)}."
        )


def _frequencies(
    network: AbstractNetwork, tensors: AbstractTensors, ignored: Collection[str]
) -> dict[str, Tensor]:
    """The frequencies of rotary positions, if files have them; those of the file must be equal up to rounding."""
    with torch.device("cpu"):
        rotary = network.new_rotary()
    if rotary is None:
        return {}
    computed = rotary.inv_freq
    for name in tensors.shapes:
        if name not in ignored or not name.endswith(FREQUENCIES):
            continue
        stored = tensors.read(name, torch.float32)
        if stored.shape != computed.shape or not torch.allclose(stored, computed, rtol=1e-2, atol=0):
            raise ValueError(
                f"{tensors.origin}: {name} holds other frequencies than those of rotary positions that the config "
                f"asks for, with {network.config.num_heads} heads; hdlm cannot read such a network."
            )
    return {FREQUENCIES: computed}


def _finite(tensors: AbstractTensors, name: str, dtype: torch.dtype) -> Tensor:
    value = tensors.read(name, dtype)
    if value.numel() and not all(bound.isfinite() for bound in torch.aminmax(value)):
        raise ValueError(f"{tensors.origin} is damaged: {name} holds numbers that are not finite.")
    return value


def _moved_last(rows: Tensor, row: int, what: str) -> Tensor:
    """The rows with one of them moved to the end, in place and a few at a time."""
    if not 0 <= row < len(rows):
        raise ValueError(f"{what} has {len(rows)} rows, so none of them is the mask's, {row}.")
    moved, size = rows[row].clone(), max(1, _MOST_NUMBERS * len(rows) // rows.numel())
    for begin in range(row, len(rows) - 1, size):
        end = min(begin + size, len(rows) - 1)
        rows[begin:end] = rows[begin + 1 : end + 1].clone()
    rows[-1] = moved
    return rows


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a safetensors file for reading, on the CPU.

    Raises:
        ValueError: If it is missing or damaged.
    """
    if not path.is_file():
        raise ValueError(f"{path.parent} has no weights: {path.name} is missing.")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or no safetensors file: {error}.") from error


def _directory(path: Path) -> dict[str, _Place]:
    """The name, type and shape of each tensor of a safetensors file."""
    with _opened(path) as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (it is not a mapping)
        return {
            name: _Place(path, str(part.get_dtype()), tuple(part.get_shape()))
            for name, part in slices.items()
        }


def _listed(names: Collection[str]) -> str:
    """Names for a message, up to a number of them."""
    some = [name[:80] for name in sorted(names)[:_MOST_NAMES]]
    rest = len(names) - len(some)
    return (", ".join(some) or "nothing") + (f" and {rest} more" if rest else "")
