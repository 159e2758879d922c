"""What looks at a run: a progress bar, a log of JSON lines, and whatever happens every few minutes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from hdlm.training.loop import StepReport, Watcher

__all__ = ["Every", "MetricsLog", "progress_bar"]


@final
class MetricsLog:
    """Appends JSON objects to a file, one a line: the mean of every few steps, and what else is worth keeping.

    Args:
        path: The file.
        every: Steps that one line is the mean of.
    """

    def __init__(self, path: Path, every: int = 10) -> None:
        self._path, self._every = path, every
        self._unwritten: list[StepReport] = []

    def __call__(self, report: StepReport) -> None:
        """Note a step."""
        self._unwritten.append(report)
        if report.step % self._every == 0:
            self.flush()

    def flush(self) -> None:
        """Write the line of the steps that have none yet, if there are any."""
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
        )
        self._unwritten.clear()

    def write(self, **values: Any) -> None:
        """Append one line."""
        with self._path.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(values) + "\n")


@final
class Every:
    """Does something whenever some minutes have passed.

    Args:
        minutes: How many.
        action: What; it is given the step's report.
    """

    def __init__(self, minutes: float, action: Callable[[StepReport], None]) -> None:
        self._seconds, self._action = 60 * minutes, action
        self._last = time.perf_counter()

    def __call__(self, report: StepReport) -> None:
        """Look at the clock."""
        if time.perf_counter() - self._last >= self._seconds:
            self._action(report)
            self._last = time.perf_counter()


@contextmanager
def progress_bar(console: Console, every: float = 30.0) -> Iterator[Watcher]:
    """Show how far a run is, its loss, its speed and when it will end.

    On a terminal this is a bar; elsewhere, a line now and then.

    Args:
        console: Where to show it.
        every: Seconds between two lines.
    """
    if not console.is_terminal:
        yield Every(every / 60, lambda report: console.print(_summary(report), highlight=False))
        return
    columns = (BarColumn(), TaskProgressColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("starting", total=1.0)
        smooth = _Smooth()

        def show(report: StepReport) -> None:
            bar.update(task, completed=report.progress, description=_summary(report, smooth(report.loss)))

        yield show


@final
class _Smooth:
    """An exponential moving average of single numbers, for the eye."""

    def __init__(self) -> None:
        self._value: float | None = None

    def __call__(self, value: float) -> float:
        self._value = value if self._value is None else 0.95 * self._value + 0.05 * value
        return self._value


def _summary(report: StepReport, loss: float | None = None) -> str:
    speed = report.tokens / max(report.seconds, 1e-9)
    left = report.seconds * (1 - report.progress) / max(report.progress, 1e-9)
    return (
        f"step {report.step}  loss {report.loss if loss is None else loss:.3f}  {speed:,.0f} tokens/s  "
        f"{report.tokens / 1e6:.2f}M tokens  {int(left) // 60}:{int(left) % 60:02d} left"
    )
