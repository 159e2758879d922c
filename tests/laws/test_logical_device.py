"""On a logical device: nothing mixes devices, the program waits where a list says so, and graphs capture no copy.

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


@pytest.fixture(scope="module")
def report(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the program found: it runs once, whichever of the workers wants it first."""
    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared
    target = shared / "logical-device.json"
    with FileLock(f"{target}.lock"):
        if not target.is_file():
            run(repository, [str(PROGRAM), str(target)])
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
    """How often the program waits at each place, for a call of the network."""
    found: dict[str, float] = {}
    for _, place, _, _, count in events(scenario, "wait"):
        found[place] = found.get(place, 0.0) + count / scenario["calls"]
    return found


def test_every_scenario_runs_without_mixed_devices(report: dict[str, Any]) -> None:
    failed = {name: one["error"] for name, one in report["scenarios"].items() if "error" in one}
    assert not failed
    assert len(report["scenarios"]) > 60


def test_every_scenario_finds_what_it_finds_on_a_cpu(report: dict[str, Any]) -> None:
    assert not [name for name, one in report["scenarios"].items() if not one.get("same")]


def test_the_program_waits_only_where_it_may(report: dict[str, Any]) -> None:
    """Lines are named, so that a new wait is found at once; a wait that is meant goes into the list with its reason."""
    excess = [
        f"{name}: {count:.2f} waits a call at {place}, allowed are {ALLOWED.get(place, {}).get('most', 0)}; "
        f"lines {sorted({event[2] for event in events(one, 'wait') if event[1] == place})}"
        for name, one in report["scenarios"].items()
        if "error" not in one
        for place, count in waits(one).items()
        if count > ALLOWED.get(place, {}).get("most", 0) + 0.01
    ]
    assert not excess


def test_the_list_of_waits_has_no_unused_and_no_unexplained_entry(report: dict[str, Any]) -> None:
    used = {place for one in report["scenarios"].values() if "error" not in one for place in waits(one)}
    assert not ALLOWED.keys() - used
    assert not [place for place, entry in ALLOWED.items() if len(entry["reason"]) < 20]


def test_a_step_of_training_waits_for_nothing(report: dict[str, Any]) -> None:
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


def test_a_captured_region_neither_copies_nor_waits(report: dict[str, Any]) -> None:
    assert not captured(report["scenarios"]["engine with slots"])


# -- faults are found ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["forget the device", "forget the index"])
def test_mixed_devices_are_found_with_their_line(report: dict[str, Any], fault: str) -> None:
    error = report["violations"][fault]["error"]
    assert error.startswith("MixedDevicesError: mix: aten.")
    assert ".py:" in error
    assert " at hdlm/" in error


def test_a_wait_in_a_step_is_found(report: dict[str, Any]) -> None:
    found = report["violations"]["read a number"]
    assert [event for event in found["events"] if event[0] == "wait"]


def test_a_copy_from_pageable_memory_is_found(report: dict[str, Any]) -> None:
    found = list(events(report["violations"]["copy without pinning"], "pageable"))
    assert found
    assert {event[1] for event in found} == {"hdlm/transfer.py:moved"}


@pytest.mark.parametrize(
    ("fault", "kind"), [("copy in a graph", "to device"), ("count marks in a graph", "wait")]
)
def test_a_captured_copy_or_wait_is_found(report: dict[str, Any], fault: str, kind: str) -> None:
    assert [one for one in captured(report["violations"][fault]) if one.startswith(kind)]


def test_a_table_that_is_copied_in_every_step_is_found(report: dict[str, Any]) -> None:
    name = next(one for one in report["scenarios"] if one.startswith("sampling along Table"))

    def copies(scenario: dict[str, Any]) -> int:
        return sum(event[-1] for event in scenario["events"] if event[0] == "to device")

    assert copies(report["violations"]["copy the table"]) > copies(report["scenarios"][name]) + 5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason=NO_CUDA)
def test_every_scenario_finds_on_cuda_what_it_finds_on_a_cpu(repository: Path, tmp_path: Path) -> None:
    target = tmp_path / "cuda.json"
    run(repository, [str(PROGRAM), str(target), "--device", "cuda"])
    scenarios = json.loads(target.read_text())["scenarios"]
    assert not {name: one for name, one in scenarios.items() if "error" in one or not one["same"]}


# -- how much is asked of a device --------------------------------------------------------------------------------


def test_generation_asks_no_more_of_a_device_than_is_recorded(repository: Path) -> None:
    """If that is meant, `python -m benchmarks.launches --renew` records the new numbers."""
    run(repository, ["-m", "benchmarks.launches", "--check"])
