"""A progress bar over the steps of generation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from hdlm.progress import share_bar
from hdlm.sampling import Frame

__all__ = ["steps_bar"]


@contextmanager
def steps_bar(what: str, *, shown: bool | None = None) -> Iterator[Callable[[Frame], None]]:
    """A bar on standard error; the yielded function is called with each frame.

    Args:
        what: Name of the work, in a word or two.
        shown: As for `hdlm.progress.share_bar`.
    """
    with share_bar(what, shown=shown) as bar:

        def tick(frame: Frame) -> None:
            first = int(frame.sequence[0])
            bar(frame.share, f"{what} from passage {first + 1}" if first else what)

        yield tick
