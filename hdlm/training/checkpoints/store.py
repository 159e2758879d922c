"""The checkpoints of a run, one folder for each step that is kept: written aside, renamed, and thrown away in turn.

    RUN/training/step-00001200/    what `TrainingState` describes
    RUN/training/best.json         which step had the best bound on validation text
    RUN/training/finished.json     the last step of a run that is over, once all is done that follows it
    RUN/training/lock              held while a run is at work

A folder is whole or not there, whatever moment the program dies at. The newest few are kept, and the best.
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
    """The kept checkpoints of a run.

    Args:
        run: The folder of the run.
        keep: How many of the newest are kept.
    """

    def __init__(self, run: Path, keep: int = 2) -> None:
        self._folder, self._keep = run / _FOLDER, keep

    def steps(self) -> list[int]:
        """Steps that are kept, in order."""
        names = [path.name.removeprefix(_PREFIX) for path in self._folder.glob(f"{_PREFIX}*")]
        return sorted(int(name) for name in names if name.isdecimal())

    def place(self, step: int) -> Path:
        """The folder of a step."""
        return self._folder / f"{_PREFIX}{step:08d}"

    @property
    def best(self) -> tuple[int, float] | None:
        """The step with the best bound, and the bound; None if none was measured, or the note of it is damaged."""
        table = _noted(self._folder / _BEST, "step", "bound")
        return None if table is None else (int(table[0]), table[1])

    @property
    def finished(self) -> int | None:
        """The step that the run ended with, if nothing is left to do after it."""
        table = _noted(self._folder / _FINISHED, "step")
        return None if table is None else int(table[0])

    def finish(self, step: int) -> None:
        """Note that the run ended with a step, and that nothing is left to do."""
        _note(self._folder / _FINISHED, {"step": step})

    def put(self, step: int, write: Callable[[Path], None]) -> Path:
        """Keep a step, and throw away what is too old; what was kept before is there until this one is whole.

        Args:
            step: Its number.
            write: Fills a folder with it.

        Returns:
            Its folder.

        Raises:
            OSError: If it cannot be written; nothing has been thrown away.
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
        """Note the bound of a step that is kept; it stays for as long as none is better.

        Args:
            step: Its number.
            bound: In nats a token, say; less is better.

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
        """The newest checkpoint that is whole; None if none was ever kept.

        Args:
            say: Told of each one that is not whole.

        Raises:
            ValueError: If there are some, but none is whole.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                state = TrainingState.read(self.place(step))
                if state.step == step:
                    return self.place(step), state
                say(f"the checkpoint of step {step} cannot be used: it is of step {state.step}")
            except (ValueError, OSError) as error:
                say(f"the checkpoint of step {step} cannot be used: {error}")
        if steps:
            raise ValueError(
                f"none of the checkpoints in {self._folder} is whole; begin anew in another folder, with --from "
                f"{self._folder.parent} if its model.safetensors can be read."
            )
        return None

    def rewind(self, step: int) -> None:
        """Forget what came after a step, because the run goes on from there."""
        for later in self.steps():
            if later > step:
                shutil.rmtree(self.place(later), ignore_errors=True)
        if self.best is not None and self.best[0] > step:
            (self._folder / _BEST).unlink()
        (self._folder / _FINISHED).unlink(missing_ok=True)

    def mend(self, bounds: Mapping[int, float]) -> None:
        """Find the best kept step again if the note of it is lost, damaged, or not of the best kept step.

        Args:
            bounds: What is known of steps, kept or not; a step without one is never the best.
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
        """Be the only program that writes here, for the length of a block; a program that dies lets go.

        Raises:
            ValueError: If another one is at work.
        """
        from filelock import FileLock, Timeout

        self._folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self._folder / _LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise ValueError(
                f"another program trains in {self._folder.parent}: end it, or wait until it has ended, and go on with "
                "--resume (training.resume=true); or choose another folder."
            ) from None
        try:
            yield
        finally:
            lock.release()

    def clear(self) -> None:
        """Remove what a program that died left unfinished."""
        for path in self._folder.glob(f"{_ASIDE}*"):
            shutil.rmtree(path, ignore_errors=True)

    def _prune(self) -> None:
        """Throw away what is neither new enough nor the best."""
        best = self.best
        for step in self.steps()[: -self._keep]:
            if best is None or step != best[0]:
                shutil.rmtree(self.place(step), ignore_errors=True)


def publish(source: Path, folder: Path) -> None:
    """Put the model of a kept step into the folder of the run, file by file, without a copy where links can be made."""
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
    """Numbers that `_note` wrote; None if they are not there, or damaged."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        values = [float(table[name]) for name in names]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return values if all(map(math.isfinite, values)) else None


def _to_disk(folder: Path) -> None:
    """Wait until a folder and its files are on the disk, so that not even a loss of power can lose them."""
    for path in folder.iterdir():
        with path.open("r+b") as file:
            os.fsync(file.fileno())
    _sync(folder)


def _sync(folder: Path) -> None:
    """Wait until the names in a folder are on the disk; Windows opens no folders, and needs not to."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
