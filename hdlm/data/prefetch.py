"""Batches that a thread prepares while the network computes."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TypeAlias, final

from jaxtyping import Int
from torch import Tensor

from hdlm.data.packing import AbstractWindows, Samples

__all__ = ["Prefetch"]

_Key: TypeAlias = tuple[int, int]


@final
class Prefetch(AbstractWindows):
    """Windows that are prepared in advance: `expect` names the batches that will be needed.

        with Prefetch(windows) as windows:
            windows.expect(0, 8)
            windows.expect(8, 8)
            windows.batch(0, 8)

    One thread prepares the batches in the order of `expect`. Its errors are raised by `batch`, in the calling thread. A
    batch that was not expected is prepared when `batch` is called; batches that were expected before it are dropped.

    Args:
        windows: The windows; nothing else may use them in the meantime.
    """

    def __init__(self, windows: AbstractWindows) -> None:
        self._windows = windows
        self.length = windows.length
        self._expected: dict[_Key, Future[Tensor]] = {}
        self._closed = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prefetch")

    @property
    def fingerprint(self) -> str:
        return self._windows.fingerprint

    def expect(self, first: int, count: int) -> None:
        """Prepare a batch; see `batch`. Nothing happens if it is expected already.

        Raises:
            ValueError: If this was closed.
        """
        if self._closed:
            raise ValueError("these windows were closed; nothing can be read from them.")
        if (first, count) not in self._expected:
            self._expected[first, count] = self._thread.submit(self._windows.batch, first, count)

    def batch(self, first: int, count: int) -> Int[Tensor, "count l"]:
        for key in [key for key in self._expected if key[0] < first]:
            self._expected.pop(key).cancel()
        self.expect(first, count)
        try:
            return self._expected.pop((first, count)).result()
        except (OSError, RuntimeError, MemoryError, SystemExit) as error:
            raise ValueError(
                f"the text of windows {first} to {first + count - 1} cannot be read: {type(error).__name__}: {error}"
            ) from error

    def samples(self, first: int, count: int) -> Samples | None:
        return self._windows.samples(first, count)

    def close(self) -> None:
        """Drop what is expected, and end the thread."""
        self._closed = True
        self._thread.shutdown(cancel_futures=True)
        self._expected.clear()

    def __enter__(self) -> Prefetch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
