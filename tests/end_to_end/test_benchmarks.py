"""`make bench` runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


def _bench(repository: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(command, cwd=repository, capture_output=True, text=True)


def test_an_unknown_topic_is_refused(repository: Path) -> None:
    refused = _bench(repository, "speed")
    assert refused.returncode == 2
    assert "hyperschedule" in refused.stderr


@pytest.mark.slow
def test_every_topic_is_measured(repository: Path, tmp_path: Path) -> None:
    numbers = tmp_path / "numbers.json"
    measured = _bench(repository, "--seconds", "0", "--json", str(numbers))
    assert measured.returncode == 0, measured.stderr
    results = json.loads(numbers.read_text())["results"]
    assert all(0 < result["fastest"] <= result["median"] <= result["slowest"] for result in results)
    assert all(f"| {result['name']} |" in measured.stdout for result in results)
