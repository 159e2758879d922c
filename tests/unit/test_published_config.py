"""Published configurations: every option acts, or is refused with what to use instead."""

from __future__ import annotations

import copy
import functools
import importlib.util
import json
import math
import re
import shutil
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from hdlm import hub
from hdlm.cli import main
from hdlm.cli._errors import guarded
from hdlm.evaluation import estimate_likelihood
from hdlm.evaluation.generation.metrics import token_entropy
from hdlm.network import DDiT, DDiTConfig
from hdlm.package_data import configs
from hdlm.published.config import GOVERNED, ONLY, Config
from hdlm.published.eval_generation import eval_generation
from hdlm.published.eval_modeling import eval_modeling
from hdlm.published.hydra_cli import ComposedConfig, compose, parse_command_line
from hdlm.published.training import _take_place, run_finetuning, run_training
from hdlm.published_names import dotted
from hdlm.regime import Regime
from hdlm.strict_config import options_of
from hdlm.training import Recipe
from hdlm.training.short_form import SHORT_OPTIONS

NAMES = ("epsilon_hdlm", "gamma_hdlm", "epsilon_finetune_from_hf", "gamma_finetune_from_hf")
SHAPE = {
    "hidden_size": 8,
    "cond_dim": 8,
    "length": 256,
    "n_blocks": 1,
    "n_heads": 2,
    "transformer_sigma_conditioning": True,
    "use_timestep_embedding": True,
    "hybrid_sigma_embedding": True,
    "scale_by_sigma": True,
}


def _composed(*words: str) -> ComposedConfig:
    return compose(parse_command_line("program", words, "Does it."), Config.options())


def _config(*words: str) -> Config:
    composed = _composed(*words)
    return Config.read(composed.table, composed.asked)


# -- the shipped files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("ending", ["", ".yaml"])
def test_shipped_configs_build_recipes(name: str, ending: str) -> None:
    config = _config("--config-name", name + ending)
    if "finetune" in name:
        shape = (
            SHAPE
            if config.is_gamma
            else {key: SHAPE[key] for key in SHAPE}
            | dict.fromkeys([key for key, value in SHAPE.items() if value is True], False)
        )
        config = config.of_checkpoint(shape)
    recipe = config.recipe()
    gamma = "gamma" in name
    process = {"type": "GammaHybrid", "gamma": 0.01} if gamma else {"type": "EpsilonHybrid", "epsilon": 0.01}
    assert recipe.process == process
    assert Recipe.from_table(recipe.to_table()) == recipe


def test_epsilon_config_keeps_published_numbers_in_recipe() -> None:
    recipe = _config("-cn", "epsilon_hdlm").recipe()
    assert (recipe.network.hidden_size, recipe.network.num_blocks, recipe.data.context) == (768, 12, 1024)
    assert (recipe.run.batch_size, recipe.run.steps, recipe.optimizer.ema) == (512, 10**6, 0.9999)
    assert (recipe.optimizer.beta1, recipe.optimizer.beta2, recipe.optimizer.clip) == (0.9, 0.95, 1.0)
    assert recipe.optimizer.rate(0.05) == 1.0
    assert 3e-4 * recipe.optimizer.rate(1.0) == pytest.approx(4e-5)


@pytest.mark.parametrize("family", ["epsilon", "gamma"])
def test_shipped_config_keys_equal_published_keys(shared: Path, family: str) -> None:
    yaml = pytest.importorskip("yaml")
    published = yaml.safe_load(
        (shared / "golden" / "local_run" / family / ".hydra" / "config.yaml").read_text()
    )
    ours = _composed("-cn", f"{family}_hdlm").table

    def keys(table: Any, name: str = "") -> set[str]:
        if not isinstance(table, dict):
            return {name}
        return {one for key, value in table.items() for one in keys(value, f"{name}.{key}")}

    assert keys(ours) == keys(published)  # additional options of hdlm need no `+` of hydra


def test_every_shipped_config_file_is_read() -> None:
    files = sorted(configs().glob("*.yaml"))
    assert files
    for file in files:
        assert _config("--config-name", file.stem).model_type


SIZES = {
    "tiny": {"epsilon": 6_582_546, "gamma": 6_617_170},
    "small": {"epsilon": 49_281_746, "gamma": 51_114_450},
    "base": {"epsilon": 162_246_482, "gamma": 169_429_074},
    "large": {"epsilon": 405_141_586, "gamma": 424_212_818},
}


@pytest.mark.parametrize("family", ["epsilon", "gamma"])
@pytest.mark.parametrize("size", SIZES)
def test_model_presets_have_stated_parameter_counts(size: str, family: str) -> None:
    """The counts hold for the GPT-2 vocabulary. The published base model has 162M parameters."""
    config = _config("-cn", f"{family}_hdlm", f"model={family}_{size}", "annealing.width=8")
    shape, told = config.recipe().network, family == "gamma"
    sizes = (shape.hidden_size, shape.num_blocks, shape.num_heads, shape.cond_dim)
    assert config.recipe().is_conditioned is told
    with torch.device("meta"):
        switches = {"timestep_embedding": told, "condition_blocks": told}
        network = DDiT(DDiTConfig(config.tokenizer.tokens + 1, *sizes, **switches))
    assert sum(weight.numel() for weight in network.parameters()) == SIZES[size][family]


@pytest.mark.parametrize("family", ["epsilon", "gamma"])
def test_tiny_preset_trains_few_tokens(family: str) -> None:
    recipe = _config("-cn", f"{family}_tiny", "data.train=a.txt", "data.valid=b.txt").recipe()
    assert (recipe.data.tokenizer, recipe.run.accumulation) == ("train", 1)
    assert recipe.run.steps * recipe.run.batch_size * recipe.data.context < 2e6


ACCELERATE = {"single": 1, "multi2": 2, "multi4": 4, "multi8": 8, "fsdp": 8}


@pytest.mark.parametrize("name", ACCELERATE)
def test_accelerate_configs_are_read_by_accelerate(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config_args = pytest.importorskip("accelerate.commands.config.config_args")
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    file = configs() / "accelerate" / f"{name}.yaml"
    read = config_args.load_config_from_file(str(file))
    assert (read.num_processes, read.mixed_precision) == (ACCELERATE[name], "bf16")
    monkeypatch.setattr("accelerate.commands.launch.is_bf16_available", lambda *_: True, raising=False)
    args = launch_command_parser().parse_args(["--config-file", str(file), "hdlm/train.py"])
    args, _, _ = _validate_launch_command(args)
    assert args.use_fsdp == (name == "fsdp")
    if name == "fsdp":
        assert (args.fsdp_version, args.fsdp_auto_wrap_policy) == (2, "TRANSFORMER_BASED_WRAP")
        assert args.fsdp_transformer_layer_cls_to_wrap is None  # each network names its own blocks
    files = {path.stem for path in (configs() / "accelerate").glob("*.yaml")}
    assert files == set(ACCELERATE)


# -- what acts ------------------------------------------------------------------------------------------------

ACTING = [
    ("epsilon_hdlm", "training.epsilon=0.5", "process.epsilon", 0.5),
    ("epsilon_hdlm", "training.lambda=0.3", "objective.unmasked", 0.3),
    ("epsilon_hdlm", "training.loss_type=standard", "process.epsilon", 0.0),
    ("epsilon_hdlm", "training.loss_type=standard", "objective.unmasked", 0.0),
    ("epsilon_hdlm", "type=shifted", "parameterization.type", "Shifted"),
    ("epsilon_hdlm", "annealing.sampling_eps=0.01", "objective.max_weight", 100.0),
    ("epsilon_hdlm", "annealing.efficient=false", "mixture.0.two_stream", False),
    ("epsilon_hdlm", "annealing.attention.context_type=causal", "network.context", "causal"),
    ("epsilon_hdlm", "annealing.attention.block_type=causal", "network.active", "causal"),
    ("epsilon_hdlm", "gradient_accumulation_steps=4", "run.accumulation", 4),
    ("epsilon_hdlm", "training.warmup_iter=100000", "optimizer.warmup", 0.1),
    ("epsilon_hdlm", "optim.scheduler=linear", "optimizer.floor", 0.0),
    ("epsilon_hdlm", "optim.weight_decay=0.2", "optimizer.weight_decay", 0.2),
    ("epsilon_hdlm", "optim.grad_clip=2", "optimizer.clip", 2.0),
    ("epsilon_hdlm", "+training.seed=3", "run.seed", 3),
    ("epsilon_hdlm", "tokenizer.model=train", "data.tokenizer", "train"),
    ("epsilon_hdlm", "data.train=book.txt", "data.corpus", ("book.txt",)),
    ("epsilon_hdlm", "data.train=shards data.valid=shards", "data.validation_corpus", ()),
    ("epsilon_hdlm", "data.valid=ptb", "data.validation_corpus", ("ptb:validation",)),
    ("gamma_hdlm", "graph.gamma=0.3", "process.gamma", 0.3),
    ("gamma_hdlm", "graph.type=absorb", "process.gamma", 0.0),
    ("gamma_hdlm", "graph.type=uniform", "process.gamma", 1.0),
    ("gamma_hdlm", "noise.type=loglinear", "noise_schedule.floor", 5e-3),
    ("gamma_hdlm", "noise.type=geometric", "noise_schedule.type", "Geometric"),
    ("gamma_hdlm", "annealing.ce_loss_weight=0", "objective.type", "ScoreEntropy"),
    ("gamma_hdlm", "annealing.diffusion_loss_weight=2", "objective.parts.0.0", 2.0),
    ("gamma_hdlm", "optim.warmup=100000", "optimizer.warmup", 0.1),
    ("gamma_hdlm", "model.hybrid_sigma_embedding=false", "parameterization.blend_rate", None),
    ("gamma_hdlm", "model.scale_by_sigma=false", "parameterization.scale_by_sigma", False),
    ("gamma_hdlm", "model=gamma_tiny annealing.width=16", "network.hidden_size", 64),
    ("gamma_hdlm", "type=shifted", "parameterization.type", "Shifted"),
    ("epsilon_hdlm", "training.seed=3", "run.seed", 3),
    ("epsilon_hdlm", "optim.optimizer=Muon", "optimizer.name", "muon"),
    ("epsilon_hdlm", "annealing.type=hybrid", "mixture.0.two_stream", True),
    ("epsilon_hdlm", "eval.perplexity=false", "watch.judge", ""),
    ("epsilon_hdlm", "training.eval_freq=7", "watch.validate_every", 7),
    ("epsilon_hdlm", "optim.optimizer=Muon", "optimizer.matrix_rate", 3e-4),
    ("epsilon_hdlm", "recipe.run.compile=true", "run.compile", True),
    ("epsilon_hdlm", "recipe.optimizer.decay=all", "optimizer.decay", "all"),
    ("epsilon_hdlm", "recipe.optimizer.floor=0.1", "optimizer.floor", 0.1),
    ("epsilon_hdlm", "training.snapshot_freq_for_preemption=7", "run.save_steps", 7),
    ("epsilon_hdlm", "eval.perplexity_batch_size=7", "watch.judge_batch_size", 7),
    ("epsilon_hdlm", "training.snapshot_sampling=false", "watch.judge", ""),
]


@pytest.mark.parametrize(("name", "override", "option", "value"), ACTING)
def test_published_option_sets_recipe_option(name: str, override: str, option: str, value: object) -> None:
    found: Any = _config("-cn", name, *override.split()).recipe().to_table()
    for key in option.split("."):
        found = found[int(key) if key.isdecimal() else key]
    assert found == value


ELSEWHERE = frozenset(
    {"annealing.eval_tau", "data.debug", "reset_step_for_finetuning", "model.post_process_logits"}
)
"""Options that act outside the recipe."""


@pytest.mark.parametrize("name", ["epsilon_hdlm", "gamma_hdlm"])
def test_every_numeric_published_option_changes_recipe_or_is_refused(name: str) -> None:
    """Another value of a number or switch changes the recipe or is refused with its name."""
    table, dead = _composed("-cn", name).table, []
    del table["training"]["accum"]  # only the same as gradient_accumulation_steps
    recipe = Config.read(table).recipe()
    for option, value in dotted(table):
        if option in ELSEWHERE or not isinstance(value, int | float):
            continue
        other = copy.deepcopy(table)
        *tables, last = option.split(".")
        more = 2 * value if value >= 1 else value / 2 or 0.5
        functools.reduce(dict.__getitem__, tables, other)[last] = (
            not value if isinstance(value, bool) else more
        )
        try:
            acts = Config.read(other, [option]).recipe() != recipe
        except ValueError as error:
            acts = option in str(error)
        if not acts:
            dead.append(option)
    assert not dead


SCHEDULES = [
    ("block", 4, {"type": "Block", "width": 8, "num_levels": 4}),
    ("simple", 8, {"type": "Slide", "width": 8, "num_levels": 8}),
    ("simple", 4, {"type": "PublishedSlide", "width": 8, "num_levels": 4}),
    ("hybrid", 4, {"type": "PublishedWave", "width": 8, "num_levels": 4}),
    ("none", 4, {"type": "Block", "width": 1024, "num_levels": 4}),
]


@pytest.mark.parametrize(("kind", "tau", "hyperschedule"), SCHEDULES)
def test_annealing_options_build_hyperschedule(kind: str, tau: int, hyperschedule: dict[str, Any]) -> None:
    words = (
        f"annealing.type={kind}",
        "annealing.width=8",
        f"annealing.tau={tau}",
        "annealing.efficient=false",
    )
    words = tuple(word for word in words if kind != "none" or "width" not in word)
    (part,) = _config("-cn", "gamma_hdlm", *words).recipe().mixture
    assert part.hyperschedule == hyperschedule


# -- what is refused ------------------------------------------------------------------------------------------

FAULTS = [
    ("epsilon_hdlm", "training.n_itesr=3", "did you mean `training.n_iters`"),
    ("epsilon_hdlm", "optm.lr=3", "did you mean `optim.lr`"),
    ("epsilon_hdlm", "+training.lamda=3", "did you mean `training.lambda`"),
    ("epsilon_hdlm", "+graph.gamma=0.1", "graph.*gamma_hybrid has it"),
    ("gamma_hdlm", "+training.epsilon=0.1", "training.epsilon.*epsilon_hybrid has it"),
    ("epsilon_hdlm", "optim.warmup=3", "use training.warmup_iter"),
    ("gamma_hdlm", "training.warmup_iter=3", "use optim.warmup"),
    ("epsilon_finetune_from_hf", "optim.lr=3", "use training.lr"),
    ("epsilon_hdlm", "+training.lr=3", "use optim.lr"),
    ("gamma_hdlm", "noise.sigma_min=0.1", "use noise.type=geometric"),
    ("epsilon_hdlm", "annealing.sampling_method=AR", "annealing.width=1"),
    ("epsilon_hdlm", "annealing.type=none annealing.efficient=true", "one canvas teaches every position"),
    ("epsilon_hdlm", "annealing.type=wave", "one of block, simple, hybrid, none"),
    ("epsilon_hdlm", "training.batch_size=many", "training.batch_size.*int.*many"),
    ("epsilon_hdlm", "training.accum=3", "training.accum.*gradient_accumulation_steps"),
    ("epsilon_hdlm", "model_type=delta", "epsilon_hybrid, gamma_hybrid"),
    ("epsilon_hdlm", "optim.optimizer=Adam", "optim.weight_decay.*AdamW"),
    ("epsilon_hdlm", "model=huge", "model/huge"),
    ("epsilon_hdlm", "training.epsilon=", "training.epsilon|configuration"),
    ("delta_hdlm", "", "known: .*epsilon_hdlm"),
    ("epsilon_hdlm", "training.grad_clip=2", "did you mean `optim.grad_clip`"),
    ("epsilon_hdlm", "optim.beta1=1.5", r"`optim.beta1` must be in \[0, 1\)"),
    ("epsilon_hdlm", "optim.lr=0", "`optim.lr` must be positive"),
    ("epsilon_hdlm", "training.ema=1", "`training.ema` must be in"),
    ("epsilon_hdlm", "training.epsilon=1", "`training.epsilon` must be in"),
    ("epsilon_hdlm", "training.lambda=-1", "`training.lambda` must be at least 0"),
    ("epsilon_hdlm", "gradient_accumulation_steps=7", "`gradient_accumulation_steps` must be a divisor of"),
    ("epsilon_hdlm", "model.n_heads=7", "`model.hidden_size` must be an even multiple of `model.n_heads`"),
    ("epsilon_hdlm", "model.dropout=1.5", "`model.dropout` must lie in"),
    ("epsilon_hdlm", "annealing.width=2000", "`annealing.width` must lie in"),
    ("epsilon_hdlm", "annealing.tau=0", "`annealing.tau` must be positive"),
    ("epsilon_hdlm", "eval.batch_size=0", "`eval.batch_size` must be positive"),
    ("epsilon_hdlm", "tokenizer.tokens=0", "`tokenizer.tokens` must be positive"),
    ("epsilon_hdlm", "ngpus=0", "`ngpus` must be positive"),
    ("epsilon_hdlm", "model.name=gamma_hdlm", "`model.name` must be epsilon_hdlm"),
    ("epsilon_hdlm", "model.cond_dim=4", "`model.cond_dim` has no effect"),
    (
        "epsilon_hdlm",
        "eval.perplexity=false eval.perplexity_batch_size=3",
        "`eval.perplexity_batch_size` has no effect",
    ),
    ("epsilon_hdlm", "training.snapshot_sampling=false annealing.sampling_method=NAR", "has no effect"),
    ("epsilon_hdlm", "reset_step_for_finetuning=true", "it is hdlm/finetune.py's"),
    ("epsilon_hdlm", "recipe.run.complie=true", "did you mean `recipe.run.compile`"),
    ("epsilon_hdlm", "+recipe.run.complie=true", "`recipe.run.complie`; did you mean `recipe.run.compile`"),
    ("epsilon_hdlm", "+recipe.run.seed=1", "use `training.seed`"),
    ("epsilon_hdlm", "+recipe.mixture=[]", "use `annealing`"),
    ("epsilon_hdlm", "+recipe.data.context=8", "use `model.length`"),
    ("epsilon_hdlm", "recipe.run.compile=3", "`recipe.run.compile` must be bool"),
    ("epsilon_hdlm", "optim={warmup:3}", "`optim.warmup` has no effect"),
    ("epsilon_hdlm", "model={cond_dim:64}", "`model.cond_dim` has no effect"),
    ("epsilon_hdlm", "training={n_itesr:3}", "did you mean `training.n_iters`"),
    ("epsilon_hdlm", "recipe.run.stepz=3", "did you mean `recipe.run.steps`"),
    ("epsilon_hdlm", "recipe.run.steps=3", "use `training.n_iters`"),
    ("epsilon_hdlm", "recipe.optimizer.muon_scale=match_rms_adamw", "`optim.optimizer` muon"),
    ("gamma_hdlm", "recipe.optimizer.decay=all", "set `optim.weight_decay`"),
    ("gamma_hdlm", "recipe.optimizer.floor=0.1", "`optim.scheduler` is constant"),
    ("epsilon_hdlm", "recipe.warm_start.batch_scale=3", "set `recipe.warm_start.share`"),
    (
        "epsilon_hdlm",
        "training.snapshot_sampling=false recipe.watch.samples=3",
        "training.snapshot_sampling=true",
    ),
    (
        "epsilon_hdlm",
        "recipe.data.streaming=true data.train=a.txt data.valid=b.txt data.cache_dir=c",
        "`data.cache_dir` has no effect",
    ),
    ("gamma_hdlm", "annealing.diffusion_loss_weight=0 annealing.sampling_eps=0.01", "has no effect"),
    ("epsilon_hdlm", "experiment.name=''", "`experiment.name` must be a name"),
    ("epsilon_hdlm", "optim.lr=inf", "`optim.lr` must be positive and finite"),
    ("gamma_hdlm", "graph.gamma=2", "`graph.gamma` must be in"),
    ("gamma_hdlm", "noise.type=geometric noise.sigma_min=11", "`noise.sigma_min`"),
    ("gamma_hdlm", "training.snapshot_sampling=false sampling.predictor=euler", "has no effect"),
]


@pytest.mark.parametrize(("name", "override", "complaint"), FAULTS)
def test_published_config_rejects_bad_option(name: str, override: str, complaint: str) -> None:
    words = ("--config-name", name, *override.split())
    with pytest.raises(ValueError, match=complaint):
        _config(*words).recipe()


def test_governed_table_names_existing_options() -> None:
    ours, published = {*options_of(Recipe), *SHORT_OPTIONS}, set(options_of(Config))
    assert set(GOVERNED) <= ours
    assert set(GOVERNED.values()) <= published


def test_override_of_omitted_option_needs_no_plus(tmp_path: Path) -> None:
    text = (configs() / "epsilon_hdlm.yaml").read_text()
    (tmp_path / "bare.yaml").write_text(text.replace("  accum: ${gradient_accumulation_steps}\n", ""))
    shutil.copytree(configs() / "model", tmp_path / "model")
    words = ("-cn", "bare", "-cd", str(tmp_path))
    assert _config(*words, "gradient_accumulation_steps=4").recipe().run.accumulation == 4
    assert _config(*words, "training.accum=8").training.accum == 8


@pytest.mark.parametrize("option", ONLY)
def test_option_with_one_allowed_value_names_the_alternative(option: str) -> None:
    only, instead = ONLY[option]
    other = json.dumps(not only if isinstance(only, bool) else 2 if isinstance(only, int) else "other")
    with pytest.raises(ValueError, match=f"`{re.escape(option)}` can only be .*{re.escape(instead)}"):
        _config("-cn", "gamma_hdlm", f"{option}={other}")


@pytest.mark.parametrize("option", ["use_timestep_embedding", "transformer_sigma_conditioning"])
def test_epsilon_config_rejects_noise_conditioning(option: str) -> None:
    with pytest.raises(ValueError, match=f"model.{option}.*false"):
        _config("-cn", "epsilon_hdlm", f"model.{option}=true").recipe()


def test_finetune_config_rejects_other_network_size() -> None:
    config = _config("-cn", "gamma_finetune_from_hf", "model.hidden_size=16")
    with pytest.raises(ValueError, match=r"model\.hidden_size. is 16, but 8"):
        config.of_checkpoint(SHAPE)


# -- hdlm train --config --------------------------------------------------------------------------------------


def test_hdlm_train_config_trains_same_weights_as_published_command(
    work_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"{name}={value}" for name, value in (SMALL | TINY | {"training.n_iters": 1}).items()]
    assert run_training(["--config-name", "epsilon_tiny", *words, "experiment.name=one"]) == 0
    assert main(["train", "--config", "epsilon_tiny", *words, "experiment.name=two"]) == 0
    folder = Path("exp_local", "wikitext2", "hdlm-experiments")
    one, two = (hub.load(folder / name).network.state_dict() for name in ("one", "two"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    words = [word for word in words if not word.startswith("tokenizer")]
    again = ["-cn", "epsilon_finetune_from_hf", f"hf_model_id={folder / 'one'}", *words]
    assert main(["train", "--config", *again[1:], "experiment.name=three"]) == 0
    assert "finetuning" in capsys.readouterr().out


def test_hdlm_train_config_names_equivalent_option(capsys: pytest.CaptureFixture[str]) -> None:
    for words, complaint in (
        (["--config", "epsilon_hdlm", "--steps", "3"], "training.n_iters=STEPS"),
        (["--config", "epsilon_hdlm", "--from", "x"], "--from is for recipes; with --config use hf_model_id"),
        (["optim.lr=3"], "needs --config"),
        (["--text", "x"], "--output is missing"),
        (["--config", "epsilon_hdlm", "optim.rl=3"], "did you mean `optim.lr`"),
    ):
        assert main(["train", *words]) == 2
        assert complaint in capsys.readouterr().err
    assert main(["train", "--config", "gamma_hdlm", "--cfg"]) == 0
    assert "gamma_hybrid" in capsys.readouterr().out


# -- sweeps ---------------------------------------------------------------------------------------------------


def test_multirun_trains_one_run_per_combination(work_folder: Path) -> None:
    words = [f"{name}={value}" for name, value in (SMALL | TINY).items()]
    assert (
        run_training(["-cn", "epsilon_tiny", *words, "--multirun", "training.seed=1,2", "training.n_iters=1"])
        == 0
    )
    folder = Path("exp_local", "wikitext2", "hdlm-experiments")
    runs = [folder / f"epsilon-tiny-{number}" for number in range(2)]
    for run, seed in zip(runs, (1, 2), strict=True):
        assert f"seed: {seed}" in (run / ".hydra" / "config.yaml").read_text()
        assert f"training.seed={seed}" in (run / ".hydra" / "overrides.yaml").read_text()
    weights = [hub.load(run).network.state_dict()["vocab_embed.embedding"] for run in runs]
    assert not torch.equal(*weights)


def test_multirun_names_missing_package_and_bad_option(
    work_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if importlib.util.find_spec("submitit") is None:
        with pytest.raises(ValueError, match=r"hdlm\[slurm\]"):
            run_training(["-cn", "epsilon_hdlm", "-m", "hydra/launcher=slurm"])
    with pytest.raises(ValueError, match=r"did you mean `training\.n_iters`"):
        run_training(["-cn", "epsilon_hdlm", "-m", "training.n_itesr=1,2"])
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="not with `accelerate launch`"):
        run_training(["-cn", "epsilon_hdlm", "-m", "training.seed=1,2"])


def test_slurm_job_exports_distributed_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for `submitit` in a SLURM job."""

    class Place:
        world_size = 2

        def export(self, *, set_cuda_visible_devices: bool) -> None:
            assert not set_cuda_visible_devices
            exported.append(True)

    exported: list[bool] = []
    helpers = types.ModuleType("submitit.helpers")
    monkeypatch.setattr(helpers, "TorchDistributedEnvironment", Place, raising=False)
    monkeypatch.setitem(sys.modules, "submitit", types.ModuleType("submitit"))
    monkeypatch.setitem(sys.modules, "submitit.helpers", helpers)
    _take_place()
    assert not exported
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    _take_place()
    assert exported == [True]


# -- from end to end ------------------------------------------------------------------------------------------

TINY = {
    "tokenizer.model": "train",
    "tokenizer.tokens": 300,
    "training.batch_size": 4,
    "gradient_accumulation_steps": 2,
    "training.n_iters": 3,
    "training.snapshot_freq": 2,
    "training.eval_freq": 2,
    "training.log_freq": 1,
    "eval.perplexity": "false",
    "eval.batch_size": 2,
    "annealing.width": 4,
    "annealing.tau": 4,
    "data.train": "wikitext2",
    "data.valid": "ptb",
}
SMALL = {"model.hidden_size": 16, "model.length": 16, "model.n_blocks": 1}


def _words(**changes: object) -> list[str]:
    """The options of `TINY` with changes. `__` means a dot, and None removes an option."""
    options = TINY | {name.replace("__", "."): value for name, value in changes.items()}
    return [f"{name}={value}" for name, value in options.items() if value is not None]


@pytest.fixture
def work_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    monkeypatch.setenv("HDLM_DATA_DIR", "data")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    text = "the cat sat on the mat and the dog sat on the log . "
    (tmp_path / "data" / "wikitext2-train.txt").write_text(text * 40)
    (tmp_path / "data" / "ptb.txt").write_text(text * 2)
    return tmp_path


def _trained(family: str, **changes: object) -> Path:
    small = [f"{name}={value}" for name, value in SMALL.items()]
    assert run_training(["-cn", f"{family}_hdlm", f"model={family}_tiny", *small, *_words(**changes)]) == 0
    return Path("exp_local", "wikitext2", "hdlm-experiments", f"{family}-hdlm-1")


WHOLE: dict[str, object] = {
    "type": "shifted",
    "annealing__type": "none",
    "annealing__width": None,
    "annealing__sampling_method": "NAR",
}


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("epsilon", {}),
        pytest.param("epsilon", WHOLE, marks=pytest.mark.slow),
        pytest.param(
            "gamma", {"annealing__type": "simple", "annealing__eval_tau": 2}, marks=pytest.mark.slow
        ),
        (
            "gamma",
            {"graph__type": "uniform", "sampling__predictor": "euler", "annealing__efficient": "false"},
        ),
    ],
)
def test_published_training_and_evaluation_commands_work_together(
    work_folder: Path, family: str, changes: dict[str, object]
) -> None:
    run = _trained(family, **changes)
    numbered = run / "checkpoints" / "checkpoint_3.pth"
    ours, published = hub.load(run), hub.load(numbered, config=run)
    raw = hub.load(numbered, config=run, weights="raw")
    for name, value in ours.network.state_dict().items():
        assert torch.equal(value, published.network.state_dict()[name])
    assert any(
        not torch.equal(value, raw.network.state_dict()[name])
        for name, value in ours.network.state_dict().items()
    )
    assert published.denoiser.process.weights(torch.tensor(0.5)) == ours.denoiser.process.weights(
        torch.tensor(0.5)
    )
    steps = torch.arange(ours.hyperschedules[-1].num_steps)
    assert torch.equal(published.hyperschedules[-1].levels(steps), ours.hyperschedules[-1].levels(steps))
    assert (run / "samples" / "2.txt").read_text().count("----") == 3
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3]
    assert any("validation" in line for line in lines)
    assert not {file.name for file in run.rglob(".*") if file.is_file()}

    words = ["--checkpoint_path", str(numbered), "--config_path", str(run)]
    assert (
        eval_modeling([*words, "--work_dir", "measured", "--dataset", "ptb", "--monte_carlo_timesteps", "3"])
        == 0
    )
    result = json.loads(Path("measured", "results.json").read_text())["datasets"]["ptb"]["result"]
    assert result["bound"] == ("hybrid" if "graph__type" in changes else "absorbing")
    assert len(result["estimates"]) == 3
    words_log = math.log(ours.vocabulary.num_words)
    if result["bound"] == "absorbing":  # an untrained model assigns nearly equal probabilities
        error = result["standard_error"] / result["num_tokens"]
        assert result["nats_per_token"] == pytest.approx(words_log, abs=0.2 + 10 * error)
    writing = ["--num_samples", "3", "--steps", "4", "--save_samples", "--judge", "none"]
    assert eval_generation([*words, *writing]) == 0
    samples = json.loads(Path("logs", "eval_generation", "samples.json").read_text())
    assert [len(one["tokens"]) for one in samples] == [16] * 3
    wrote = json.loads(Path("logs", "eval_generation", "results.json").read_text())["result"]
    shifted = "type" in changes
    assert wrote["num_given"] == shifted
    assert wrote["settings"]["steps"] == 4
    usual = "original" if family == "epsilon" else changes.get("sampling__predictor", "analytic")
    assert wrote["settings"]["algorithm"] == usual
    entropies = [token_entropy(one["tokens"][shifted:]) for one in samples]
    assert wrote["metrics"]["entropy"]["value"] == pytest.approx(sum(entropies) / 3)
    if family == "gamma":
        writing.remove("--steps")
        writing.remove("4")
        assert eval_generation([*words, *writing]) == 0
        wrote = json.loads(Path("logs", "eval_generation", "results.json").read_text())["result"]
        assert wrote["settings"]["steps"] == published.hyperschedules[0].num_levels


def test_published_training_refuses_folder_with_a_run(
    work_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = _trained("epsilon")
    before = (run / ".hydra" / "config.yaml").read_text()
    with pytest.raises(ValueError, match=r"holds a run already.*experiment\.name"):
        _trained("epsilon", training__n_iters=4)
    assert (run / ".hydra" / "config.yaml").read_text() == before


def test_published_finetuning_starts_from_checkpoint(work_folder: Path) -> None:
    run = _trained("epsilon")
    changes = {"training__epsilon": 0.1, "annealing__width": 8, "annealing__tau": 2, "training__n_iters": 2}
    changes |= dict.fromkeys(("tokenizer__model", "tokenizer__tokens"))
    common = ["-cn", "epsilon_finetune_from_hf.yaml", f"hf_model_id={run}", *_words(**changes)]
    for option in ("model=train", "tokens=300"):
        with pytest.raises(
            ValueError, match=r"`tokenizer\.\w+` has no effect here: .* brings its tokenizer of 277"
        ):
            run_finetuning([*common, f"tokenizer.{option}"])
    assert run_finetuning([*common, "training.lr=1e-12", "experiment.name=still"]) == 0
    assert (
        run_finetuning([*common, "training.lr=0.1", "training.warmup_iter=1", "experiment.name=moved"]) == 0
    )
    moved_run = run.with_name("moved")
    start, still, moved = (hub.load(run.with_name(name)) for name in (run.name, "still", "moved"))
    assert still.denoiser.process.weights(torch.tensor(0.0).add(0.5)).uniform == pytest.approx(0.05)
    weights = [loaded.network.state_dict()["output_layer.linear.weight"] for loaded in (start, still, moved)]
    assert torch.allclose(weights[0], weights[1], atol=1e-6)
    assert not torch.allclose(weights[0], weights[2], atol=1e-2)
    with pytest.raises(ValueError, match="epsilon_finetune_from_hf"):
        run_finetuning(["-cn", "gamma_finetune_from_hf", f"hf_model_id={run}", *_words()])
    with pytest.raises(ValueError, match=r"so none of `run\.steps`=2 is left"):
        run_finetuning([*common, "reset_step_for_finetuning=false", "experiment.name=none"])
    on = ["reset_step_for_finetuning=false", "training.n_iters=5", "experiment.name=on"]
    assert run_finetuning([*common, *on]) == 0
    assert hub.load(run.with_name("on")).training["steps"] == 5
    again = hub.load(moved_run / "checkpoints" / "checkpoint_2.pth", config=moved_run)
    assert torch.equal(again.network.state_dict()["output_layer.linear.weight"], weights[2])


def test_published_commands_reject_config_of_other_command(work_folder: Path) -> None:
    with pytest.raises(ValueError, match=r"hdlm/finetune\.py"):
        run_training(["-cn", "epsilon_finetune_from_hf"])
    with pytest.raises(ValueError, match="hf_model_id"):
        run_finetuning(["-cn", "epsilon_hdlm"])
    with pytest.raises(ValueError, match=r"ngpus.*num_processes 2"):
        run_training(["-cn", "epsilon_hdlm", "ngpus=2"])


def test_cfg_option_prints_config(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_training(["--config-name", "epsilon_hdlm", "--cfg"]) == 0
    assert "hidden_size: 768" in capsys.readouterr().out


def test_published_evaluation_reports_failures_in_exit_status(
    work_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = _trained("epsilon")
    words = ["--checkpoint_path", str(run), "--work_dir", "out", "--monte_carlo_timesteps", "2"]
    assert eval_modeling([*words, "--datasets", "ptb", "lambada"]) == 1
    found = json.loads(Path("out", "results.json").read_text())["datasets"]
    assert found["ptb"]["result"]["perplexity"] > 1
    assert "HDLM_DATA_DIR" in found["lambada"]["failed"] or "lambada.txt" in found["lambada"]["failed"]
    writing = ["--checkpoint_path", str(run), "--num_samples", "2", "--steps", "2", "--output_dir", "out"]
    assert eval_generation(writing) == 1  # the default judge gpt2-large is not available
    assert eval_generation([*writing, "--judge", "none"]) == 0
    assert eval_generation([*writing, "--judge", "nobody"]) == 1
    result = json.loads(Path("out", "results.json").read_text())["result"]
    assert result["num_evaluations"] >= 2
    metrics = result["metrics"]
    assert "nobody" in metrics["generative perplexity"]["failed"]
    assert metrics["entropy"]["value"] > 0
    assert eval_generation([*writing, "--datasets", "lm1b", "--judge", "none"]) == 1
    written = []
    for size in ("1", "2"):
        assert eval_generation([*writing, "--judge", "none", "--save_samples", "--batch_size", size]) == 0
        result = json.loads(Path("out", "results.json").read_text())["result"]
        assert result["num_evaluations"] == 2
        written.append(json.loads(Path("out", "samples.json").read_text()))
    assert written[0] == written[1]
    assert written[0][0] != written[0][1]
    with pytest.raises(ValueError, match="--monte_carlo_timesteps must be at least 1; got 0"):
        eval_modeling([*words, "--dataset", "ptb", "--monte_carlo_timesteps", "0"])
    with pytest.raises(ValueError, match="--length must be at least 1; got 0"):
        eval_generation([*writing, "--length", "0"])
    with pytest.raises(ValueError, match=r"--sampling_method NAR.*full_diff"):
        eval_generation([*writing, "--sampling_method", "NAR"])


def test_published_command_prints_error_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded("hdlm/train.py", run_training, ["-cn", "epsilon_hdlm", "training.n_itesr=3"]) == 2
    printed = capsys.readouterr().err
    assert printed == "hdlm/train.py: unknown option `training.n_itesr`; did you mean `training.n_iters`?\n"


def test_eval_modeling_equals_estimate_likelihood(work_folder: Path) -> None:
    run = _trained("gamma")
    words = [
        "--checkpoint_path",
        str(run),
        "--work_dir",
        "out",
        "--monte_carlo_timesteps",
        "2",
        "--seed",
        "5",
    ]
    assert eval_modeling([*words, "--valid_dataset", "ptb"]) == 0
    found = json.loads(Path("out", "results.json").read_text())["datasets"]["ptb"]["result"]
    loaded = hub.load(run)
    from hdlm.data import corpus, tokenise

    tokens = tokenise(loaded.tokenizer, tuple(corpus("ptb").documents())).tokens
    plan = loaded.hyperschedules[0]
    assert estimate_likelihood(
        loaded.denoiser, tokens, Regime(plan), replicates=2, seed=5
    ).nats == pytest.approx(found["nats"])
