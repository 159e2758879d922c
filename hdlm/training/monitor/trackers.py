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
from contextlib import contextmanager
from importlib.util import find_spec
from multiprocessing.pool import AsyncResult, ThreadPool
from pathlib import Path
from typing import Any, final

from accelerate.state import PartialState

from hdlm.training.monitor.watchers import Sink
from hdlm.training.recipe import Recipe

__all__ = ["check_trackers", "tracking"]

_SOURCES = {"tensorboard": '"hdlm[trackers]"', "wandb": '"hdlm[trackers]"'}
"""What to install for a tracker, where it is not the package of its name."""
_PATIENCE = 60.0
"""Seconds that the end of a run waits for a tracker."""


@contextmanager
def tracking(recipe: Recipe, folder: Path, say: Callable[[str], object]) -> Iterator[Sink]:
    """The trackers of a recipe, as one sink of `MetricsLog.tell`; the end of the block closes them.

    Only the main process has any. To be called once there is a `Session`, and after `check_trackers`.

    Args:
        recipe: What to track, and what is noted as the settings of the run.
        folder: That of the run.
        say: Told what goes wrong.
    """
    names = recipe.watch.trackers if PartialState().is_main_process else ()
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
    """Refuse trackers that are not installed, before anything is done.

    Args:
        names: What a recipe asks for.

    Raises:
        ValueError: If one is not; the message says what to install.
    """
    for name in names:
        spec = find_spec(name)
        if spec is None or spec.origin is None:  # a folder of this name has no origin
            raise ValueError(
                f"watch.trackers asks for {name}, which is not installed: pip install {_SOURCES.get(name, name)}."
            )


@final
class _Tracker:
    """One tracker, in a thread of its own, which keeps no program from ending.

    Args:
        name: What it is called.
        begin: Starts it.
        say: Told once what goes wrong.
    """

    def __init__(self, name: str, begin: Callable[[], Any], say: Callable[[str], object]) -> None:
        self._name, self._say = name, say
        self._thread = ThreadPool(1)
        self._error: BaseException | None = None
        self._failed = False
        self._begun = self._do(begin)

    def log(self, values: Mapping[str, Any]) -> None:
        """Pass a line of metrics on."""
        if not self._works():
            return
        numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
        step = int(numbers.pop("step"))
        self._do(lambda: self._begun.get().log(numbers, step=step))

    def close(self) -> None:
        """Wait for it to finish, but not for ever."""
        if self._works():
            last = self._do(lambda: self._begun.get().finish())
            last.wait(_PATIENCE)
            if self._works() and not last.ready():
                self._say(f"{self._name} has not finished after {_PATIENCE:.0f} s; it is left behind")
        self._thread.terminate()

    def _do(self, work: Callable[[], Any]) -> AsyncResult[Any]:
        return self._thread.apply_async(work, error_callback=self._note)

    def _note(self, error: BaseException) -> None:
        self._error = self._error or error

    def _works(self) -> bool:
        """Whether nothing has gone wrong in the thread; what has is said the first time."""
        if self._error is not None and not self._failed:
            self._failed = True
            self._say(f"{self._name} gets no more metrics, and training goes on: {_line(self._error)}")
        return not self._failed


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
