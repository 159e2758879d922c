"""The number of threads: how it is chosen, when it changes, and that it is recorded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from hdlm import threads
from hdlm.cli import main
from hdlm.network import DDiTConfig
from hdlm.training import StepReport
from hdlm.training.checkpoints.state import FORMAT, TrainingState, _read_table
from hdlm.training.mixture import Mixture
from hdlm.training.monitor.throughput import Gauge, ThreadSwitch
from hdlm.training.parts import NextToken
from tests.unit.test_cli_train import RECIPE


class SimulatedMachine:
    """A clock, and work whose duration depends on the number of threads and on the time."""

    def __init__(self, seconds: dict[int, float]) -> None:
        self.now, self.seconds, self.hiccups = 0.0, seconds, [(0.0, 0.0)]

    def clock(self) -> float:
        return self.now

    def work(self, count: int) -> None:
        slow = any(first <= self.now < last for first, last in self.hiccups)
        self.now += self.seconds[count] * (20 if slow else 1)

    def fastest(self) -> int:
        return threads.fastest(sorted(self.seconds), self.work, self.clock)


@pytest.fixture(autouse=True)
def _restore_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    yield
    torch.set_num_threads(before)
    threads._measured_once.cache_clear()
    threads.at_most.cache_clear()


@pytest.mark.parametrize(
    ("seconds", "best"),
    [
        ({1: 0.004, 2: 0.002}, 2),
        ({1: 0.004, 2: 0.145}, 1),
        ({1: 0.004, 2: 0.0038}, 1),
        ({1: 0.004, 2: 0.004}, 1),
        ({1: 0.008, 2: 0.004, 4: 0.002, 8: 0.0021}, 4),
        ({1: 0.008, 2: 0.004, 4: 0.0038, 8: 0.0037}, 2),
        ({1: 0.002}, 1),
    ],
)
def test_fastest_prefers_fewer_threads_in_a_tie(seconds: dict[int, float], best: int) -> None:
    assert SimulatedMachine(seconds).fastest() == best


@pytest.mark.parametrize("best", [1, 2])
@pytest.mark.parametrize("start", [0.0, 0.03, 0.1, 0.2])
def test_fastest_ignores_short_disturbance(start: float, best: int) -> None:
    machine = SimulatedMachine({1: 0.002, 2: 0.001 if best == 2 else 0.004})
    machine.hiccups = [(start, start + 0.03)]
    assert machine.fastest() == best


@pytest.mark.parametrize("slow", [0.001, 0.01, 0.1, 0.145])
def test_fastest_takes_less_than_600_ms(slow: float) -> None:
    machine = SimulatedMachine({1: 0.003, 2: slow})
    machine.fastest()
    assert machine.now < 0.6


def test_set_num_threads_precedence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "measure", lambda: 5)
    assert threads.set_num_threads() == 5
    assert threads.set_num_threads(recorded=4) == 4
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    torch.set_num_threads(2)
    assert threads.is_fixed()
    assert threads.set_num_threads(recorded=4) == 2
    assert threads.set_num_threads(3, recorded=4) == 3


def test_small_command_has_one_thread_without_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "measure", lambda: 5)
    assert threads.set_num_threads(flops=1e8) == 1
    assert threads.set_num_threads(flops=1e10) == 5
    assert threads.set_num_threads(3, flops=1e8) == 3
    assert threads.set_num_threads(recorded=4, flops=1e8) == 4


@pytest.mark.parametrize(("num", "threads_used"), [(1, 1), (4, 5)])
def test_sample_of_few_tokens_has_one_thread(
    num: int, threads_used: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "measure", lambda: 5)
    assert main(["sample", "kjv-epsilon-4m", "--length", "64", "--num", str(num), "--steps", "1"]) == 0
    assert torch.get_num_threads() == threads_used


def test_empty_omp_num_threads_does_not_fix_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "")
    assert not threads.is_fixed()
    assert threads.is_fixed(1)


def test_processes_of_a_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    torch.set_num_threads(8)
    threads.at_most.cache_clear()
    assert threads.set_num_threads() == 2


def test_measure_restores_number_of_threads() -> None:
    torch.set_num_threads(2)
    threads.at_most.cache_clear()
    assert threads.measure() in (1, 2)
    assert torch.get_num_threads() == 2


class SimulatedTraining:
    """Simulated training steps of given durations, observed by a `ThreadSwitch`."""

    def __init__(self, *, now: int, most: int = 2) -> None:
        self.best, self.measured, self.lines = now, 0, list[str]()
        self._step, self._seconds = 0, 0.0
        torch.set_num_threads(now)
        config = DDiTConfig(vocab_size=8, hidden_size=8, num_blocks=1, num_heads=1)
        mixture = Mixture((), NextToken(8), 1.0)
        gauge = Gauge(config, mixture, 16, torch.device("cpu"), peak=None, rate=0.02, steps=None)
        self._switch = ThreadSwitch(gauge, self.lines.append, choose=self._choose, most=most)

    def _choose(self) -> int:
        self.measured += 1
        return self.best

    def steps(self, number: int, seconds: float) -> None:
        for _ in range(number):
            self._step, self._seconds = self._step + 1, self._seconds + seconds
            report = StepReport(
                step=self._step,
                loss=1.0,
                gradient_norm=1.0,
                rate=0.5,
                tokens=128 * self._step,
                seconds=self._seconds,
                progress=0.1,
            )
            self._switch(report)


def test_thread_switch_changes_threads_after_slow_steps() -> None:
    run = SimulatedTraining(now=2)
    run.steps(20, 0.4)
    assert (run.measured, run.lines) == (0, [])
    run.best = 1
    run.steps(2, 8.0)
    assert run.measured == 0
    run.steps(1, 8.0)
    assert torch.get_num_threads() == 1
    assert run.lines == ["steps have become slow: training continues with 1 thread instead of 2"]


@pytest.mark.parametrize("slow", [(1, 30.0), (2, 30.0), (50, 1.0), (3, 0.04)])
def test_thread_switch_ignores_pauses_and_small_slowdowns(slow: tuple[int, float]) -> None:
    run = SimulatedTraining(now=2)
    usual = 0.4 if slow[1] > 0.1 else 0.01
    run.best = 1
    for _ in range(3):
        run.steps(20, usual)
        run.steps(*slow)
    run.steps(20, usual)
    assert (run.measured, torch.get_num_threads()) == (0, 2)


def test_thread_switch_measures_lasting_slowdown_once() -> None:
    run = SimulatedTraining(now=2)
    run.steps(20, 0.4)
    run.steps(100, 8.0)
    assert (run.measured, run.lines) == (1, [])


def test_thread_switch_restores_threads_on_free_machine() -> None:
    run = SimulatedTraining(now=1)
    run.best = 2
    run.steps(140, 0.4)
    assert run.measured == 0
    run.steps(20, 0.4)
    assert (run.measured, torch.get_num_threads()) == (1, 2)
    assert run.lines == [
        "the number of threads was measured again: training continues with 2 threads instead of 1"
    ]


def test_thread_switch_measures_less_often_without_change() -> None:
    run = SimulatedTraining(now=1)
    run.steps(6 * 120, 30.0)
    assert 6 <= run.measured <= 9


def _start_busy_loop() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "while True: pass"])


@pytest.mark.slow
def test_measure_chooses_fewer_threads_on_busy_machine() -> None:
    """A program that runs under `nice` beside one busy loop for each core."""
    code = (
        "import os, time; os.nice(5); import torch; from hdlm import threads; threads.measure(); "
        "began = time.perf_counter(); print(threads.measure(), time.perf_counter() - began)"
    )
    cores = os.cpu_count() or 1
    if cores == 1:
        pytest.skip("a single core has a single thread")
    loops = [_start_busy_loop() for _ in range(cores)]
    try:
        time.sleep(0.5)
        command = [sys.executable, "-c", code]
        chosen = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(3)]
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()
    counts, seconds = zip(*(ran.stdout.split() for ran in chosen), strict=True)
    assert sorted(map(int, counts))[1] < cores
    assert min(map(float, seconds)) < 5


def test_run_records_threads_and_resumes_with_them(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, output = tmp_path / "tiny.toml", tmp_path / "run"
    recipe.write_text(RECIPE.replace("steps = 40", "steps = 2"))
    words = [
        "train",
        "--output",
        str(output),
        "--text",
        str(text),
        "--recipe",
        str(recipe),
        "--device",
        "cpu",
    ]
    assert main([*words, "--threads", "1"]) == 0, capsys.readouterr().err
    states = sorted(output.glob("training/step-*/state.json"))
    assert json.loads(states[-1].read_text())["threads"] == 1
    (output / "training" / "finished.json").unlink()
    torch.set_num_threads(2)
    monkeypatch.setattr(threads, "measure", lambda: pytest.fail("a run that is resumed does not measure"))
    assert main(["train", "--output", str(output), "--resume", "--device", "cpu"]) == 0, (
        capsys.readouterr().err
    )
    assert torch.get_num_threads() == 1


def test_state_without_threads_is_read(tmp_path: Path) -> None:
    table = {name: 0 for name in TrainingState.__dataclass_fields__ if name != "threads"}
    (tmp_path / "state.json").write_text(json.dumps(table | {"format": FORMAT, "files": {}}))
    assert _read_table(tmp_path / "state.json")["threads"] == 0
