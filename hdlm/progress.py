"""Progress bars on standard error, in a terminal and in a notebook."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec

__all__ = ["share_bar", "somebody_watches"]


def somebody_watches() -> bool:
    """Whether a progress bar is visible: on a terminal, or in a notebook."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules


@contextmanager
def share_bar(what: str, *, shown: bool | None = None) -> Iterator[Callable[[float, str], None]]:
    """A bar on standard error; the yielded function is called with the share that is done and the name of the work.

    Args:
        what: Name of the first part of the work, in a word or two.
        shown: Whether the bar is shown; by default if `somebody_watches` and `rich` is installed.
    """
    if shown is None:
        shown = somebody_watches() and find_spec("rich") is not None
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
