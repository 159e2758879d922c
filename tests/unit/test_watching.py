"""Monitoring of a run: speed, the log, trackers and measurements. Monitoring changes no weight."""

from __future__ import annotations

import io
import json
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from hdlm.checkpoint import load_checkpoint
from hdlm.evaluation import during_training, estimate_likelihood
from hdlm.evaluation.during_training import Observer
from hdlm.evaluation.generation import judges
from hdlm.network import DDiT, DDiTConfig
from hdlm.training import (
    MetricsLog,
    Recipe,
    Session,
    StepReport,
    StopRequest,
    TrainingSetup,
    build_setup,
    progress_bar,
)
from hdlm.training.monitor import trackers
from hdlm.training.monitor.flops import peak_flops, training_flops
from hdlm.training.monitor.throughput import Gauge
from hdlm.training.recipe import WatchSettings

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def run_of(text: Path) -> Any:
    def make(**watch: Any) -> TrainingSetup:
        table = {
            "data": {"corpus": [str(text)], "vocabulary": 270, "context": 16, "validation": 0.1},
            "network": {"hidden_size": 16, "num_blocks": 1, "num_heads": 2, "dropout": 0.1},
            "mixture": [{"hyperschedule": {"type": "Block", "width": 4, "num_levels": 4}}],
            "run": {"steps": 6, "batch_size": 2, "precision": "no"},
            "watch": {"log_every": 2, **watch},
        }
        return build_setup(Recipe.from_table(table), CPU)

    return make


def _report(step: int, seconds: float | None = None, loss: float = 1.0) -> StepReport:
    return StepReport(
        step=step,
        loss=loss,
        gradient_norm=1.0,
        rate=0.5,
        tokens=32 * step,
        seconds=2.0 * step if seconds is None else seconds,
        progress=step / 6,
    )


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_training_flops_equal_formula_of_matrices_and_attention() -> None:
    config = DDiTConfig(300, 32, 2, 2, cond_dim=8, timestep_embedding=True, condition_blocks=True)
    network = DDiT(config)
    weights = sum(
        weight.numel() for block in network.blocks for weight in block.parameters() if weight.dim() == 2
    )
    head = config.vocab_size * config.hidden_size
    attention = 12 * config.num_blocks * config.hidden_size * 64
    one = training_flops(config, 64, two_stream=False)
    assert one == 64 * (6 * (weights + head) + attention)
    assert training_flops(config, 64, two_stream=True) == 64 * (2 * (6 * weights + attention) + 6 * head)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A10G", None),
    ],
)
def test_peak_flops_of_gpu_by_name(monkeypatch: pytest.MonkeyPatch, name: str, peak: float | None) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(torch.device("cuda")) == peak


def test_peak_flops_of_cpu_is_measured() -> None:
    peak = peak_flops(CPU, bf16=False)
    assert peak is not None
    assert 1e8 < peak < 1e14


def test_the_gauge_reads_speed_utilisation_and_rate(run_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of()
    config = run.denoiser.backbone.config
    flops = training_flops(config, 16, two_stream=True)
    gauge = Gauge(config, run.mixture, 16, CPU, peak=flops, rate=0.02, steps=6)
    assert gauge.read().tokens_per_second is None
    for step in (1, 2, 2, 3):
        gauge(_report(step))
    reading = gauge.read()
    assert reading.tokens_per_second == 16
    assert reading.utilisation == pytest.approx(1.0)  # two sequences in two seconds
    assert reading.learning_rate == 0.01
    assert reading.memory is not None
    assert reading.memory > 2**24
    clock = iter([100.0, 106.0])
    monkeypatch.setattr("hdlm.training.monitor.throughput.time.perf_counter", lambda: next(clock))
    with gauge.paused():
        pass
    gauge(_report(4, seconds=14.0))
    assert gauge.read().tokens_per_second == 16
    for step, seconds in ((5, 114.0), (6, 118.0)):  # the fast steps are more than a minute old
        gauge(_report(step, seconds=seconds))
    assert gauge.read().tokens_per_second == pytest.approx(8)


def test_metrics_log_removes_line_truncated_by_full_disk(tmp_path: Path) -> None:
    log, (soft, hard) = MetricsLog(tmp_path / "metrics.jsonl"), resource.getrlimit(resource.RLIMIT_FSIZE)
    log.write(step=1, loss=2.5)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            log.write(step=2, loss=2.4)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_metrics_log_rewind_removes_later_lines(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log, told = MetricsLog(path, 2), []
    log.add_sink(told.append)
    for step in range(1, 6):
        log(_report(step, loss=float(step)))
    log.write(step=4, validation=2.0)
    with path.open("a") as file:
        file.write('{"step": 1, "lo')
    assert [line["loss"] for line in told if "loss" in line] == [1.5, 3.5]
    log.rewind(3)
    assert [line["step"] for line in _lines(path)] == [2]
    log(_report(4))
    assert [(line["step"], line["loss"]) for line in _lines(path)] == [(2, 1.5), (4, 1.0)]


@pytest.mark.parametrize(("terminal", "every"), [(True, 0.0), (False, 0.0), (False, 60.0)])
def test_progress_bar_shows_step_loss_speed_and_rate(run_of: Any, terminal: bool, every: float) -> None:
    run = run_of()
    gauge = Gauge(run.denoiser.backbone.config, run.mixture, 16, CPU, peak=1e12, rate=0.02, steps=6)
    out = io.StringIO()
    with progress_bar(Console(file=out, force_terminal=terminal, width=160), every=every, gauge=gauge) as bar:
        for step in range(1, 7):
            bar(_report(step))
    if not terminal:
        assert len(out.getvalue().splitlines()) == (1 if every else 6)
    for word in ("step 6/6", "loss 1.000", "16 tokens/s", "MFU 0.0%", "GB", "lr 0.01", "0:00 left"):
        assert word in out.getvalue()


def test_progress_bar_estimates_time_from_steps_of_this_process() -> None:
    """Earlier steps belong to another process or to the finetuned run, so they do not count."""
    out = io.StringIO()
    with progress_bar(Console(file=out), every=0.0) as bar:
        for step, seconds in ((3, 101.0), (4, 104.0)):
            bar(_report(step, seconds))
    first, second = out.getvalue().splitlines()
    assert "left" not in first
    assert second.endswith("0:06 left")


def test_observer_measures_run_without_changing_weights(
    run_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody(*arguments: object, offline: bool) -> None:
        raise OSError("there is no such model")

    monkeypatch.setattr(judges, "TransformersJudge", nobody)
    run, told = run_of(validate_every=2, sample_every=3, samples=2, judge="no/such-judge"), []
    session = Session(run, tmp_path / "watched")
    observer = Observer(run, session, tmp_path / "watched", told.append)
    report = session.execute(StopRequest(), (observer,))
    assert report is not None
    observer.finish(report.step)
    Session(run_of(), tmp_path / "alone").execute(StopRequest())
    ours, theirs = (load_checkpoint(tmp_path / name).network.state_dict() for name in ("watched", "alone"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    lines = _lines(tmp_path / "watched" / "metrics.jsonl")
    bounds = [line for line in lines if "validation" in line]
    assert [line["step"] for line in bounds] == [2, 4, 6]
    assert all(0 < line["validation_error"] < line["validation"] for line in bounds)
    assert [line["step"] for line in lines if "entropy" in line] == [3, 6]
    assert sorted(path.name for path in (tmp_path / "watched" / "samples").iterdir()) == ["3.txt", "6.txt"]
    assert sum("no generative perplexity by no/such-judge" in line for line in told) == 1
    best = json.loads((tmp_path / "watched" / "training" / "best.json").read_text())
    assert best["bound"] == pytest.approx(min(line["validation"] for line in bounds), abs=1e-5)


def test_observer_logs_bound_and_error_in_nats_per_token(
    run_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def canned(*arguments: Any, **options: Any) -> Any:
        return replace(estimate_likelihood(*arguments, **options), estimates=(100.0, 102.0))

    monkeypatch.setattr(during_training, "estimate_likelihood", canned)
    run = run_of(validate_every=6, validation_windows=2)
    session = Session(run, tmp_path)
    session.execute(StopRequest(), (Observer(run, session, tmp_path, lambda _: None),))
    (line,) = (one for one in _lines(tmp_path / "metrics.jsonl") if "validation" in one)
    assert line["validation_tokens"] == 2 * 16
    assert line["validation"] == pytest.approx(101 / 32, abs=1e-5)
    assert line["validation_error"] == pytest.approx(1 / 32, abs=1e-5)


def test_observer_excludes_given_token_of_shifted_model_from_metrics(run_of: Any, tmp_path: Path) -> None:
    run = run_of(sample_every=6, samples=2, judge="")
    table = run.recipe.to_table()
    shifted = {"type": "Shifted", "inner": table["parameterization"]}
    run = build_setup(Recipe.from_table({**table, "parameterization": shifted}), CPU)
    session = Session(run, tmp_path)
    session.execute(StopRequest(), (Observer(run, session, tmp_path, lambda _: None),))
    (line,) = (one for one in _lines(tmp_path / "metrics.jsonl") if "entropy" in one)
    first, second, third = (line[f"distinct-{n}"] for n in (1, 2, 3))
    assert (first * 2 * 15, second * 2 * 14, third * 2 * 13) == pytest.approx(
        (round(first * 30), round(second * 28), round(third * 26)), abs=1e-3
    )


@pytest.mark.parametrize("where", ["estimate_likelihood", "sample", "judges_of"])
def test_observer_out_of_memory_does_not_stop_training(
    run_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def large(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("not that much")

    monkeypatch.setattr(during_training, where, large)
    run, told = run_of(validate_every=6, sample_every=6, samples=2, judge="large"), []
    session = Session(run, tmp_path)
    report = session.execute(StopRequest(), (Observer(run, session, tmp_path, told.append),))
    assert report is not None
    assert report.step == 6
    assert sum("not that much" in line for line in told) == 1
    lines = _lines(tmp_path / "metrics.jsonl")
    assert any("validation" in line for line in lines) == (where != "estimate_likelihood")
    assert any("entropy" in line for line in lines) == (where != "sample")


class FailingTracker:
    """A tracker with the interface of accelerate that fails after the first line."""

    def __init__(self) -> None:
        self.lines: list[tuple[int | None, dict[str, Any]]] = []
        self.closed = False

    def log(self, values: dict[str, Any], step: int | None = None) -> None:
        if len(self.lines) == 1:
            raise ConnectionError("no route to host")
        self.lines.append((step, values))

    def finish(self) -> None:
        self.closed = True


def test_failing_tracker_is_reported_once_and_training_continues(
    run_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake, told = FailingTracker(), []
    monkeypatch.setattr(trackers, "_opener", lambda *arguments: lambda: fake)
    run = run_of(trackers=["wandb"])
    session = Session(run, tmp_path)
    with trackers.tracking(run.recipe, tmp_path, told.append) as sink:
        session.log.add_sink(sink)
        report = session.execute(StopRequest())
    assert report is not None
    assert report.step == 6
    assert [line["step"] for line in _lines(tmp_path / "metrics.jsonl")] == [2, 4, 6]
    ((step, values),) = fake.lines
    assert step == 2
    assert "loss" in values
    assert told == [told[0]]
    assert "wandb gets no more metrics, and training continues: ConnectionError: no route to host" in told[0]


_HANGS = """
import time
from pathlib import Path
from hdlm.training import Recipe
from hdlm.training.monitor import trackers

trackers._PATIENCE = 0.2
trackers._opener = lambda *arguments: lambda: time.sleep(600)
part = {"hyperschedule": {"type": "Block", "width": 4, "num_levels": 4}}
table = {"mixture": [part], "run": {"steps": 1}, "watch": {"trackers": ["wandb"]}}
with trackers.tracking(Recipe.from_table(table), Path(), print) as sink:
    sink({"step": 1, "loss": 2.0})
print("the end")
"""


@pytest.mark.slow
def test_hanging_tracker_does_not_block_exit() -> None:
    done = subprocess.run([sys.executable, "-c", _HANGS], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == [
        "wandb has not finished after 0 s; training does not wait for it",
        "the end",
    ]


@pytest.mark.slow
def test_peak_memory_excludes_parent_process() -> None:
    """A process inherits the `getrusage` peak of its parent, so the peak is read from another source."""
    code = "import torch; from hdlm.training.monitor.throughput import _peak_memory as p; print(p(torch.device('cpu')))"
    hog = (
        "import subprocess, sys; x = bytearray(2**30); x[::4096] = b'1' * 2**18; "
        f"subprocess.run([sys.executable, '-c', {code!r}])"
    )
    done = subprocess.run([sys.executable, "-c", hog], capture_output=True, text=True, timeout=120)
    assert 2**26 < int(done.stdout) < 2**30 - 2**26


def test_check_trackers_rejects_missing_and_unknown_trackers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match=r"has wandb, which is not installed: pip install \"hdlm\[trackers\]\""
    ):
        trackers.check_trackers(["wandb"])
    with pytest.raises(ValueError, match=r"`watch\.trackers` must be among tensorboard, wandb, trackio"):
        WatchSettings(trackers=("tensorbord",))
