"""Which calls have their shapes checked: the calls 1, 4, 16, 64 and so on of each function in each test.

A check takes several times as long as a small operation on tensors. A test checks every function that it calls, and
every new object of a dataclass. Its loops repeat what their first calls have shown, so most of those calls are not
checked. `HDLM_CHECK_EVERY_CALL=1 make test` checks every call.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
import threading
import typing
from collections import Counter
from collections.abc import Callable
from types import CodeType, FunctionType
from typing import Any

import jaxtyping
import torch
from beartype import BeartypeConf
from beartype.roar import BeartypeDecorHintException

_check_all_calls = jaxtyping.jaxtyped
_ERRORS_OF_JAXTYPING = BeartypeConf(violation_type=jaxtyping.TypeCheckError)
_calls: Counter[int] = Counter()
_checked: dict[CodeType, Callable[..., Any] | None] = {}


class _Called(threading.local):
    """The functions that are about to run after the check of their arguments, for each thread."""

    def __init__(self) -> None:
        self.functions: list[Callable[..., Any]] = []


_called = _Called()


def install() -> None:
    """Make the import hook of jaxtyping use `check_some_calls`. Nothing of the package may be imported before."""
    if os.environ.get("HDLM_CHECK_EVERY_CALL", "0") == "0":
        jaxtyping.jaxtyped = check_some_calls


def begin_test() -> None:
    """Count the calls from zero."""
    _calls.clear()


def check_some_calls(*, typechecker: Any) -> Callable[[Any], Any]:
    """A decorator, in the place of `jaxtyping.jaxtyped`."""
    return functools.partial(_with_some_checks, typechecker=typechecker)


def _with_some_checks(function: Any, typechecker: Any) -> Any:
    """The function, with checks in some of its calls. Classes and descriptors keep all checks."""
    if dataclasses.is_dataclass(function) and "__init__" in vars(function):
        owner: Any = function
        checked = _with_checks(owner.__init__, typechecker)
        if checked is None:
            return _check_all_calls(owner, typechecker=typechecker)
        owner.__init__ = checked
        return owner
    if not isinstance(function, FunctionType):
        return _check_all_calls(function, typechecker=typechecker)
    code = function.__code__
    key = id(code)  # a code object computes its hash at each use

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return function(*args, **kwargs)
        _calls[key] = number = _calls[key] + 1  # functions made by one `def` share a count
        if number & (number - 1) or not number.bit_length() & 1:  # the number is not a power of four
            return function(*args, **kwargs)
        if code not in _checked:
            _checked[code] = _with_checks(_run_last_of(function), typechecker)
        shared = _checked[code]
        if shared is None:
            return _check_all_calls(function, typechecker=typechecker)(*args, **kwargs)
        _called.functions.append(function)
        return shared(*args, **kwargs)

    return call


def _run_last_of(function: FunctionType) -> Callable[..., Any]:
    """Calls the last function of `_called`: functions made by one `def` share their checks, which are slow to make."""

    @functools.wraps(function)
    def run_last(*args: Any, **kwargs: Any) -> Any:
        return _called.functions.pop()(*args, **kwargs)

    return run_last


def _with_checks(function: Callable[..., Any], typechecker: Any) -> Callable[..., Any] | None:
    """The function with checks in all calls; None if it needs the decorator of jaxtyping.

    That decorator checks each argument twice. The type checker alone checks it once; where annotations have
    shapes, a context of jaxtyping makes the dimensions of one call agree.
    """
    if inspect.isgeneratorfunction(inspect.unwrap(function)):
        return None
    try:
        hints = typing.get_type_hints(function, include_extras=True)
        checked: Callable[..., Any] = typechecker(function, conf=_ERRORS_OF_JAXTYPING)
    except (
        NameError,
        BeartypeDecorHintException,
    ):  # a name that only mypy imports, or `P.args`: jaxtyping skips it
        return None
    if not any(map(_is_shape, hints.values())):
        return checked

    @functools.wraps(function)
    def in_context(*args: Any, **kwargs: Any) -> Any:
        with _check_all_calls("context"):
            return checked(*args, **kwargs)

    return in_context


def _is_shape(hint: Any) -> bool:
    """Whether an annotation is or contains an array with a shape."""
    if isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    return any(map(_is_shape, typing.get_args(hint)))
