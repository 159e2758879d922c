"""Descriptions of pieces: a process or a hyperschedule as a plain table, and back."""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from torch import Tensor

from hdlm.strict_config import nearest

__all__ = ["build", "describe", "description_text", "piece_class"]

# Class names in checkpoints and recipes that earlier versions wrote.
_FORMER_NAMES = {"Cavity": "LeaveOneOut"}


def describe(piece: Any, *, defaults: bool = True) -> dict[str, Any]:
    """The name of a piece's class and its fields, as plain values; the inverse of `build`.

    Args:
        piece: The piece to describe.
        defaults: Whether fields that have their default are part of the description.

    Raises:
        ValueError: If it is not a dataclass, so that its fields may not describe all of it.
    """
    if not dataclasses.is_dataclass(piece) or isinstance(piece, type):
        raise ValueError(f"only dataclasses can be described; {type(piece).__name__} is not one.")
    values = {option: getattr(piece, option.name) for option in dataclasses.fields(piece) if option.init}
    return {"type": _type_name(type(piece))} | {
        option.name: _plain(value, defaults)
        for option, value in values.items()
        if defaults or not _is_default(option, value)
    }


def _is_default(option: dataclasses.Field[Any], value: Any) -> bool:
    return (
        not isinstance(value, Tensor)
        and option.default is not dataclasses.MISSING
        and value == option.default
    )


def _type_name(kind: type) -> str:
    """The name of a class of this package, or module and name of any other class."""
    own = kind.__module__.partition(".")[0] == __name__.partition(".")[0]
    return kind.__name__ if own else f"{kind.__module__}.{kind.__qualname__}"


def _plain(value: Any, defaults: bool) -> Any:
    """The value of a field without classes: tables, tuples, numbers and strings."""
    if dataclasses.is_dataclass(value):
        return describe(value, defaults=defaults)
    if isinstance(value, Tensor):
        value = value.tolist()
    return tuple(_plain(item, defaults) for item in value) if isinstance(value, list | tuple) else value


def description_text(value: Any) -> str:
    """A description in Python's notation, such as `Block(length=8, width=4, num_levels=2)`; long lists are counted."""
    if isinstance(value, Mapping):
        inside = ", ".join(f"{name}={description_text(v)}" for name, v in value.items() if name != "type")
        return f"{value['type']}({inside})" if "type" in value else inside
    if isinstance(value, list | tuple) and len(value) > 8:
        return f"{len(value)} entries"
    return str(value)


def build(offered: ModuleType, description: object) -> Any:
    """Build the piece that `describe` described.

    Args:
        offered: The package that offers the class, such as `hdlm.process`; see `piece_class`.
        description: A description, as returned by `describe`.

    Raises:
        ValueError: If the class is unknown, or has other fields.
    """
    if not isinstance(description, Mapping) or not isinstance(description.get("type"), str):
        raise ValueError(f"a {_kind_name(offered)} must be a table with a `type`; got {description!r}.")
    options = {name: _built(offered, value) for name, value in description.items() if name != "type"}
    piece = piece_class(offered, description["type"])
    kinds = {option.name: str(option.type) for option in dataclasses.fields(piece) if option.init}
    names = list(kinds)
    for name in options:
        if name not in names:
            meant = f"did you mean {nearest(name, names)}?" if names else "it has no options."
            raise ValueError(f"{description['type']} has no option {name!r}; {meant}")
        if type(options[name]) is int and kinds[name].startswith("float"):
            options[name] = float(options[name])
    try:
        return piece(**options)
    except TypeError as error:
        raise ValueError(f"{description['type']} cannot be built from {options!r}: {error}.") from error


def _built(offered: ModuleType, value: Any) -> Any:
    """The value of a field: pieces in it are built, and lists become tuples."""
    if isinstance(value, Mapping):
        return build(offered, value)
    return tuple(_built(offered, item) for item in value) if isinstance(value, list | tuple) else value


def _kind_name(offered: ModuleType) -> str:
    return offered.__name__.rpartition(".")[2].replace("_", " ")


def piece_class(offered: ModuleType, name: str) -> Any:
    """The class of a `type`.

    Args:
        offered: The package that offers such classes.
        name: A name in its `__all__`, or the module and the name of a subclass of one of its abstract classes. The
            module must have been imported.

    Raises:
        ValueError: If there is no such class.
    """
    known, what = _pieces(offered), _kind_name(offered)
    name = _FORMER_NAMES.get(name, name)
    if name in known:
        return known[name]
    module, _, own = name.rpartition(".")
    if not module:
        raise ValueError(
            f"there is no {what} {name!r}; known: {', '.join(known)}, or yours as `package.Class`."
        )
    if module not in sys.modules:
        raise ValueError(f"the {what} {name!r} is a class of your own: import {module} before you read this.")
    piece = getattr(sys.modules[module], own, None)
    if not (
        isinstance(piece, type) and dataclasses.is_dataclass(piece) and issubclass(piece, _kinds(offered))
    ):
        kinds = " or ".join(kind.__name__ for kind in _kinds(offered))
        raise ValueError(
            f"there is no {what} {name!r}: it must be a dataclass that subclasses {kinds}; got {piece!r}."
        )
    return piece


def _kinds(offered: ModuleType) -> tuple[type, ...]:
    """The abstract classes of a package."""
    values = (getattr(offered, name) for name in offered.__all__)
    return tuple(value for value in values if isinstance(value, type) and inspect.isabstract(value))


def _pieces(offered: ModuleType) -> dict[str, type]:
    """The classes of a package that a file may name: subclasses of its abstract classes."""
    kinds = _kinds(offered)
    classes = {name: value for name in offered.__all__ if isinstance(value := getattr(offered, name), type)}
    return {
        name: piece
        for name, piece in classes.items()
        if issubclass(piece, kinds) and dataclasses.is_dataclass(piece) and piece not in kinds
    }
