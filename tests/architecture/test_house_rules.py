"""Rules that hold for every file of the package."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions

from tests.architecture.source import PACKAGE, Module, modules

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

# An error of one request ends that request and is returned to its user; the other requests resume.
RETURNS_ERRORS = "hdlm.generation.company"


def test_no_literal_ids_or_devices() -> None:
    literals = [
        (module.name, node.lineno, node.value)
        for module in modules()
        if not module.name.startswith(HOMES_OF_LITERALS)
        for node in module.nodes
        if isinstance(node, ast.Constant) and _is_special(node.value)
    ]
    assert not literals, "take ids from the Vocabulary and devices from the caller"


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
    return (n for n in module.nodes if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))


def test_functions_have_at_most_80_lines() -> None:
    lengths = {
        f"{module.name}.{function.name}, line {function.lineno}": (function.end_lineno or 0)
        - function.lineno
        + 1
        for module in modules()
        for function in _functions(module)
    }
    assert not {name: length for name, length in lengths.items() if length > LONGEST_FUNCTION}


def test_no_broad_exception_handlers() -> None:
    broad = [
        f"{module.name}, line {node.lineno}"
        for module in modules()
        if module.name != RETURNS_ERRORS
        for node in module.nodes
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or (isinstance(node.type, ast.Name) and node.type.id in TOO_BROAD))
    ]
    assert not broad, "a failure never becomes a default; name what may happen"


def test_modules_have_docstrings() -> None:
    assert not [module.name for module in modules() if not ast.get_docstring(module.tree)]
