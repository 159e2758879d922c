"""A public class, function or exported constant has one definition in the whole package."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator

from tests.architecture.source import modules

PROTOCOL = frozenset({"add_arguments", "run", "main"})
"""What every module of a command offers: `hdlm.cli` says so."""


def definitions(tree: ast.Module) -> Iterator[str]:
    """Names without an underscore that a module defines: classes, functions and exported constants."""
    exported: set[str] = set()
    constants: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = {target.id for target in targets if isinstance(target, ast.Name)}
            if "__all__" in names and isinstance(node.value, ast.List):
                exported = set(ast.literal_eval(node.value))
            constants |= names
    yield from constants & exported


def test_a_public_name_is_defined_once() -> None:
    homes: dict[str, list[str]] = defaultdict(list)
    for module in modules():
        for name in definitions(module.tree):
            if not name.startswith("_") and name not in PROTOCOL:
                homes[name].append(module.name)
    twice = {name: places for name, places in homes.items() if len(places) > 1}
    assert not twice, f"names with more than one definition: {twice}"


def test_definitions_finds_classes_functions_and_exported_constants() -> None:
    tree = ast.parse("__all__ = ['A']\nA = 1\nB = 2\nclass C: ...\ndef _d(): ...\n")
    assert set(definitions(tree)) == {"A", "C", "_d"}
