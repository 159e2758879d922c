"""Rules that hold for every file of the package."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions

import pytest

from tests.architecture.source import PACKAGE, Module, modules

EVERY_MODULE = [pytest.param(module, id=module.name) for module in modules()]
LONGEST_FUNCTION = 80
TOO_BROAD = frozenset({"Exception", "BaseException"})

# Where a special id or a device may stand as a literal: the vocabulary, and the cards of published weights.
HOMES_OF_LITERALS = ("hdlm.vocabulary", "hdlm.hub.cards")
SPECIAL_IDS = frozenset({50256, 50257, 50258})

# What a script in `hdlm/` would shadow: `python hdlm/train.py` puts `hdlm/` first on sys.path.
WELL_KNOWN = frozenset(
    {"accelerate", "attr", "datasets", "deepspeed", "einops", "evaluate", "fastapi", "flash_attn", "gradio"}
    | {"httpx", "hydra", "lightning", "lm_eval", "mauve", "metrics", "nltk", "omegaconf", "optax", "pandas"}
    | {"peft", "requests", "sacremoses", "sentencepiece", "tensorboard", "tiktoken", "tqdm", "transformers"}
    | {"triton", "trl", "typer", "uvicorn", "vllm", "wandb", "xformers", "yaml"}
)


@pytest.mark.parametrize("module", EVERY_MODULE)
def test_no_literal_ids_or_devices(module: Module) -> None:
    if module.name.startswith(HOMES_OF_LITERALS):
        return
    literals = [
        (node.lineno, node.value)
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Constant) and _is_special(node.value)
    ]
    assert not literals, (
        f"{module.path}: take ids from the Vocabulary and devices from the caller: {literals}"
    )


def _is_special(value: object) -> bool:
    if isinstance(value, str):
        return value == "cuda" or value.startswith("cuda:")
    return type(value) is int and value in SPECIAL_IDS


def test_no_module_shadows_another_package() -> None:
    children = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
    installed = {name for name, owners in packages_distributions().items() if "hdlm" not in owners}
    assert not children & set(sys.stdlib_module_names)
    assert not children & (WELL_KNOWN | installed)


def _functions(module: Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (n for n in ast.walk(module.tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))


@pytest.mark.parametrize("module", EVERY_MODULE)
def test_functions_fit_on_a_screen(module: Module) -> None:
    lengths = {f.name: (f.end_lineno or f.lineno) - f.lineno + 1 for f in _functions(module)}
    assert not {name: length for name, length in lengths.items() if length > LONGEST_FUNCTION}


@pytest.mark.parametrize("module", EVERY_MODULE)
def test_exceptions_are_named(module: Module) -> None:
    caught = [node.type for node in ast.walk(module.tree) if isinstance(node, ast.ExceptHandler)]
    broad = [t for t in caught if t is None or (isinstance(t, ast.Name) and t.id in TOO_BROAD)]
    assert not broad, f"{module.path}: a failure never becomes a default; name what may happen."


@pytest.mark.parametrize("module", EVERY_MODULE)
def test_modules_open_with_a_docstring(module: Module) -> None:
    assert ast.get_docstring(module.tree), f"{module.path} opens without its definition."
