"""A run that stops, however it stops, goes on as if nothing had happened."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from hdlm.training import (
    Recipe,
    Run,
    Session,
    StepReport,
    StopRequest,
    Unfinished,
    prepare,
    unfinished,
)
from hdlm.training.keeping import Shelf

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "rhyme.txt"
    file.write_text("the cat sat on the mat and the dog sat on the log . " * 30)
    return file


def _table(text: Path, **changes: dict[str, Any]) -> dict[str, Any]:
    """A recipe whose steps differ, whose epochs are a few steps long, and that drops activations."""
    table: dict[str, Any] = {
        "data": {"corpus": [str(text)], "vocabulary": 270, "context": 16, "validation": 0.1},
        "network": {"hidden_size": 16, "num_blocks": 1, "num_heads": 2, "dropout": 0.1},
        "mixture": [
            {"share": 2, "hyperschedule": {"type": "Block", "width": 4, "num_levels": 4}},
            {"hyperschedule": {"type": "Block", "width": 16, "num_levels": 8}, "two_stream": False},
        ],
        "warm_start": {"share": 0.2},
        "optimizer": {"schedule": "cosine", "warmup": 0.3, "floor": 0.1, "weight_decay": 0.1},
        "run": {"steps": 24, "batch_size": 4, "accumulation": 2, "precision": "no", "save_steps": 5},
    }
    for name, options in changes.items():
        table[name] = {**table.get(name, {}), **options}
    return table


def _run(table: dict[str, Any], found: Unfinished | None = None) -> Run:
    return prepare(Recipe.from_table(table), CPU, start=None if found is None else found.checkpoint)


def _execute(table: dict[str, Any], folder: Path, stop_after: int = 0) -> list[StepReport]:
    """Begin a run, or go on with it; leave it after so many steps, as a signal would."""
    found, stop, reports = unfinished(folder), StopRequest(), []

    def watch(report: StepReport) -> None:
        reports.append(report)
        if report.step == stop_after:
            stop(signal.SIGTERM, None)

    Session(_run(table, found), folder, found).execute(stop, (watch,))
    return reports


def _same(one: Path, other: Path) -> None:
    """The last checkpoints of two runs hold the same, bit for bit."""
    states = []
    for folder in (one, other):
        found = Shelf(folder).newest(pytest.fail)
        assert found is not None
        states.append(found[1])
    first, second = states
    assert (first.step, first.sequences, first.ticks) == (second.step, second.sequences, second.ticks)
    for name in ("weights", "average", "optimizers"):
        ours, theirs = getattr(first, name), getattr(second, name)
        assert ours
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), name


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_run_goes_on_to_the_bit(text: Path, tmp_path: Path, optimizer: str) -> None:
    table = _table(text, optimizer={"name": optimizer})
    whole = _execute(table, tmp_path / "whole")
    pieces = [report for stop in (3, 11, 0) for report in _execute(table, tmp_path / "pieces", stop)]
    assert [report.step for report in pieces] == list(range(1, 25))
    assert [report.loss for report in pieces] == [report.loss for report in whole]
    assert [report.gradient_norm for report in pieces] == [report.gradient_norm for report in whole]
    assert [report.rate for report in pieces] == [report.rate for report in whole]
    _same(tmp_path / "whole", tmp_path / "pieces")
