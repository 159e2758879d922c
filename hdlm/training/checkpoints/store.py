"""The checkpoints of a run, one folder for each step: written to a temporary folder, renamed, and later removed.

    RUN/training/step-00001200/    what `TrainingState` describes
    RUN/training/best.json         the step with the best bound on validation text
    RUN/training/finished.json     the last step of a run that has ended, once everything after it is done
    RUN/training/lock              held while a run trains

A folder is complete or absent, whenever the program ends. The newest folders are kept, and the best one.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import final

from hdlm.atomic import replacing
from hdlm.training.checkpoints.state import STATE_FILES, TrainingState

__all__ = ["CheckpointStore", "publish"]

_FOLDER, _PREFIX, _ASIDE, _LOCK = "training", "step-", ".step-", "lock"
_BEST, _FINISHED = "best.json", "finished.json"


@final
class CheckpointStore:
    """The stored checkpoints of a run.

    Args:
        run: The folder of the run.
        keep: Number of the newest checkpoints that are kept.
    """

    def __init__(self, run: Path, keep: int = 2) -> None:
        self._folder, self._keep = run / _FOLDER, keep

    def steps(self) -> list[int]:
        """The stored steps, in order."""
        names = [path.name.removeprefix(_PREFIX) for path in self._folder.glob(f"{_PREFIX}*")]
        return sorted(int(name) for name in names if name.isdecimal())

    def place(self, step: int) -> Path:
        """The folder of a step."""
        return self._folder / f"{_PREFIX}{step:08d}"

    @property
    def best(self) -> tuple[int, float] | None:
        """The step with the best bound, and the bound; None if none was measured, or the file is damaged."""
        table = _noted(self._folder / _BEST, "step", "bound")
        return None if table is None else (int(table[0]), table[1])

    @property
    def finished(self) -> int | None:
        """The step that the run ended with; None if something is left to do."""
        table = _noted(self._folder / _FINISHED, "step")
        return None if table is None else int(table[0])

    def finish(self, step: int) -> None:
        """Record that the run ended with a step, and that nothing is left to do."""
        _note(self._folder / _FINISHED, {"step": step})

    def put(self, step: int, write: Callable[[Path], None]) -> Path:
        """Store a step, and remove steps that are too old; older ones stay until this one is complete.

        Returns:
            The folder of the step.

        Raises:
            OSError: If it cannot be written; nothing is removed then.
        """
        target, aside = self.place(step), self._folder / f"{_ASIDE}{step}"
        self.clear()
        try:
            aside.mkdir(parents=True)
            write(aside)
            _to_disk(aside)
            if target.exists():
                target.rename(self._folder / f"{_ASIDE}{step}-old")
            aside.rename(target)
            _sync(self._folder)
        finally:
            self.clear()
        self._prune()
        return target

    def offer(self, step: int, bound: float) -> bool:
        """Record the bound of a stored step, which is kept until another step has a better one.

        Args:
            step: Number of the step.
            bound: Bound in nats per token, for example; less is better.

        Returns:
            Whether it is the best so far.
        """
        best = self.best
        if not math.isfinite(bound) or (best is not None and best[1] <= bound and best[0] != step):
            return False
        _note(self._folder / _BEST, {"step": step, "bound": bound})
        self._prune()
        return True

    def newest(self, say: Callable[[str], object]) -> tuple[Path, TrainingState] | None:
        """The newest intact checkpoint; None if none was ever stored.

        Args:
            say: Called with a line for each damaged checkpoint.

        Raises:
            ValueError: If there are checkpoints, but all are damaged.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                state = TrainingState.read(self.place(step))
                if state.step == step:
                    return self.place(step), state
                say(f"the checkpoint of step {step} cannot be used: its state is of step {state.step}")
            except (ValueError, OSError) as error:
                say(f"the checkpoint of step {step} cannot be used: {error}")
        if steps:
            raise ValueError(
                f"none of the checkpoints in {self._folder} is intact; begin another run in another folder, from "
                f"the model in {self._folder.parent} if its model.safetensors can be read."
            )
        return None

    def rewind(self, step: int) -> None:
        """Remove what is later than the step that the run resumes from."""
        for later in self.steps():
            if later > step:
                shutil.rmtree(self.place(later), ignore_errors=True)
        if self.best is not None and self.best[0] > step:
            (self._folder / _BEST).unlink()
        (self._folder / _FINISHED).unlink(missing_ok=True)

    def mend(self, bounds: Mapping[int, float]) -> None:
        """Find the best stored step again, if its record is lost, damaged, or of a step that is not stored.

        Args:
            bounds: Known bounds by step; a step without one is never the best.
        """
        kept = self.steps()
        if self.best is None or self.best[0] not in kept:
            (self._folder / _BEST).unlink(missing_ok=True)
        known = [(bounds[step], step) for step in kept if math.isfinite(bounds.get(step, math.nan))]
        if known:
            bound, step = min(known)
            self.offer(step, bound)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Lock the folder inside a `with` block; the lock ends with the program.

        Raises:
            ValueError: If another program holds the lock.
        """
        from filelock import FileLock, Timeout

        self._folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self._folder / _LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise ValueError(
                f"another program trains in {self._folder.parent}: end it, or wait until it has ended, and resume the "
                "run with --resume (training.resume=true); or choose another folder."
            ) from None
        try:
            yield
        finally:
            lock.release()

    def clear(self) -> None:
        """Remove temporary folders of a program that was killed."""
        for path in self._folder.glob(f"{_ASIDE}*"):
            shutil.rmtree(path, ignore_errors=True)

    def _prune(self) -> None:
        """Remove what is neither new enough nor the best."""
        best = self.best
        for step in self.steps()[: -self._keep]:
            if best is None or step != best[0]:
                shutil.rmtree(self.place(step), ignore_errors=True)


def publish(source: Path, folder: Path) -> None:
    """Put the model of a stored step into the folder of the run, file by file, by hard links where possible."""
    for path in sorted(source.iterdir()):
        if path.name in STATE_FILES or not path.is_file():
            continue
        with replacing(folder / path.name) as aside:
            aside.unlink()
            try:
                os.link(path, aside)
            except OSError:
                shutil.copyfile(path, aside)


def _note(path: Path, table: Mapping[str, int | float]) -> None:
    with replacing(path) as aside:
        aside.write_text(json.dumps(table) + "\n", encoding="utf-8")


def _noted(path: Path, *names: str) -> list[float] | None:
    """Numbers that `_note` wrote; None if they are missing or damaged."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        values = [float(table[name]) for name in names]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return values if all(map(math.isfinite, values)) else None


def _to_disk(folder: Path) -> None:
    """Wait until a folder and its files are on the disk, so that a power failure cannot lose them."""
    for path in folder.iterdir():
        with path.open("r+b") as file:
            os.fsync(file.fileno())
    _sync(folder)


def _sync(folder: Path) -> None:
    """Wait until the names in a folder are on the disk; Windows can open no folders and does not need this."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
