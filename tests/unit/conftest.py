"""Fixtures that several files of unit tests share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of text that tiny networks train on. No test changes it."""
    file = tmp_path_factory.mktemp("text") / "rhyme.txt"
    file.write_text("the cat sat on the mat and the dog sat on the log . " * 60)
    return file
