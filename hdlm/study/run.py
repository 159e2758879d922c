"""All jobs of a study, or one part of them, and the results.

A job whose result is there is skipped, and a job that fails is written down while the others continue. Trainings come
first. Jobs are divided by model: all measurements of a model belong to the part that trains it, and the trainings of
the judges are divided like models. With a part, a job whose needs another part has not made yet *waits*: the same
command makes it later. Under `accelerate launch` each process takes the part of its rank and waits for the others.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, final

import torch

from hdlm.distributed import ALONE, Processes
from hdlm.evaluation.records.protocol import write_result
from hdlm.strict_config import require
from hdlm.study.jobs import FAILURES, StudyJob, StudyStoppedError
from hdlm.study.plan import Study
from hdlm.study.results import study_document
from hdlm.training.monitor.flops import peak_flops
from hdlm.view.study import write_study

__all__ = ["StudyRun", "StudyStoppedError", "launched_part"]

_SHARE_OF_PEAK = 0.3
"""Share of the peak speed of the device that small networks reach, as long as no training of the study is done."""
_PAUSE = 2.0
"""Seconds between two looks for the result of another process."""
_LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def launched_part() -> tuple[Processes, int | None]:
    """The part of this process under `accelerate launch`, and its index on this machine; None without a launch.

    The variables of the launch are removed, because each process trains models of its own.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count < 2:
        return ALONE, None
    part = Processes(count, int(os.environ["RANK"]))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    for name in _LAUNCHED:
        os.environ.pop(name, None)
    return part, local


@final
@dataclass(frozen=True, eq=False)
class StudyRun:
    """A study in a folder.

    Attributes:
        study: The study to carry out.
        output: Folder of the jobs; several studies may share it.
        device: Device of trainings and measurements.
        part: The part of the jobs that this process does.
        folder: Folder of the results; by default that of the jobs.
        waits: Whether to wait for results of other parts, which run at the same time.
        progress: Whether progress is shown; by default in a terminal and in a notebook.
        report: Called with a line for each job, if it is given.
    """

    study: Study
    output: Path
    device: torch.device
    part: Processes = ALONE
    folder: Path | None = None
    waits: bool = False
    progress: bool | None = None
    report: Callable[[str], object] | None = None

    def __post_init__(self) -> None:
        require(0 <= self.part.rank < self.part.count, "part", "K/N with K in 1 .. N", self.part)

    def own(self, jobs: list[StudyJob]) -> list[StudyJob]:
        """The jobs of this part."""
        return [job for job in jobs if job.group % self.part.count == self.part.rank]

    def perform(self) -> dict[str, Any]:
        """Do all jobs that can be done, and write the results; returns their document.

        Raises:
            StudyStoppedError: If a signal has stopped a training.
        """
        jobs = self.study.jobs()
        own = self.own(jobs)
        for place, job in enumerate(own):
            self._perform(job, f"[{place + 1}/{len(own)}] {job.name}")
        return self.results(jobs)

    def _perform(self, job: StudyJob, line: str) -> None:
        if job.result(self.output) is not None:
            self._say(f"{line}: done before")
            return
        while missing := [need for need in job.needs if need.result(self.output) is None]:
            failed = [need for need in missing if need.failure(self.output) is not None]
            if failed:
                job.fail(self.output, f"{failed[0].name} has failed, and this job needs it")
                self._say(f"{line}: failed, because {failed[0].name} has failed")
                return
            if not self.waits:
                self._say(f"{line}: waits for {missing[0].name}, which another part makes")
                return
            time.sleep(_PAUSE)
        self._say(line)
        try:
            job.perform(self.output, self.device, self.progress)
        except FAILURES as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            job.fail(self.output, reason)
            self._say(f"{line}: failed: {reason}")

    def _say(self, line: str) -> None:
        if self.report is not None:
            self.report(line)

    def results(self, jobs: list[StudyJob] | None = None) -> dict[str, Any]:
        """The document of all results so far; it is written with a report and pictures."""
        document = study_document(self.study, self.study.jobs() if jobs is None else jobs, self.output)
        if self.part.is_main or not self.waits:
            folder = self.output if self.folder is None else self.folder
            folder.mkdir(parents=True, exist_ok=True)
            write_result(folder / "results.json", document)
            write_study(folder, document)
        return document

    def estimates(self) -> list[Mapping[str, Any]]:
        """Name, state, tokens, FLOPs and estimated seconds of each job of this part."""
        jobs = self.study.jobs()
        speed = self._speed(jobs)
        return [
            {
                "job": job.name,
                "kind": job.kind,
                "state": _state(job, self.output),
                "tokens": job.cost.tokens,
                "flops": job.cost.flops,
                "seconds": None if speed is None else job.cost.flops / speed,
            }
            for job in self.own(jobs)
        ]

    def _speed(self, jobs: list[StudyJob]) -> float | None:
        """FLOPs per second: of the trainings that are done, or a share of the device's peak."""
        done = [result for job in jobs if job.kind == "train" and (result := job.result(self.output))]
        if done:
            return median(float(result["flops"]) / max(float(result["seconds"]), 0.01) for result in done)
        peak = peak_flops(self.device, bf16=False)
        return None if peak is None else _SHARE_OF_PEAK * peak


def _state(job: StudyJob, output: Path) -> str:
    if job.result(output) is not None:
        return "done"
    return "to do" if job.failure(output) is None else "failed"
