"""Reads a file of `torch.save` as data: tensors, tables, lists, numbers and text. Nothing in the file is run.

A pickle is a program that may import and call anything, so it is never given to an unpickler. The standard library
decodes its steps (`pickletools.genops`), and the reader below applies them to plain data. A name in the pickle becomes
a real object only if it is in the short table `_NAMES`. Every other name becomes a `StandIn`, which records what the
file says about an object and has no behaviour: it cannot be called and sets no attribute. So the OmegaConf
configuration, the tokenizer and the callbacks of a Lightning checkpoint are read without running their code.

A file with a name that only an attack needs (`os.system`, `builtins.eval`) is refused, although its stand-in would be
harmless. Files of torch before 1.6, which are not zips, are refused.

Sizes are bounded before memory is used: of the pickle, of the number of its steps, and of what steps may copy. Tensors
stay in the memory-mapped file until they are used, so an optimizer in the file costs no memory. While the model lives,
the file must not be overwritten in place; it may be replaced by renaming.
"""

from __future__ import annotations

import codecs
import pickletools
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final, final

import torch
from torch import Tensor

from hdlm.checkpoint.weights import AbstractTensors

__all__ = ["PickledTensors", "StandIn", "load_pickle"]

LARGEST_PICKLE = 64 * 2**20
"""Bytes of the pickle. That of an optimizer over thousands of tensors has less than one of 64 MiB."""
MOST_STEPS = 4_000_000
"""Steps of the pickle. A tensor takes about thirty."""
MOST_ENTRIES = 200_000
BYTES_OF_ITEM = 64
"""Bytes counted for an item of a list or a table when a step copies it."""
_DEEPEST_NAME = 3
"""Parts of the longest name in `_ATTACKS`, plus one."""
LONGEST_KEY = 16
"""Items of a tuple that is a key of a table."""

_LOCAL_HEADER = struct.Struct("<4s22xHH")
"""The header of a zip entry: signature, and lengths of its name and its extra field."""

_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
}
_NUMBERS = ("float16", "bfloat16", "float32", "float64", "uint8", "int8", "int16", "int32", "int64", "bool")

_ATTACKS = frozenset(
    {"_io", "_pickle", "asyncio", "code", "codeop", "commands", "ctypes", "importlib", "io", "marshal", "nt"}
    | {"multiprocessing", "os", "pickle", "posix", "posixpath", "pty", "runpy", "shutil", "signal", "socket"}
    | {"subprocess", "sys", "timeit", "urllib", "webbrowser", "torch.hub", "torch.jit", "torch.serialization"}
    | {
        f"builtins.{name}"
        for name in (
            *(
                "__import__",
                "apply",
                "breakpoint",
                "bytearray",
                "compile",
                "delattr",
                "eval",
                "exec",
                "execfile",
            ),
            *("file", "getattr", "globals", "input", "locals", "memoryview", "open", "setattr", "vars"),
        )
    }
)
"""Modules and functions that the state of a training run never names."""

_WHAT_DAMAGE_RAISES = (
    ArithmeticError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
)


@final
class StandIn:
    """An object of a pickle that is not built.

    Attributes:
        name: Module and name of its class or function, with a dot between.
        arguments: Arguments of the call in the pickle; empty for the class itself.
        state: State that the pickle sets, or None.
        items: Items that the pickle adds to a list or a set, or keys and values of a table in turn.
    """

    __slots__ = ("arguments", "items", "name", "state")

    def __init__(self, name: str, arguments: tuple[Any, ...] = ()) -> None:
        self.name = name
        self.arguments = arguments
        self.state: Any = None
        self.items: list[Any] = []

    def __repr__(self) -> str:
        return f"<stand-in of {self.name[:80]}>"


@final
class PickledTensors(AbstractTensors):
    """Tensors of `load_pickle`, by name.

    Args:
        origin: Name of the file in messages.
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
    """The content of a file of `torch.save`: tables, lists, numbers, text, tensors, and `StandIn`s.

    Raises:
        ValueError: If the file is damaged, not such a file, or hostile.
    """
    entries = _entries(path)
    name = _program(path, entries)
    try:
        with zipfile.ZipFile(path) as archive:
            program = archive.read(name)
        return _Reader(_Storages(path, entries, str(PurePosixPath(name).parent))).read(program)
    except _RefusalError as refusal:
        raise ValueError(
            f"{path} is refused, because it asks to run or build {refusal}; only tensors, tables, lists, numbers and "
            "text are read. If you trust the file, load it yourself and save its tensors alone, as safetensors."
        ) from refusal
    except (*_WHAT_DAMAGE_RAISES, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is damaged or holds more than tensors: {_first_line(error)}") from error


def _entries(path: Path) -> list[zipfile.ZipInfo]:
    """The entries of a zip, which is refused if it claims more than the file holds."""
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error, EOFError) as error:
        raise ValueError(
            f"{path} is damaged or not a file of torch.save (1.6 or later): {_first_line(error)}"
        ) from error
    if len(entries) > MOST_ENTRIES or sum(entry.file_size for entry in entries) > size:
        raise ValueError(f"{path} is refused: its zip claims to hold more than the file has.")
    if len({entry.filename for entry in entries}) != len(entries):
        raise ValueError(f"{path} is refused: its zip holds two files of one name.")
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise ValueError(f"{path} is refused: {entry.filename!r} in its zip is compressed; torch stores.")
        where = PurePosixPath(entry.filename)
        if where.is_absolute() or ".." in where.parts or "\\" in entry.filename or ":" in entry.filename:
            raise ValueError(f"{path} is refused: {entry.filename!r} in its zip reaches out of it.")
    return entries


def _program(path: Path, entries: Sequence[zipfile.ZipInfo]) -> str:
    """The name of the one pickle in a zip."""
    if any(PurePosixPath(entry.filename).name == "constants.pkl" for entry in entries):
        raise ValueError(f"{path} is refused: it holds a program (TorchScript), not only weights.")
    programs = [entry for entry in entries if PurePosixPath(entry.filename).name == "data.pkl"]
    if len(programs) != 1 or len(PurePosixPath(programs[0].filename).parts) != 2:
        raise ValueError(f"{path} is not a file of torch.save: its zip has no FOLDER/data.pkl, or several.")
    if programs[0].file_size > LARGEST_PICKLE:
        raise ValueError(f"{path} is refused: its pickle has {programs[0].file_size} bytes.")
    return programs[0].filename


@final
class _RefusalError(Exception):
    """Something in a file that is refused."""


@final
@dataclass(frozen=True)
class _Stored:
    """The numbers of one or several tensors in the mapped file."""

    numbers: torch.UntypedStorage
    dtype: torch.dtype


@final
class _Storages:
    """The numbers of the tensors in a zip, by their keys in the pickle.

    Args:
        path: Path of the file.
        entries: Entries of the zip.
        folder: Folder of the pickle in the zip.
    """

    def __init__(self, path: Path, entries: Sequence[zipfile.ZipInfo], folder: str) -> None:
        self._path = path
        self._entries = {entry.filename: entry for entry in entries}
        self._folder = folder
        self._size = path.stat().st_size
        self._mapped: Any = None
        self._known: dict[str, _Stored] = {}
        order = self._entries.get(f"{folder}/byteorder")
        if order is not None and order.file_size != len("little"):
            raise ValueError("its numbers were written by a big-endian machine")

    def __call__(self, identity: Any) -> _Stored:
        """The numbers that the pickle identifies by `("storage", type, key, device, count)`."""
        if type(identity) is not tuple or len(identity) != 5 or identity[0] != "storage":
            raise ValueError("it refers to an object outside that is not a storage of numbers")
        _, kind, key, _, count = identity
        if type(kind) is not torch.dtype or type(key) is not str or type(count) is not int:
            raise ValueError("it refers to a storage of an unknown type")
        if key not in self._known:
            self._known[key] = _Stored(self._bytes(key, count * kind.itemsize), kind)
        stored = self._known[key]
        if stored.dtype != kind or stored.numbers.nbytes() != count * kind.itemsize:
            raise ValueError(f"two tensors disagree on the storage {key[:40]!r}")
        return stored

    def _bytes(self, key: str, size: int) -> torch.UntypedStorage:
        entry = self._entries[f"{self._folder}/data/{key}"]
        if entry.file_size != size:
            raise ValueError(f"the storage {key[:40]!r} has {entry.file_size} bytes where {size} are claimed")
        if not size:
            return torch.UntypedStorage(0)
        with self._path.open("rb") as file:
            file.seek(entry.header_offset)
            signature, name, extra = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
        start = entry.header_offset + _LOCAL_HEADER.size + name + extra
        if signature != b"PK\x03\x04" or start + size > self._size:
            raise ValueError(f"the storage {key[:40]!r} does not lie in the file")
        if self._mapped is None:
            self._mapped = torch.UntypedStorage.from_file(str(self._path), False, self._size)
        part: torch.UntypedStorage = self._mapped[start : start + size]
        return part


_MARK: Final = object()
_CONSTANTS: Mapping[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_EMPTY: Mapping[str, Callable[[], Any]] = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set}
_VALUES = frozenset(
    {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"}
    | {"STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"}
    | {"UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
)
"""Steps that push a number or a text."""
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


@final
class _Reader:
    """Reads the steps of a pickle as data.

    Args:
        storages: The numbers of its tensors.
    """

    def __init__(self, storages: _Storages) -> None:
        self._storages = storages
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._named: dict[str, Any] = {}
        self._copied = 0

    def read(self, program: bytes) -> Any:
        """The data that the pickle describes.

        Raises:
            _RefusalError: If it has a name that only an attack needs.
            ValueError: If it is damaged or too large; other errors of damaged data are not caught here.
        """
        for count, (step, value, _) in enumerate(pickletools.genops(program)):
            if count > MOST_STEPS:
                raise ValueError(f"its pickle has more than {MOST_STEPS} steps")
            if step.name in _VALUES:
                self._stack.append(value)
            elif step.name == "STOP":
                return self._stack[-1]
            else:
                self._step(step.name, value)
        raise EOFError("its pickle has no end")

    def _step(self, step: str, value: Any) -> None:
        stack = self._stack
        match step:
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                stack.append(_MARK)
            case "POP":
                stack.pop()
            case "POP_MARK":
                self._since_mark()
            case "DUP":
                stack.append(stack[-1])
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self._memo[value] = stack[-1]
            case "MEMOIZE":
                self._memo[len(self._memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(self._memo[value])
            case "GLOBAL":
                stack.append(self._name(*value.split(" ", 1)))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(self._name(module, name))
            case "BINPERSID":
                stack.append(self._storages(stack.pop()))
            case "REDUCE" | "NEWOBJ":
                arguments, what = stack.pop(), stack.pop()
                stack.append(self._made(what, arguments))
            case "NEWOBJ_EX":
                named, arguments, what = stack.pop(), stack.pop(), stack.pop()
                stack.append(self._made(what, (*arguments, named) if named else arguments))
            case "INST":
                stack.append(self._made(self._name(*value.split(" ", 1)), tuple(self._since_mark())))
            case "OBJ":
                what, *rest = self._since_mark()
                stack.append(self._made(what, tuple(rest)))
            case "BUILD":
                self._set_state(stack.pop())
            case "APPEND" | "SETITEM":
                count = 1 if step == "APPEND" else 2
                items = stack[-count:]
                del stack[-count:]
                self._put(items, tables=step == "SETITEM")
            case "APPENDS" | "ADDITEMS" | "SETITEMS":
                self._put(self._since_mark(), tables=step == "SETITEMS")
            case _:
                stack.append(self._plain(step))

    def _plain(self, step: str) -> Any:
        """A constant, or a container of the items on the stack."""
        if step in _CONSTANTS:
            return _CONSTANTS[step]
        if step in _EMPTY:
            return _EMPTY[step]()
        if step in _TUPLES:
            items = self._stack[-_TUPLES[step] :]
            if len(items) != _TUPLES[step] or any(item is _MARK for item in items):
                raise ValueError("a tuple lacks items")
            del self._stack[-_TUPLES[step] :]
            return tuple(items)
        match step:
            case "TUPLE":
                return tuple(self._since_mark())
            case "LIST":
                return self._since_mark()
            case "DICT":
                return _table(self._since_mark())
            case "FROZENSET":
                return frozenset(map(_key, self._since_mark()))
            case _:
                raise _RefusalError(f"({step})")

    def _since_mark(self) -> list[Any]:
        at = len(self._stack) - 1
        while self._stack[at] is not _MARK:
            at -= 1
            if at < 0:
                raise ValueError("a mark is missing")
        items = self._stack[at + 1 :]
        del self._stack[at:]
        return items

    def _name(self, module: Any, name: Any) -> Any:
        """The object or stand-in of a name."""
        if type(module) is not str or type(name) is not str:
            raise ValueError("a name is not text")
        module = {"__builtin__": "builtins", "copy_reg": "copyreg"}.get(module, module)
        full = f"{module}.{name}"
        if full in _NAMES:
            return _NAMES[full]
        parts = full.split(".")[:_DEEPEST_NAME]
        if any(".".join(parts[:count]) in _ATTACKS for count in range(1, len(parts) + 1)):
            raise _RefusalError(full[:80])
        return self._named.setdefault(full, StandIn(full))

    def _made(self, what: Any, arguments: Any) -> Any:
        """The result of a call in the pickle."""
        if type(arguments) is not tuple:
            raise ValueError("the arguments of a call are not a tuple")
        if type(what) is StandIn:
            return StandIn(what.name, arguments)
        if type(what) is not _Maker:
            raise ValueError(f"it calls a {type(what).__name__}")
        self._copied += sum(len(text) for text in arguments if isinstance(text, str))
        items = sum(len(items) for items in arguments if isinstance(items, list | tuple | set))
        self._copied += BYTES_OF_ITEM * items
        if self._copied > LARGEST_PICKLE:
            raise ValueError("its pickle copies the same data too often")
        return what.make(*arguments)

    def _set_state(self, state: Any) -> None:
        target = self._stack[-1]
        if type(target) is StandIn:
            target.state = state
        elif type(target) not in (dict, OrderedDict, Tensor):  # their attributes hold no data
            raise ValueError(f"it sets the state of a {type(target).__name__}")

    def _put(self, items: list[Any], *, tables: bool) -> None:
        """Put items into the container on the stack."""
        target = self._stack[-1]
        kind = type(target)
        if kind is StandIn:
            target.items += items
        elif tables and kind in (dict, OrderedDict):
            target.update(_table(items))
        elif not tables and kind is list:
            target += items
        elif not tables and kind is set:
            target.update(map(_key, items))
        else:
            raise ValueError(f"it puts items into a {kind.__name__}")


def _key(value: Any) -> Any:
    """A value that may be a key, because its hash takes no time."""
    kind = type(value)
    if kind in (str, bytes, bool, float, type(None), StandIn, torch.dtype):
        return value
    if kind is int and value.bit_length() <= 64:
        return value
    if kind is tuple and len(value) <= LONGEST_KEY and not any(type(part) is tuple for part in value):
        return tuple(map(_key, value))
    raise ValueError(f"a {kind.__name__} cannot be a key of a table here")


def _table(items: list[Any]) -> dict[Any, Any]:
    return {_key(key): value for key, value in zip(items[::2], items[1::2], strict=True)}


@final
@dataclass(frozen=True)
class _Maker:
    """A function of this file that a pickle may call."""

    make: Callable[..., Any]


def _tensor(stored: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    """A tensor over numbers in the file; hooks and `requires_grad` are ignored."""
    if type(stored) is not _Stored or type(offset) is not int:
        raise ValueError("a tensor has no storage")
    return torch.empty(0, dtype=stored.dtype).set_(stored.numbers, offset, tuple(size), tuple(stride))


def _parameter(data: Any, *_: Any) -> Tensor:
    if not isinstance(data, Tensor):
        raise ValueError("a parameter is not a tensor")
    return data


def _bytes(text: str, coding: str) -> bytes:
    """Bytes as protocol 2 writes them."""
    if type(text) is not str or coding not in ("latin1", "latin-1"):
        raise ValueError("bytes are written in an unknown way")
    return codecs.latin_1_encode(text)[0]


def _ordered(pairs: Any = ()) -> OrderedDict[Any, Any]:
    return OrderedDict(_table([part for key, value in pairs for part in (key, value)]))


def _set(items: Any = ()) -> set[Any]:
    return set(map(_key, items))


_NAMES: Mapping[str, Any] = {
    "_codecs.encode": _Maker(_bytes),
    "builtins.frozenset": _Maker(lambda items=(): frozenset(_set(items))),
    "builtins.set": _Maker(_set),
    "collections.OrderedDict": _Maker(_ordered),
    "collections.defaultdict": _Maker(lambda *_: {}),
    "torch.Size": _Maker(lambda sizes: torch.Size(sizes)),
    "torch.device": _Maker(lambda *parts: torch.device(*parts)),
    "torch._utils._rebuild_parameter": _Maker(_parameter),
    "torch._utils._rebuild_tensor_v2": _Maker(_tensor),
    **{f"torch.{kind}": dtype for kind, dtype in _STORAGES.items()},
    **{f"torch.{number}": getattr(torch, number) for number in _NUMBERS},
}
"""The names that become objects. A storage is represented by its data type."""


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{lines[0][:200].rstrip('.')}." if lines else f"{type(error).__name__}."
