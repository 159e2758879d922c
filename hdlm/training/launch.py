"""One training run, from its recipe to its end: what every command and `hdlm.train` call.

begin        recipe, text and an initial checkpoint -> a `Session` before its first step
carry_out    the remaining steps, their measurements, what follows the last step, and the record that the run has ended
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import torch
from rich.console import Console

from hdlm.checkpoint import Checkpoint
from hdlm.package_data import recipes
from hdlm.strict_config import did_you_mean
from hdlm.training.checkpoints.store import CheckpointStore
from hdlm.training.finetuning import describe_changes, memory_of
from hdlm.training.interrupt import StopRequest, listening
from hdlm.training.loop import StepReport
from hdlm.training.monitor.throughput import ThreadSwitch
from hdlm.training.monitor.trackers import check_trackers, tracking
from hdlm.training.monitor.watchers import progress_bar
from hdlm.training.recipe import Recipe
from hdlm.training.session import ResumePoint, Session, find_resume_point
from hdlm.training.setup import build_setup
from hdlm.training.text import Corpora, refuse_idle

__all__ = ["Observing", "begin", "carry_out", "check_vacant", "recipe_file", "run_to_resume"]


@runtime_checkable
class Observing(Protocol):
    """A watcher that also does something after the last step."""

    def __call__(self, report: StepReport, /) -> None:
        """Do what is due after this step."""

    def finish(self, step: int, /) -> None:
        """Do what is due after the last step, if it was not done."""


def recipe_file(name: str | Path, kind: Literal["recipe", "study"] = "recipe") -> Path:
    """The file of a recipe or of a study.

    Args:
        name: A TOML file, or the name of a recipe or study of the package.
        kind: The kind of files whose names an error lists.

    Raises:
        ValueError: If there is no file of that name.
    """
    if Path(name).suffix == ".toml":
        return Path(name)
    file = recipes() / f"{name}.toml"
    if not file.is_file():
        prefix = "" if kind == "recipe" else f"{kind}/"
        known = sorted(f"{prefix}{file.stem}" for file in recipes().glob(f"{prefix}*.toml"))
        hint = did_you_mean(str(name), known, " Did you mean {!r}?")
        raise ValueError(
            f"there is no {kind} {str(name)!r}; known: {', '.join(known)}, or a TOML file of yours.{hint}"
        )
    return file


def check_vacant(folder: Path, again: str) -> None:
    """Refuse a folder that cannot take a new run.

    Raises:
        ValueError: If it is a file, or holds a run or a model.
    """
    if folder.is_file():
        raise ValueError(f"{folder} is a file; give the name of a folder.")
    if CheckpointStore(folder).steps():
        raise ValueError(f"{folder} holds a run already: resume it with {again}, or choose another folder.")
    if (folder / "config.json").exists():
        raise ValueError(f"{folder} already holds a checkpoint; choose another folder, or remove it.")


def run_to_resume(
    folder: Path, report: Callable[[str], None], *, resume: bool, option: str
) -> ResumePoint | None:
    """The run in a folder that shall be resumed; None if a new run shall begin.

    Args:
        folder: The folder of the run.
        report: Called with a line if a damaged checkpoint is passed over.
        resume: Whether a run in the folder shall be resumed.
        option: How the user asks for that, for the error message.

    Raises:
        ValueError: If a new run shall begin, and the folder holds a run, a model or is a file.
    """
    if resume:
        return find_resume_point(folder, report)
    if os.environ.get("RANK", "0") == "0":
        check_vacant(folder, option)
    return None


def begin(
    recipe: Recipe,
    folder: Path,
    device: torch.device,
    say: Callable[[str], None],
    *,
    resume_point: ResumePoint | None = None,
    start: Checkpoint | None = None,
    text: Corpora | None = None,
    memory: str | None = None,
    keep_step: bool = False,
    strict: bool = True,
) -> Session:
    """Build a session before its first step.

    Args:
        recipe: The recipe of the run.
        folder: The folder of the run.
        device: Device of the training.
        say: Called with a line for each finished piece of work.
        resume_point: The run to resume; its checkpoint is the initial one.
        start: The initial checkpoint, if no run is resumed.
        text: Corpora in place of those that the recipe names.
        memory: Folder of a run whose optimizer state is used as well.
        keep_step: Whether the steps of that run count.
        strict: Whether options without effect beside `start` are refused; a published configuration may hold some.

    Raises:
        ValueError: If the recipe cannot be followed.
    """
    check_trackers(recipe.watch.trackers)
    if resume_point is None:
        refuse_idle(recipe.data, text, start if strict else None)
    run = build_setup(recipe, device, say, start if resume_point is None else resume_point.checkpoint, text)
    session = Session(run, folder, resume_point)
    if resume_point is not None:
        return session
    for line in () if start is None else describe_changes(start, run.checkpoint()):
        say(f"  {line}")
    if memory is not None:
        session.trainer.inherit(memory_of(memory, say), keep_step=keep_step)
    return session


def carry_out(
    session: Session,
    console: Console,
    observers: Sequence[Observing] = (),
    *,
    stop: StopRequest | None = None,
    last: Callable[[], object] = lambda: None,
    adapts: bool = False,
    ends_early: bool = False,
) -> StopRequest:
    """Take the remaining steps, and record the end of the run when nothing is left to do.

    Args:
        session: The session of the run.
        console: Where progress is shown.
        observers: Called after each step, and after the last one.
        stop: Turns true when somebody asks to stop; by default signals do.
        last: Called in the main process after the last step, unless a scheduler ended the run. A run that is killed
            meanwhile is not recorded as ended.
        adapts: Whether the number of threads may change when steps become slow; in a single process on a CPU only.
        ends_early: Whether Ctrl-C ends the run for good, so that it cannot be resumed.

    Returns:
        The stop request, which is false if no stop was requested.
    """
    trainer, recipe = session.trainer, session.run.recipe
    signals: AbstractContextManager[StopRequest] = listening() if stop is None else nullcontext(stop)
    with (
        signals as request,
        tracking(recipe, session.folder, console.print) as sink,
        progress_bar(console, gauge=session.gauge) as bar,
    ):
        session.log.add_sink(sink)
        switch = (ThreadSwitch(session.gauge, console.print),) if adapts and trainer.is_alone_on_cpu else ()
        session.execute(request, (bar, *switch, *observers), [observer.finish for observer in observers])
    trainer.close()
    if trainer.is_main and not trainer.is_over:
        console.print(f"stopped by {request.name} after {trainer.step} steps; the model is saved")
    if trainer.is_main and not trainer.preempted:
        last()
    session.finish(early=ends_early and not trainer.preempted)
    return request
