"""Every verb has `--help`, which describes all its options."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator

import pytest

from hdlm.cli import main
from hdlm.cli._registry import verbs


def _parser(verb: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"hdlm {verb}")
    verbs()[verb].load().add_arguments(parser)
    return parser


def _commands(
    parser: argparse.ArgumentParser,
) -> Iterator[tuple[argparse.ArgumentParser, list[argparse.Action]]]:
    """A parser and the parsers of its subcommands, each with the options it declares."""
    nested = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    yield parser, [action for action in parser._actions if action not in nested]
    for action in nested:
        for subparser in action.choices.values():
            yield from _commands(subparser)


def test_help_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--help"])
    assert left.value.code == 0
    printed = capsys.readouterr().out
    assert all(f"  {verb} " in printed for verb in verbs())


@pytest.mark.parametrize("verb", verbs())
def test_help_of_verb_lists_its_options(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([verb, "--help"])
    assert left.value.code == 0
    printed = capsys.readouterr().out
    assert f"usage: hdlm {verb}" in printed
    assert all(option in printed for action in _parser(verb)._actions for option in action.option_strings)


@pytest.mark.parametrize("verb", verbs())
def test_every_option_has_help(verb: str) -> None:
    unexplained = [
        f"{parser.prog} {'/'.join(action.option_strings) or action.dest}"
        for parser, actions in _commands(_parser(verb))
        for action in actions
        if not action.help
    ]
    assert not unexplained


NOT_COUNTS = {
    "--seed": "0 is a seed as well",
    "--port": "0 is any free port",
    "--step": "0 is a step, and the last one depends on the hyperschedule",
    "--hyperschedule": "0 is the first of a list",
}


@pytest.mark.parametrize("verb", verbs())
def test_an_option_that_is_a_count_refuses_numbers_below_one_by_its_name(verb: str) -> None:
    unchecked = {
        option
        for _, actions in _commands(_parser(verb))
        for action in actions
        if action.type is int and action.default != 0
        for option in action.option_strings
    }
    assert unchecked <= NOT_COUNTS.keys()


def test_an_unknown_verb_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["dance"])
    assert left.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_help_does_not_import_torch() -> None:
    code = (
        "import contextlib, sys; from hdlm.cli import main\n"
        "with contextlib.suppress(SystemExit): main(['--help'])\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
