"""A run at work in its folder: it trains, keeps checkpoints as it goes, and goes on from one.

    RUN/config.json, model.safetensors, raw.safetensors, tokenizer.json    the model as it was saved last
    RUN/metrics.jsonl                                                      how it went
    RUN/training/                                                          what to go on from: see `CheckpointStore`

The folder holds a model from the first moment on, untrained; whoever stops a run early is left with the last one saved.
A run that goes on from a checkpoint takes the same steps, to the bit on a CPU, as one that was never stopped, if steps
limit it. One that minutes limit goes on with the minutes that are left.
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
"""Does what is left to do after the last step, whose number it is told."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What a system says when there is no room for a file."""


@final
@dataclass(frozen=True)
class ResumePoint:
    """A run that stopped before its end.

    Attributes:
        recipe: What it was asked for.
        state: Where it is.
        checkpoint: Its model, with the weights of its last step; `build_setup` begins with it.
        kept: The steps that its folder held, damaged ones too.
    """

    recipe: Recipe
    state: TrainingState
    checkpoint: Checkpoint
    kept: tuple[int, ...]

    def check(self, recipe: Recipe) -> None:
        """Refuse to go on with another recipe, but for options that change no weight.

        Raises:
            ValueError: If they differ; it names the options.
        """
        other = list(_differences(self.recipe, recipe))
        if other:
            raise ValueError(
                f"the run was begun with another recipe: {'; '.join(other)}. Go on with its own, or begin another "
                "run in a folder of its own (--from this one takes its weights)."
            )


def find_resume_point(folder: Path, say: Callable[[str], object] = lambda line: None) -> ResumePoint | None:
    """What a folder holds to go on from; None if there is nothing in it.

    A run that has taken its last step is unfinished until `Session.finish`: what was to follow can be made up for.

    Args:
        folder: That of the run.
        say: Told of checkpoints that are damaged; the newest that is whole is taken.

    Raises:
        ValueError: If it holds something else than an unfinished run; it says what to do instead.
    """
    shelf = CheckpointStore(folder)
    kept = tuple(shelf.steps())
    found = shelf.newest(say)
    if found is None:
        if (folder / _CONFIG).exists():
            raise ValueError(
                f"{folder} holds a model but nothing to go on from exactly (no training/ folder): begin another run "
                f"with --from {folder}."
            )
        return None
    place, state = found
    if shelf.finished == state.step:
        raise ValueError(
            f"the run in {folder} has come to its end, after {state.step} steps: to train on, begin another run with "
            f"--from {folder}."
        )
    import_own(json.loads((place / _CONFIG).read_bytes()))
    checkpoint = load_checkpoint(place, weights="raw")
    return ResumePoint(Recipe.recorded(checkpoint.training["recipe"]), state, checkpoint, kept)


@final
class Session:
    """A run, its trainer and its folder; every process has one, and the main one writes.

    Args:
        run: What to do.
        folder: Where; made if it does not exist.
        found: What to go on from; None to begin.

    Attributes:
        run: As given.
        folder: As given.
        trainer: What trains.
        gauge: How fast it is.
        log: Lines of `metrics.jsonl`.

    Raises:
        ValueError: If the run cannot go on from there.
    """

    def __init__(self, run: TrainingSetup, folder: Path, found: ResumePoint | None = None) -> None:
        self.run, self.folder, self._settings = run, folder, run.recipe.run
        self._shelf = CheckpointStore(folder, self._settings.keep)
        self.trainer = run.trainer()
        self._saved: int | None = None
        self._saved_at = 0.0
        self._offer: tuple[int, float | None] | None = None
        self._kept = () if found is None else found.kept
        agree(None if found is None else found.state.step, "the checkpoint to go on from")
        if found is not None:
            self._go_on(found)
        network, precision = run.denoiser.backbone.config, self.trainer.precision
        self.gauge = Gauge.of(run.recipe, network, run.mixture, run.device, precision)
        self.log = MetricsLog(folder / _METRICS, run.recipe.watch.log_every, gauge=self.gauge)

    def execute(
        self, stop: StopRequest, watchers: Sequence[Watcher] = (), closing: Sequence[Closing] = ()
    ) -> StepReport | None:
        """Train, and leave a checkpoint and `metrics.jsonl` whatever happens.

        Args:
            stop: Turns true when somebody asks to stop.
            watchers: Called after each step, in every process, before the saving.
            closing: Called with the last step, in every process, after the saving; a scheduler that ends the run has
                no time for them. A run that died before `finish` calls them again when it goes on.

        Returns:
            The report of the last step; None if there was none. The denoiser has its average weights.

        Raises:
            OSError: If the disk is full; the checkpoint before stays, and the message says of which step it is.
            ValueError: If the loss is not finite any more, or another program trains in the folder.
        """
        with self._shelf.held() if self.trainer.is_main else nullcontext():
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
        """Keep the run as it is now, unless it is kept already; every process must ask.

        Args:
            report: That of the last step, if there was one.
        """
        if self._saved == self.trainer.step:
            return
        state = self.trainer.state()
        self._saved, self._saved_at = state.step, state.seconds
        if not self.trainer.is_main:
            return
        summary = {} if report is None else _summary(report)

        def write(folder: Path) -> None:
            checkpoint = self.run.checkpoint(summary)
            save_checkpoint(folder, checkpoint, averaged=state.average, raw=state.weights)
            state.write(folder)

        publish(self._shelf.put(state.step, write), self.folder)

    def extend(self, minutes: float) -> None:
        """Move the end of a run that minutes limit; its recipe, and so the checkpoint, records the new end.

        Args:
            minutes: How long the run takes in all.

        Raises:
            ValueError: If steps limit the run.
        """
        self.trainer.extend(minutes)
        recipe = self.run.recipe
        longer = dataclasses.replace(recipe, run=dataclasses.replace(recipe.run, minutes=minutes))
        self.run = dataclasses.replace(self.run, recipe=longer)

    def finish(self, *, early: bool = False) -> None:
        """Record that the run has ended, if it is over: from now on it cannot be resumed.

        Args:
            early: Whether a run with steps left ends as well.
        """
        if self.trainer.is_main and (early or self.trainer.is_over):
            self._shelf.finish(self.trainer.step)

    def has(self, step: int, name: str) -> bool:
        """Whether `metrics.jsonl` has a number of a step; every process must ask, and all get the same answer."""
        return agreed(any(line["step"] == step and name in line for line in self._lines()))

    def offer(self, step: int, bound: float | None) -> None:
        """Keep the run as it is now for as long as no other step has a better bound; every process must offer.

        A step is saved when everybody has looked at it, so that whoever goes on from there has nothing to make up for.

        Args:
            step: The last one.
            bound: On validation text, less is better; None in processes that have not measured it.
        """
        self._offer = (step, bound)
        self._note_offer()

    def _note_offer(self) -> None:
        """Note the bound of a step that is saved by now."""
        if self._offer is None or self._offer[0] != self._saved:
            return
        (step, bound), self._offer = self._offer, None
        if self.trainer.is_main and bound is not None:
            self._shelf.offer(step, bound)

    def _save_if_due(self, report: StepReport) -> None:
        steps, minutes = self._settings.save_steps, self._settings.save_every
        by_steps = steps is not None and report.step % steps == 0
        by_time = minutes is not None and report.seconds - self._saved_at >= 60 * minutes
        if by_steps or by_time or self._offer is not None:
            self.save(report)
            self._note_offer()

    def _go_on(self, found: ResumePoint) -> None:
        found.check(self.run.recipe)
        self.trainer.restore(found.state)
        self._saved, self._saved_at = found.state.step, found.state.seconds

    def _check_folder(self) -> None:
        """Refuse to write over what another program has done since this one looked, which took no lock."""
        if self.trainer.is_main and tuple(self._shelf.steps()) != self._kept:
            raise ValueError(
                f"{self.folder} holds steps that were not there when this program looked: another one has trained in "
                "it. Go on from there with --resume (training.resume=true), or choose another folder."
            )

    def _rewind(self) -> None:
        """Forget what came after the step that the run goes on from."""
        self._shelf.rewind(self.trainer.step)
        self.log.rewind(self.trainer.step)
        self._shelf.mend({line["step"]: line["validation"] for line in self._lines() if "validation" in line})
        publish(self._shelf.place(self.trainer.step), self.folder)

    def _lines(self) -> Iterator[dict[str, Any]]:
        """What `metrics.jsonl` says."""
        path = self.folder / _METRICS
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        return (json.loads(line) for line in lines)

    def _advised(self, error: OSError) -> OSError:
        """The same, with what to do."""
        steps = self._shelf.steps()
        room = "make room" if error.errno in _FULL else "mend that"
        kept = (
            f"what is kept is step {steps[-1]}: {room}, and go on with --resume (training.resume=true)"
            if steps
            else room
        )
        reason = f"{error.strerror or error}, at step {self.trainer.step}; {kept}"
        return OSError(error.errno, reason, str(error.filename or self.folder))


def _differences(ours: Any, theirs: Any, name: str = "") -> Iterator[str]:
    """Options that differ between two recipes, but for those that may."""
    for option in dataclasses.fields(ours):
        if option.metadata.get("may_change") or option.name == "description":
            continue
        one, other = getattr(ours, option.name), getattr(theirs, option.name)
        dotted = f"{name}{option.name}"
        if dataclasses.is_dataclass(one):
            yield from _differences(one, other, f"{dotted}.")
        elif _are_tables(one) and len(one) == len(other):
            for number, pair in enumerate(zip(one, other, strict=True)):
                yield from _differences(*pair, f"{dotted}[{number}].")
        elif isinstance(one, Mapping) and isinstance(other, Mapping) and not name:
            yield from _different_entries(one, other, dotted)
        elif one != other:
            yield f"`{dotted}` was {_shown(one)} and is {_shown(other)}"


def _different_entries(ours: Mapping[str, Any], theirs: Mapping[str, Any], name: str) -> Iterator[str]:
    """Options of one piece that differ; the piece itself if it is of another type."""
    if ours.get("type") != theirs.get("type"):
        yield f"`{name}` was {ours.get('type')} and is {theirs.get('type')}"
        return
    for option in dict.fromkeys([*ours, *theirs]):
        one, other = ours.get(option), theirs.get(option)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            yield from _different_entries(one, other, f"{name}.{option}")
        elif one != other:
            yield f"`{name}.{option}` was {one!r} and is {other!r}"


def _are_tables(value: Any) -> bool:
    return isinstance(value, tuple) and all(dataclasses.is_dataclass(one) for one in value)


def _shown(value: Any) -> str:
    return f"a list of {len(value)}" if _are_tables(value) and value else repr(value)


def _summary(report: StepReport) -> dict[str, Any]:
    return {"steps": report.step, "tokens": report.tokens, "seconds": round(report.seconds, 1)}
