"""Progress bars on standard error, for anything that may take longer than two seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hdlm.sampling import Frame


@contextmanager
def share_bar(what: str, *, shown: bool) -> Iterator[Callable[[float, str], None]]:
    """A bar on standard error; what it yields is called with the share that is done and what is going on.

    Args:
        what: What is going on at first, in a word or two.
        shown: Whether there is anybody to see it.
    """
    if not shown:
        yield lambda share, now: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[percent]:3d}%"),  # rounded down: 100% is the end
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=1.0, percent=0)
        yield lambda share, now: progress.update(
            task, description=now, completed=share, percent=int(100 * share)
        )


@contextmanager
def steps_bar(what: str, *, shown: bool) -> Iterator[Callable[[Frame], None]]:
    """The same over generation steps: what it yields is called with each frame."""
    with share_bar(what, shown=shown) as bar:

        def tick(frame: Frame) -> None:
            first = int(frame.sequence[0])
            bar(frame.share, f"{what} from passage {first + 1}" if first else what)

        yield tick
