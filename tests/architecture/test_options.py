"""Flags come from the library: every field of an options class has one, or a reason why not, and a help text."""

from __future__ import annotations

import argparse
import importlib
import inspect
import re
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import hdlm.cli
from hdlm.cli._options import REQUIRED, Options, choices, constant, documented
from tests.architecture.source import REPOSITORY, modules


def _commands() -> Iterator[ModuleType]:
    """The module of every command and of what commands share."""
    for path in sorted(Path(hdlm.cli.__file__).parent.rglob("*.py")):
        parts = path.relative_to(REPOSITORY).with_suffix("").parts
        yield importlib.import_module(".".join(part for part in parts if part != "__init__"))


def _uses() -> list[Any]:
    """Each use of the fields of a class or a function: the command, its parser, and the options."""
    uses = []
    for module in _commands():
        if not hasattr(module, "add_arguments"):
            continue
        parser = argparse.ArgumentParser()
        module.add_arguments(parser)
        for name, value in vars(module).items():
            if isinstance(value, Options):
                uses.append(pytest.param(parser, value, id=f"{module.__name__} {name}"))
    return uses


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from _actions(inner)
        else:
            yield action


@pytest.mark.parametrize(("parser", "options"), _uses())
def test_every_field_has_a_flag_or_a_reason(parser: argparse.ArgumentParser, options: Options) -> None:
    flags = {action.dest: action for action in _actions(parser)}
    missing = [name for name in options.names if name not in flags]
    assert not missing, "add a flag, or exclude the field with a reason"
    assert set(options.excluded) <= set(options.declared), "an excluded field is not declared"
    assert all(len(reason.split()) >= 3 for reason in options.excluded.values())
    for name in options.names:
        declared = options.declared[name]
        assert len(declared.text.split()) >= 3, f"{options.source} does not document {name}"
        if options.default_of or declared.default is REQUIRED:
            assert flags[name].default is None
        else:
            assert flags[name].default == declared.default


@pytest.mark.parametrize(("parser", "options"), _uses())
def test_what_is_read_from_the_source_is_what_is_imported(
    parser: argparse.ArgumentParser, options: Options
) -> None:
    module, name = options.source.split(":")
    thing = getattr(importlib.import_module(module), name)
    if is_dataclass(thing):
        imported = {
            field.name: REQUIRED if field.default is MISSING else field.default for field in fields(thing)
        }
    else:
        parameters = inspect.signature(thing).parameters.values()
        named = [one for one in parameters if one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)]
        imported = {
            one.name: REQUIRED if one.default is inspect.Parameter.empty else one.default for one in named
        }
    assert list(options.declared) == list(imported)
    assert {name: options.declared[name].default for name in options.names} == {
        name: imported[name] for name in options.names
    }


def test_the_law_covers_the_classes_of_options() -> None:
    """A class of options that no command uses is found by its name."""
    known = {use.values[1].source.partition(":")[2] for use in _uses()}
    classes = {
        node.name
        for module in modules()
        if module.component in ("evaluation", "integrations", "measurements")
        for node in module.tree.body
        if type(node).__name__ == "ClassDef" and node.name.endswith("Options")
    }
    assert classes <= known


def test_a_namespace_stays_in_the_command_line() -> None:
    """Argparse is for the command line and for the published commands."""
    found = [
        module.name
        for module in modules()
        if "argparse" in module.imports and module.component not in ("cli", "published")
    ]
    assert not found


def test_the_help_of_sample_lists_every_algorithm() -> None:
    from hdlm.cli import sample
    from hdlm.sampling import ALGORITHMS
    from hdlm.sampling.algorithms import SPECULATIVE

    listed = re.search(r"^Algorithms: (.*?)\.$", str(sample.__doc__), flags=re.M | re.S)
    assert listed is not None
    assert re.sub(r"\s*\(.*?\)", "", listed[1]).replace("\n", " ").split(", ") == [
        *ALGORITHMS,
        SPECULATIVE,
    ]


def test_literals_and_constants_of_the_library_are_read() -> None:
    from hdlm.attention import Context
    from hdlm.sharing.model_card import LICENCE

    assert choices("hdlm.attention:Context") == Context.__args__
    assert constant("hdlm.sharing.export:LICENCE") == LICENCE
    with pytest.raises(LookupError, match="does not define NOTHING"):
        constant("hdlm.attention:NOTHING")


def test_entries_of_a_section_are_read() -> None:
    lines = "A class.", "", "Attributes:", "    one: The first", "        of two.", "    two: The second."
    docstring = "\n".join([*lines, "", "Raises:", "    three: No."])
    assert documented(docstring) == {"one": "The first of two.", "two": "The second."}
    assert documented("A class.") == {}
