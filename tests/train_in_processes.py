"""Runs of several processes, as a program: `accelerate launch --config-file ... tests/train_in_processes.py JOBS`.

A job is a table: the `recipe`, the `folder`, a step to `stop` after (0 for none; the process with the highest rank is
the one that is asked to), the `engine` that the launcher should have set up, and a file for what
was `reported`.
"""

from __future__ import annotations

import io
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
from accelerate import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch.distributed.tensor import DTensor

from hdlm.checkpoint import load_checkpoint
from hdlm.training import Recipe, Session, StepReport, StopRequest, build_setup, find_resume_point
from hdlm.training.distributed import accelerator as engine

LIMIT = 240
ROOT = Path(__file__).parents[1]


def carry_out(
    jobs: list[dict[str, Any]], folder: Path, config: str = "multi2.yaml", *options: str
) -> list[list[list[float]]]:
    """Launch two processes, wait for them, and return what each job reported: loss, norm and rate of each step.

    Args:
        jobs: What to do, one after the other.
        folder: For files that tell them.
        config: Out of configs/accelerate.
        options: Of the launcher, besides.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = folder / "jobs.json"
    for number, job in enumerate(jobs):
        job["reported"] = str(folder / f"reported-{number}.json")
    told.write_text(json.dumps(jobs))
    words = ["--config-file", ROOT / "configs" / "accelerate" / config, "--num_processes", 2, *options]
    words += ["--main_process_port", port, "--num_cpu_threads_per_process", 1, __file__, told]
    process = subprocess.Popen(
        [sys.executable, "-m", "accelerate.commands.launch", *map(str, words)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    try:
        assert process.wait(LIMIT) == 0
    finally:
        process.terminate()
        process.wait()
    return [json.loads(Path(job["reported"]).read_text()) for job in jobs]


def _run_job(job: dict[str, Any]) -> None:
    folder, stop, reports = Path(job["folder"]), StopRequest(), []
    asked = job.get("engine", "MULTI_CPU")
    if asked == "FSDP":
        _enable_fsdp_on_cpu()
    found = find_resume_point(folder)
    start = None if found is None else found.checkpoint
    run = build_setup(Recipe.from_table(job["recipe"]), torch.device("cpu"), start=start)
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
    assert trainer._accelerator.distributed_type == DistributedType(asked), asked
    assert any(isinstance(weight, DTensor) for weight in run.denoiser.parameters()) == (asked == "FSDP")
    with trainer.averaged_model() as denoiser:
        assert (denoiser is not None) == trainer.is_main
        if denoiser is not None:
            weights = denoiser.backbone.state_dict()
            assert all(torch.equal(weights[name], value) for name, value in saved.items())
    trained = [weight.shape for weight in run.denoiser.parameters() if weight.requires_grad]
    _check_published(trainer.published_state(), sorted(trained))
    if trainer.is_main:
        Path(job["reported"]).write_text(json.dumps(reports))
    trainer.wait()


def _check_published(state: dict[str, Any], trained: list[torch.Size]) -> None:
    """Every weight and the state of every trained weight is there, in plain tensors."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    memories = [memory for table in loaded["optimizer"] for memory in table["state"].values()]
    moments = [memory.get("exp_avg", memory.get("momentum_buffer")) for memory in memories]
    weights = loaded["ema"]["shadow_params"]
    assert all(type(tensor) is torch.Tensor for tensor in [*moments, *weights])
    assert sorted(moment.shape for moment in moments) == trained
    assert {weight.shape for weight in weights} >= set(trained)
    assert sum(moment.abs().sum() for moment in moments) > 0


def _enable_fsdp_on_cpu() -> None:
    """Enable FSDP2 on the CPU, because `accelerate` enables it only for accelerators."""

    def make(**options: Any) -> accelerate.Accelerator:
        made = accelerate.Accelerator(**options)
        made.state.fsdp_plugin = FullyShardedDataParallelPlugin()
        made.state.distributed_type = DistributedType.FSDP
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        return made

    engine.Accelerator = make


if __name__ == "__main__":
    torch.set_num_threads(1)
    for each in json.loads(Path(sys.argv[1]).read_text()):
        _run_job(each)
