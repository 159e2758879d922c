"""The verbs: every module or package in this folder whose name does not begin with `_`, found without an import."""

from __future__ import annotations

import argparse
import ast
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast, runtime_checkable


@runtime_checkable
class VerbModule(Protocol):
    """The interface of a verb's module."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the options of the verb."""

    def run(self, args: argparse.Namespace) -> int:
        """Run the verb; returns the exit status."""


@dataclass(frozen=True)
class Verb:
    """A verb and its file."""

    path: Path

    @property
    def name(self) -> str:
        """The name on the command line."""
        return self._module.replace("_", "-")

    @property
    def _module(self) -> str:
        return self.path.parent.name if self.path.name == "__init__.py" else self.path.stem

    @cached_property
    def description(self) -> str:
        """The docstring of the file."""
        return ast.get_docstring(ast.parse(self.path.read_text(encoding="utf-8"))) or ""

    @property
    def summary(self) -> str:
        """First line of the docstring, without its full stop."""
        return self.description.partition("\n")[0].removesuffix(".")

    def load(self) -> VerbModule:
        """Import the module."""
        return cast(VerbModule, import_module(f"{__package__}.{self._module}"))


def verbs() -> dict[str, Verb]:
    """Every verb by its name, in alphabetical order."""
    folder = Path(__file__).parent
    files = [*folder.glob("[!_]*.py"), *folder.glob("[!_]*/__init__.py")]
    return {verb.name: verb for verb in sorted(map(Verb, files), key=lambda verb: verb.name)}
