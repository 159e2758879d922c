"""The configs for `accelerate` have valid keys, and unsupported forms of distribution are refused."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import (
    DistributedType,
    FullyShardedDataParallelPlugin,
    prepare_multi_gpu_env,
)

from hdlm.training.checkpoints.store import CheckpointStore
from hdlm.training.distributed import accelerator as engine
from hdlm.training.distributed.accelerator import make_engine
from hdlm.training.recipe import RunSettings

FOLDER = Path(__file__).parents[2] / "configs" / "accelerate"
CPU = torch.device("cpu")
RUN = RunSettings(steps=1)


def _launch_arguments(name: str) -> Any:
    """The arguments that `accelerate launch` derives from a config file."""
    args = launch_command_parser().parse_args(["--config-file", str(FOLDER / name), "hdlm/train.py"])
    args.nondefault, args.deepspeed_fields_from_accelerate_config = set(), ""
    return _validate_launch_command(args)[0]


def _set_environment(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    for key, value in environment.items():
        if key.startswith(("ACCELERATE", "FSDP")):
            monkeypatch.setenv(key, value)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_configs_have_known_keys_only(path: Path) -> None:
    load_config_from_file(str(path))  # refuses unknown keys, but not those of inner tables
    known = vars(launch_command_parser().parse_args(["x.py"])).keys()
    table = yaml.safe_load(path.read_text(encoding="utf-8"))
    inner = [key for value in table.values() if isinstance(value, dict) for key in value]
    assert [key for key in inner if key not in known] == []


def test_fsdp_config_wraps_blocks_with_fsdp_2(monkeypatch: pytest.MonkeyPatch) -> None:
    args = _launch_arguments("fsdp.yaml")
    args.main_process_port = 0
    environment = prepare_multi_gpu_env(args)
    assert environment["ACCELERATE_USE_FSDP"] == "true"
    _set_environment(monkeypatch, environment)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert plugin.transformer_cls_names_to_wrap is None  # those of the network
    assert plugin.cpu_ram_efficient_loading is False
    assert plugin.activation_checkpointing is False


def test_make_engine_refuses_deepspeed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(ValueError, match=r"DeepSpeed is not supported.*use configs/accelerate/fsdp.yaml"):
        make_engine(RUN, CPU)


def test_make_engine_on_cpu_warns_that_fsdp_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    with pytest.warns(UserWarning, match=r"no FSDP on CPUs, so every process holds the whole network"):
        made = make_engine(RUN, CPU)
    assert made.distributed_type == DistributedType.NO
    monkeypatch.setenv("FSDP_VERSION", "1")
    with pytest.raises(ValueError, match="set `fsdp_version: 2`"):
        make_engine(RUN, CPU)


@pytest.mark.slow
def test_slurm_script_of_guide_requeues_and_resumes(tmp_path: Path) -> None:
    """The shell gets the signal, stops the launcher and requeues the job. The next job finishes the run."""
    [script] = re.findall(
        r"```sh\n(.*?)```", (FOLDER.parents[1] / "docs" / "training.md").read_text(), flags=re.S
    )
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat and the dog sat on the log . " * 300)
    small = f"--config-name epsilon_tiny hydra.run.dir={tmp_path / 'run'} training.n_iters=150 training.log_freq=1"
    script = (
        script.replace("--config-name epsilon_hdlm", small)
        .replace("multi8", "multi2")
        .replace("shards", str(text))
    )
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, line in {
        "scontrol": f'echo "$@" >> {tmp_path / "asked"}',
        "accelerate": f'exec {sys.executable} -m accelerate.commands.launch --main_process_port 0 "${{@:2}}"',
    }.items():
        (tools / name).write_text(f"#!/bin/bash\n{line}\n")
        (tools / name).chmod(0o755)
    environment = os.environ | {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "PYTHONPATH": str(FOLDER.parents[1]),
        "OMP_NUM_THREADS": "1",
        "SLURM_JOB_ID": "17",
    }
    metrics, options = tmp_path / "run" / "metrics.jsonl", {"cwd": FOLDER.parents[1], "env": environment}
    job = subprocess.Popen(["bash", "-c", script], **options)
    try:
        deadline = time.monotonic() + 120
        while not metrics.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert metrics.exists()
        job.send_signal(signal.SIGUSR1)
        job.wait(60)
    finally:
        job.kill()
    assert (tmp_path / "asked").read_text() == "requeue 17\n"
    stopped = CheckpointStore(tmp_path / "run").steps()[-1]
    assert 0 < stopped < 150
    subprocess.run(["bash", "-c", script], check=True, timeout=200, **options)
    assert CheckpointStore(tmp_path / "run").steps()[-1] == 150
    steps = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [table["step"] for table in steps if "loss" in table] == list(range(1, 151))


@pytest.mark.parametrize("name", ["PARALLELISM_CONFIG", "MEGATRON_LM"])
def test_make_engine_refuses_model_parallelism(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(ValueError, match=r"each process takes whole sequences: leave it out"):
        make_engine(RUN, CPU)


def test_agreed_precision_is_that_of_main_process(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[list[str]] = []
    monkeypatch.setattr(engine, "choose_precision", lambda asked, device: "no")
    monkeypatch.setattr(engine, "broadcast_object_list", lambda found: sent.append(found) or ["bf16"])
    assert engine.agreed_precision("auto", CPU) == "bf16"
    assert sent == [["no"]]
