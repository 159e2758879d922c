"""Runs of several processes, as a program: `python tests/train_in_processes.py JOBS`, once for each RANK.

A job is a table: the `recipe`, the `folder`, a step to `stop` after (0 for none; the process with the highest rank is
the one that is asked to), whether weights are `spread` over the processes, and a file for what was `reported`.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import accelerate
import torch
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch.distributed.tensor import DTensor

from hdlm.checkpoint import load_checkpoint
from hdlm.training import Recipe, Session, StepReport, StopRequest, loop, prepare, unfinished

LIMIT = 240


def carry_out(jobs: list[dict[str, Any]], folder: Path, processes: int = 2) -> list[list[list[float]]]:
    """Start so many processes, wait for them, and return what each job reported: loss, norm and rate of each step."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = folder / "jobs.json"
    for number, job in enumerate(jobs):
        job["reported"] = str(folder / f"reported-{number}.json")
    told.write_text(json.dumps(jobs))
    shared = {"WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
    started = [
        subprocess.Popen(
            [sys.executable, __file__, str(told)],
            env=os.environ
            | {key: str(value) for key, value in (shared | {"RANK": rank, "LOCAL_RANK": rank}).items()},
        )
        for rank in range(processes)
    ]
    try:
        assert [process.wait(LIMIT) for process in started] == [0] * processes
    finally:
        for process in started:
            process.kill()
    return [json.loads(Path(job["reported"]).read_text()) for job in jobs]


def _work(job: dict[str, Any]) -> None:
    folder, stop, reports = Path(job["folder"]), StopRequest(), []
    if job.get("spread"):
        _spread()
    found = unfinished(folder)
    start = None if found is None else found.checkpoint
    run = prepare(Recipe.from_table(job["recipe"]), torch.device("cpu"), start=start)
    session = Session(run, folder, found)
    is_last = int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1

    def watch(report: StepReport) -> None:
        reports.append((report.loss, report.gradient_norm, report.rate))
        if is_last and report.step == job.get("stop"):
            stop(signal.SIGTERM, None)

    session.execute(stop, (watch,))
    trainer = session.trainer
    trainer.wait()
    saved = load_checkpoint(folder).network.state_dict()
    spread = any(isinstance(weight, DTensor) for weight in run.denoiser.parameters())
    assert spread == job.get("spread", False)
    with trainer.at_rest() as denoiser:
        assert (denoiser is not None) == trainer.is_main
        if denoiser is not None:
            weights = denoiser.backbone.state_dict()
            assert all(torch.equal(weights[name], value) for name, value in saved.items())
    if trainer.is_main:
        Path(job["reported"]).write_text(json.dumps(reports))
    trainer.wait()


def _spread() -> None:
    """Have FSDP2 on processors, which `accelerate` only turns on where each process has an accelerator."""

    def make(**options: Any) -> accelerate.Accelerator:
        made = accelerate.Accelerator(**options)
        made.state.fsdp_plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy="transformer_based_wrap",
            transformer_cls_names_to_wrap=["Block"],
            cpu_ram_efficient_loading=False,
        )
        made.state.distributed_type = DistributedType.FSDP
        return made

    loop.Accelerator = make


if __name__ == "__main__":
    torch.set_num_threads(1)
    for each in json.loads(Path(sys.argv[1]).read_text()):
        _work(each)
