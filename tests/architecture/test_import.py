"""`import hdlm` is quick, and the core needs no extra."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

from tests.architecture.source import REPOSITORY, modules
from tests.architecture.test_layering import CORE

SECONDS = 0.5
TRIES = 5


def _python(code: str) -> str:
    """Run code in a new interpreter and return what it prints."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


def test_import_hdlm_is_fast_and_does_not_import_torch() -> None:
    code = (
        "import sys, time; begin = time.perf_counter(); import hdlm; "
        "print(time.perf_counter() - begin, 'torch' in sys.modules)"
    )
    seconds, loaded_torch = zip(*(_python(code).split() for _ in range(TRIES)), strict=True)
    assert min(map(float, seconds)) < SECONDS
    assert set(loaded_torch) == {"False"}


HEAVY = (
    "accelerate",
    "datasets",
    "huggingface_hub",
    "matplotlib",
    "omegaconf",
    "pandas",
    "rich",
    "scipy",
    "sympy",
    "torch._dynamo",
    "torch._inductor",
    "torch.distributed.fsdp",
    "transformers",
)


def test_sampling_imports_no_heavy_module() -> None:
    code = (
        "import sys; from hdlm.cli import main; "
        "assert not main(['sample', 'kjv-epsilon-4m', '--length', '16', '--json']); "
        f"print('heavy:', *(name for name in {HEAVY!r} if name in sys.modules))"
    )
    assert _python(code).splitlines()[-1] == "heavy:"


def _extras_only() -> set[str]:
    """Import names of what only the extras bring."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [Requirement(line).name for lines in project["optional-dependencies"].values() for line in lines]
    core = {Requirement(line).name for line in project["dependencies"]}
    return {name.replace("-", "_") for name in wanted if name not in core | {"hdlm"}}


IMPORT_WITHOUT = """
import sys
from importlib import import_module
from importlib.abc import MetaPathFinder

class Absent(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {absent!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
for name in {names!r}:
    import_module(name)
    print(name)
"""


def test_the_core_imports_without_any_extra() -> None:
    names = [module.name for module in modules() if module.component in CORE]
    assert _python(IMPORT_WITHOUT.format(absent=_extras_only(), names=names)).split() == names


def test_package_is_pickled_by_its_name() -> None:
    """Functions that use `hdlm` are sent to the processes of Ray, which pickles what they refer to."""
    code = "import pickle, hdlm; print(pickle.loads(pickle.dumps(hdlm)) is hdlm)"
    assert _python(code) == "True\n"


def test_package_has_py_typed_marker() -> None:
    assert Path(REPOSITORY, "hdlm", "py.typed").is_file()
