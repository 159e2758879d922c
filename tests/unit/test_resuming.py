"""Resuming: a stopped run continues with identical steps."""

from __future__ import annotations

import itertools
import json
import math
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from hdlm.__main__ import main
from hdlm.checkpoint import load_checkpoint
from hdlm.data import AbstractWindows
from hdlm.evaluation.during_training import Observer
from hdlm.training import (
    Recipe,
    ResumePoint,
    Session,
    StepReport,
    StopRequest,
    TrainingSetup,
    build_setup,
    find_resume_point,
    loop,
)
from hdlm.training.checkpoints.store import CheckpointStore
from hdlm.training.finetuning import memory_of
from tests.train_in_processes import carry_out

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


def _run(table: dict[str, Any], found: ResumePoint | None = None) -> TrainingSetup:
    return build_setup(Recipe.from_table(table), CPU, start=None if found is None else found.checkpoint)


def _execute(table: dict[str, Any], folder: Path, stop_after: int = 0) -> list[StepReport]:
    """Begin or resume a run, and stop it after `stop_after` steps as a signal does."""
    found, stop, reports = find_resume_point(folder), StopRequest(), []

    def watch(report: StepReport) -> None:
        reports.append(report)
        if report.step == stop_after:
            stop(signal.SIGTERM, None)

    session = Session(_run(table, found), folder, found)
    session.execute(stop, (watch,))
    session.finish()
    return reports


def _assert_same_checkpoints(one: Path, other: Path) -> None:
    """The last checkpoints of two runs hold the same, bit for bit."""
    states = []
    for folder in (one, other):
        found = CheckpointStore(folder).newest(pytest.fail)
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
def test_resumed_run_is_bit_identical(text: Path, tmp_path: Path, optimizer: str) -> None:
    table = _table(text, optimizer={"name": optimizer})
    whole = _execute(table, tmp_path / "whole")
    pieces = [report for stop in (3, 11, 0) for report in _execute(table, tmp_path / "pieces", stop)]
    assert [report.step for report in pieces] == list(range(1, 25))
    assert [report.loss for report in pieces] == [report.loss for report in whole]
    assert [report.gradient_norm for report in pieces] == [report.gradient_norm for report in whole]
    assert [report.rate for report in pieces] == [report.rate for report in whole]
    _assert_same_checkpoints(tmp_path / "whole", tmp_path / "pieces")


def _no_dropout(text: Path, **changes: dict[str, Any]) -> dict[str, Any]:
    """Dropout depends on the rows in a batch. All other results are equal for any number of processes."""
    return _table(text, **{"network": {"dropout": 0.0}, **changes})


def _loss_norm_and_rate(reports: list[StepReport]) -> list[list[float]]:
    return [[report.loss, report.gradient_norm, report.rate] for report in reports]


def _assert_close(found: list[list[float]], expected: list[list[float]]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, rel=2e-3)
    assert [row[0] for row in found] == pytest.approx([row[0] for row in expected], rel=2e-4)


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(text: Path, tmp_path: Path) -> None:
    steps = {"steps": 12, "save_every": None, "save_steps": None, "accumulation": 1}
    table = _no_dropout(text, run=steps)
    one = _loss_norm_and_rate(_execute(table, tmp_path / "one"))
    accumulated = _no_dropout(text, run=steps | {"accumulation": 2})
    _assert_close(
        _loss_norm_and_rate(_execute(_no_dropout(text, run=steps | {"accumulation": 4}), tmp_path / "four")),
        one,
    )
    begun = _loss_norm_and_rate(_execute(accumulated, tmp_path / "begun by one", 5))
    jobs = [
        {"recipe": table, "folder": str(tmp_path / "two")},
        {"recipe": accumulated, "folder": str(tmp_path / "two, two passes")},
        {"recipe": table, "folder": str(tmp_path / "begun by one")},
        {"recipe": table, "folder": str(tmp_path / "begun by two"), "stop": 5},
    ]
    two, passes, went_on, stopped = carry_out(jobs, tmp_path)
    _assert_close(two, one)
    _assert_close(passes, one)
    _assert_close(begun + went_on, one)
    assert len(stopped) == 6, "processes agree on a stop at the end of the next step"
    _assert_close(stopped + _loss_norm_and_rate(_execute(accumulated, tmp_path / "begun by two")), one)
    found = CheckpointStore(tmp_path / "two").newest(pytest.fail)
    assert found is not None
    assert found[1].ticks == 12
    weights, alone = (load_checkpoint(tmp_path / name).network.state_dict() for name in ("two", "one"))
    for name, value in weights.items():
        torch.testing.assert_close(value, alone[name], atol=5e-4, rtol=5e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("optimizer", "recomputation"), [("muon", "selective"), ("adamw", "full")])
def test_fsdp_takes_same_steps_and_resumes_any_checkpoint(
    text: Path, tmp_path: Path, optimizer: str, recomputation: str
) -> None:
    """Tests fsdp.yaml except its switch, because `accelerate` offers FSDP only for accelerators."""
    table = _no_dropout(text, optimizer={"name": optimizer}, run={"steps": 12, "save_every": None})
    again = table | {"network": table["network"] | {"checkpoint_activations": recomputation}}
    one = _loss_norm_and_rate(_execute(table, tmp_path / "one"))
    begun = _loss_norm_and_rate(_execute(table, tmp_path / "begun by one", 5))
    jobs = [
        {"recipe": again, "folder": str(tmp_path / "spread"), "engine": "FSDP", "stop": 5},
        {"recipe": table, "folder": str(tmp_path / "begun by one"), "engine": "FSDP"},
        {"recipe": again, "folder": str(tmp_path / "spread"), "engine": "FSDP", "stop": 8},
    ]
    first, went_on, then = carry_out(jobs, tmp_path, "fsdp.yaml")
    _assert_close(begun + went_on, one)
    _assert_close(first + then + _loss_norm_and_rate(_execute(table, tmp_path / "spread")), one)


@pytest.mark.slow
def test_fsdp_trains_adapters_as_one_process_does_and_resumes(text: Path, tmp_path: Path) -> None:
    """The blocks of a decoder network are sharded, and its frozen weights have no optimizer state."""
    pytest.importorskip("peft")
    table = _no_dropout(
        text,
        lora={"rank": 2, "alpha": 4, "embeddings": True},
        run={"steps": 8, "save_every": None, "save_steps": None},
    )
    table["network"] = {"type": "Decoder", "hidden_size": 16, "num_blocks": 2, "num_heads": 2}
    one = _loss_norm_and_rate(_execute(table, tmp_path / "one"))
    begun = _loss_norm_and_rate(_execute(table, tmp_path / "begun by one", 3))
    jobs = [
        {"recipe": table, "folder": str(tmp_path / "spread"), "engine": "FSDP", "stop": 4},
        {"recipe": table, "folder": str(tmp_path / "begun by one"), "engine": "FSDP"},
    ]
    first, then = carry_out(jobs, tmp_path, "fsdp.yaml")
    _assert_close(begun + then, one)
    _assert_close(first + _loss_norm_and_rate(_execute(table, tmp_path / "spread")), one)


@pytest.mark.slow
def test_two_processes_train_gamma_hybrid_as_one(text: Path, tmp_path: Path) -> None:
    table = _no_dropout(
        text,
        network={"dropout": 0.0, "told_noise": True, "blend": True},
        process={"type": "GammaHybrid", "gamma": 0.1, "noise_schedule": {"type": "LogLinear"}},
        objective={"type": "ScoreEntropy", "max_weight": 1e4},
        warm_start={"share": 0.3},
        run={"steps": 8},
    )
    one = _loss_norm_and_rate(_execute(table, tmp_path / "one"))
    [two] = carry_out([{"recipe": table, "folder": str(tmp_path / "two")}], tmp_path)
    _assert_close(two, one)


@pytest.mark.slow
def test_two_processes_divide_by_the_tokens_of_both(text: Path, tmp_path: Path) -> None:
    table = _no_dropout(
        text,
        process={"type": "Absorbing"},
        objective={"type": "MaskedCrossEntropy", "divisor": "masked"},
        run={"steps": 6, "accumulation": 1},
    )
    one = _loss_norm_and_rate(_execute(table, tmp_path / "one"))
    table["run"] |= {"accumulation": 2}
    [two] = carry_out([{"recipe": table, "folder": str(tmp_path / "two")}], tmp_path)
    _assert_close(two, one)


# -- what is kept ---------------------------------------------------------------------------------------------


def test_session_keeps_newest_and_best_checkpoints(text: Path, tmp_path: Path) -> None:
    table = _table(text, run={"save_steps": 4, "keep": 2})
    session = Session(_run(table), tmp_path)
    bounds = {6: 3.0, 9: 2.0, 12: 2.5, 15: math.nan}

    def measure(report: StepReport) -> None:
        if report.step in bounds:
            session.offer(report.step, bounds[report.step])

    session.execute(StopRequest(), (measure,))
    shelf = CheckpointStore(tmp_path)
    assert shelf.steps() == [9, 20, 24]
    assert shelf.best == (9, 2.0)
    assert load_checkpoint(shelf.place(9)).training["steps"] == 9
    assert load_checkpoint(tmp_path).training["steps"] == 24
    assert not list((tmp_path / "training").glob(".*"))


def test_save_every_counts_from_last_checkpoint(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step takes ten seconds."""
    ticks = itertools.count(0.0, 10.0)
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    table = _table(text, run={"steps": 14, "save_steps": None, "save_every": 0.6, "keep": 9})
    _execute(table, tmp_path, 10)
    assert CheckpointStore(tmp_path).steps() == [0, 4, 8, 10]
    _execute(table, tmp_path)
    assert CheckpointStore(tmp_path).steps() == [0, 4, 8, 10, 14]


def test_checkpoint_folder_holds_safetensors_and_json_only(text: Path, tmp_path: Path) -> None:
    _execute(_table(text), tmp_path, 5)
    place = CheckpointStore(tmp_path).place(5)
    assert sorted(path.name for path in place.iterdir()) == [
        "config.json",
        "model.safetensors",
        "optimizer.safetensors",
        "raw.safetensors",
        "state.json",
        "tokenizer.json",
    ]
    table = json.loads((place / "state.json").read_text())
    assert (table["step"], table["ticks"], table["precision"]) == (5, 5, "no")
    assert {"hdlm", "python", "torch", "accelerate"} <= table["versions"].keys()
    assert (tmp_path / "model.safetensors").samefile(place / "model.safetensors")


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_published_state_equals_optimizer_state(text: Path, tmp_path: Path, optimizer: str) -> None:
    table = _table(text, optimizer={"name": optimizer}, run={"steps": 3, "save_steps": None})
    session = Session(_run(table), tmp_path)
    session.execute(StopRequest())
    published = session.trainer.published_state()["optimizer"]
    assert len(published) == len(session.trainer._memories)
    for ours, theirs in zip(published, session.trainer._memories, strict=True):
        expected = theirs.state_dict()
        assert ours["param_groups"] == expected["param_groups"]
        torch.testing.assert_close(ours["state"], expected["state"], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("optimizer.safetensors", lambda content: content[: len(content) // 2]),
        ("raw.safetensors", lambda content: content[:-1] + bytes([content[-1] ^ 1])),
        ("state.json", lambda content: content[:100]),
        ("state.json", lambda content: json.dumps(json.loads(content) | {"files": None}).encode()),
        ("model.safetensors", None),
    ],
    ids=["cut", "one bit", "cut json", "no files", "gone"],
)
def test_resume_skips_damaged_checkpoint(
    text: Path, tmp_path: Path, name: str, damage: Callable[[bytes], bytes] | None
) -> None:
    _execute(_table(text), tmp_path, 12)
    shelf, said = CheckpointStore(tmp_path), []
    assert shelf.steps() == [10, 12]
    file = shelf.place(12) / name
    if damage is None:
        file.unlink()
    else:
        file.write_bytes(damage(file.read_bytes()))
    found = find_resume_point(tmp_path, said.append)
    assert found is not None
    assert found.state.step == 10
    assert len(said) == 1
    assert "step 12" in said[0]
    assert name in said[0]
    (shelf.place(10) / name).write_bytes(b"")
    with pytest.raises(ValueError, match="none of the checkpoints"):
        find_resume_point(tmp_path)


def test_resume_skips_misnamed_checkpoint_and_ignores_other_files(text: Path, tmp_path: Path) -> None:
    _execute(_table(text), tmp_path, 12)
    shelf, said = CheckpointStore(tmp_path), []
    (shelf.place(12) / "notes").mkdir()
    (shelf.place(12) / "notes.txt").touch()
    shutil.copytree(shelf.place(10), shelf.place(13))
    found = find_resume_point(tmp_path, said.append)
    assert found is not None
    assert found.state.step == 12
    assert said == ["the checkpoint of step 13 cannot be used: its state is of step 10"]
    assert [report.step for report in _execute(_table(text), tmp_path)] == list(range(13, 25))


def test_resume_continues_log_from_checkpoint(text: Path, tmp_path: Path) -> None:
    table = _table(text, watch={"log_every": 1})
    _execute(table, tmp_path, 12)
    (CheckpointStore(tmp_path).place(12) / "state.json").unlink()
    _execute(table, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 25))


def test_best_checkpoint_survives_damaged_note(text: Path, tmp_path: Path) -> None:
    table = _table(text, run={"save_steps": 4, "keep": 1})

    def begin(stop_after: int) -> None:
        found, stop = find_resume_point(tmp_path), StopRequest()
        session = Session(_run(table, found), tmp_path, found)

        def measure(report: StepReport) -> None:
            if report.step == 6:
                session.log.write(step=6, validation=2.0)
                session.offer(report.step, 2.0)
            if report.step == stop_after:
                stop(signal.SIGTERM, None)

        session.execute(stop, (measure,))

    begin(stop_after=10)
    (tmp_path / "training" / "best.json").write_text("{")
    begin(stop_after=0)
    assert CheckpointStore(tmp_path).steps() == [6, 24]
    assert CheckpointStore(tmp_path).best == (6, 2.0)


def test_checkpoint_is_saved_after_all_observers(text: Path, tmp_path: Path) -> None:
    """If a run dies between two observers, both observers run again after resuming."""
    table, looked = _table(text), []

    def begin(*, dies: bool) -> None:
        found = find_resume_point(tmp_path)
        session = Session(_run(table, found), tmp_path, found)

        def measure(report: StepReport) -> None:
            if report.step == 8:
                session.offer(report.step, 2.0)

        def look(report: StepReport) -> None:
            if dies and report.step == 8:
                raise KeyboardInterrupt
            looked.append(report.step)

        session.execute(StopRequest(), (measure, look))

    with pytest.raises(KeyboardInterrupt):
        begin(dies=True)
    assert CheckpointStore(tmp_path).steps() == [0, 5]
    begin(dies=False)
    assert looked == [*range(1, 8), *range(6, 25)]
    assert CheckpointStore(tmp_path).best == (8, 2.0)


def test_resume_after_last_step_restores_model_links(text: Path, tmp_path: Path) -> None:
    """The kill happens between the checkpoint and the links to its model. No step is repeated."""
    Session(_run(_table(text)), tmp_path).execute(StopRequest())
    last = CheckpointStore(tmp_path).place(24) / "model.safetensors"
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors").write_bytes(b"that of an earlier step")
    assert _execute(_table(text), tmp_path) == []
    assert (tmp_path / "model.safetensors").samefile(last)


def test_resume_after_last_step_completes_closing_measurements(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that died in the closing measurements completes them with identical results and takes no step."""
    watch = {"validate_every": 3, "sample_every": 9, "samples": 1, "validation_windows": 2}
    table = _table(text, run={"steps": 4}, watch=watch)

    def begin(folder: Path, dies_in: str = "") -> tuple[Session, StepReport | None]:
        found = find_resume_point(folder)
        run = _run(table, found)
        session = Session(run, folder, found)
        observer = Observer(run, session, folder, lambda line: None)

        def die(*_: object) -> None:
            raise KeyboardInterrupt

        def publish(step: int) -> None:
            torch.save(session.trainer.published_state(), folder / f"{step}.pth")

        def close(step: int) -> None:
            if dies_in.startswith("_"):
                monkeypatch.setattr(observer, dies_in, die)
            observer.finish(step)

        report = session.execute(
            StopRequest(), (observer,), (close, die if dies_in == "publish" else publish)
        )
        session.finish()
        return session, report

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    session, _ = begin(whole)
    for dies_in in ("_bound", "_generated", "publish"):
        with pytest.raises(KeyboardInterrupt):
            begin(broken, dies_in)
    again, report = begin(broken)
    assert report is None
    assert again.trainer.tokens == session.trainer.tokens
    _assert_same_checkpoints(whole, broken)
    logs = [(folder / "metrics.jsonl").read_text().splitlines() for folder in (whole, broken)]
    ours, theirs = ([line for line in log if '"loss"' not in line] for log in logs)
    assert [json.loads(line)["step"] for line in ours] == [3, 4, 4]
    assert ours == theirs
    for name in ("samples/4.txt", "training/best.json"):
        assert (whole / name).read_bytes() == (broken / name).read_bytes()
    published = [torch.load(folder / "4.pth") for folder in (whole, broken)]
    groups = [[one.pop("param_groups") for one in table["optimizer"]] for table in published]
    assert groups[0] == groups[1]
    torch.testing.assert_close(*published, rtol=0, atol=0)
    with pytest.raises(ValueError, match="has ended, after 4 steps"):
        find_resume_point(broken)


@pytest.mark.parametrize(("last", "preempted"), [(23, True), (24, False)])
def test_signal_in_last_step_does_not_preempt_run(
    text: Path, tmp_path: Path, last: int, *, preempted: bool
) -> None:
    """A finished run makes its closing measurements and does not request a requeue."""
    session, stop, closed = Session(_run(_table(text)), tmp_path), StopRequest(), []

    def watch(report: StepReport) -> None:
        if report.step == last:
            stop(signal.SIGTERM, None)

    session.execute(stop, (watch,), (closed.append,))
    assert session.trainer.preempted is preempted
    assert closed == ([] if preempted else [24])


def test_session_refuses_folder_used_by_other_run(text: Path, tmp_path: Path) -> None:
    """The checkpoints and the log of the run that is further ahead do not change."""
    table = _table(text)
    begun = Session(_run(table), tmp_path)
    _execute(table, tmp_path, 5)
    late = find_resume_point(tmp_path)
    session = Session(_run(table, late), tmp_path, late)
    _execute(table, tmp_path, 12)
    metrics = (tmp_path / "metrics.jsonl").read_bytes()
    with CheckpointStore(tmp_path).held(), pytest.raises(ValueError, match="another program trains in"):
        session.execute(StopRequest())
    for one in (session, begun):
        with pytest.raises(
            ValueError,
            match=r"another program has saved since this one started\. Resume that run with --resume",
        ):
            one.execute(StopRequest())
    assert CheckpointStore(tmp_path).steps() == [10, 12]
    assert (tmp_path / "metrics.jsonl").read_bytes() == metrics


def test_processes_must_resume_from_same_checkpoint(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = _table(text)
    _execute(table, tmp_path, 5)
    found = find_resume_point(tmp_path)
    monkeypatch.setattr(
        "hdlm.training.distributed.accelerator.broadcast_object_list",
        lambda mine: [10] if mine == [5] else mine,
    )
    with pytest.raises(
        ValueError, match="is 5 in this process and 10 in the main one: all must see the same"
    ):
        Session(_run(table, found), tmp_path, found)


def test_tracker_error_names_step_and_kept_checkpoint(text: Path, tmp_path: Path) -> None:
    session = Session(_run(_table(text)), tmp_path)

    def fail(report: StepReport) -> None:
        raise ConnectionError("the tracker hung up")

    with pytest.raises(
        OSError,
        match=r"tracker hung up, at step 1; the last checkpoint is of step 0: remove the cause, and resume",
    ):
        session.execute(StopRequest(), (fail,))


# -- what goes wrong ------------------------------------------------------------------------------------------


def test_full_disk_stops_run_and_keeps_checkpoints(text: Path, tmp_path: Path) -> None:
    table = _table(text)
    whole = _execute(table, tmp_path / "whole")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(report: StepReport) -> None:
        if report.step == 8:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))

    try:
        with pytest.raises(
            OSError, match="at step 10; the last checkpoint is of step 5: make room, and resume with"
        ):
            Session(_run(table), tmp_path / "full").execute(StopRequest(), (fill,))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert CheckpointStore(tmp_path / "full").steps() == [0, 5]
    assert load_checkpoint(tmp_path / "full").training["steps"] == 5
    assert not list((tmp_path / "full").rglob(".*"))
    rest = _execute(table, tmp_path / "full")
    assert [report.loss for report in rest] == [report.loss for report in whole[5:]]


def test_nan_loss_stops_run_and_keeps_last_good_checkpoint(text: Path, tmp_path: Path) -> None:
    session = Session(_run(_table(text)), tmp_path)
    weights = session.trainer.average

    def spoil(report: StepReport) -> None:
        if report.step == 7:
            with torch.no_grad():
                for value in weights._module.parameters():
                    value.fill_(math.inf)

    with pytest.raises(ValueError, match=r"diverged at step 8: loss nan.*begin another run from the model"):
        session.execute(StopRequest(), (spoil,))
    assert CheckpointStore(tmp_path).steps() == [0, 5]
    with pytest.raises(ValueError, match="step 8"):
        session.save()


def test_error_in_text_stops_run_and_keeps_last_checkpoint(text: Path, tmp_path: Path) -> None:
    session = Session(_run(_table(text)), tmp_path)
    windows, dead = session.trainer._windows, threading.Event()

    class FailingWindows(AbstractWindows):
        length, fingerprint = windows.length, windows.fingerprint

        def batch(self, first: int, count: int) -> Tensor:
            if dead.is_set():
                raise ValueError("the worker that reads text died")
            return windows.batch(first, count)

    def kill(report: StepReport) -> None:
        if report.step == 6:
            dead.set()

    session.trainer._windows = FailingWindows()
    with pytest.raises(ValueError, match="worker that reads text died"):
        session.execute(StopRequest(), (kill,))
    assert CheckpointStore(tmp_path).steps() == [0, 5]
    assert load_checkpoint(tmp_path).training["steps"] == 5


# -- what cannot go on ----------------------------------------------------------------------------------------


def test_resume_rejects_changed_recipe_or_text(text: Path, tmp_path: Path) -> None:
    table, folder = _table(text), tmp_path / "run"
    _execute(table, folder, 3)
    found = find_resume_point(folder)
    assert found is not None
    other = _table(text, optimizer={"matrix_rate": 0.5}, run={"keep": 5, "accumulation": 1, "seed": 3})
    with pytest.raises(
        ValueError, match=r"`optimizer\.matrix_rate` was 0\.02 and is 0\.5; `run\.seed` was 0"
    ):
        found.check(Recipe.from_table(other))
    found.check(Recipe.from_table(_table(text, run={"keep": 5, "accumulation": 1})))
    wider = [table["mixture"][0], {"hyperschedule": {"type": "Block", "width": 8, "num_levels": 8}}]
    for mixture, complaint in (
        (wider, r"`mixture\[1\]\.hyperschedule` was \{.*16.*\} and is \{.*8.*\}; `mixture\[1\]\.two_stream`"),
        (wider[:1], "`mixture` was a list of 2 and is a list of 1"),
    ):
        with pytest.raises(ValueError, match=complaint):
            found.check(Recipe.from_table(_table(text) | {"mixture": mixture}))
    changed = tmp_path / "changed.txt"
    changed.write_text(text.read_text() + "the end")
    with pytest.raises(ValueError, match="corpus"):
        found.check(Recipe.from_table(_table(changed)))
    before = text.read_text()
    try:
        text.write_text(before.replace("cat", "cow", 1))
        with pytest.raises(
            ValueError, match="the text or its tokenizer is not the one that the run began with"
        ):
            Session(_run(table, found), folder, found)
    finally:
        text.write_text(before)


def test_resume_refuses_finished_run(text: Path, tmp_path: Path) -> None:
    _execute(_table(text, run={"steps": 3}), tmp_path / "over")
    with pytest.raises(
        ValueError, match=r"has ended, after 3 steps.*train --from .*hdlm finetune .*hdlm\.finetune\("
    ):
        find_resume_point(tmp_path / "over")
    assert find_resume_point(tmp_path / "nothing") is None
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"no training/ folder.*--from"):
        find_resume_point(tmp_path / "model")


def test_resume_continues_elapsed_seconds(text: Path, tmp_path: Path) -> None:
    table = _table(text, run={"steps": None, "minutes": 60.0})
    _execute(table, tmp_path, 3)
    found = find_resume_point(tmp_path)
    assert found is not None
    assert found.state.seconds > 0
    session = Session(_run(table, found), tmp_path, found)
    assert session.trainer.seconds == found.state.seconds


# -- real processes -------------------------------------------------------------------------------------------

_RECIPE = """
[data]
corpus = {text}
vocabulary = 270
context = 16
validation = 0.1
[network]
hidden_size = 16
num_blocks = 1
num_heads = 2
dropout = 0.1
[[mixture]]
hyperschedule = {{ type = "Block", width = 4, num_levels = 4 }}
[optimizer]
name = "{optimizer}"
[run]
steps = {steps}
batch_size = 4
accumulation = 2
precision = "no"
save_steps = 3
[watch]
log_every = 1
"""


def _recipe(text: Path, folder: Path, steps: int, optimizer: str = "muon") -> Path:
    file = folder / f"{optimizer}-{steps}.toml"
    file.write_text(_RECIPE.format(text=json.dumps([str(text)]), steps=steps, optimizer=optimizer))
    return file


def _begin(recipe: Path, output: Path) -> subprocess.Popen[str]:
    """`hdlm train --resume` in a process of its own."""
    words = ["train", "--recipe", recipe, "--output", output, "--resume"]
    return subprocess.Popen(
        [sys.executable, "-m", "hdlm", *map(str, words)],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _wait_for(process: subprocess.Popen[str], log: Path, steps: int) -> bool:
    """Wait until a run has logged so many steps; False if it ends before."""
    deadline = time.monotonic() + 180
    while process.poll() is None and time.monotonic() < deadline:
        if log.is_file() and len(log.read_bytes().splitlines()) >= steps:
            return True
        time.sleep(0.002)
    return False


@pytest.mark.slow
def test_run_stopped_by_sigterm_resumes_bit_identical(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, output = _recipe(text, tmp_path, 150), tmp_path / "run"
    process = _begin(recipe, output)
    assert _wait_for(process, output / "metrics.jsonl", 5)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (75, "")
    assert "stopped by SIGTERM" in out
    assert "--resume" in out
    stopped = CheckpointStore(output).steps()[-1]
    assert load_checkpoint(output).training["steps"] == stopped
    assert main(["train", "--recipe", str(recipe), "--output", str(output)]) == 2
    assert "--resume" in capsys.readouterr().err
    assert main(["train", "--output", str(output), "--resume", "--steps", "9"]) == 2
    assert "`run.steps` was 150 and is 9" in capsys.readouterr().err
    table = Recipe.load(recipe).to_table()
    rest, whole = _execute(table, output), _execute(table, tmp_path / "whole")
    assert [report.loss for report in rest] == [report.loss for report in whole[stopped:]]
    _assert_same_checkpoints(output, tmp_path / "whole")
    assert main(["train", "--output", str(output), "--resume"]) == 2
    assert "has ended, after 150 steps" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_run_killed_repeatedly_ends_bit_identical(text: Path, tmp_path: Path, optimizer: str) -> None:
    recipe, output = _recipe(text, tmp_path, 120, optimizer), tmp_path / "run"
    chance, kills, log = random.Random(optimizer), 0, output / "metrics.jsonl"
    while True:
        process = _begin(recipe, output)
        before = len(log.read_bytes().splitlines()) if log.is_file() else 0
        if not _wait_for(process, log, before + chance.randrange(5, 25)):
            break
        time.sleep(0.05 * chance.random())
        process.kill()
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
    _, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    assert kills >= 3
    _execute(Recipe.load(recipe).to_table(), tmp_path / "whole")
    _assert_same_checkpoints(output, tmp_path / "whole")
    assert [json.loads(line).get("step") for line in log.read_text().splitlines()] == list(range(1, 121))


def test_trainer_inherits_optimizer_state_for_finetuning(text: Path, tmp_path: Path) -> None:
    """Weights, average and moments are kept for other text. The steps begin at 0 or continue."""
    table = _table(text, run={"steps": 4, "save_steps": None}, network={"dropout": 0.0})
    _execute(table, tmp_path / "first")
    memory = memory_of(str(tmp_path / "first"))
    other = _table(text, run={"steps": 6, "seed": 1}, data={"context": 12})
    other["mixture"] = [{"hyperschedule": {"type": "Slide", "width": 4, "num_levels": 4}}]
    start = load_checkpoint(tmp_path / "first")
    for keep_step, step in ((False, 0), (True, 4)):
        trainer = build_setup(Recipe.from_table(other), CPU, start=start).trainer()
        trainer.inherit(memory, keep_step=keep_step)
        state = trainer.state()
        assert (state.step, state.sequences, state.ticks) == (step, 0, memory.ticks)
        for name in ("weights", "average", "optimizers"):
            mine, theirs = getattr(state, name), getattr(memory, name)
            assert mine.keys() == theirs.keys()
            assert all(torch.equal(mine[key], theirs[key]) for key in mine)
        assert trainer.train(StopRequest()).step == 6
    with pytest.raises(
        ValueError, match=r"has taken 4 steps and they count, so none of `run\.steps`=4 is left"
    ):
        build_setup(Recipe.from_table(table), CPU, start=start).trainer().inherit(memory, keep_step=True)
    with pytest.raises(ValueError, match=r"no training/ folder"):
        memory_of(str(tmp_path))
