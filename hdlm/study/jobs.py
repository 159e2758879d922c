"""One job of a study: it writes into its own folder, and a finished job is not repeated.

The name of the folder ends in a hash of everything that the job depends on. So a study that is changed measures only
what is new, and a killed study resumes: a training from its last checkpoint, exactly, and an evaluation from what it
has saved. `job.json` is written last; `failed.json` has the reason of a failure.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, final

import torch

from hdlm import workflows
from hdlm.atomic import replacing
from hdlm.checkpoint import Checkpoint, load_checkpoint
from hdlm.data import split
from hdlm.evaluation.calibration import CalibrationOptions, measured_calibration
from hdlm.evaluation.generation.evaluate import GenerationOptions, measured_generation
from hdlm.evaluation.generation.scoring import PERPLEXITY
from hdlm.evaluation.likelihood.evaluate import LikelihoodOptions, likelihood_document
from hdlm.evaluation.repair import RepairOptions, measured_repair
from hdlm.generation import Settings
from hdlm.strict_config import read_table
from hdlm.study.budget import Spent
from hdlm.training import Recipe
from hdlm.training.checkpoints.store import CheckpointStore
from hdlm.training.text import Corpora

__all__ = ["FAILURES", "VALIDATION", "StudyJob", "StudyStoppedError"]

FAILURES = (ValueError, OSError, RuntimeError, ArithmeticError, LookupError, ModuleNotFoundError)
"""Errors that make a job fail; the others of the study continue."""
VALIDATION = "validation"
"""The text that stands for what the recipe sets aside."""
DONE, FAILED = "job.json", "failed.json"
_RUN = "run"

Numbers = dict[str, dict[str, Any]]


class StudyStoppedError(Exception):
    """A signal has stopped a training; the study can be resumed."""


@final
@dataclass(frozen=True, eq=False)
class StudyJob:
    """One job.

    Attributes:
        kind: `"train"`, `"likelihood"`, `"calibration"`, `"generation"` or `"repair"`.
        name: Name of the job, in words.
        spec: Everything that the job depends on, except for other jobs.
        needs: Jobs whose results it needs. The first one of a measurement trains its model, and that of a training
            trains the model to begin with.
        group: Jobs of one group belong to one model, and one process does them.
        labels: Where its numbers belong in the tables.
        cost: An estimate of its cost.
    """

    kind: str
    name: str
    spec: Mapping[str, Any]
    needs: tuple[StudyJob, ...]
    group: int
    labels: Mapping[str, Any]
    cost: Spent

    @cached_property
    def key(self) -> str:
        """A hash of everything that the job depends on."""
        spec = {**self.spec, "recipe": _identity(json.dumps(self.spec["recipe"]))}
        depends = [self.kind, spec, [need.key for need in self.needs]]
        return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()

    def folder(self, output: Path) -> Path:
        """The folder of the job in the folder of the study, or the one of an equal job with another name."""
        words = re.sub(r"[^A-Za-z0-9.]+", "-", self.name.removeprefix(f"{self.kind}/"))
        named = output / self.kind / f"{words}-{self.key[:8]}"
        return named if named.exists() else next(named.parent.glob(f"*-{self.key[:8]}"), named)

    def result(self, output: Path) -> dict[str, Any] | None:
        """The result, if the job is done."""
        path = self.folder(output) / DONE
        if not path.is_file():
            return None
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return result

    def failure(self, output: Path) -> str | None:
        """The reason of the last failure, if the job has failed and is not done."""
        path = self.folder(output) / FAILED
        if self.result(output) is not None or not path.is_file():
            return None
        return str(json.loads(path.read_text(encoding="utf-8"))["failed"])

    def perform(self, output: Path, device: torch.device, progress: bool | None) -> None:
        """Do the job, and write its result.

        Raises:
            StudyStoppedError: If a signal has stopped it.
        """
        folder, begin = self.folder(output), time.perf_counter()
        folder.mkdir(parents=True, exist_ok=True)
        numbers = _WORK[self.kind](self, output, device, progress)
        seconds = round(time.perf_counter() - begin, 2)
        _write(folder / DONE, {"name": self.name, "kind": self.kind, "seconds": seconds, **numbers})
        (folder / FAILED).unlink(missing_ok=True)

    def fail(self, output: Path, reason: str) -> None:
        """Write down why the job has failed."""
        folder = self.folder(output)
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / FAILED, {"name": self.name, "failed": reason})

    def model(self, output: Path, device: torch.device) -> Checkpoint:
        """The trained model of a measurement."""
        return load_checkpoint(self.needs[0].folder(output) / _RUN, device)

    def text(self, name: str) -> object:
        """The held-out text of a name."""
        if name != VALIDATION:
            return name
        data = Recipe.from_table(self.spec["recipe"]).data
        named = Corpora.of(data)
        if named.validation is not None:
            return named.validation
        return list(split(tuple(named.train.documents()), data.validation).validation)


@cache
def _identity(recipe: str) -> dict[str, Any]:
    """What a model depends on, from the JSON of its recipe: options at their defaults are left out."""
    return Recipe.from_table(json.loads(recipe)).identity()


def _write(path: Path, values: Mapping[str, Any]) -> None:
    with replacing(path) as aside:
        aside.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _train(job: StudyJob, output: Path, device: torch.device, progress: bool | None) -> dict[str, Any]:
    folder = job.folder(output) / _RUN
    how: dict[str, Any] = {
        "output": folder,
        "device": device,
        "resume": True,
        "progress": progress is not False,
    }
    if job.needs:
        start, recipe = job.needs[0].folder(output) / _RUN, Recipe.from_table(job.spec["recipe"])
        model = workflows.finetune(start, recipe=recipe, **how)
    else:
        model = workflows.train(recipe=job.spec["recipe"], **how)
    steps = job.spec["recipe"]["run"]["steps"]
    done = CheckpointStore(folder).steps()
    if not done or done[-1] < steps:
        raise StudyStoppedError(f"{job.name} was stopped after {done[-1] if done else 0} of {steps} steps.")
    return {
        "steps": steps,
        "parameters": sum(weight.numel() for weight in model.network.parameters()),
        **asdict(job.cost),
        "numbers": {},
    }


def _likelihood(job: StudyJob, output: Path, device: torch.device, progress: bool | None) -> dict[str, Any]:
    document = likelihood_document(
        job.model(output, device),
        job.text(job.spec["text"]),
        read_table(LikelihoodOptions, job.spec["options"]),
        model=job.name,
        output=job.folder(output),
        progress=progress,
    )
    result = document["result"]
    return {
        "numbers": {
            f"{key.replace('_', ' ')} ({result['bound']} bound)": {
                "value": result[key],
                "error": result[f"{key}_error"],
            }
            for key in ("bits_per_byte", "bits_per_token", "perplexity")
        }
    }


def _calibration(job: StudyJob, output: Path, device: torch.device, progress: bool | None) -> dict[str, Any]:
    document = measured_calibration(
        job.model(output, device),
        job.text(job.spec["text"]),
        read_table(CalibrationOptions, job.spec["options"]),
        model=job.name,
        output=job.folder(output),
        progress=progress,
    )
    return {"numbers": document["result"]["metrics"]}


def settings_at(checkpoint: Checkpoint, job: StudyJob) -> Settings:
    """The settings of a sampler with the largest number of steps whose hyperschedule is not longer than wanted.

    Raises:
        ValueError: If one step of each position already takes more.
    """
    settings = read_table(Settings, {**job.spec["settings"], "length": job.spec["length"]})
    if settings.hyperschedule == "autoregressive":
        return settings
    most, length = job.spec["evaluations"], job.spec["length"]

    def num_steps(steps: int) -> int:
        return replace(settings, steps=steps).plan(checkpoint.hyperschedules, length).num_steps

    if num_steps(1) > most:
        raise ValueError(f"the hyperschedule takes at least {num_steps(1)} steps, more than {most}.")
    fits = [steps for steps in range(1, most + 1) if num_steps(steps) <= most]
    return replace(settings, steps=fits[-1])


def _generation(job: StudyJob, output: Path, device: torch.device, progress: bool | None) -> dict[str, Any]:
    checkpoint = job.model(output, device)
    trained = {need.labels["judge"]: str(need.folder(output) / _RUN) for need in job.needs[1:]}
    places = {name: source or trained[name] for name, source in job.spec["judges"].items()}
    options = GenerationOptions(
        num=job.spec["samples"],
        judges=tuple(places.values()),
        reference=job.text(job.spec["text"]) if job.spec["controls"] or job.spec["mauve"] else None,
        controls=tuple(job.spec["controls"]),
        mauve=job.spec["mauve"],
        seed=job.labels["seed"],
    )
    result = measured_generation(
        checkpoint,
        settings_at(checkpoint, job),
        options,
        model=job.name,
        output=job.folder(output),
        progress=progress,
    ).document["result"]
    names = {place: name for name, place in places.items()}
    others = {**result["references"], **result["controls"]}
    return {
        "numbers": _judged(result["metrics"], names)
        | {"network evaluations": {"value": result["num_evaluations"], "error": None}},
        "controls": {
            name: _judged(scores, names) for name, scores in others.items() if name in job.spec["controls"]
        },
    }


def _judged(scores: Mapping[str, Any], names: Mapping[str, str]) -> Numbers:
    """Scores, with nats per token by the name of the judge in place of perplexities."""
    numbers: Numbers = {}
    for metric, entry in scores.items():
        if "mean over samples" in metric:
            continue
        if not metric.startswith(PERPLEXITY):
            numbers[metric] = dict(entry)
            continue
        name = f"nats per token, {names.get(entry['judge'], entry['judge'])}"
        if "failed" in entry:
            numbers[name] = {"failed": entry["failed"]}
            continue
        error = entry["error"]
        numbers[name] = {
            "value": math.log(entry["value"]),
            "error": None if error is None else error / entry["value"],
        }
    return numbers


def _repair(job: StudyJob, output: Path, device: torch.device, progress: bool | None) -> dict[str, Any]:
    checkpoint = job.model(output, device)
    document = measured_repair(
        checkpoint,
        job.text(job.spec["text"]),
        settings_at(checkpoint, job),
        read_table(RepairOptions, job.spec["options"]),
        model=job.name,
        output=job.folder(output),
        progress=progress,
    )
    result = document["result"]
    controls = {
        f"{name} ({control})": scores[name]
        for control, scores in result["controls"].items()
        for name in ("restored", "damaged")
    }
    return {"numbers": {**result["metrics"], **controls}}


_WORK: dict[str, Callable[[StudyJob, Path, torch.device, bool | None], dict[str, Any]]] = {
    "train": _train,
    "likelihood": _likelihood,
    "calibration": _calibration,
    "generation": _generation,
    "repair": _repair,
}
