"""Option errors hold the option and related options, and can rename all of them."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from hdlm.strict_config import IdleOptionError, OptionError, UnknownOptionError, read_table, require


@dataclass(frozen=True)
class Table:
    size: int
    rate: float = 0.5


def test_option_error_holds_option_value_and_others() -> None:
    with pytest.raises(OptionError) as caught:
        require(False, "run.size", "at most {}", 3, "run.limit")
    error = caught.value
    assert str(error) == "`run.size` must be at most `run.limit`; got 3."
    assert (error.option, error.given, error.expected) == ("run.size", 3, "be at most {}")
    assert error.others == ("run.limit",)


ERRORS = {
    "must": (OptionError("a", 1, "be {}", "b", advice=" Use 2."), "`A` must be `B`; got 1. Use 2."),
    "idle": (IdleOptionError("a", 1, "set {}", "b"), "`A` has no effect here: set `B`; got 1."),
    "unknown": (UnknownOptionError("a", 1, "{}", "b"), "unknown option `A`; did you mean `B`?"),
    "braces": (OptionError("a", {}, "be {}"), "`A` must be {}; got {}."),
}


@pytest.mark.parametrize("kind", ERRORS)
def test_renamed_option_error_renames_each_option(kind: str) -> None:
    error, message = ERRORS[kind]
    renamed = error.renamed(str.upper)
    assert type(renamed) is type(error)
    assert str(renamed) == message
    assert renamed.option == "A"


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"sise": 1}, r"unknown option `run\.sise`; did you mean `run\.size`\?"),
        ({}, r"`run\.size` must be given"),
        ({"size": 1.5}, r"`run\.size` must be int; got 1\.5"),
        ({"size": True}, r"`run\.size` must be int; got True"),
    ],
)
def test_read_table_raises_option_error(table: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message) as caught:
        read_table(Table, table, "run")
    assert caught.value.option.startswith("run.")
