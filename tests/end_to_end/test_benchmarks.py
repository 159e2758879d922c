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


@pytest.mark.slow
def test_what_each_optimisation_of_the_sampler_is_worth(repository: Path, tmp_path: Path) -> None:
    size = (
        "--hidden 16 --blocks 1 --heads 2 --words 50 --length 32 --width 8 --steps 8 32 --batch 1 2".split()
    )
    numbers = tmp_path / "numbers.json"
    command = [sys.executable, "-m", "benchmarks.sampling", *size, "--json", str(numbers)]
    measured = subprocess.run(command, cwd=repository, capture_output=True, text=True)
    assert measured.returncode == 0, measured.stderr
    rows = json.loads(numbers.read_text())["rows"]
    assert {row["batch"] for row in rows} == {1, 2}
    assert all(row["seconds"] > 0 and 0 < row["limit"] for row in rows)
    assert min(row["calls"] for row in rows if row["way"] == "plain") == 8
    skipped = [row for row in rows if row["way"].startswith("+ steps") and row["task"].startswith("blocks")]
    assert all(row["calls_of_a_sequence"] < 32 for row in skipped)
