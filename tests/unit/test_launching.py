"""The files of configs/accelerate say what `accelerate` understands, and what would train wrongly is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import (
    DeepSpeedPlugin,
    DistributedType,
    FullyShardedDataParallelPlugin,
    prepare_deepspeed_cmd_env,
    prepare_multi_gpu_env,
)

from hdlm.training import engine
from hdlm.training.engine import make_engine
from hdlm.training.recipe import OptimizerSettings, RunSettings

FOLDER = Path(__file__).parents[2] / "configs" / "accelerate"
CPU = torch.device("cpu")
MUON, ADAMW = OptimizerSettings(name="muon"), OptimizerSettings(name="adamw")
RUN = RunSettings(steps=1)


def _launched(name: str) -> Any:
    """What `accelerate launch` makes of a file, as options."""
    args = launch_command_parser().parse_args(["--config-file", str(FOLDER / name), "hdlm/train.py"])
    args.nondefault, args.deepspeed_fields_from_accelerate_config = set(), ""
    return _validate_launch_command(args)[0]


def _set(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    for key, value in environment.items():
        if key.startswith(("ACCELERATE", "FSDP")):
            monkeypatch.setenv(key, value)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_key_is_one_of_accelerate(path: Path) -> None:
    config = load_config_from_file(str(path))  # refuses unknown keys, but not those of inner tables
    known = vars(launch_command_parser().parse_args(["x.py"])).keys()
    table = yaml.safe_load(path.read_text(encoding="utf-8"))
    inner = [key for value in table.values() if isinstance(value, dict) for key in value]
    assert [key for key in inner if key not in known] == []
    assert config.mixed_precision == "bf16"
    assert config.num_processes == {"single": 1, "multi2": 2, "multi4": 4}.get(path.stem, 8)


def test_fsdp_is_the_second_version_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    args = _launched("fsdp.yaml")
    args.main_process_port = 0
    environment = prepare_multi_gpu_env(args)
    assert environment["ACCELERATE_USE_FSDP"] == "true"
    _set(monkeypatch, environment)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert plugin.transformer_cls_names_to_wrap == ["Block"]
    assert plugin.cpu_ram_efficient_loading is False
    assert plugin.activation_checkpointing is False


def test_deepspeed_is_zero_2_without_offloading(monkeypatch: pytest.MonkeyPatch) -> None:
    args = _launched("deepspeed.yaml")
    args.main_process_port = 0
    _set(monkeypatch, prepare_deepspeed_cmd_env(args)[1])
    zero = DeepSpeedPlugin().deepspeed_config["zero_optimization"]
    assert zero["stage"] == 2
    assert zero["offload_optimizer"]["device"] == zero["offload_param"]["device"] == "none"
    with pytest.raises(ValueError, match=r"would leave out Muon .*optim.optimizer=AdamW.*or use fsdp.yaml"):
        make_engine(MUON, RUN, CPU)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"DEEPSPEED_ZERO_STAGE": "0"}, r"must be 1 or 2; got 0: multi8.yaml does what stage 0 does"),
        ({"DEEPSPEED_ZERO_STAGE": "3"}, r"must be 1 or 2; got 3: fsdp.yaml shards what stage 3 does"),
        ({"DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "cpu"}, r"`offload_optimizer` of DeepSpeed .* leave it out"),
        ({"DEEPSPEED_OFFLOAD_PARAM_DEVICE": "nvme"}, r"`offload_param` of DeepSpeed"),
    ],
)
def test_what_deepspeed_would_do_otherwise_is_refused(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], message: str
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    for key, value in environment.items():
        monkeypatch.setenv(f"ACCELERATE_{key}", value)
    with pytest.raises(ValueError, match=message):
        make_engine(ADAMW, RUN, CPU)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"optimizer": {"type": "Adam", "params": {}}}, "`optimizer` would act besides the recipe"),
        ({"scheduler": {"type": "WarmupLR"}, "bf16": {"enabled": True}}, "`bf16`, `scheduler` would act"),
    ],
)
def test_a_file_of_deepspeed_may_not_say_what_the_recipe_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, table: dict[str, Any], message: str
) -> None:
    file = tmp_path / "deepspeed.json"
    file.write_text(json.dumps({"zero_optimization": {"stage": 2}, "fp16": {"enabled": "auto"}, **table}))
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(file))
    with pytest.raises(ValueError, match=message):
        make_engine(ADAMW, RUN, CPU)


def test_accelerate_falls_back_to_whole_networks_and_the_run_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    with pytest.warns(UserWarning, match=r"no FSDP on processors, so every process holds the whole network"):
        made = make_engine(MUON, RUN, CPU)
    assert made.distributed_type == DistributedType.NO
    monkeypatch.setenv("FSDP_VERSION", "1")
    with pytest.raises(ValueError, match="set `fsdp_version: 2`"):
        make_engine(MUON, RUN, CPU)


@pytest.mark.parametrize("name", ["PARALLELISM_CONFIG", "MEGATRON_LM"])
def test_splitting_a_network_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(ValueError, match=r"each process takes whole sequences: leave it out"):
        make_engine(MUON, RUN, CPU)


def test_processes_agree_on_the_precision_of_the_main_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "choose_precision", lambda asked, device: "no")
    monkeypatch.setattr(engine, "broadcast_object_list", lambda found: ["bf16"])
    assert engine.agreed_precision("auto", CPU) == "bf16"
