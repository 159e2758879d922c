"""Which calls have their shapes checked: the calls 1, 2, 4, 8, 16 and so on of each function in each test.

A check takes several times as long as a small operation on tensors. A test checks every function that it calls, and
every new object of a dataclass. Its loops repeat what their first calls have shown, so most of those calls are not
checked. `HDLM_CHECK_EVERY_CALL=1 make test` checks every call.
"""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Callable
from types import CodeType, FunctionType
from typing import Any

import jaxtyping
import torch

_check_all_calls = jaxtyping.jaxtyped
_calls: Counter[CodeType] = Counter()


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
    if not isinstance(function, FunctionType):
        return _check_all_calls(function, typechecker=typechecker)
    checked: Callable[..., Any] | None = None

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal checked
        if torch.compiler.is_compiling() or not _is_due(function.__code__):
            return function(*args, **kwargs)
        checked = checked or _check_all_calls(function, typechecker=typechecker)
        return checked(*args, **kwargs)

    return call


def _is_due(code: CodeType) -> bool:
    """Whether the number of this call is a power of two. Functions made by one `def` share a count."""
    _calls[code] += 1
    return _calls[code].bit_count() == 1
