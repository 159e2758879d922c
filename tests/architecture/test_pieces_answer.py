"""Questions about a piece are answered by the piece: nobody outside its package asks for its class."""

from __future__ import annotations

import ast

import pytest

from hdlm import hyperschedule, process
from tests.architecture.source import Module, modules

# These modules translate to and from the configurations of others, whose words stand for classes.
TRANSLATORS = ("hdlm.published_names", "hdlm.hub.cards", "hdlm.sharing.export")

HYPERSCHEDULES = frozenset(
    {"Block", "PromptedBlock", "PublishedSlide", "PublishedWave", "Slide", "Table", "Wave", "Windowed"}
)
PROCESSES = frozenset({"Absorbing", "EpsilonHybrid", "GIDD", "GammaHybrid", "Uniform"})
CLASSES = HYPERSCHEDULES | PROCESSES | {"Shifted"}

QUESTIONS = {
    "is_autoregressive",
    "is_flat",
    "opens_together",
    "settles_together",
    "window_size",
    "ends_in_masks",
    "final_mask_share",
    "makes_masks",
    "words_stay",
}


def _asked_classes(node: ast.AST) -> set[str]:
    """The classes that a call of `isinstance` or `issubclass` asks about."""
    if not isinstance(node, ast.Call) or ast.unparse(node.func) not in ("isinstance", "issubclass"):
        return set()
    return {
        name.id if isinstance(name, ast.Name) else name.attr
        for name in ast.walk(node.args[1])
        if isinstance(name, ast.Name | ast.Attribute)
    }


def _compared_classes(node: ast.AST) -> set[str]:
    """The classes that a comparison such as `type(x) is Block` asks about."""
    if not isinstance(node, ast.Compare) or "type(" not in ast.unparse(node):
        return set()
    return {name.id for name in ast.walk(node) if isinstance(name, ast.Name)}


def _outside() -> list[Module]:
    homes = ("hyperschedule", "process", "parameterization")
    return [
        module
        for module in modules()
        if module.component not in homes and not module.name.startswith(TRANSLATORS)
    ]


def test_the_list_of_classes_is_complete() -> None:
    from hdlm.hyperschedule.base import AbstractHyperschedule, Windowed

    final = {name for name in hyperschedule.__all__ if _is_final(hyperschedule, name, AbstractHyperschedule)}
    assert final | {Windowed.__name__} == HYPERSCHEDULES
    assert {
        name for name in process.__all__ if _is_final(process, name, process.AbstractNoiseProcess)
    } == PROCESSES


def _is_final(package: object, name: str, base: type) -> bool:
    value = getattr(package, name)
    return isinstance(value, type) and issubclass(value, base) and not name.startswith("Abstract")


def test_nobody_asks_a_piece_for_its_class() -> None:
    asked = [
        f"{module.name}, line {getattr(node, 'lineno', 0)}: {', '.join(sorted(names))}"
        for module in _outside()
        for node in module.nodes
        if (names := (_asked_classes(node) | _compared_classes(node)) & CLASSES)
    ]
    assert not asked, "give the piece a property that answers the question"


def test_nobody_asks_pure_noise_for_its_masks() -> None:
    """`weights(1)` is asked by the process alone; others read `ends_in_masks` or `final_mask_share`."""
    asked = [
        f"{module.name}, line {node.lineno}"
        for module in _outside()
        for node in module.nodes
        if isinstance(node, ast.Attribute)
        and node.attr in ("mask", "absorbs")
        and ("weights(torch.ones(" in ast.unparse(node) or node.attr == "absorbs")
    ]
    assert not asked


@pytest.mark.parametrize("question", sorted(QUESTIONS))
def test_a_question_has_one_answer_in_the_package(question: str) -> None:
    homes = {"hyperschedule", "process", "parameterization"}
    defined = {
        module.component
        for module in modules()
        for node in module.nodes
        if isinstance(node, ast.FunctionDef) and node.name.lstrip("_") == question
    }
    assert len(defined) == 1
    assert defined <= homes


def test_the_check_finds_a_question() -> None:
    found = [
        _asked_classes(node) | _compared_classes(node)
        for node in ast.walk(ast.parse("isinstance(plan, Block | h.Slide); type(process) is Absorbing"))
    ]
    assert {"Block", "Slide", "Absorbing"} <= set().union(*found)
