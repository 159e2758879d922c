"""`hdlm/train.py` and `hdlm/finetune.py`: a published configuration, carried out by our own training.

    configuration -> recipe -> run -> RUN/config.json, model.safetensors, tokenizer.json    our checkpoint, kept fresh
                                      RUN/.hydra/                                           what was asked for
                                      RUN/checkpoints/checkpoint_STEP.pth                   the published layout
                                      RUN/metrics.jsonl, RUN/samples/STEP.txt               how it went

One process writes and speaks, however many train.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, final

import torch

from hdlm import hub
from hdlm.atomic import replacing
from hdlm.checkpoint import Checkpoint, build, save_checkpoint
from hdlm.data import NAMED, NamedDataset, Split, corpus
from hdlm.evaluation import evaluate
from hdlm.evaluation.judge import TransformersJudge, generative_perplexity
from hdlm.evaluation.plans import bound_of, measurable
from hdlm.hyperschedule import AbstractHyperschedule, flat
from hdlm.parameterization import LogScore, Shifted
from hdlm.published.composition import Composed, compose, composed_here, sweep, words_of
from hdlm.published.config import Config
from hdlm.published.model import pick_device
from hdlm.sampling import Prompt, algorithm, sample
from hdlm.training import MetricsLog, Recipe, Run, StepReport, Trainer, listening, prepare, progress_bar

__all__ = ["finetune", "train"]

_DEBUG = 1000
"""Documents that `data.debug` takes."""
JUDGE = "gpt2-large"
"""Who judges samples, as published."""


def train(arguments: Sequence[str]) -> int:
    """Train a model from nothing; the answer is the exit status."""
    return _main("hdlm/train.py", arguments, "Train a model from nothing.", finetunes=False)


def finetune(arguments: Sequence[str]) -> int:
    """Train a model that is there already; the answer is the exit status."""
    return _main("hdlm/finetune.py", arguments, "Train a model further.", finetunes=True)


def _main(program: str, arguments: Sequence[str], summary: str, *, finetunes: bool) -> int:
    words, known = words_of(program, arguments, summary), Config.options()
    if words.sweeps and not words.shows:
        if _processes() > 1:
            raise ValueError(
                "--multirun starts its own processes: run it with `python`, not with `accelerate launch`."
            )
        sweep(words, known, _finetuning_job if finetunes else _training_job)
        return 0
    composed = compose(words, known)
    if words.shows:
        print(composed.text)
        return 0
    _begin(composed, finetunes=finetunes)
    return 0


def _training_job(config: Any) -> None:
    """One run of a sweep."""
    _take_place()
    _begin(composed_here(config), finetunes=False)


def _finetuning_job(config: Any) -> None:
    """One run of a sweep of finetuning."""
    _take_place()
    _begin(composed_here(config), finetunes=True)


def _take_place() -> None:
    """Tell accelerate which of how many processes this is, if a launcher of jobs has started several."""
    if "SUBMITIT_EXECUTOR" in os.environ:
        from submitit.helpers import TorchDistributedEnvironment

        place = TorchDistributedEnvironment()
        if place.world_size > 1:
            place.export(set_cuda_visible_devices=False)


def _processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def _begin(composed: Composed, *, finetunes: bool) -> None:
    """Check a configuration, and carry it out.

    Raises:
        ValueError: If it cannot be carried out, or not by this command, or not by so many processes.
    """
    config = Config.read(composed.table, composed.asked)
    if finetunes != (config.hf_model_id is not None):
        raise ValueError(
            "`hf_model_id` must say what to finetune; hdlm/train.py begins with nothing."
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
        _check_vacant(composed.folder)
    _carry_out(config, composed, is_main=is_main)


def _check_vacant(folder: Path) -> None:
    """Refuse a folder that holds a run."""
    found = [name for name in ("config.json", ".hydra", "checkpoints") if (folder / name).exists()]
    if found:
        raise ValueError(
            f"{folder} holds a run already ({', '.join(found)}): choose another experiment.name, or remove it."
        )


def _carry_out(config: Config, composed: Composed, *, is_main: bool) -> None:
    from rich.console import Console

    console = Console(quiet=not is_main, highlight=False, soft_wrap=True)
    start = None
    if config.hf_model_id is not None:
        start = hub.load(config.hf_model_id)
        config = _completed(config, start)
        console.print(f"finetuning {config.hf_model_id}")
    recipe = config.recipe(_precision())
    console.print(_plan(config, recipe, composed.folder))
    for option, reason in config.idle.items():
        if is_main and option not in ("training.lr", "model.post_process_logits"):
            console.print(f"  not used: {option} ({reason})")
    run = prepare(recipe, pick_device(None), console.print, start, _text(config))
    trainer = run.trainer()
    with listening() as stop, progress_bar(console) as bar:
        if not is_main:
            trainer.train(stop)
        else:
            composed.write(config.found(run.tokenizer.vocabulary.num_words))
            keeper = _Keeper(config, run, trainer, composed.folder, console.print)
            keeper.keep()
            report = trainer.train(stop, (bar, keeper.log, keeper))
            keeper.finish(report)
    if stop.signal:
        console.print(
            f"stopped by {stop.signal.name} after {trainer.step} steps; what has been learnt is kept"
        )
    console.print(f"checkpoint: {composed.folder}")
    trainer.close()


def _precision() -> str:
    """What `mixed_precision` of accelerate's configuration comes to here; bf16 where it is faster, if there is none.

    Raises:
        ValueError: If it is a precision that there is not.
    """
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "bf16")
    known = {"bf16": "auto", "no": "no"}
    if asked not in known:
        raise ValueError(f"`mixed_precision: {asked}` of accelerate is not known here; use bf16 or no.")
    return known[asked]


def _plan(config: Config, recipe: Recipe, folder: Path) -> str:
    shape, run = recipe.network, recipe.run
    return (
        f"{config.model_type} ({config.type}), {recipe.process.type} {recipe.process.strength:g}, "
        f"{shape.num_blocks} blocks of {shape.hidden_size}, context {recipe.data.context}, annealing "
        f"{config.annealing.type}: {run.steps:,} steps of {run.batch_size} sequences of {config.data.train}, "
        f"into {folder}"
    )


def _completed(config: Config, start: Checkpoint) -> Config:
    """The configuration of finetuning, where the checkpoint says what it leaves out.

    Raises:
        ValueError: If the checkpoint is of the other family, or its network is another.
    """
    network, reading = start.network.config, start.denoiser.parameterization
    inner = reading.inner if isinstance(reading, Shifted) else reading
    gamma = isinstance(inner, LogScore)
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


def _text(config: Config) -> Split:
    """Documents of `data.train` and `data.valid`."""
    data = config.data
    cache = None if data.cache_dir is None else Path(data.cache_dir).expanduser()

    def documents(name: str, part: Any) -> tuple[str, ...]:
        source = NamedDataset(name, part, cache=cache) if name in NAMED else corpus(name)
        return tuple(islice(source.documents(), _DEBUG if data.debug else None))

    return Split(documents(data.train, "train"), documents(data.valid, "validation"))


@final
@dataclass
class _Keeper:
    """Watches a run: writes checkpoints and the log, measures, and shows what the model writes.

    Attributes:
        config: What was asked for.
        run: What is trained.
        trainer: What trains it.
        folder: Where to.
        say: Told what a person should know.
        log: Lines of `metrics.jsonl`.
        judge: Who judges samples; None until somebody is needed, or if nobody can be had.
    """

    config: Config
    run: Run
    trainer: Trainer
    folder: Path
    say: Callable[[str], object]
    log: MetricsLog = field(init=False)
    judge: TransformersJudge | None = None
    _nobody: bool = False

    def __post_init__(self) -> None:
        self.log = MetricsLog(self.folder / "metrics.jsonl", every=self.config.training.log_freq)

    def __call__(self, report: StepReport) -> None:
        """Do what is due after this step."""
        training, step = self.config.training, report.step
        if step % training.snapshot_freq_for_preemption == 0:
            self.keep(report)
        if step % training.eval_freq == 0:
            self.measure(report)
        if step % training.snapshot_freq == 0:
            self.snapshot(report)

    def finish(self, report: StepReport | None) -> None:
        """Leave everything as of the last step."""
        self.log.flush()
        self.keep(report)
        if report is not None and report.step % self.config.training.snapshot_freq:
            self.snapshot(report)

    def keep(self, report: StepReport | None = None) -> None:
        """Write our checkpoint over the last one."""
        done = {} if report is None else {"steps": report.step, "tokens": report.tokens}
        save_checkpoint(self.folder, self.run.checkpoint(done), averaged=self.trainer.average.state_dict())

    def snapshot(self, report: StepReport) -> None:
        """Write a numbered checkpoint in the published layout, and what the model writes by now."""
        path = self.folder / "checkpoints" / f"checkpoint_{report.step}.pth"
        with replacing(path) as aside:
            torch.save(self.trainer.published_state(), aside)
        if self.config.training.snapshot_sampling:
            self.write_samples(report)

    def measure(self, report: StepReport) -> None:
        """Log the bound on some validation text, under the averaged weights."""
        size, length = self.config.eval.batch_size, self.run.recipe.data.context
        tokens = self.run.validation.tokens[: size * length]
        corruption = self.run.mixture.parts[0].corruption
        with self.trainer.at_rest():
            result = evaluate(
                self.run.denoiser,
                tokens,
                measurable(self._plan()),
                bound=bound_of(self.run.denoiser.process),
                noise_schedule=corruption.noise_schedule,
                replicates=1,
                batch_size=size,
                seed=self.config.training.seed,
                context=corruption.context,
                active=corruption.active,
                device=self.run.denoiser.device,
            )
        nats = round(result.nats_per_token, 5)
        self.log.write(step=report.step, validation=nats, bound=result.bound, tokens=result.num_tokens)
        self.say(f"step {report.step}: validation {result.nats_per_token:.3f} nats a token, at most")

    def write_samples(self, report: StepReport) -> None:
        """Write a few samples, and judge them."""
        corruption, process = self.run.mixture.parts[0].corruption, self.run.denoiser.process
        length, denoiser = self.run.recipe.data.context, self.run.denoiser
        first = self.run.tokenizer.vocabulary.bos
        begin = [] if first is None or not denoiser.lookback else [first]
        names = {"analytic": "analytic", "euler": "euler"}
        name = names[self.config.sampling.predictor] if self.config.sampling else "original"
        nar = self.config.annealing.sampling_method == "NAR"
        with self.trainer.at_rest():
            made = sample(
                denoiser,
                flat(length, self._plan().num_levels) if nar else self._plan(),
                algorithm(name, process),
                num_sequences=_SAMPLES,
                batch_size=self.config.eval.batch_size,
                seed=self.config.training.seed,
                prompt=Prompt.prefix(begin, length) if begin else None,
                noise_schedule=corruption.noise_schedule,
                context=corruption.context,
                active=corruption.active,
                device=denoiser.device,
            )
        texts = [self.run.tokenizer.decode(row) for row in made.tokens.tolist()]
        with replacing(self.folder / "samples" / f"{report.step}.txt") as aside:
            aside.write_text("\n\n----\n\n".join(texts) + "\n", encoding="utf-8")
        if self.config.eval.perplexity and not self._nobody:
            self._judge(report, texts)

    def _judge(self, report: StepReport, texts: list[str]) -> None:
        """Log the generative perplexity, or say once why it is not known."""
        try:
            size = self.config.eval.perplexity_batch_size
            self.judge = self.judge or TransformersJudge(JUDGE, self.run.denoiser.device, size)
        except ValueError as error:
            self._nobody = True
            self.say(f"generative perplexity is not computed (eval.perplexity=false asks for none): {error}")
            return
        found = generative_perplexity(self.judge, texts)
        self.log.write(step=report.step, **{name: estimate.value for name, estimate in found.items()})

    def _plan(self) -> AbstractHyperschedule:
        """The hyperschedule to generate and to measure along, at `eval_tau` levels."""
        from hdlm import hyperschedule

        trained, levels = self.run.mixture.hyperschedules[0], self.config.annealing.eval_tau
        if levels in (None, trained.num_levels):
            return trained
        assert levels is not None
        shape = self.config.annealing.hyperschedule(levels)
        width = trained.length if shape["width"] is None else shape["width"]
        plan: AbstractHyperschedule = build(
            hyperschedule, {**shape, "width": width, "length": trained.length}
        )
        return plan


_SAMPLES = 4
"""Samples of a snapshot."""
