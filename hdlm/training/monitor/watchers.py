"""Watchers of a run: a progress bar, and a log of JSON lines."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias, final

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from hdlm.atomic import replacing
from hdlm.training.loop import StepReport, Watcher
from hdlm.training.monitor.throughput import Gauge

__all__ = ["MetricsLog", "Sink", "progress_bar"]

Sink: TypeAlias = Callable[[Mapping[str, Any]], object]
"""Gets the values of a line of metrics; `step` is always one of them."""

_REFRESH = 0.1
"""Seconds between two reads of the loss: that of the step before, for which a GPU need not be waited."""


@final
class MetricsLog:
    """Appends JSON objects to a file, one per line: means over a few steps, and measurements.

    A line of training has

        step                optimizer steps done
        loss                mean of the steps since the previous line, in nats per position
        gradient_norm       before it was clipped, at this step
        rate                learning rate relative to its peak
        tokens              trained on so far, by all processes
        seconds             since the run began
        learning_rate, tokens_per_second, utilisation, memory       see `TrainingSpeed`; with a gauge only

    and a line of a measurement has `step` and the measured values.

    Args:
        path: Path of the file.
        every: Number of steps that one line averages.
        gauge: Measures speed and memory.
    """

    def __init__(self, path: Path, every: int = 10, *, gauge: Gauge | None = None) -> None:
        self._path, self._every, self._gauge = path, every, gauge
        self._sinks: list[Sink] = []
        self._unwritten: list[StepReport] = []

    def __call__(self, report: StepReport) -> None:
        """Record a step."""
        self._unwritten.append(report)
        if self._gauge is not None:
            self._gauge(report)
        if report.step % self._every == 0:
            self.flush()

    def flush(self) -> None:
        """Write a line for the steps that have none yet, if there are any."""
        if not self._unwritten:
            return
        last = self._unwritten[-1]
        self.write(
            step=last.step,
            loss=round(sum(report.loss for report in self._unwritten) / len(self._unwritten), 5),
            gradient_norm=round(last.gradient_norm, 4),
            rate=round(last.rate, 5),
            tokens=last.tokens,
            seconds=round(last.seconds, 2),
            **({} if self._gauge is None else self._gauge.read().to_dict()),
        )
        self._unwritten.clear()

    def write(self, **values: Any) -> None:
        """Append one line, completely or not at all.

        Raises:
            OSError: If there is no room for it; a partial line is removed.
        """
        rest = (json.dumps(values) + "\n").encode()
        with self._path.open("ab", buffering=0) as lines:
            end = lines.tell()
            try:
                while rest:
                    rest = rest[lines.write(rest) :]
            except OSError:
                lines.truncate(end)
                raise
        for sink in self._sinks:
            sink(values)

    def add_sink(self, sink: Sink) -> None:
        """Call a function with each line from now on."""
        self._sinks.append(sink)

    def rewind(self, step: int) -> None:
        """Remove lines after a step, and an incomplete line."""
        self._unwritten.clear()
        if not self._path.is_file():
            return
        kept = [line for line in self._path.read_bytes().splitlines() if _counts(line, step)]
        with replacing(self._path) as aside:
            aside.write_bytes(b"".join(line + b"\n" for line in kept))


def _counts(line: bytes, step: int) -> bool:
    """Whether a line is complete, and not later than a step."""
    try:
        values = json.loads(line)
    except ValueError:
        return False
    return isinstance(values, dict) and values.get("step", 0) <= step


@contextmanager
def progress_bar(console: Console, every: float = 30.0, *, gauge: Gauge | None = None) -> Iterator[Watcher]:
    """Show the progress of a run, its loss, its speed and the remaining time.

    In a terminal and in a notebook this is a bar with a smoothed loss; elsewhere, a line from time to time, and one at
    the end.
    """
    remaining = _Remaining()
    if not _has_bars(console):
        printed = time.monotonic()

        def print_line(report: StepReport) -> None:
            nonlocal printed
            if gauge is not None:
                gauge(report)
            left = remaining(report)
            if time.monotonic() - printed >= every or report.progress >= 1:
                console.print(_summary(report, report.loss, left, gauge), highlight=False, soft_wrap=True)
                printed = time.monotonic()

        yield print_line
        return
    columns = (BarColumn(24), TaskProgressColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("starting", total=1.0)
        smooth, shown = 0.0, 0.0
        before: StepReport | None = None

        def show(report: StepReport) -> None:
            nonlocal smooth, shown, before
            if gauge is not None:
                gauge(report)
            left = remaining(report)
            if time.monotonic() - shown >= _REFRESH or report.progress >= 1:
                loss = (before or report).loss
                smooth = 0.95 * smooth + 0.05 * loss if smooth else loss
                bar.update(task, completed=report.progress, description=_summary(report, smooth, left, gauge))
                shown = time.monotonic()
            before = report

        yield show


def _has_bars(console: Console) -> bool:
    """Whether the console is a terminal, or a notebook that can show a bar."""
    return console.is_terminal or (console.is_jupyter and find_spec("ipywidgets") is not None)


@final
class _Remaining:
    """Estimates the remaining seconds from the steps of this program; None if there are none to compare."""

    def __init__(self) -> None:
        self._first: StepReport | None = None

    def __call__(self, report: StepReport) -> float | None:
        first = self._first = self._first or report
        share = report.progress - first.progress
        if share > 0:
            return (report.seconds - first.seconds) * (1 - report.progress) / share
        return None if report.progress < 1 else 0.0


def _summary(report: StepReport, loss: float, left: float | None, gauge: Gauge | None) -> str:
    steps = "" if gauge is None or gauge.steps is None else f"/{gauge.steps}"
    speed: float | None = report.tokens / max(report.seconds, 1e-9)
    more = []
    if gauge is not None:
        reading = gauge.read()
        speed = reading.tokens_per_second
        if reading.utilisation is not None:
            more.append(f"MFU {reading.utilisation:.1%}")
        if reading.memory is not None:
            more.append(f"{reading.memory / 1e9:.1f} GB")
        more.append(f"lr {reading.learning_rate:.2g}")
    parts = [
        f"step {report.step}{steps}",
        f"loss {loss:.3f}",
        *([] if speed is None else [f"{speed:,.0f} tokens/s"]),
        *more,
        f"{report.tokens / 1e6:.2f}M tokens",
        *([] if left is None else [f"{_clock(int(left))} left"]),
    ]
    return "  ".join(parts)


def _clock(seconds: int) -> str:
    hours, minutes = divmod(seconds // 60, 60)
    return f"{hours}:{minutes:02d}:{seconds % 60:02d}" if hours else f"{minutes}:{seconds % 60:02d}"
