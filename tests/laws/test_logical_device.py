"""Logical device: no mixed devices, waits only in allowed places, and no copies in captured graphs.

`python tests/on_a_logical_device.py` runs the scenarios; `allowed_waits.json` beside it is the list.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from tests.conftest import NO_CUDA

PROGRAM = Path(__file__).parents[1] / "on_a_logical_device.py"
ALLOWED: dict[str, dict[str, Any]] = json.loads(PROGRAM.with_name("allowed_waits.json").read_text())


@pytest.fixture(scope="module", params=["quick", pytest.param("all", marks=pytest.mark.slow)])
def report(
    repository: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> dict[str, Any]:
    """The report of the program, which runs once for all workers."""
    few = request.param == "quick"
    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared
    target = shared / f"logical-device-{request.param}.json"
    with FileLock(f"{target}.lock"):
        if not target.is_file():
            run(repository, [str(PROGRAM), str(target), *["--quick"] * few])
    return json.loads(target.read_text())


def run(repository: Path, arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=repository,
        env=os.environ | {"PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def events(scenario: dict[str, Any], *kinds: str) -> Iterator[tuple[str, str, int, bool, int]]:
    """Kind, place, line, whether captured, and how many; of the package alone."""
    return ((*one,) for one in scenario["events"] if one[0] in kinds and one[1].startswith("hdlm/"))


def waits(scenario: dict[str, Any]) -> dict[str, float]:
    """The number of waits at each place per network call."""
    found: dict[str, float] = {}
    for _, place, _, _, count in events(scenario, "wait"):
        found[place] = found.get(place, 0.0) + count / scenario["calls"]
    return found


def test_every_scenario_runs_without_mixed_devices(report: dict[str, Any]) -> None:
    failed = {name: one["error"] for name, one in report["scenarios"].items() if "error" in one}
    assert not failed
    assert len(report["scenarios"]) > 60


def test_every_scenario_gives_same_result_as_on_cpu(report: dict[str, Any]) -> None:
    assert not [name for name, one in report["scenarios"].items() if not one.get("same")]


def test_waits_for_device_are_in_allowed_list(report: dict[str, Any]) -> None:
    """The message names the lines of a new wait. An intended wait goes into the list with its reason."""
    excess = [
        f"{name}: {count:.2f} waits a call at {place}, allowed are {ALLOWED.get(place, {}).get('most', 0)}; "
        f"lines {sorted({event[2] for event in events(one, 'wait') if event[1] == place})}"
        for name, one in report["scenarios"].items()
        if "error" not in one
        for place, count in waits(one).items()
        if count > ALLOWED.get(place, {}).get("most", 0) + 0.01
    ]
    assert not excess


def test_allowed_waits_are_used_and_have_reasons(report: dict[str, Any]) -> None:
    used = {place for one in report["scenarios"].values() if "error" not in one for place in waits(one)}
    assert not ALLOWED.keys() - used
    assert not [place for place, entry in ALLOWED.items() if len(entry["reason"]) < 20]


def test_training_step_does_not_wait_for_device(report: dict[str, Any]) -> None:
    trained = {name: one for name, one in report["scenarios"].items() if name.startswith("training")}
    assert len(trained) == 5
    for one in trained.values():
        assert not list(events(one, "wait"))
        assert sum(event[-1] for event in events(one, "to host")) == one["calls"]


def test_copies_to_the_device_start_in_pinned_memory(report: dict[str, Any]) -> None:
    found = {
        name: list(events(one, "pageable")) for name, one in report["scenarios"].items() if "error" not in one
    }
    assert not {name: lines for name, lines in found.items() if lines}


def captured(scenario: dict[str, Any]) -> list[str]:
    return [
        f"{kind} at {place}:{line}"
        for kind, place, line, inside, _ in scenario["events"]
        if inside and kind in ("wait", "to device", "to host")
    ]


def test_captured_graph_contains_no_copy_or_wait(report: dict[str, Any]) -> None:
    assert not captured(report["scenarios"]["engine with slots"])


# -- faults are found ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["forget the device", "forget the index"])
def test_checker_finds_mixed_devices_with_line(report: dict[str, Any], fault: str) -> None:
    error = report["violations"][fault]["error"]
    assert error.startswith("MixedDevicesError: mix: aten.")
    assert ".py:" in error
    assert " at hdlm/" in error


def test_checker_finds_wait_in_step(report: dict[str, Any]) -> None:
    found = report["violations"]["read a number"]
    assert [event for event in found["events"] if event[0] == "wait"]


def test_checker_finds_copy_from_pageable_memory(report: dict[str, Any]) -> None:
    found = list(events(report["violations"]["copy without pinning"], "pageable"))
    assert found
    assert {event[1] for event in found} == {"hdlm/transfer.py:moved"}


@pytest.mark.parametrize(
    ("fault", "kind"), [("copy in a graph", "to device"), ("count marks in a graph", "wait")]
)
def test_checker_finds_captured_copy_or_wait(report: dict[str, Any], fault: str, kind: str) -> None:
    assert [one for one in captured(report["violations"][fault]) if one.startswith(kind)]


def test_checker_finds_table_copied_in_every_step(report: dict[str, Any]) -> None:
    name = next(one for one in report["scenarios"] if one.startswith("sampling along Table"))

    def copies(scenario: dict[str, Any]) -> int:
        return sum(event[-1] for event in scenario["events"] if event[0] == "to device")

    assert copies(report["violations"]["copy the table"]) > copies(report["scenarios"][name]) + 5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason=NO_CUDA)
def test_every_scenario_gives_same_result_on_cuda(repository: Path, tmp_path: Path) -> None:
    target = tmp_path / "cuda.json"
    run(repository, [str(PROGRAM), str(target), "--device", "cuda"])
    scenarios = json.loads(target.read_text())["scenarios"]
    assert not {name: one for name, one in scenarios.items() if "error" in one or not one["same"]}


# -- how much is asked of a device --------------------------------------------------------------------------------


@pytest.mark.slow
def test_generation_launches_do_not_exceed_recorded_numbers(repository: Path) -> None:
    """If an increase is intended, `python -m benchmarks.launches --renew` records the new numbers."""
    run(repository, ["-m", "benchmarks.launches", "--check"])
