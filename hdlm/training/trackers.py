"""Experiment trackers: tensorboard, wandb and trackio, told every line of metrics through the classes of `accelerate`.

    tensorboard    RUN/tensorboard/                              look: tensorboard --logdir RUN
    wandb          RUN/wandb/, offline unless WANDB_MODE says otherwise; then: wandb sync RUN/wandb/offline-*
    trackio        its own folder, ~/.cache/huggingface/trackio or TRACKIO_DIR; look: trackio show

A tracker works in a thread of its own, so neither a slow network nor a broken one holds up training: what goes wrong is
said once, and that tracker is told nothing more.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, final, get_args

from accelerate.state import PartialState

from hdlm.training.recipe import Recipe, TrackerName
from hdlm.training.watchers import Sink

__all__ = ["check_trackers", "tracking"]

_SOURCES = {"tensorboard": '"hdlm[trackers]"', "wandb": '"hdlm[trackers]"'}
"""What to install for a tracker, where it is not the package of its name."""
_PATIENCE = 60.0
"""Seconds that the end of a run waits for a tracker."""


@contextmanager
def tracking(recipe: Recipe, folder: Path, say: Callable[[str], object]) -> Iterator[Sink]:
    """The trackers of a recipe, as one sink of `MetricsLog.tell`; the end of the block closes them.

    Only the main process has any. To be called once there is a `Session`.

    Args:
        recipe: What to track, and what is noted as the settings of the run.
        folder: That of the run.
        say: Told where to look, and what goes wrong.

    Raises:
        ValueError: If a tracker is unknown or not installed; the message says what to install.
    """
    names = recipe.watch.trackers if PartialState().is_main_process else ()
    check_trackers(names)
    settings = _flat(recipe.to_table())
    trackers = [_Tracker(name, _opener(name, recipe.watch.project, folder, settings), say) for name in names]

    def tell(values: Mapping[str, Any]) -> None:
        for tracker in trackers:
            tracker.log(values)

    try:
        yield tell
    finally:
        for tracker in trackers:
            tracker.close()


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that there are not, before anything is done.

    Args:
        names: What a recipe asks for.

    Raises:
        ValueError: If one is unknown or not installed.
    """
    known = get_args(TrackerName)
    for name in names:
        if name not in known:
            raise ValueError(f"there is no tracker {name!r}; known: {', '.join(known)}.")
        spec = find_spec(name)
        if spec is None or spec.origin is None:  # a folder of this name has no origin
            raise ValueError(
                f"watch.trackers asks for {name}, which is not installed: pip install {_SOURCES.get(name, name)}."
            )


@final
class _Tracker:
    """One tracker, in a thread of its own.

    Args:
        name: What it is called.
        begin: Starts it.
        say: Told once what goes wrong.
    """

    def __init__(self, name: str, begin: Callable[[], Any], say: Callable[[str], object]) -> None:
        self._name, self._say = name, say
        self._pool = ThreadPoolExecutor(1, f"hdlm-{name}")
        self._work: list[Future[Any]] = []
        self._failed = False
        self._begun = self._pool.submit(begin)
        self._work.append(self._begun)

    def log(self, values: Mapping[str, Any]) -> None:
        """Pass a line of metrics on."""
        self._look()
        if self._failed:
            return
        numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
        step = int(numbers.pop("step"))
        self._work.append(self._pool.submit(lambda: self._begun.result().log(numbers, step=step)))

    def close(self) -> None:
        """Wait for it to finish, but not for ever."""
        if not self._failed:
            last = self._pool.submit(lambda: self._begun.result().finish())
            self._work.append(last)
            try:
                last.exception(_PATIENCE)
            except TimeoutError:
                self._failed = True
                self._say(f"{self._name} has not finished after {_PATIENCE:.0f} s; it is left behind")
        self._look()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _look(self) -> None:
        """Say what went wrong in the thread, the first time that something did."""
        done = [work for work in self._work if work.done()]
        self._work = [work for work in self._work if not work.done()]
        for work in done:
            error = work.exception()
            if error is not None and not self._failed:
                self._failed = True
                self._say(f"{self._name} gets no more metrics, and training goes on: {_line(error)}")


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _opener(name: str, project: str, folder: Path, settings: dict[str, Any]) -> Callable[[], Any]:
    """What starts a tracker, and tells it the settings of the run."""

    def begin() -> Any:
        from accelerate import tracking as trackers

        run = folder.resolve().name
        if name == "tensorboard":
            tracker: Any = trackers.TensorBoardTracker("tensorboard", logging_dir=str(folder))
        elif name == "wandb":
            mode = os.environ.get("WANDB_MODE", "offline")
            tracker = trackers.WandBTracker(project, name=run, dir=str(folder), mode=mode)
        else:
            tracker = trackers.TrackioTracker(project, name=run)
        tracker.start()
        tracker.store_init_configuration(settings)
        return tracker

    return begin


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by their dotted names, as numbers and words."""
    flat: dict[str, Any] = {}
    for name, value in table.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            plain = isinstance(value, bool | int | float | str)
            flat[f"{prefix}{name}"] = value if plain else str(value)
    return flat
