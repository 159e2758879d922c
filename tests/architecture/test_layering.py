"""The allowed imports between layers, as in docs/architecture.md."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from importlib import import_module

import pytest

from hdlm.checkpoint.checkpoint import VERBS, Checkpoint
from tests.architecture.source import Module, modules

# Each layer may import those before it and nothing else; within a layer, components do not know each other.
LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"strict_config"}),
    frozenset(
        {
            "atomic",
            "devices",
            "distributed",
            "student",
            "vocabulary",
            "noise_schedule",
            "randomness",
            "hub_access",
            "package_data",
            "progress",
            "network",
            "transfer",
            "threads",
        }
    ),
    frozenset({"hyperschedule", "process", "data"}),
    frozenset({"attention", "parameterization"}),
    frozenset({"denoiser", "published_names", "regime"}),
    frozenset({"objective", "sampling", "checkpoint"}),
    frozenset({"generation"}),
    frozenset({"training", "view", "verification", "hub"}),
    frozenset({"evaluation", "sharing"}),
    frozenset({"published", "integrations", "workflows", "measurements"}),
    frozenset({"serve", "study"}),
    frozenset({"cli"}),
    frozenset({"__main__"}),
    frozenset({"train", "finetune", "eval_generation", "eval_modeling"}),
    frozenset({"hf_utils", "epsilon_hybrid", "gamma_hybrid"}),
)
RANK = {component: rank for rank, layer in enumerate(LAYERS) for component in layer}

# The verbs of a checkpoint are implemented in layers above it, and imported by name when they are called.
HAS_VERBS = "hdlm.checkpoint.checkpoint"

# The packages that the layers up to `sampling` may import, so that they run on a bare GPU image.
CORE_DEPENDENCIES = frozenset({"torch", "numpy", "safetensors", "jaxtyping"})
LAST_CORE_RANK = RANK["sampling"]
NEEDS_AN_EXTRA = frozenset({"data", "distributed", "hub_access", "progress"})
ABOVE_BUT_LIGHT = frozenset({"verification"})


def _own_imports(module: Module) -> Iterator[str]:
    return (name for name in module.imports if name.split(".")[0] == "hdlm")


def _foreign_imports(module: Module) -> set[str]:
    roots = {name.split(".")[0] for name in module.imports}
    return roots - set(sys.stdlib_module_names) - {"hdlm"}


def _modules_of(*components: str) -> list[Module]:
    return [module for module in modules() if module.component in components]


def test_every_module_has_a_layer() -> None:
    homeless = [m.name for m in modules() if m.component and m.component not in RANK]
    assert not homeless, "give each component a layer, here and in docs/architecture.md"


def test_modules_import_lower_layers_only() -> None:
    imports = {
        (module.name, module.component, name, name.split(".")[1])
        for module in modules()
        if module.component
        for name in set(_own_imports(module)) - _type_checking_imports(module)
    }
    upward, unknown = [], []
    for module, component, name, other in sorted(imports):
        if other in {component, "__version__"}:
            continue
        if other not in RANK:
            unknown.append(f"{module} imports {name}")
        elif RANK[other] >= RANK[component]:
            upward.append(f"{module} imports {name}")
    assert not unknown, "import from the module that defines it"
    assert not upward, "see LAYERS"


def _type_checking_imports(module: Module) -> set[str]:
    """Imports that only the type checker sees, where they may go up: those of the verbs of a checkpoint."""
    return set(module.imports_for_types()) if module.name == HAS_VERBS else set()


@pytest.mark.parametrize("verb", VERBS)
def test_checkpoint_methods_have_arguments_of_implementation(verb: str) -> None:
    method = inspect.signature(getattr(Checkpoint, verb))
    implementation = inspect.signature(getattr(import_module(VERBS[verb]), verb))
    assert _arguments_after_first(method) == _arguments_after_first(implementation)


def _arguments_after_first(signature: inspect.Signature) -> list[tuple[str, object, object]]:
    _, *rest = signature.parameters.values()
    return [(parameter.name, parameter.kind, parameter.default) for parameter in rest]


def test_imports_are_absolute() -> None:
    relative = [
        (module.name, name) for module in modules() for name in module.imports if name.startswith(".")
    ]
    assert not relative, "write `from hdlm...`"


def test_network_imports_only_torch_and_jaxtyping() -> None:
    network = _modules_of("network")
    assert network
    assert not {m.name: foreign for m in network if (foreign := _foreign_imports(m) - {"torch", "jaxtyping"})}
    own = [(module.name, name) for module in network for name in _own_imports(module)]
    assert not [
        (module, name) for module, name in own if not name.startswith(("hdlm.network", "hdlm.strict_config"))
    ]


CORE = [
    component
    for component, rank in RANK.items()
    if component in ABOVE_BUT_LIGHT or (rank <= LAST_CORE_RANK and component not in NEEDS_AN_EXTRA)
]


def test_core_imports_only_allowed_dependencies() -> None:
    assert not {m.name: more for m in _modules_of(*CORE) if (more := _foreign_imports(m) - CORE_DEPENDENCIES)}


def test_hdlm_namespace_imports_only_standard_library() -> None:
    namespace = next(module for module in modules() if module.name == "hdlm")
    assert not _foreign_imports(namespace)
