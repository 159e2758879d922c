"""Hybrid diffusion language models, composed of five independent choices.

*When* a position is noisy (`hdlm.hyperschedule`), *how* a token is noised (`hdlm.process`), *who* attends to whom
(`hdlm.attention`), *what* the network's output means (`hdlm.parameterization`) and the way *back*
(`hdlm.sampling`). Autoregression, MDLM, SEDD, BD3-LM and the epsilon- and gamma-hybrid families of "Unifying
Autoregressive and Diffusion-Based Sequence Generation" (arXiv 2504.06416) are compositions of these.

The public names are those that the stub `__init__.pyi` re-exports. Each is imported at its first use (PEP 562), so that
`import hdlm` loads neither torch nor any other slow package.
"""

from __future__ import annotations

import ast
import sys
import warnings
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

__version__ = "0.1.0"


def _homes(stub: Path) -> dict[str, str]:
    """Map each public name to the module that the stub takes it from."""
    statements = ast.parse(stub.read_text(encoding="utf-8")).body
    imports = [statement for statement in statements if isinstance(statement, ast.ImportFrom)]
    return {alias.name: str(statement.module) for statement in imports for alias in statement.names}


_HOME = _homes(Path(__file__).with_suffix(".pyi"))

_DEPRECATED = {
    "load_checkpoint": ("hdlm.checkpoint", "load"),
    "Cavity": ("hdlm.parameterization", "LeaveOneOut"),
}

__all__ = sorted([*_HOME, "__version__"])


class _Package(ModuleType):
    """The package. `train` and `finetune` remain functions when the submodules of these names are imported."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the package by its name, as cloudpickle, and so Ray, does with other modules."""
        return import_module, (self.__name__,)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    """Import a public name on first use and remember it."""
    if name in _DEPRECATED:
        home, new = _DEPRECATED[name]
        advice = (
            f"`hdlm.{name}` is deprecated and will be removed in the next version: use `hdlm.{new}` instead."
        )
        warnings.warn(advice, DeprecationWarning, stacklevel=2)
        return getattr(import_module(home), name if name == "load_checkpoint" else new)
    if name not in _HOME:
        raise AttributeError(f"module 'hdlm' has no attribute {name!r}; it offers {', '.join(__all__)}.")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, whether they have been imported or not."""
    return list(__all__)
