"""Experiment trackers: tensorboard, wandb and trackio get each line of metrics, through the classes of `accelerate`.

    tensorboard    RUN/tensorboard/                              look: tensorboard --logdir RUN
    wandb          RUN/wandb/, offline unless WANDB_MODE says otherwise; then: wandb sync RUN/wandb/offline-*
    trackio        its own folder, ~/.cache/huggingface/trackio or TRACKIO_DIR; look: trackio show

Each tracker works in a thread of its own, so a slow or broken network does not delay training. After its first error,
which is reported, a tracker gets nothing more.
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

from hdlm.strict_config import one_line
from hdlm.training.monitor.watchers import Sink
from hdlm.training.recipe import Recipe

__all__ = ["check_trackers", "tracking"]

_SOURCES = {"tensorboard": '"hdlm[trackers]"', "wandb": '"hdlm[trackers]"'}
"""What to install for a tracker, if it is not the package of its name."""
_PATIENCE = 60.0
"""Seconds that the end of a run waits for a tracker."""


@contextmanager
def tracking(recipe: Recipe, folder: Path, say: Callable[[str], object]) -> Iterator[Sink]:
    """The trackers of a recipe, as one sink for `MetricsLog.add_sink`; the end of the block closes them.

    Only the main process has trackers. It calls this after it has made a `Session`, and after `check_trackers`.

    Args:
        recipe: The recipe; its options are recorded as the settings of the run.
        folder: The folder of the run.
        say: Called with a line for each failure.
    """
    names = recipe.watch.trackers if PartialState().is_main_process else ()
    settings = _flat(recipe.to_table())
    trackers = [_Tracker(name, _opener(name, recipe.watch.project, folder, settings), say) for name in names]

    def log(values: Mapping[str, Any]) -> None:
        for tracker in trackers:
            tracker.log(values)

    try:
        yield log
    finally:
        for tracker in trackers:
            tracker.close()


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that are not installed.

    Raises:
        ValueError: If a tracker is not installed; the message says what to install.
    """
    for name in names:
        spec = find_spec(name)
        if spec is None or spec.origin is None:  # a folder of this name has no origin
            raise ValueError(
                f"watch.trackers has {name}, which is not installed: pip install {_SOURCES.get(name, name)}."
            )


@final
class _Tracker:
    """One tracker in a thread of its own, which does not keep the program from ending.

    Args:
        name: The name of the tracker.
        begin: Starts the tracker.
        say: Called once, with a line on the first failure.
    """

    def __init__(self, name: str, begin: Callable[[], Any], say: Callable[[str], object]) -> None:
        self._name, self._say = name, say
        self._thread = ThreadPool(1)
        self._error: BaseException | None = None
        self._failed = False
        self._begun = self._do(begin)

    def log(self, values: Mapping[str, Any]) -> None:
        """Forward a line of metrics."""
        if not self._works():
            return
        numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
        step = int(numbers.pop("step"))
        self._do(lambda: self._begun.get().log(numbers, step=step))

    def close(self) -> None:
        """Wait for the tracker to finish, for a limited time."""
        if self._works():
            last = self._do(lambda: self._begun.get().finish())
            last.wait(_PATIENCE)
            if self._works() and not last.ready():
                self._say(
                    f"{self._name} has not finished after {_PATIENCE:.0f} s; training does not wait for it"
                )
        self._thread.terminate()

    def _do(self, work: Callable[[], Any]) -> AsyncResult[Any]:
        return self._thread.apply_async(work, error_callback=self._note)

    def _note(self, error: BaseException) -> None:
        self._error = self._error or error

    def _works(self) -> bool:
        """Whether the thread has not failed; a failure is reported the first time."""
        if self._error is not None and not self._failed:
            self._failed = True
            reason = f"{type(self._error).__name__}: {one_line(self._error)[:300]}"
            self._say(f"{self._name} gets no more metrics, and training continues: {reason}")
        return not self._failed


def _opener(name: str, project: str, folder: Path, settings: dict[str, Any]) -> Callable[[], Any]:
    """A function that starts a tracker, and gives it the settings of the run."""

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
    """Settings by their dotted names, as numbers and strings."""
    flat: dict[str, Any] = {}
    for name, value in table.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            plain = isinstance(value, bool | int | float | str)
            flat[f"{prefix}{name}"] = value if plain else str(value)
    return flat
