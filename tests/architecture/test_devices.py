"""Which functions have a device of their own."""

from __future__ import annotations

import ast

from tests.architecture.source import modules

PLACES_A_MODEL = {
    "hdlm.checkpoint.format.load_checkpoint",
    "hdlm.hub.load.load",
    "hdlm.cli._models.open_checkpoint",
    "hdlm.evaluation.generation.judge.__init__",  # of `TransformersJudge`, which loads its model
    "hdlm.objective.times.stratified_times",  # numbers, and no model
}


def test_device_defaults_to_cpu_only_where_a_model_is_placed() -> None:
    """`device` has the default "cpu" only in functions that place a model on a device."""
    found = set()
    for module in modules():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef):
                spec = node.args
                plain = [*spec.posonlyargs, *spec.args]
                named = [*zip(plain[len(plain) - len(spec.defaults) :], spec.defaults, strict=True)]
                named += zip(spec.kwonlyargs, spec.kw_defaults, strict=True)
                pairs = [(argument.arg, default) for argument, default in named]
                names = {f"{module.name}.{node.name}"}
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                pairs, names = [(node.target.id, node.value)], {f"{module.name}.{node.target.id}"}
            else:
                continue
            if any(
                name == "device" and isinstance(value, ast.Constant) and value.value == "cpu"
                for name, value in pairs
            ):
                found |= names
    assert found == PLACES_A_MODEL
