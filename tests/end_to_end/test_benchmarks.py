"""`make bench` runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import main


def _bench(repository: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(command, cwd=repository, capture_output=True, text=True)


def test_benchmark_rejects_unknown_topic(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["benchmarks", "speed"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "hyperschedule" in capsys.readouterr().err


@pytest.mark.slow
def test_benchmark_measures_every_topic(repository: Path, tmp_path: Path) -> None:
    numbers = tmp_path / "numbers.json"
    measured = _bench(repository, "--seconds", "0", "--json", str(numbers))
    assert measured.returncode == 0, measured.stderr
    results = json.loads(numbers.read_text())["results"]
    assert all(0 < result["fastest"] <= result["median"] <= result["slowest"] for result in results)
    assert all(f"| {result['name']} |" in measured.stdout for result in results)


@pytest.mark.slow
def test_sampling_benchmark_measures_each_optimisation(repository: Path, tmp_path: Path) -> None:
    small = [
        "--hidden",
        "16",
        "--blocks",
        "1",
        "--heads",
        "2",
        "--words",
        "50",
        "--length",
        "32",
        "--width",
        "8",
    ]
    size = [*small, "--steps", "8", "32", "--batch", "1", "2"]
    numbers = tmp_path / "numbers.json"
    command = [sys.executable, "-m", "benchmarks.sampling", *size, "--json", str(numbers)]
    measured = subprocess.run(command, cwd=repository, capture_output=True, text=True)
    assert measured.returncode == 0, measured.stderr
    rows = json.loads(numbers.read_text())["rows"]
    assert {row["batch"] for row in rows} == {1, 2}
    assert all(row["seconds"] > 0 and row["limit"] > 0 for row in rows)
    assert min(row["calls"] for row in rows if row["way"] == "plain") == 8
    skipped = [row for row in rows if row["way"].startswith("+ steps") and row["task"].startswith("blocks")]
    assert all(row["calls_of_a_sequence"] < 32 for row in skipped)


@pytest.mark.slow
def test_serving_benchmark_compares_batching_with_none_and_with_plain_generation(repository: Path) -> None:
    size = ["--hidden", "64", "--blocks", "1", "--tokens", "4", "--requests", "1", "--clients", "1", "3"]
    command = [sys.executable, "-m", "benchmarks.serving", "--plain", *size, "--algorithm", "acs", "exact"]
    measured = subprocess.run(command, cwd=repository, capture_output=True, text=True)
    assert measured.returncode == 0, measured.stderr
    table = [line for line in measured.stdout.splitlines() if line.startswith("|")]
    heading, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    assert [row[:2] for row in rows] == [["plain", ""], ["1", "1"], ["3", "1"], ["3", "3"]]
    last = dict(zip(heading, rows[-1], strict=True))
    assert all(float(cell) > 0 for cell in last.values())
    assert float(last["p50 s"]) <= float(last["p95 s"]) <= float(last["p99 s"])


@pytest.mark.slow
def test_training_benchmark_measures_same_loss_for_each_variant(repository: Path, tmp_path: Path) -> None:
    """All variants have equal trained positions and equal losses."""
    numbers = tmp_path / "numbers.json"
    sizes = {"length": 32, "blocks": 1, "hidden": 16, "heads": 2, "vocabulary": 300, "width": 8, "steps": 1}
    names = ["plain, two streams", "+ attention kernel", "+ loss in pieces"]
    given = [f"--{name}={size}" for name, size in sizes.items()]
    command = [sys.executable, "-m", "benchmarks.train", *given, "--only", *names, "--json", str(numbers)]
    measured = subprocess.run(command, cwd=repository, capture_output=True, text=True)
    assert measured.returncode == 0, measured.stderr
    results = json.loads(numbers.read_text())["results"]
    assert [result["name"] for result in results] == names
    assert all(result["taught"] == 32 for result in results)
    assert results[0]["loss"] == pytest.approx(results[1]["loss"], rel=1e-5)
    assert results[2]["loss"] == pytest.approx(results[1]["loss"], rel=1e-5)


@pytest.mark.slow
def test_decoder_benchmark_compares_with_transformers(repository: Path) -> None:
    pytest.importorskip("transformers")
    command = [sys.executable, "-m", "benchmarks.sampling", "--decoder", "--quick"]
    measured = subprocess.run(command, cwd=repository, capture_output=True, text=True)
    assert measured.returncode == 0, measured.stderr
    for row in ("blocks of 4,", "blocks of 32,", "no cache", "refreshed every 4 calls", "never refreshed"):
        assert row in measured.stdout
    for row in (
        "tokens per forward",
        "width 3, length 64, temperature 1",
        "width 3, length 64, temperature 0",
    ):
        assert row in measured.stdout
