"""Reads plain nested tables (TOML, JSON, YAML) into frozen dataclasses, strictly: errors name the dotted option.

A dataclass is a table, and its fields are the options. An option whose name is not a Python identifier is named in the
metadata of its field, `field(metadata={"key": "lambda"})`. A value must have the type of its field; an integer is
accepted for a float.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections import abc
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import NoneType, UnionType
from typing import Any, ClassVar, Literal, TypeVar, Union, final, get_args, get_origin, get_type_hints

__all__ = [
    "IdleOptionError",
    "OptionError",
    "UnknownOptionError",
    "did_you_mean",
    "key_of",
    "nearest",
    "one_line",
    "options_of",
    "read_table",
    "require",
]

_T = TypeVar("_T")


class OptionError(ValueError):
    """An option whose value cannot be used.

    Args:
        option: Dotted name of the option.
        given: Value of the option.
        expected: What the value must be; each `{}` stands for one of the other options.
        others: Dotted names of the other options.
        advice: A sentence that is appended.
    """

    form: ClassVar[str] = "`{option}` must {expected}; got {given!r}."

    def __init__(self, option: str, given: object, expected: str, *others: str, advice: str = "") -> None:
        full = expected.format(*(f"`{other}`" for other in others)) if others else expected
        super().__init__(self.form.format(option=option, expected=full, given=given) + advice)
        self.option, self.given, self.expected = option, given, expected
        self.others, self.advice = others, advice

    def renamed(self, name: Callable[[str], str]) -> OptionError:
        """A copy in which every option has another name."""
        others = (name(other) for other in self.others)
        return type(self)(name(self.option), self.given, self.expected, *others, advice=self.advice)


@final
class IdleOptionError(OptionError):
    """An option that has no effect together with the others; `expected` says what to do."""

    form = "`{option}` has no effect here: {expected}; got {given!r}."


@final
class UnknownOptionError(OptionError):
    """An option that does not exist."""

    form = "unknown option `{option}`; did you mean {expected}?"


def require(condition: bool, option: str, expected: str, got: object, *others: str) -> None:
    """Refuse a value unless a condition holds.

    Args:
        condition: Whether the value is valid.
        option: Dotted name of the option.
        expected: What the value must be; each `{}` stands for one of the other options.
        got: Value of the option.
        others: Dotted names of the other options.

    Raises:
        OptionError: If the condition does not hold.
    """
    if not condition:
        raise OptionError(option, got, f"be {expected}", *others)


def one_line(error: BaseException) -> str:
    """The message of an error on one line; the name of its class if it has no message."""
    return " ".join(str(error).split()) or type(error).__name__


def key_of(option: dataclasses.Field[Any]) -> str:
    """The name of a field in a table."""
    return str(option.metadata.get("key", option.name))


def nearest(option: str, known: Iterable[str]) -> str:
    """The option that an unknown one may mean: one of its name in another table, or that with the nearest spelling."""
    names = list(known)
    last = option.rpartition(".")[2]
    moved = [name for name in names if name.rpartition(".")[2] == last]
    return difflib.get_close_matches(option, moved or names, n=1, cutoff=0.0)[0]


def did_you_mean(word: str, known: Iterable[str], form: str = "; did you mean `{}`?") -> str:
    """The end of a message about an unknown word, with the known word that is spelled alike; empty if there is none.

    Args:
        word: The unknown word.
        known: The known words.
        form: The end of the message, with `{}` for the known word.
    """
    alike = difflib.get_close_matches(word, known, n=1)
    return form.format(alike[0]) if alike else ""


def options_of(cls: Any, prefix: str = "") -> Iterator[str]:
    """Dotted names of all options of a dataclass, and of the tables in it; lists of tables are one option."""
    hints = get_type_hints(cls)
    for option in dataclasses.fields(cls):
        yield f"{prefix}{key_of(option)}"
        hint = hints[option.name]
        for kind in (hint, *get_args(hint)):
            if dataclasses.is_dataclass(kind) and get_origin(hint) is not tuple:
                yield from options_of(kind, f"{prefix}{key_of(option)}.")


def read_table(cls: type[_T], table: object, name: str = "") -> _T:
    """Read a dataclass from its table; missing options have their defaults, and a missing table is empty.

    Args:
        cls: Dataclass of the table.
        table: Options by their names.
        name: Dotted name of the table, empty for the whole file.

    Raises:
        ValueError: If an option is unknown (the nearest known one is named), missing, of another type, or refused by
            the dataclass.
    """
    require(isinstance(table, Mapping), name, f"a table, [{name}]", table)
    assert isinstance(table, Mapping)
    prefix = f"{name}." if name else ""
    options = {key_of(option): option for option in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in table:
        if key not in options:
            meant = f"{prefix}{nearest(str(key), options)}"
            raise UnknownOptionError(f"{prefix}{key}", table[key], "{}", meant)
    hints = get_type_hints(cls)
    values = {}
    for key, option in options.items():
        hint = hints[option.name]
        if key in table:
            values[option.name] = _convert(table[key], hint, f"{prefix}{key}")
        elif not _has_default(option):
            values[option.name] = _left_out(hint, f"{prefix}{key}")
    return cls(**values)


def _has_default(option: dataclasses.Field[Any]) -> bool:
    return option.default is not dataclasses.MISSING or option.default_factory is not dataclasses.MISSING


def _left_out(hint: Any, option: str) -> Any:
    """The value of a missing table, or of a missing list of tables."""
    if dataclasses.is_dataclass(hint):
        return _convert({}, hint, option)
    if get_origin(hint) is tuple and dataclasses.is_dataclass(get_args(hint)[0]):
        return ()
    raise OptionError(option, None, "be given")


def _convert(value: Any, hint: Any, option: str) -> Any:
    """A plain value as the declared type of an option.

    Raises:
        ValueError: If it has another type.
    """
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if value is None and NoneType in kinds:
        return None
    kind = next(kind for kind in kinds if kind is not NoneType)
    if dataclasses.is_dataclass(kind):
        return read_table(kind, value, option)  # type: ignore[arg-type]
    if get_origin(kind) is tuple:
        return _several(value, get_args(kind)[0], option)
    if kind is float and type(value) is int:
        return float(value)
    if get_origin(kind) is Literal:
        require(value in get_args(kind), option, f"one of {', '.join(get_args(kind))}", value)
        return value
    plain = Mapping if get_origin(kind) is abc.Mapping else kind
    fits = isinstance(value, plain) and (plain is bool or not isinstance(value, bool))
    require(fits, option, "a table" if plain is Mapping else plain.__name__, value)
    return value


def _several(value: Any, kind: Any, option: str) -> tuple[Any, ...]:
    """A list of tables, of numbers, or of names; a single name needs no list."""
    if dataclasses.is_dataclass(kind):
        require(isinstance(value, list | tuple), option, f"a list of tables, [[{option}]]", value)
        return tuple(read_table(kind, item, option) for item in value)  # type: ignore[arg-type]
    if kind in (int, float):
        require(isinstance(value, list | tuple), option, "a list of numbers", value)
        return tuple(_convert(item, kind, option) for item in value)
    items = [value] if isinstance(value, str) else value
    names = isinstance(items, list | tuple) and all(isinstance(item, str) for item in items)
    require(names, option, "names", value)
    return tuple(items)
