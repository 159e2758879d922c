"""Stopping politely: the first signal asks a loop to finish its step and save, a later one insists.

Schedulers announce the end of a job by SIGTERM or SIGUSR1, people by Ctrl-C (SIGINT). Launchers pass on signals that
the whole group of processes has got already, so what comes within a second of the first signal is the same request.
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
"""Exit status of a run that a scheduler stopped before its end: what `sysexits.h` calls EX_TEMPFAIL, try again."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_SAME_REQUEST = 1.0
"""Seconds."""


@final
class StopRequest:
    """Whether somebody asked to stop, and how.

    Args:
        clock: Tells seconds.

    Attributes:
        signal: The first signal; None if there was none.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.signal: signal.Signals | None = None
        self._clock, self._first = clock, 0.0

    def __bool__(self) -> bool:
        """Whether to stop."""
        return self.signal is not None

    @property
    def name(self) -> str:
        """Of the signal, for people; it may have gone to another process of the run."""
        return "a signal to another process" if self.signal is None else self.signal.name

    @property
    def preempts(self) -> bool:
        """Whether it was a scheduler that asked, who will want to know that there is more to do."""
        return self.signal in (signal.SIGTERM, signal.SIGUSR1)

    def outlast_echo(self) -> None:
        """Wait until no signal can be the same request any more; not at all if there was none."""
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
    """Catch SIGINT, SIGTERM and SIGUSR1 for the length of a block; only the main thread of a process may.

    A block that obeys at once lasts until the echo of the request must have come, which would kill the program else.
    """
    request = StopRequest()
    before = {number: signal.signal(number, request) for number in _SIGNALS}
    try:
        yield request
    finally:
        request.outlast_echo()
        for number, handler in before.items():
            signal.signal(number, handler)
