"""Tensors in files that torch wrote as a zip with a pickle inside, and how such a file is kept from doing harm.

A pickle is a program. Three gates stand before it: the zip holds nothing compressed, nothing that reaches out of it
and one pickle; that pickle, read as text and not run, names no function but those that put tensors together; and torch
runs it with `weights_only=True`, which knows no other function either. Files of torch before 1.6 are no zips and are
refused.

Tensors stay in the file until they are used (the file is mapped into memory), so an optimizer beside them costs
nothing. While the model lives, the file must not be overwritten in place; replacing it by renaming is harmless.
"""

from __future__ import annotations

import pickle
import pickletools
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, final

import torch
from torch import Tensor

from hdlm.weights import AbstractTensors

__all__ = ["PickledTensors", "load_pickle"]

LARGEST_PICKLE = 64 * 2**20
"""Bytes of the program itself; that of an optimizer over thousands of tensors has less than one of 64."""
MOST_ENTRIES = 200_000

_TYPES = ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
_NUMBERS = ("float16", "bfloat16", "float32", "float64", "uint8", "int8", "int16", "int32", "int64", "bool")
_ALLOWED = frozenset(
    {"collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"}
    | {
        "_codecs encode",
        "torch Size",
        "torch device",
        "torch.storage UntypedStorage",
        "torch.serialization _get_layout",
    }
    | {f"torch {kind}Storage" for kind in _TYPES}
    | {f"torch {kind}" for kind in _NUMBERS}
)
"""What the pickle of weights names. `torch.load(weights_only=True)` knows these and a few more."""

_OTHER_WAYS_TO_NAME = frozenset(
    {"STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT2", "EXT4", "NEWOBJ_EX", "PERSID"}
)

_WHAT_UNPICKLING_RAISES = (
    pickle.UnpicklingError,
    RuntimeError,
    OSError,
    EOFError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    ImportError,
    MemoryError,
    NotImplementedError,
    struct.error,
)


@final
class PickledTensors(AbstractTensors):
    """Tensors that `load_pickle` gave, by name.

    Args:
        origin: What to call them in an error.
        tensors: The tensors; they may lie in a mapped file.
    """

    def __init__(self, origin: str, tensors: Mapping[str, Tensor]) -> None:
        self.origin = origin
        self._tensors = dict(tensors)
        self.shapes = {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}

    def read(self, name: str, dtype: torch.dtype) -> Tensor:
        tensor = self._tensors[name].detach()
        if not tensor.is_floating_point() or tensor.layout != torch.strided or tensor.is_meta:
            raise ValueError(
                f"{self.origin}: {name} is of type {tensor.dtype}; weights are floating-point numbers."
            )
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise ValueError(f"{self.origin}: {name} claims {tensor.numel()} numbers, but holds fewer.")
        return tensor.to(dtype).contiguous()


def load_pickle(path: Path) -> Any:
    """What a file of `torch.save` holds: tables, lists, numbers, text and tensors.

    Raises:
        ValueError: If the file is damaged, no such file, or would do more than hold tensors.
    """
    _check_pickle(path, _check_zip(path))
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except _WHAT_UNPICKLING_RAISES as error:
        raise ValueError(f"{path} is damaged or holds more than tensors: {_first_line(error)}") from error


def _check_zip(path: Path) -> str:
    """Refuse a zip that is more than the files inside it; give the name of its pickle."""
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error, EOFError) as error:
        raise ValueError(
            f"{path} is damaged or no file of torch.save (1.6 or later): {_first_line(error)}"
        ) from error
    if len(entries) > MOST_ENTRIES or sum(entry.file_size for entry in entries) > size:
        raise ValueError(f"{path} is refused: its zip claims to hold more than the file has.")
    names = [entry.filename for entry in entries]
    if len(set(names)) != len(names):
        raise ValueError(f"{path} is refused: its zip holds two files of one name.")
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise ValueError(f"{path} is refused: {entry.filename!r} in its zip is compressed; torch stores.")
        where = PurePosixPath(entry.filename)
        if where.is_absolute() or ".." in where.parts or "\\" in entry.filename or ":" in entry.filename:
            raise ValueError(f"{path} is refused: {entry.filename!r} in its zip reaches out of it.")
    if any(PurePosixPath(name).name == "constants.pkl" for name in names):
        raise ValueError(f"{path} is refused: it holds a program (TorchScript), not only weights.")
    programs = [entry for entry in entries if PurePosixPath(entry.filename).name == "data.pkl"]
    if len(programs) != 1 or len(PurePosixPath(programs[0].filename).parts) != 2:
        raise ValueError(f"{path} is no file of torch.save: its zip has no FOLDER/data.pkl, or several.")
    if programs[0].file_size > LARGEST_PICKLE:
        raise ValueError(f"{path} is refused: its pickle has {programs[0].file_size} bytes.")
    return programs[0].filename


def _check_pickle(path: Path, name: str) -> None:
    """Read the pickle as text: refuse it if it names what weights never need."""
    with zipfile.ZipFile(path) as archive:
        try:
            program = archive.read(name)
            steps = [(step.name, value) for step, value, _ in pickletools.genops(program)]
        except (zipfile.BadZipFile, RuntimeError, ValueError, EOFError, struct.error) as error:
            raise ValueError(f"{path} is damaged: {_first_line(error)}") from error
    named = {str(value) for step, value in steps if step == "GLOBAL"}
    named |= {f"({step})" for step, _ in steps if step in _OTHER_WAYS_TO_NAME}
    if strange := sorted(named - _ALLOWED):
        listed = ", ".join(text.replace(" ", ".") for text in strange[:5])
        raise ValueError(
            f"{path} is refused, for it asks to run or build {listed}; only tensors, tables, lists, numbers and text "
            "are read. If you trust it, open it where you trust it and save its tensors alone, as safetensors."
        )


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{lines[0].rstrip('.')}." if lines else f"{type(error).__name__}."
