"""The site builds without a warning, and a dead link makes the build fail."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import hdlm
from tests.conftest import REPOSITORY

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("mkdocstrings") is None, reason="needs the extra `docs`"),
]


def build(root: Path, site: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)


def test_site_builds_strictly_and_documents_public_names(tmp_path: Path) -> None:
    result = build(REPOSITORY, tmp_path / "site")
    assert result.returncode == 0, result.stderr
    for page in ("index", "training", "contributing", "changelog", "api/when", "api/checkpoints"):
        assert (tmp_path / "site" / f"{page}.html").is_file()
    pages = [page.read_text() for page in (tmp_path / "site" / "api").glob("*.html")]
    anchors = {name for page in pages for name in re.findall(r'id="(hdlm\.[\w.]+)"', page)}
    documented = {name.split(".")[-1] for name in anchors}
    assert set(hdlm.__all__) - documented == {"__version__"}
    assert {"hdlm.hub.load.load", "hdlm.generation.write.write"} <= anchors  # modules have these names too


@pytest.mark.parametrize("link", ["nowhere.md", "training.md#no-such-heading"])
def test_site_build_fails_on_dead_link(tmp_path: Path, link: str) -> None:
    for name in ("docs", "hdlm"):
        shutil.copytree(REPOSITORY / name, tmp_path / name, ignore=shutil.ignore_patterns("pretrained"))
    for name in ("mkdocs.yml", "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, tmp_path / name)
    page = tmp_path / "docs" / "gpu.md"
    page.write_text(page.read_text() + f"\n[somewhere]({link})\n")
    result = build(tmp_path, tmp_path / "site")
    assert result.returncode != 0
    assert link.split("#")[-1] in result.stderr + result.stdout
