"""The speed of a run: tokens per second, model FLOPs utilisation, memory; and the current learning rate.

All values are of the last minute, without the time of validation and samples.
"""

from __future__ import annotations

import re
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, final

import torch
from accelerate.state import PartialState

from hdlm import threads
from hdlm.network import NetworkShape
from hdlm.training.loop import StepReport
from hdlm.training.mixture import Mixture
from hdlm.training.monitor.flops import peak_flops, training_flops
from hdlm.training.parts import Noisy
from hdlm.training.recipe import Recipe

__all__ = ["Gauge", "ThreadSwitch", "TrainingSpeed"]

_WINDOW = 60.0
"""Seconds over which speed is averaged."""
_SLOW, _SLOW_STEPS, _SLOW_SECONDS, _FEW = 3.0, 3, 2.0, 5
"""Ratio to the usual speed, number of slow steps, their seconds, and number of usual steps before them."""
_RETRY = 60.0
"""Seconds of training after which another number of threads is measured, if fewer than the most are in use."""
_STATUS = Path("/proc/self/status")
"""Linux's description of this process."""


@final
@dataclass(frozen=True)
class TrainingSpeed:
    """The speed of a run at one moment.

    Attributes:
        tokens_per_second: Speed of all processes together; None before there are two steps to compare.
        utilisation: FLOPs that the model needs over those that the devices can do; None if these are unknown.
        memory: Peak memory of this process in bytes, of the GPU if there is one; None if unknown.
        learning_rate: Current learning rate; with Muon, that of the matrices.
    """

    tokens_per_second: float | None
    utilisation: float | None
    memory: int | None
    learning_rate: float

    def to_dict(self) -> dict[str, Any]:
        """The known values, rounded, for a line of metrics."""
        speed = self.tokens_per_second
        known = {
            "learning_rate": float(f"{self.learning_rate:.5g}"),
            "tokens_per_second": None if speed is None else round(speed, 1),
            "utilisation": None if self.utilisation is None else round(self.utilisation, 4),
            "memory": self.memory,
        }
        return {name: value for name, value in known.items() if value is not None}


@final
class Gauge:
    """Measures the steps of a run; one gauge serves everything that shows its values.

    Args:
        network: Configuration of the network.
        mixture: Determines what each step trains on.
        length: Tokens of a window.
        device: Device of the training.
        peak: FLOP/s of all devices together; None if unknown.
        rate: Peak learning rate.
        steps: Optimizer steps of the run; None if it is limited by time.
    """

    def __init__(
        self,
        network: NetworkShape,
        mixture: Mixture,
        length: int,
        device: torch.device,
        *,
        peak: float | None,
        rate: float,
        steps: int | None,
    ) -> None:
        self._network, self._mixture, self._length, self._device = network, mixture, length, device
        self._peak, self._rate, self.steps = peak, rate, steps
        self._last: StepReport | None = None
        self._flops = self._idle = 0.0
        self._marks: deque[tuple[float, int, float]] = deque()

    @classmethod
    def of(
        cls, recipe: Recipe, network: NetworkShape, mixture: Mixture, device: torch.device, precision: str
    ) -> Gauge:
        """Build the gauge of a run; on a CPU this measures its speed for a moment.

        Args:
            recipe: The recipe of the run.
            network: Configuration of the network.
            mixture: Determines what each step trains on.
            device: Device of the training.
            precision: Precision of the computation, `Trainer.precision`.
        """
        peak = peak_flops(device, bf16=precision == "bf16")
        return cls(
            network,
            mixture,
            recipe.data.context,
            device,
            peak=None if peak is None else peak * PartialState().num_processes,
            rate=recipe.optimizer.matrix_rate,
            steps=recipe.run.steps,
        )

    def __call__(self, report: StepReport) -> None:
        """Measure a step; a second call for one step changes nothing."""
        last = self._last
        if last is not None and last.step == report.step:
            return
        if last is None and report.step == 1:
            self._marks.append((0.0, 0, 0.0))
        part = self._mixture.at(report.step - 1, 0.0 if last is None else last.progress)
        two_stream = isinstance(part, Noisy) and part.corruption.two_stream
        self._flops += part.batch_size * training_flops(self._network, self._length, two_stream=two_stream)
        now = report.seconds - self._idle
        self._marks.append((now, report.tokens, self._flops))
        while len(self._marks) > 2 and now - self._marks[0][0] > _WINDOW:
            self._marks.popleft()
        self._last = report

    def read(self) -> TrainingSpeed:
        """The values after the last measured step."""
        rate = self._rate * (0.0 if self._last is None else self._last.rate)
        memory = _peak_memory(self._device)
        if len(self._marks) < 2:
            return TrainingSpeed(None, None, memory, rate)
        (since, tokens, flops), (now, more_tokens, more_flops) = self._marks[0], self._marks[-1]
        seconds = max(now - since, 1e-9)
        used = None if self._peak is None else (more_flops - flops) / seconds / self._peak
        return TrainingSpeed((more_tokens - tokens) / seconds, used, memory, rate)

    def last_step(self) -> tuple[float, float] | None:
        """Seconds of the last step, and FLOPs per second in it; None before there are two steps to compare."""
        if len(self._marks) < 2:
            return None
        (since, _, flops), (now, _, more_flops) = self._marks[-2], self._marks[-1]
        seconds = max(now - since, 1e-9)
        return seconds, (more_flops - flops) / seconds

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time of a `with` block."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._idle += time.perf_counter() - began


@final
class ThreadSwitch:
    """A watcher that sets the number of threads again when steps have become slow.

    Steps are slow while their speed is less than a third of the median of the steps before. After three slow steps,
    which take at least two seconds together, the number of threads is measured. While fewer threads than possible are
    in use, it is also measured once a minute, and less and less often as long as nothing changes.

    Args:
        gauge: Measures the speed of steps.
        say: Called with a line for each change.
        choose: Returns the fastest number of threads.
        most: The largest number of threads; by default that of `hdlm.threads`.
    """

    def __init__(
        self,
        gauge: Gauge,
        say: Callable[[str], object],
        *,
        choose: Callable[[], int] = threads.measure,
        most: int | None = None,
    ) -> None:
        self._gauge, self._say, self._choose = gauge, say, choose
        self._most = threads.at_most() if most is None else most
        self._speeds: deque[float] = deque(maxlen=50)
        self._slow: list[float] = []
        self._since, self._pause = 0.0, _RETRY

    def __call__(self, report: StepReport) -> None:
        """Measure a step, and measure the number of threads if that is due."""
        self._gauge(report)
        if (last := self._gauge.last_step()) is None:
            return
        seconds, speed = last
        self._since += seconds
        if len(self._speeds) >= _FEW and speed < median(self._speeds) / _SLOW:
            self._slow.append(seconds)
        else:
            self._speeds.append(speed)
            self._slow.clear()
        if len(self._slow) >= _SLOW_STEPS and sum(self._slow) >= _SLOW_SECONDS:
            self._switch("steps have become slow")
        elif torch.get_num_threads() < self._most and self._since >= self._pause:
            self._switch("the number of threads was measured again")

    def _switch(self, why: str) -> None:
        """Measure, and use the fastest number of threads."""
        before = torch.get_num_threads()
        with self._gauge.paused():
            now = self._choose()
        self._since = 0.0
        if now == before:
            self._pause *= 2
        else:
            torch.set_num_threads(now)
            self._pause = _RETRY
            self._say(
                f"{why}: training continues with {now} thread{'' if now == 1 else 's'} instead of {before}"
            )
        self._speeds.clear()
        self._slow.clear()


def _peak_memory(device: torch.device) -> int | None:
    if device.type != "cpu" and torch.cuda.is_available():
        return torch.cuda.max_memory_allocated(device)
    if _STATUS.is_file():  # `getrusage` begins with the peak of the program that started this one
        kib = re.search(r"VmHWM:\s+(\d+) kB", _STATUS.read_text(encoding="utf-8"))
        return 1024 * int(kib[1]) if kib else None
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
