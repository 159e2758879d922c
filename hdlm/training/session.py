"""A training run in its folder: it trains, saves checkpoints, and can be resumed from one of them.

    RUN/config.json, model.safetensors, raw.safetensors, tokenizer.json    the model as it was saved last
    RUN/metrics.jsonl                                                      the metrics of the run
    RUN/training/                                                          checkpoints to resume from: `CheckpointStore`

The folder holds a model from the beginning on, at first an untrained one. A resumed run that is limited by steps takes
the same steps as a run that was never stopped, to the bit on a CPU. A resumed run that is limited by minutes uses the
minutes that are left.
"""

from __future__ import annotations

import dataclasses
import errno
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, final

from hdlm.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from hdlm.training.checkpoints.state import TrainingState
from hdlm.training.checkpoints.store import CheckpointStore, publish
from hdlm.training.distributed.accelerator import agree, agreed
from hdlm.training.interrupt import StopRequest
from hdlm.training.loop import StepReport, Watcher
from hdlm.training.monitor.throughput import Gauge
from hdlm.training.monitor.watchers import MetricsLog
from hdlm.training.recipe import Recipe, import_own
from hdlm.training.setup import TrainingSetup

__all__ = ["Closing", "ResumePoint", "Session", "find_resume_point"]

_METRICS, _CONFIG = "metrics.jsonl", "config.json"
Closing: TypeAlias = Callable[[int], None]
"""Called once after the last step, with the number of that step."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers of a system that has no room for a file."""


@final
@dataclass(frozen=True)
class ResumePoint:
    """A run that stopped before its end.

    Attributes:
        recipe: The recipe of the run.
        state: The training state after its last step.
        checkpoint: Its model with the weights of that step; `build_setup` begins with it.
        kept: The steps whose checkpoints are in the folder, including damaged ones.
    """

    recipe: Recipe
    state: TrainingState
    checkpoint: Checkpoint
    kept: tuple[int, ...]

    def check(self, recipe: Recipe) -> None:
        """Refuse a recipe that differs in an option that changes weights.

        Raises:
            ValueError: If such options differ; it names them.
        """
        differences = list(_differences(self.recipe, recipe))
        if differences:
            raise ValueError(
                f"the run was begun with another recipe: {'; '.join(differences)}. Resume it with its own recipe, or "
                "begin another run in a folder of its own (`hdlm train --from` and `hdlm finetune` take the weights of "
                "this one)."
            )


def find_resume_point(folder: Path, say: Callable[[str], object] = lambda line: None) -> ResumePoint | None:
    """Find the run in a folder that can be resumed; None if the folder holds nothing.

    A run that has taken its last step can be resumed until `Session.finish`, for what follows the last step.

    Args:
        folder: The folder of the run.
        say: Called with a line for each damaged checkpoint; the newest intact one is used.

    Raises:
        ValueError: If the folder holds a finished run, or only a model; it says what to do instead.
    """
    store = CheckpointStore(folder)
    kept = tuple(store.steps())
    newest = store.newest(say)
    if newest is None:
        if (folder / _CONFIG).exists():
            raise ValueError(
                f"{folder} holds a model but no training state to resume from (no training/ folder): "
                f"{_train_further(folder)}"
            )
        return None
    place, state = newest
    if store.finished == state.step:
        raise ValueError(f"the run in {folder} has ended, after {state.step} steps: {_train_further(folder)}")
    import_own(json.loads((place / _CONFIG).read_bytes()))
    checkpoint = load_checkpoint(place, weights="raw")
    return ResumePoint(Recipe.recorded(checkpoint.training["recipe"]), state, checkpoint, kept)


def _train_further(folder: Path) -> str:
    """The advice for a model that cannot be resumed, for the command line and for Python."""
    return (
        f"to train its model further, begin another run in another folder by `hdlm train --from {folder}`, "
        f"`hdlm finetune {folder}` or, in Python, `hdlm.finetune({str(folder)!r}, ...)`."
    )


@final
class Session:
    """A run with its trainer and its folder. Every process has a session; the main process writes.

    Args:
        run: The recipe, the text and the model.
        folder: The folder of the run; it is made if it does not exist.
        resume_point: The run to resume; None for a new run.

    Attributes:
        run: Setup of the run.
        folder: Folder of the run.
        trainer: Trains the model.
        gauge: Measures the speed of training.
        log: Writes the lines of `metrics.jsonl`.

    Raises:
        ValueError: If the run cannot be resumed.
    """

    def __init__(self, run: TrainingSetup, folder: Path, resume_point: ResumePoint | None = None) -> None:
        self.run, self.folder, self._settings = run, folder, run.recipe.run
        self._store = CheckpointStore(folder, self._settings.keep)
        self.trainer = run.trainer()
        self._saved: int | None = None
        self._saved_at = 0.0
        self._offer: tuple[int, float | None] | None = None
        self._kept = () if resume_point is None else resume_point.kept
        agree(None if resume_point is None else resume_point.state.step, "the checkpoint to resume from")
        if resume_point is not None:
            resume_point.check(run.recipe)
            self.trainer.restore(resume_point.state)
            self._saved, self._saved_at = resume_point.state.step, resume_point.state.seconds
        network, precision = run.denoiser.backbone.config, self.trainer.precision
        self.gauge = Gauge.of(run.recipe, network, run.mixture, run.device, precision)
        self.log = MetricsLog(folder / _METRICS, run.recipe.watch.log_every, gauge=self.gauge)

    def execute(
        self, stop: StopRequest, watchers: Sequence[Watcher] = (), closing: Sequence[Closing] = ()
    ) -> StepReport | None:
        """Train, and leave a checkpoint and `metrics.jsonl` however training ends.

        Args:
            stop: Turns true when somebody asks to stop.
            watchers: Called after each step, in every process, before the checkpoint is saved.
            closing: Called once after the final checkpoint, in every process, with the last step; skipped when the run
                was preempted. A run that died before `finish` calls them again when it is resumed.

        Returns:
            The report of the last step; None if no step was taken. The denoiser then has its average weights.

        Raises:
            OSError: If the disk is full; the previous checkpoint stays, and the message names its step.
            ValueError: If the loss is not finite, or another program trains in the folder.
        """
        with self._store.held() if self.trainer.is_main else nullcontext():
            return self._execute(stop, watchers, closing)

    def _execute(
        self, stop: StopRequest, watchers: Sequence[Watcher], closing: Sequence[Closing]
    ) -> StepReport | None:
        logs = (self.log,) if self.trainer.is_main else ()
        self._check_folder()
        try:
            if self._saved is None:
                self.save()
            elif self.trainer.is_main:
                self._rewind()
            report = self.trainer.train(stop, (*logs, *watchers, self._save_if_due))
            if self.trainer.is_main:
                self.log.flush()
            self.save(report)
            if self.trainer.is_over or (report is not None and not self.trainer.preempted):
                for close in closing:
                    close(self.trainer.step)
        except OSError as error:
            raise self._advised(error) from error
        self.trainer.average.copy_to(self.run.denoiser.backbone)
        return report

    def save(self, report: StepReport | None = None) -> None:
        """Save a checkpoint of this step unless there is one; every process must call this.

        Args:
            report: The report of the last step, if there was one.
        """
        if self._saved == self.trainer.step:
            return
        state = self.trainer.state()
        self._saved, self._saved_at = state.step, state.seconds
        if not self.trainer.is_main:
            return
        summary: dict[str, Any] = {}
        if report is not None:
            summary = {"steps": report.step, "tokens": report.tokens, "seconds": round(report.seconds, 1)}

        def write(folder: Path) -> None:
            checkpoint = self.run.checkpoint(summary)
            save_checkpoint(folder, checkpoint, averaged=state.average, raw=state.weights)
            state.write(folder)

        publish(self._store.put(state.step, write), self.folder)

    def extend(self, minutes: float) -> None:
        """Change the time limit of a run that is limited by minutes; its recipe records the new limit.

        Raises:
            ValueError: If the run is limited by steps.
        """
        self.trainer.extend(minutes)
        recipe = self.run.recipe
        longer = dataclasses.replace(recipe, run=dataclasses.replace(recipe.run, minutes=minutes))
        self.run = dataclasses.replace(self.run, recipe=longer)

    def finish(self, *, early: bool = False) -> None:
        """Record that the run has ended, if no step is left: from now on it cannot be resumed.

        Args:
            early: Whether a run with steps left ends as well.
        """
        if self.trainer.is_main and (early or self.trainer.is_over):
            self._store.finish(self.trainer.step)

    def has(self, step: int, name: str) -> bool:
        """Whether `metrics.jsonl` has this value for this step; every process must ask, and all get one answer."""
        return agreed(any(line["step"] == step and name in line for line in self._lines()))

    def offer(self, step: int, bound: float | None) -> None:
        """Record the validation bound of a step, so that the best step is kept; every process must call this.

        The checkpoint is saved after all watchers were called, so that a resumed run repeats none of their work.

        Args:
            step: The last step.
            bound: Bound on validation text; less is better. None in processes that have not measured it.
        """
        self._offer = (step, bound)
        self._note_offer()

    def _note_offer(self) -> None:
        """Record the bound once its step is saved."""
        if self._offer is None or self._offer[0] != self._saved:
            return
        (step, bound), self._offer = self._offer, None
        if self.trainer.is_main and bound is not None:
            self._store.offer(step, bound)

    def _save_if_due(self, report: StepReport) -> None:
        steps, minutes = self._settings.save_steps, self._settings.save_every
        by_steps = steps is not None and report.step % steps == 0
        by_time = minutes is not None and report.seconds - self._saved_at >= 60 * minutes
        if by_steps or by_time or self._offer is not None:
            self.save(report)
            self._note_offer()

    def _check_folder(self) -> None:
        """Refuse a folder in which another program has saved steps since the checkpoint was found."""
        if self.trainer.is_main and tuple(self._store.steps()) != self._kept:
            raise ValueError(
                f"{self.folder} holds steps that another program has saved since this one started. "
                "Resume that run with --resume (training.resume=true), or choose another folder."
            )

    def _rewind(self) -> None:
        """Remove checkpoints and metrics that are later than the step that the run resumes from."""
        self._store.rewind(self.trainer.step)
        self.log.rewind(self.trainer.step)
        self._store.mend({line["step"]: line["validation"] for line in self._lines() if "validation" in line})
        publish(self._store.place(self.trainer.step), self.folder)

    def _lines(self) -> Iterator[dict[str, Any]]:
        path = self.folder / _METRICS
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        return (json.loads(line) for line in lines)

    def _advised(self, error: OSError) -> OSError:
        """The error with advice on what to do."""
        steps = self._store.steps()
        advice = "make room" if error.errno in _FULL else "remove the cause"
        kept = f"the last checkpoint is of step {steps[-1]}: " if steps else ""
        resume = ", and resume with --resume (training.resume=true)" if steps else ""
        reason = f"{error.strerror or error}, at step {self.trainer.step}; {kept}{advice}{resume}"
        return OSError(error.errno, reason, str(error.filename or self.folder))


def _differences(ours: Any, theirs: Any, name: str = "") -> Iterator[str]:
    """Options that differ between two recipes, except those that may change."""
    for option in dataclasses.fields(ours):
        if option.metadata.get("may_change") or option.name == "description":
            continue
        our, their = getattr(ours, option.name), getattr(theirs, option.name)
        dotted = f"{name}{option.name}"
        if dataclasses.is_dataclass(our):
            yield from _differences(our, their, f"{dotted}.")
        elif _are_tables(our) and len(our) == len(their):
            for number, pair in enumerate(zip(our, their, strict=True)):
                yield from _differences(*pair, f"{dotted}[{number}].")
        elif isinstance(our, Mapping) and isinstance(their, Mapping) and not name:
            yield from _different_entries(our, their, dotted)
        elif our != their:
            yield f"`{dotted}` was {_shown(our)} and is {_shown(their)}"


def _different_entries(ours: Mapping[str, Any], theirs: Mapping[str, Any], name: str) -> Iterator[str]:
    """Options of a piece that differ, or the piece itself if its type differs."""
    if ours.get("type") != theirs.get("type"):
        yield f"`{name}` was {ours.get('type')} and is {theirs.get('type')}"
        return
    for option in dict.fromkeys([*ours, *theirs]):
        our, their = ours.get(option), theirs.get(option)
        if isinstance(our, Mapping) and isinstance(their, Mapping):
            yield from _different_entries(our, their, f"{name}.{option}")
        elif our != their:
            yield f"`{name}.{option}` was {our!r} and is {their!r}"


def _are_tables(value: Any) -> bool:
    return isinstance(value, tuple) and all(dataclasses.is_dataclass(item) for item in value)


def _shown(value: Any) -> str:
    return f"a list of {len(value)}" if _are_tables(value) and value else repr(value)
