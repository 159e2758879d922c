"""The built wheel contains all files of the package and runs in an empty environment."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from collections.abc import Iterable
from pathlib import Path
from zipfile import ZipFile

import pytest

LARGEST_WHEEL = 16 * 2**20


@pytest.fixture(scope="module")
def wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    _run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, repository)
    (built,) = folder.glob("hdlm-*.whl")
    return built


def _run(*command: str | Path, **options: object) -> str:
    """Run a command, showing what it printed if it fails."""
    result = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, stdin=subprocess.DEVNULL, **options
    )
    assert result.returncode == 0, f"{command} exited {result.returncode}:\n{result.stdout}{result.stderr}"
    return result.stdout


def _contents(wheel: Path) -> set[str]:
    with ZipFile(wheel) as archive:
        return set(archive.namelist())


def _files(folder: Path, relative_to: Path) -> set[str]:
    found: Iterable[Path] = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(relative_to).as_posix() for path in found if "__pycache__" not in path.parts}


def test_the_wheel_holds_the_whole_package(wheel: Path, repository: Path) -> None:
    package = _files(repository / "hdlm", repository)
    assert {"hdlm/py.typed", "hdlm/__init__.pyi"} <= package
    assert package <= _contents(wheel)


def test_the_wheel_holds_the_pretrained_model(wheel: Path) -> None:
    pretrained = {Path(name) for name in _contents(wheel) if name.startswith("hdlm/pretrained/")}
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= {path.name for path in pretrained}


@pytest.mark.parametrize("folder", ["configs", "recipes"])
def test_wheel_contains_configs_and_recipes(wheel: Path, repository: Path, folder: str) -> None:
    files = _files(repository / folder, repository)
    assert files
    assert {f"hdlm/{name}" for name in files} <= _contents(wheel)


def test_wheel_contains_only_hdlm_and_is_small(wheel: Path) -> None:
    assert {name.split("/")[0].split("-")[0] for name in _contents(wheel)} == {"hdlm"}
    assert wheel.stat().st_size < LARGEST_WHEEL


@pytest.mark.slow
def test_demo_runs_from_installed_wheel(wheel: Path, repository: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "environment", with_pip=True)
    programs = tmp_path / "environment" / "bin"
    install = [programs / "pip", "install", "--quiet", "--constraint", repository / "constraints.txt"]
    _run(*install, "torch")
    _run(*install, f"{wheel}[demo]")
    empty = tmp_path / "empty"
    empty.mkdir()
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    printed = _run(programs / "hdlm", "demo", "--act", "1", cwd=empty, env=clean)
    assert len(printed.split()) > 100
