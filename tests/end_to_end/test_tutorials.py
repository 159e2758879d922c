"""The Python of each tutorial runs from its first block to its last."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

TUTORIALS = sorted(
    path for path in (REPOSITORY / "docs" / "tutorials").glob("*.md") if path.name != "index.md"
)


SLOW = ("correction",)
"""Tutorials that take long."""


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=page.stem, marks=[pytest.mark.slow] if page.stem in SLOW else [])
        for page in TUTORIALS
    ],
)
def test_tutorial_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With two steps and a small network in the place of minutes of training."""
    monkeypatch.chdir(tmp_path)
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S))
    code = re.sub(r"(train\(.*)minutes=\d+", r"\1steps=2, network=SMALL", code)
    code = re.sub(r"minutes=\d+", "steps=2", code)
    exec(
        compile(code, str(page), "exec"),
        {"SMALL": {"hidden_size": 32, "num_blocks": 1}, "__name__": "tutorial"},
    )
    assert len(capsys.readouterr().out.splitlines()) > 3


def test_the_index_lists_every_tutorial() -> None:
    index = (REPOSITORY / "docs" / "tutorials" / "index.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\]\(([\w-]+\.md)\)", index)) == {page.name for page in TUTORIALS}
