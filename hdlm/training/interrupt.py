"""Stop requests: the first signal asks a loop to finish its step and save, a later one ends the program.

Schedulers announce the end of a job by SIGTERM or SIGUSR1, people by Ctrl-C (SIGINT). Launchers forward signals that
all processes of the group have received already, so signals within a second of the first one are one request.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import final

__all__ = ["PREEMPTED", "StopRequest", "listening"]

PREEMPTED = 75
"""Exit status of a run that a scheduler stopped before its end: EX_TEMPFAIL of `sysexits.h`, try again."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_SAME_REQUEST = 1.0
"""Seconds within which signals count as one request."""


@final
class StopRequest:
    """Whether somebody asked to stop, and by which signal.

    Args:
        clock: Returns the time in seconds.

    Attributes:
        signal: The first signal; None if there was none.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.signal: signal.Signals | None = None
        self._clock, self._first = clock, 0.0

    def __bool__(self) -> bool:
        """Whether a signal was received."""
        return self.signal is not None

    @property
    def name(self) -> str:
        """Name of the signal for messages; the signal may have gone to another process of the run."""
        return "a signal to another process" if self.signal is None else self.signal.name

    @property
    def preempts(self) -> bool:
        """Whether the signal came from a scheduler, so that the run is to be resumed."""
        return self.signal in (signal.SIGTERM, signal.SIGUSR1)

    def outlast_echo(self) -> None:
        """Wait until further signals no longer belong to the first request; returns at once if there was none."""
        if self.signal is not None:
            time.sleep(max(0.0, self._first + _SAME_REQUEST - self._clock()))

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal.

        Raises:
            KeyboardInterrupt: If it is a later Ctrl-C.
            SystemExit: If it is another later signal, with the status that a shell reports for it.
        """
        if self.signal is None:
            self.signal, self._first = signal.Signals(number), self._clock()
        elif self._clock() - self._first > _SAME_REQUEST:
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)


@contextmanager
def listening() -> Iterator[StopRequest]:
    """Catch SIGINT, SIGTERM and SIGUSR1 inside a `with` block; only the main thread of a process may.

    The block waits at its end for repeated signals of the same request, which would otherwise kill the program.
    """
    request = StopRequest()
    before = {number: signal.signal(number, request) for number in _SIGNALS}
    try:
        yield request
    finally:
        request.outlast_echo()
        for number, handler in before.items():
            signal.signal(number, handler)
