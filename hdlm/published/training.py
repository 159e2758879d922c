"""`hdlm/train.py` and `hdlm/finetune.py`: training by a published configuration with hdlm's trainer.

    configuration -> recipe -> run -> RUN/config.json, model.safetensors, tokenizer.json    hdlm's checkpoint
                                      RUN/.hydra/                                           the configuration
                                      RUN/checkpoints/checkpoint_STEP.pth                   the published layout
                                      RUN/metrics.jsonl, RUN/samples/STEP.txt               metrics and samples
                                      RUN/training/                                         state for resuming

`training.resume=true` resumes the run in the folder, or starts one if there is none. The exit status is 75 if SIGTERM
or SIGUSR1 ended a run early. Only one process writes files and prints, for any number of processes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import torch

from hdlm import hub, threads
from hdlm.atomic import check_folder, replacing
from hdlm.checkpoint import Checkpoint
from hdlm.data import NAMED, AbstractCorpus, NamedDataset, corpus
from hdlm.data.corpora import First, Part
from hdlm.data.shards import Shards
from hdlm.evaluation.during_training import Observer
from hdlm.hyperschedule import AbstractHyperschedule, flat
from hdlm.network import DDiTConfig
from hdlm.parameterization import LogScore
from hdlm.published.config import Config, refuse
from hdlm.published.hydra_cli import ComposedConfig, compose, composed_here, parse_command_line, sweep
from hdlm.published.model import pick_device
from hdlm.published_names import hyperschedule
from hdlm.strict_config import require
from hdlm.training import PREEMPTED, Recipe, Session, StepReport, Trainer, TrainingSetup, find_resume_point
from hdlm.training.launch import begin, carry_out
from hdlm.training.text import Corpora

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["configured", "run_finetuning", "run_training"]

_DEBUG = 1000
"""Number of documents with `data.debug`."""


def run_training(arguments: Sequence[str]) -> int:
    """Train a model from scratch; returns the exit status."""
    return _main("hdlm/train.py", arguments, "Train a new model.", finetunes=False)


def run_finetuning(arguments: Sequence[str]) -> int:
    """Finetune an existing model; returns the exit status."""
    return _main("hdlm/finetune.py", arguments, "Train a model further.", finetunes=True)


def configured(arguments: Sequence[str]) -> int:
    """Train by a configuration, from scratch or from its `hf_model_id`; returns the exit status."""
    return _main("hdlm train", arguments, "Train as a configuration says.", finetunes=None)


def _main(program: str, arguments: Sequence[str], summary: str, *, finetunes: bool | None) -> int:
    words, known = parse_command_line(program, arguments, summary), Config.options()
    if words.sweeps and not words.shows:
        if _processes() > 1:
            raise ValueError(
                "--multirun starts its own processes: run it with `python`, not with `accelerate launch`."
            )
        sweep(words, known, _JOBS[finetunes])
        return 0
    composed = compose(words, known)
    if words.shows:
        print(composed.text)
        return 0
    return _begin(composed, finetunes=finetunes)


def _job(config: Any, *, finetunes: bool | None = None) -> None:
    """One run of a sweep."""
    _take_place()
    _begin(composed_here(config), finetunes=finetunes)


def _training_job(config: Any) -> None:
    _job(config, finetunes=False)


def _finetuning_job(config: Any) -> None:
    _job(config, finetunes=True)


_JOBS: dict[bool | None, Callable[[Any], None]] = {None: _job, False: _training_job, True: _finetuning_job}
"""Functions of this module, which a launcher of jobs can pickle."""


def _take_place() -> None:
    """Set the environment of accelerate for this process, if a launcher of jobs has started several."""
    if "SUBMITIT_EXECUTOR" in os.environ:
        from submitit.helpers import TorchDistributedEnvironment

        place = TorchDistributedEnvironment()
        if place.world_size > 1:
            place.export(set_cuda_visible_devices=False)


def _processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def _begin(composed: ComposedConfig, *, finetunes: bool | None) -> int:
    """Check a configuration, and train by it; returns the exit status.

    Raises:
        ValueError: If the configuration does not fit, or not this command, or not the number of processes.
    """
    config = Config.read(composed.table, composed.asked)
    if finetunes not in (None, config.hf_model_id is not None):
        raise ValueError(
            "`hf_model_id` must name the model to finetune; to train a new one, use hdlm/train.py."
            if finetunes
            else f"`hf_model_id` is {config.hf_model_id!r}: use hdlm/finetune.py to begin with a model."
        )
    if config.ngpus not in (None, _processes()):
        raise ValueError(
            f"`ngpus` is {config.ngpus}, but accelerate has started {_processes()}: leave ngpus=null, or choose "
            f"another --config-file, or `accelerate launch --num_processes {config.ngpus}`."
        )
    is_main = int(os.environ.get("RANK", "0")) == 0
    if is_main:
        check_folder(composed.folder)
    if is_main and not config.training.resume:
        _check_vacant(composed.folder)
    return _carry_out(config, composed, is_main=is_main)


def _idle_beside(config: Config, start: Checkpoint | None) -> dict[str, str]:
    """Options without effect given the checkpoint to finetune, and the reasons."""
    if config.hf_model_id is None or start is None or start.tokenizer_json is None:
        return {}
    words = start.vocabulary.num_words
    options = ["tokenizer.model", *(["tokenizer.tokens"] if config.tokenizer.tokens != words else [])]
    return dict.fromkeys(options, f"{config.hf_model_id} brings its tokenizer of {words} words")


def _check_vacant(folder: Path) -> None:
    """Refuse a folder that contains a run."""
    names = [name for name in ("config.json", ".hydra", "checkpoints") if (folder / name).exists()]
    if names:
        raise ValueError(
            f"{folder} holds a run already ({', '.join(names)}): resume it with training.resume=true, choose another "
            "experiment.name, or remove it."
        )


def _carry_out(config: Config, composed: ComposedConfig, *, is_main: bool) -> int:
    """Start or resume a run and train to its end; returns the exit status."""
    from rich.console import Console

    console = Console(quiet=not is_main, highlight=False, soft_wrap=True)
    resume_point = find_resume_point(composed.folder, console.print) if config.training.resume else None
    start = None if resume_point is None else resume_point.checkpoint
    if config.hf_model_id is not None:
        start = hub.load(config.hf_model_id) if start is None else start
        config = _completed(config, start)
        console.print(f"finetuning {config.hf_model_id}")
    recipe = config.recipe(_precision())
    console.print(_plan(config, recipe, composed.folder))
    beside = _idle_beside(config, start)
    for option, reason in (config.idle | beside).items():
        if is_main and option not in ("training.lr", "model.post_process_logits"):
            console.print(f"  not used: {option} ({reason})")
    if resume_point is not None:
        console.print(f"going on after {resume_point.state.step} steps")
    else:
        refuse(beside, composed.asked)
    keeps = config.hf_model_id is not None and not config.reset_step_for_finetuning
    device = pick_device(None)
    if device.type == "cpu":
        threads.set_num_threads(recorded=0 if resume_point is None else resume_point.state.threads)
    with config.in_published_words():
        session = begin(
            recipe,
            composed.folder,
            device,
            console.print,
            resume_point=resume_point,
            start=start,
            text=_text(config, recipe),
            memory=config.hf_model_id if keeps else None,
            keep_step=True,
            strict=False,
        )
    run, trainer = session.run, session.trainer
    if is_main:
        composed.write(config.found(run.tokenizer.vocabulary.num_words))
    observers = (
        _observer(config, run, session, composed.folder, console),
        _Snapshots(config, trainer, composed.folder),
    )
    carry_out(session, console, observers, adapts=not threads.is_fixed())
    if not trainer.is_over:
        console.print("training.resume=true goes on with it")
    console.print(f"checkpoint: {composed.folder}")
    return PREEMPTED if trainer.preempted else 0


def _precision() -> str:
    """The `mixed_precision` of accelerate's configuration; without one, bf16 if it is faster on this machine.

    Raises:
        ValueError: If the precision is unknown.
    """
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "bf16")
    known = {"bf16": "auto", "no": "no"}
    if asked not in known:
        raise ValueError(f"`mixed_precision: {asked}` of accelerate is not known here; use bf16 or no.")
    return known[asked]


def _plan(config: Config, recipe: Recipe, folder: Path) -> str:
    shape, run, process = recipe.network, recipe.run, dict(recipe.process)
    return (
        f"{config.model_type} ({config.type}), {process.pop('type')} {next(iter(process.values())):g}, "
        f"{shape.num_blocks} blocks of {shape.hidden_size}, context {recipe.data.context}, annealing "
        f"{config.annealing.type}: {run.steps:,} steps of {run.batch_size} sequences of {config.data.train}, "
        f"into {folder}"
    )


def _completed(config: Config, start: Checkpoint) -> Config:
    """The configuration of finetuning; the checkpoint supplies the options that it leaves out.

    Raises:
        ValueError: If the checkpoint is of the other family, or its network differs.
    """
    network, inner = start.network.config, start.denoiser.parameterization.aligned
    gamma = isinstance(inner, LogScore)
    if not isinstance(network, DDiTConfig):
        raise ValueError(
            f"{config.hf_model_id} is not a DDiT: use `hdlm finetune`, which trains every network."
        )
    if gamma != config.is_gamma or network.condition_output:
        have = "gamma_hybrid" if gamma else "epsilon_hybrid"
        raise ValueError(
            f"`model_type` is {config.model_type}, but {config.hf_model_id} is of the kind {have}"
            f"{' with a conditioned output layer' if network.condition_output else ''}: "
            f"use --config-name {have.partition('_')[0]}_finetune_from_hf with a model of that family."
        )
    return config.of_checkpoint(
        {
            "name": "gamma_hdlm" if gamma else "epsilon_hdlm",
            "hidden_size": network.hidden_size,
            "cond_dim": network.cond_dim,
            "length": network.max_length,
            "n_blocks": network.num_blocks,
            "n_heads": network.num_heads,
            "transformer_sigma_conditioning": network.condition_blocks,
            "use_timestep_embedding": network.timestep_embedding,
            "hybrid_sigma_embedding": isinstance(inner, LogScore) and inner.blend_rate is not None,
            "scale_by_sigma": isinstance(inner, LogScore) and inner.scale_by_sigma,
            "post_process_logits": gamma,
        }
    )


def _text(config: Config, recipe: Recipe) -> Corpora | None:
    """The sources of `data.train` and `data.valid`; None if the recipe has them: a folder of shards.

    Raises:
        ValueError: If `data.debug` is used with shards.
    """
    data, key = config.data, recipe.data.key
    if Shards.are_in(data.train):
        require(not data.debug, "data.debug", f"false with the shards in {data.train}", data.debug)
        return None
    cache = None if data.cache_dir is None else Path(data.cache_dir).expanduser()

    def source(name: str, part: Part) -> AbstractCorpus:
        text = NamedDataset(name, part, cache=cache) if name in NAMED else corpus(name, key=key)
        return First(text, _DEBUG) if data.debug else text

    other = source(data.valid, "validation") if recipe.data.validation_corpus else None
    return Corpora(source(data.train, "train"), other)


@final
@dataclass(frozen=True)
class _Snapshots:
    """Writes numbered checkpoints in the published layout; every process takes part.

    Attributes:
        config: Configuration of the run.
        trainer: Trainer that holds the weights.
        folder: Folder of the run.
    """

    config: Config
    trainer: Trainer
    folder: Path

    def __call__(self, report: StepReport) -> None:
        """Write the checkpoint that is due after this step, if any."""
        if report.step % self.config.training.snapshot_freq == 0:
            self._write(report.step)

    def finish(self, step: int) -> None:
        """Write a checkpoint of the last step."""
        if step % self.config.training.snapshot_freq:
            self._write(step)

    def _write(self, step: int) -> None:
        state = self.trainer.published_state()
        if self.trainer.is_main:
            with replacing(self.folder / "checkpoints" / f"checkpoint_{step}.pth") as aside:
                torch.save(state, aside)


def _observer(
    config: Config, run: TrainingSetup, session: Session, folder: Path, console: Console
) -> Observer:
    """An observer that measures along the published evaluation hyperschedule, and writes with the published sampler."""
    plan = _eval_plan(config, run)
    nar = config.annealing.sampling_method == "NAR"
    return Observer(
        run,
        session,
        folder,
        console.print,
        plan=plan,
        writing=flat(plan.length, plan.num_levels) if nar else plan,
        sampler=config.sampling.predictor if config.sampling else "original",
    )


def _eval_plan(config: Config, run: TrainingSetup) -> AbstractHyperschedule:
    """The hyperschedule for generation and measurements, at `eval_tau` levels."""
    trained, levels = run.mixture.hyperschedules[0], config.annealing.eval_tau
    if levels in (None, trained.num_levels):
        return trained
    assert levels is not None
    return hyperschedule(config.annealing.type, trained.length, config.annealing.width, levels)
