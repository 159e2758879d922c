"""What the package offers, and that all of it is explained."""

from __future__ import annotations

import inspect
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

import hdlm
from hdlm import checkpoint
from tests.architecture.source import modules

LIST = Path(__file__).with_name("public_api.txt")
PUBLIC = [module.name for module in modules() if "._" not in module.name]


def test_public_names_equal_the_list() -> None:
    assert hdlm.__all__ == LIST.read_text(encoding="utf-8").split(), (
        f"The public API changed. If that is meant, say so in CHANGELOG.md and list the names in {LIST.name}."
    )


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="hyperschedules"):
        _ = hdlm.hyperschedules


def test_load_checkpoint_is_a_deprecated_alias() -> None:
    with pytest.deprecated_call(match=r"use `hdlm.load` instead"):
        assert hdlm.load_checkpoint is checkpoint.load_checkpoint  # type: ignore[attr-defined]
    assert "load_checkpoint" not in dir(hdlm)


def test_dir_lists_the_public_names() -> None:
    assert dir(hdlm) == hdlm.__all__


def test_public_name_is_exported_by_its_module() -> None:
    for name in hdlm.__all__:
        if name == "__version__":
            continue
        home = import_module(hdlm._HOME[name])
        assert name in getattr(home, "__all__", vars(home)), name
        assert getattr(hdlm, name) is getattr(home, name), name


@pytest.fixture(scope="module")
def public() -> list[ModuleType]:
    """Every module whose name is public."""
    return [import_module(name) for name in PUBLIC]


def test_every_export_exists(public: list[ModuleType]) -> None:
    exports = [(module, export) for module in public for export in getattr(module, "__all__", ())]
    assert not [f"{module.__name__}.{export}" for module, export in exports if not hasattr(module, export)]


def test_public_objects_have_docstrings(public: list[ModuleType]) -> None:
    own = [
        (f"{module.__name__}.{name}", value)
        for module in public
        for name, value in _defined_in(module).items()
    ]
    unexplained = [name for name, value in own if not value.__doc__]
    methods = [method for _, value in own if inspect.isclass(value) for method in _unexplained(value)]
    assert not unexplained + methods


def test_subclassed_classes_are_abstract_protocol_or_exception(public: list[ModuleType]) -> None:
    """To tweak a class, wrap it: what is subclassed must be abstract, a protocol or an exception."""
    classes = [value for module in public for value in _defined_in(module).values() if inspect.isclass(value)]
    parents = {parent for owner in classes for parent in owner.__bases__ if _is_from_hdlm(parent)}
    assert not {parent for parent in parents if not _may_be_subclassed(parent)}


def _defined_in(module: ModuleType) -> dict[str, type]:
    """Public classes and functions that the module defines itself."""
    return {
        name: value
        for name, value in vars(module).items()
        if (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__ == module.__name__
        and not name.startswith("_")
    }


def _unexplained(owner: type) -> list[str]:
    """Public methods and properties of a class that neither have nor inherit a docstring."""
    methods = [
        name
        for name, value in vars(owner).items()
        if not name.startswith("_")
        and (inspect.isfunction(value) or isinstance(value, property | classmethod | staticmethod))
    ]
    return [f"{owner.__qualname__}.{name}" for name in methods if not inspect.getdoc(getattr(owner, name))]


def _is_from_hdlm(owner: type) -> bool:
    return owner.__module__.split(".")[0] == "hdlm"


def _may_be_subclassed(owner: type) -> bool:
    return (
        inspect.isabstract(owner) or issubclass(owner, BaseException) or getattr(owner, "_is_protocol", False)
    )
