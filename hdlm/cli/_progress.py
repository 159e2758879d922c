"""Progress bars on standard error, for anything that may take longer than two seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hdlm.sampling import Frame


@contextmanager
def steps_bar(what: str, *, shown: bool) -> Iterator[Callable[[Frame], None]]:
    """A bar over generation steps; what it yields is called with each frame.

    Args:
        what: What is going on, in a word.
        shown: Whether there is anybody to see it.
    """
    if not shown:
        yield lambda frame: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f}%"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=None)

        def tick(frame: Frame) -> None:
            first = int(frame.sequence[0])
            progress.update(
                task,
                description=f"{what} from passage {first + 1}" if first else what,
                completed=frame.step + 1,
                total=frame.num_steps,
            )

        yield tick
