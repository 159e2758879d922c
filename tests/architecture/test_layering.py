"""Who may import whom: docs/architecture.md, as a test."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from tests.architecture.source import Module, modules

# Each layer may import those before it and nothing else; within a layer, components do not know each other.
LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"strict_config"}),
    frozenset(
        {
            "atomic",
            "distributed",
            "vocabulary",
            "noise_schedule",
            "randomness",
            "package_data",
            "network",
            "transfer",
        }
    ),
    frozenset({"hyperschedule", "process", "data"}),
    frozenset({"attention", "parameterization"}),
    frozenset({"denoiser", "published_names"}),
    frozenset({"objective", "sampling", "checkpoint"}),
    frozenset({"generation"}),
    frozenset({"training", "view", "verification", "hub"}),
    frozenset({"evaluation", "sharing"}),
    frozenset({"published", "integrations", "workflows"}),
    frozenset({"cli"}),
    frozenset({"__main__"}),
    frozenset({"train", "finetune", "eval_generation", "eval_modeling"}),
    frozenset({"hf_utils", "epsilon_hybrid", "gamma_hybrid"}),
)
RANK = {component: rank for rank, layer in enumerate(LAYERS) for component in layer}

# What the layers up to `sampling` may ask of the world, so that they run on a bare GPU image.
CORE_DEPENDENCIES = frozenset({"torch", "numpy", "safetensors", "jaxtyping"})
LAST_CORE_RANK = RANK["sampling"]
NEEDS_AN_EXTRA = frozenset({"data", "distributed"})
ABOVE_BUT_LIGHT = frozenset({"verification"})


def _own_imports(module: Module) -> Iterator[str]:
    return (name for name in module.imports() if name.split(".")[0] == "hdlm")


def _foreign_imports(module: Module) -> set[str]:
    roots = {name.split(".")[0] for name in module.imports()}
    return roots - set(sys.stdlib_module_names) - {"hdlm"}


def _each(*components: str) -> list[object]:
    chosen = [module for module in modules() if not components or module.component in components]
    return [pytest.param(module, id=module.name) for module in chosen]


@pytest.mark.parametrize("module", _each())
def test_every_module_has_a_place(module: Module) -> None:
    assert not module.component or module.component in RANK, (
        f"{module.name} is in no layer: give `{module.component}` one, here and in docs/architecture.md."
    )


@pytest.mark.parametrize("module", _each())
def test_imports_go_down(module: Module) -> None:
    if not module.component:
        return
    for name in _own_imports(module):
        other = name.split(".")[1]
        if other in {module.component, "__version__"}:
            continue
        assert other in RANK, f"{module.name} imports {name}; import from the module that defines it."
        assert RANK[other] < RANK[module.component], f"{module.name} must not import {name}: see LAYERS."


@pytest.mark.parametrize("module", _each())
def test_imports_are_absolute(module: Module) -> None:
    relative = [name for name in module.imports() if name.startswith(".")]
    assert not relative, f"{module.name} imports {relative}; write `from hdlm...`."


@pytest.mark.parametrize("module", _each("network"))
def test_the_network_knows_nothing_but_torch(module: Module) -> None:
    assert _foreign_imports(module) <= {"torch", "jaxtyping"}
    assert all(name.startswith(("hdlm.network", "hdlm.strict_config")) for name in _own_imports(module))


CORE = [
    component
    for component, rank in RANK.items()
    if component in ABOVE_BUT_LIGHT or (rank <= LAST_CORE_RANK and component not in NEEDS_AN_EXTRA)
]


@pytest.mark.parametrize("module", _each(*CORE))
def test_the_core_has_few_dependencies(module: Module) -> None:
    assert _foreign_imports(module) <= CORE_DEPENDENCIES


def test_the_namespace_imports_nothing_foreign() -> None:
    namespace = next(module for module in modules() if module.name == "hdlm")
    assert not _foreign_imports(namespace)
