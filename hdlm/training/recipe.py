"""A recipe: all choices of a training run in one file.

Recipes are TOML. Each table is one of the frozen classes below, so an option that is unknown, out of range or without
effect is an error that names it. The mixture makes a model hybrid: each optimizer step trains one of its parts, in
proportion to their shares.

    [[mixture]]
    share = 0.8
    hyperschedule = { type = "Block", width = 4, num_levels = 4 }

    [[mixture]]
    share = 0.2
    hyperschedule = { type = "Block", width = 128, num_levels = 128 }
    two_stream = false
"""

from __future__ import annotations

import dataclasses
import importlib
import math
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, final, get_args

import torch

from hdlm import hyperschedule as hyperschedules
from hdlm import noise_schedule as noise_schedules
from hdlm import objective as objectives
from hdlm import parameterization as parameterizations
from hdlm import process as processes
from hdlm.attention import Active, Context
from hdlm.checkpoint import build, describe, piece_class
from hdlm.data.conversations import Fill
from hdlm.hyperschedule import AbstractHyperschedule
from hdlm.network import DDiTConfig, DecoderConfig, DiffusionGemmaConfig
from hdlm.network.recomputation import Recomputation
from hdlm.noise_schedule import AbstractNoiseSchedule
from hdlm.objective import AbstractObjective
from hdlm.parameterization import AbstractParameterization
from hdlm.process import AbstractNoiseProcess
from hdlm.strict_config import IdleOptionError, read_table, require
from hdlm.training.short_form import in_full

__all__ = [
    "DataSettings",
    "IdleOptionError",
    "LoraSettings",
    "MixturePart",
    "NetworkSettings",
    "OptimizerSettings",
    "Recipe",
    "RunSettings",
    "TrackerName",
    "WarmStartSettings",
    "WatchSettings",
    "import_own",
    "with_options",
]

OptimizerName = Literal["muon", "adamw"]
DecayName = Literal["matrices", "all"]
MuonScale = Literal["original", "match_rms_adamw"]
ScheduleName = Literal["linear", "cosine", "constant"]
Precision = Literal["auto", "bf16", "no"]
MAY_CHANGE: Mapping[str, bool] = {"may_change": True}
"""Field metadata: the option may differ when a run is resumed, because it affects the weights only through rounding."""
TrackerName = Literal["tensorboard", "wandb", "trackio"]
_SHAPE = ("hidden_size", "num_blocks", "num_heads", "mlp_ratio", "cond_dim", "dropout")
_CONDITIONING = ("cond_dim", "condition_blocks", "condition_output")
_PIECES: Mapping[str, tuple[ModuleType, type]] = {
    "process": (processes, AbstractNoiseProcess),
    "noise_schedule": (noise_schedules, AbstractNoiseSchedule),
    "parameterization": (parameterizations, AbstractParameterization),
    "objective": (objectives, AbstractObjective),
}
"""Tables of a recipe that describe a piece: the package of its classes, and their base class."""
TRAINED_HERE = "train"
"""Value of `data.tokenizer` if a tokenizer is to be trained on the text."""
CHARACTERS = "characters"
"""Value of `data.tokenizer` if the tokens are to be the characters (the bytes) of the text."""


@final
@dataclass(frozen=True)
class DataSettings:
    """The text of the run.

    Attributes:
        corpus: A name that `hdlm.data.corpus` knows, or files, folders and globs, or a folder of `hdlm tokenize`.
        vocabulary: Size of the tokenizer to train, or the number of words that a given one must have; the largest
            number of `"characters"`.
        validation: Share of the text that is set aside for validation, if there is no `validation_corpus`.
        context: Number of tokens in a window.
        tokenizer: `"train"` for one trained on the text, `"characters"` for its characters (its bytes), or a source
            that `hdlm.data.find_tokenizer` accepts.
        validation_corpus: Text for validation, named as `corpus` is; empty for a share of the training text.
        key: Field that holds the text in JSON lines and Parquet.
        cache: Folder where long text is tokenised once, into memory-mapped shards; short text stays in memory.
        streaming: Whether text is read and tokenised each time it is trained on, and never stored.
        format: `"text"`, or `"messages"`: each line of JSON has a list of messages, and only the answers of the
            assistant are noised and have a loss.
        chat_template: File or folder with the chat template of messages; ChatML by default.
        fill: How windows with messages are filled: with samples that share a window and `"padding"`, or each sample up
            to the end of its window with the token that ends a document (`"end"`), which the model learns to write.
    """

    corpus: tuple[str, ...] = ("kjv",)
    vocabulary: int = 4096
    validation: float = 0.025
    context: int = 128
    tokenizer: str = TRAINED_HERE
    validation_corpus: tuple[str, ...] = ()
    key: str = "text"
    cache: str | None = field(default=None, metadata=MAY_CHANGE)
    streaming: bool = False
    format: Literal["text", "messages"] = "text"
    chat_template: str = ""
    fill: Fill = "padding"

    def __post_init__(self) -> None:
        for name in ("streaming", "cache"):
            wrong = self.format == "messages" and getattr(self, name)
            require(not wrong, f"data.{name}", "left out with data.format=messages", getattr(self, name))
        for name, default in (("chat_template", ""), ("fill", "padding")):
            value = getattr(self, name)
            if self.format == "text" and value != default:
                raise IdleOptionError(f"data.{name}", value, "only data.format=messages has it")
        for name in ("corpus", "validation_corpus"):
            require(all(getattr(self, name)), f"data.{name}", "names that are not empty", getattr(self, name))
        require(bool(self.corpus), "data.corpus", "at least one name", self.corpus)
        for name in ("tokenizer", "key", "cache"):
            require(getattr(self, name) != "", f"data.{name}", "a name that is not empty", "")
        require(self.vocabulary > 0, "data.vocabulary", "positive", self.vocabulary)
        require(0 < self.validation <= 0.5, "data.validation", "in (0, 0.5]", self.validation)
        require(self.context > 0, "data.context", "positive", self.context)


@final
@dataclass(frozen=True)
class NetworkSettings:
    """The network; its vocabulary and length follow from the data.

    Attributes:
        type: Class of the network, a name out of `hdlm.network`: `"DDiT"`, `"Decoder"` or, to train one further,
            `"DiffusionGemma"`.
        hidden_size: Width of a position.
        num_blocks: Number of transformer blocks.
        num_heads: Heads of attention.
        mlp_ratio: Hidden width of the feed-forward part, in units of `hidden_size`.
        decoder: Other options of a `Decoder`, fields of `hdlm.network.DecoderConfig`; by default the network of Llama.
            For a `DiffusionGemma`, its whole configuration, as `table`.
        dropout: Share of activations that are dropped in training.
        condition_blocks: Whether the noise modulates every block, if the parameterization gives it to the network.
        condition_output: Whether the noise modulates the final norm as well, as in MDLM, SEDD, BD3-LM, GIDD and Duo.
        cond_dim: Width of the embedding of the noise.
        context: Attention between settled positions; see `hdlm.attention`.
        active: Attention between active positions.
        separate_documents: Whether attention between documents in one window is masked.
        checkpoint_activations: What the backward pass recomputes to save memory: `"selective"` what is cheap compared
            with matrix products, in wide networks; `"full"` whole blocks, for a fifth more time; `"none"` nothing. It
            changes no number.
    """

    type: Literal["DDiT", "Decoder", "DiffusionGemma"] = "DDiT"
    hidden_size: int = 256
    num_blocks: int = 2
    num_heads: int = 4
    mlp_ratio: int = 4
    decoder: Mapping[str, Any] | None = None
    dropout: float = 0.0
    condition_blocks: bool = True
    condition_output: bool = False
    cond_dim: int = 128
    context: Context = "block_causal"
    active: Active = "full"
    separate_documents: bool = False
    checkpoint_activations: Recomputation = field(default="none", metadata=MAY_CHANGE)


@final
@dataclass(frozen=True)
class MixturePart:
    """One kind of noise on a batch.

    Attributes:
        hyperschedule: `type`, a class of `hdlm.hyperschedule`, and its fields except `length`, which is the context. A
            `Block` without `width` is one block over the whole context.
        share: Share of the optimizer steps, relative to the other parts.
        two_stream: Whether clean and noisy tokens are packed into one pass.
        continuous: Whether noise levels are drawn between the levels of the hyperschedule, or on them.
        batch_scale: Sequences in its batches, relative to `run.batch_size`: one canvas costs half of two streams.
        begins: Share of the run that is done when it begins to be trained, in [0, 1).
        ends: Share of the run that is done when it is trained no more, in (0, 1].
        opens: Share of the run in which its attention opens from causal to that of `[network]`, pair by pair; 0 for
            attention that is open from the first step on.
        time: Whether each block of two streams has a time of its own (`"block"`), or all blocks of a sequence have one
            (`"sequence"`).
        complementary: Whether each sequence is there twice, the second time with the other positions masked.
        border: In two streams, where shifted outputs read the first token of a block: at the `"settled"` position
            before it, as in generation, or at the `"noisy"` one.
        least_noise: The least noise fraction `e` of a noisy position: `e + (1 - e) u` takes the place of `u`.
    """

    hyperschedule: Mapping[str, Any]
    share: float = 1.0
    two_stream: bool = True
    continuous: bool = False
    batch_scale: int = 1
    begins: float = 0.0
    ends: float = 1.0
    opens: float = 0.0
    time: Literal["block", "sequence"] = "block"
    complementary: bool = False
    border: Literal["settled", "noisy"] = "settled"
    least_noise: float = 0.0

    def __post_init__(self) -> None:
        require(0 < self.share < math.inf, "mixture.share", "positive and finite", self.share)
        require(self.batch_scale > 0, "mixture.batch_scale", "positive", self.batch_scale)
        require(0 <= self.begins < 1, "mixture.begins", "in [0, 1)", self.begins)
        require(
            self.begins < self.ends <= 1,
            "mixture.ends",
            "after {} and at most 1",
            self.ends,
            "mixture.begins",
        )
        require(0 <= self.opens <= 1, "mixture.opens", "in [0, 1]", self.opens)
        require(0 <= self.least_noise < 1, "mixture.least_noise", "in [0, 1)", self.least_noise)
        for name, default in (("time", "block"), ("border", "settled")):
            if not self.two_stream and getattr(self, name) != default:
                raise IdleOptionError(
                    f"mixture.{name}", getattr(self, name), "set two_stream, or leave it out"
                )
        require(
            "type" in self.hyperschedule, "mixture.hyperschedule", "a table with a `type`", self.hyperschedule
        )
        require(
            "length" not in self.hyperschedule,
            "mixture.hyperschedule",
            "without `length`, which is data.context",
            self.hyperschedule,
        )

    def build(self, length: int) -> AbstractHyperschedule:
        """Build the hyperschedule.

        Args:
            length: Number of positions, which is the context.

        Raises:
            ValueError: If the type is unknown, or the hyperschedule does not fit the context.
        """
        kind = piece_class(hyperschedules, str(self.hyperschedule["type"]))
        sized = any(option.name == "length" for option in dataclasses.fields(kind))
        table = {**self.hyperschedule, "length": length} if sized else self.hyperschedule
        if kind is hyperschedules.Block:
            table = {"width": length, **table}
        made: AbstractHyperschedule = build(hyperschedules, table)
        expected = f"one for data.context={length} positions"
        require(
            made.length == length, "mixture.hyperschedule", expected, f"{kind.__name__} for {made.length}"
        )
        return made


@final
@dataclass(frozen=True)
class WarmStartSettings:
    """Next-token prediction at the beginning of the run.

    Attributes:
        share: Share of the run that it takes, in [0, 1).
        batch_scale: Sequences in its batches, relative to `run.batch_size`.
    """

    share: float = 0.0
    batch_scale: int = 2

    def __post_init__(self) -> None:
        require(0 <= self.share < 1, "warm_start.share", "in [0, 1)", self.share)
        require(self.batch_scale > 0, "warm_start.batch_scale", "positive", self.batch_scale)


@final
@dataclass(frozen=True)
class LoraSettings:
    """Low-rank adapters, which are trained in place of the weights; see `hdlm.training.lora`.

    Attributes:
        rank: Rank of the adapters; 0 for none, so that all weights are trained.
        alpha: Numerator of the scale of the adapters, `alpha / rank`.
        dropout: Share of the inputs of an adapter that are dropped in training.
        layers: Names of the layers of a block that get an adapter, such as `qkv`; empty for all.
        embeddings: Whether embedding and output layer are trained as well, so that a new mask can be learned.
    """

    rank: int = 0
    alpha: int = 16
    dropout: float = 0.0
    layers: tuple[str, ...] = ()
    embeddings: bool = False

    def __post_init__(self) -> None:
        require(self.rank >= 0, "lora.rank", "at least 0", self.rank)
        require(self.alpha > 0, "lora.alpha", "positive", self.alpha)
        require(0 <= self.dropout < 1, "lora.dropout", "in [0, 1)", self.dropout)
        for name, default in (("alpha", 16), ("dropout", 0.0), ("layers", ()), ("embeddings", False)):
            value = getattr(self, name)
            if not self.rank and value != default:
                raise IdleOptionError(f"lora.{name}", value, "set {}, or leave it out", "lora.rank")


@final
@dataclass(frozen=True)
class OptimizerSettings:
    """Optimizers, learning rates and the average of the weights.

    Attributes:
        name: `"muon"` trains the matrices of the blocks by Muon and the rest by AdamW; `"adamw"` all by AdamW.
        matrix_rate: Peak learning rate of the matrices of the blocks.
        embedding_rate: Peak learning rate of the embedding.
        head_rate: Peak learning rate of the output layer, norms and biases.
        weight_decay: Weight decay per step, relative to the learning rate; see `decay`.
        decay: Weights that decay: `"matrices"` without norms, biases and the embedding; `"all"`, as published.
        muon_scale: Scale of Muon's step: `"original"`, by the shape of the matrix; `"match_rms_adamw"`, so that rates
            and decays found for AdamW can be used.
        schedule: Learning rate after the warm-up: a line or a cosine to `floor`, or constant.
        warmup: Share of the run in which the rates rise to their peaks; a run may end before they get there.
        floor: Learning rate at the end of the schedule, relative to the peak.
        clip: Largest norm of the gradient.
        ema: Decay of the average of the weights.
        beta1: Decay of AdamW's average of gradients.
        beta2: Decay of AdamW's average of squared gradients.
        eps: Term that AdamW adds to the denominator.
    """

    name: OptimizerName = "muon"
    matrix_rate: float = 0.02
    embedding_rate: float = 0.005
    head_rate: float = 0.005
    weight_decay: float = 0.0
    decay: DecayName = "matrices"
    muon_scale: MuonScale = "original"
    schedule: ScheduleName = "linear"
    warmup: float = 0.02
    floor: float = 0.0
    clip: float = 1.0
    ema: float = 0.99
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8

    def __post_init__(self) -> None:
        for name in ("matrix_rate", "embedding_rate", "head_rate", "eps"):
            value = getattr(self, name)
            require(0 < value < math.inf, f"optimizer.{name}", "positive and finite", value)
        require(self.clip > 0, "optimizer.clip", "positive", self.clip)
        for name in ("floor", "ema", "beta1", "beta2"):
            require(0 <= getattr(self, name) < 1, f"optimizer.{name}", "in [0, 1)", getattr(self, name))
        require(0 <= self.warmup < math.inf, "optimizer.warmup", "at least 0", self.warmup)
        decay = self.weight_decay
        require(0 <= decay < math.inf, "optimizer.weight_decay", "at least 0 and finite", decay)

    def rate(self, progress: float) -> float:
        """Learning rate relative to its peak.

        Args:
            progress: Share of the run that is done, in [0, 1].
        """
        if progress < self.warmup:
            return progress / self.warmup
        if self.warmup >= 1:
            return 1.0
        done = (progress - self.warmup) / (1 - self.warmup)
        fall = {"linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2, "constant": 1.0}[
            self.schedule
        ]
        return self.floor + (1 - self.floor) * fall


@final
@dataclass(frozen=True)
class RunSettings:
    """Length of the run, batch size, precision and checkpoints.

    Attributes:
        steps: Number of optimizer steps after which the run ends, if it is limited by steps.
        minutes: Minutes after which the run ends, if it is limited by time. The learning rate follows the limit that is
            nearer, so a run that is limited by time is not repeatable to the bit.
        batch_size: Sequences in an optimizer step.
        accumulation: Passes that an optimizer step is split into.
        precision: `"bf16"` autocast, `"no"`, or `"auto"`: bf16 if it is faster.
        compile: Whether the network is compiled, if there is a compiler.
        save_every: Minutes between checkpoints; None for no such limit.
        save_steps: Optimizer steps between checkpoints; None for no such limit.
        keep: Number of the newest checkpoints that are kept to resume from, in addition to the one with the best bound
            on validation text.
        seed: Seed of all random numbers.
    """

    steps: int | None = None
    minutes: float | None = None
    batch_size: int = 8
    accumulation: int = field(default=1, metadata=MAY_CHANGE)
    precision: Precision = "auto"
    compile: bool = field(default=False, metadata=MAY_CHANGE)
    save_every: float | None = field(default=2.0, metadata=MAY_CHANGE)
    save_steps: int | None = field(default=None, metadata=MAY_CHANGE)
    keep: int = field(default=2, metadata=MAY_CHANGE)
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "minutes", "save_every", "save_steps"):
            value = getattr(self, name)
            require(value is None or value > 0, f"run.{name}", "positive", value)
        require(self.steps is not None or self.minutes is not None, "run.steps or run.minutes", "given", None)
        require(self.batch_size > 0, "run.batch_size", "positive", self.batch_size)
        require(self.keep > 0, "run.keep", "at least 1", self.keep)
        require(0 <= self.seed < 2**64, "run.seed", "in [0, 2^64)", self.seed)
        require(
            0 < self.accumulation <= self.batch_size and self.batch_size % self.accumulation == 0,
            "run.accumulation",
            f"a divisor of run.batch_size={self.batch_size}",
            self.accumulation,
        )

    def progress(self, step: int, seconds: float) -> float:
        """Share of the run that is done after some steps and seconds, 1 at its end."""
        by_steps = step / self.steps if self.steps else 0.0
        by_time = seconds / (60 * self.minutes) if self.minutes else 0.0
        return min(1.0, max(by_steps, by_time))


@final
@dataclass(frozen=True)
class WatchSettings:
    """Logging, validation and samples during a run; none of this changes a weight.

    Attributes:
        log_every: Optimizer steps that are averaged in a line of metrics.jsonl.
        validate_every: Steps between two bounds on validation text, if the run is validated.
        validation_windows: Windows of validation text that are measured, from the first on.
        replicates: Independent estimates of the bound; two or more give a standard error.
        sample_every: Steps between two sets of samples, if the run writes samples.
        samples: Number of samples in a set.
        batch_size: Windows or samples in a batch; it changes no number.
        judge: Causal model of `transformers` that gives samples a generative perplexity; empty for none.
        judge_batch_size: Samples in a batch of the judge; it changes no number.
        trackers: Trackers that get the metrics as well: tensorboard, wandb, trackio.
        project: Name of the project in the trackers.
    """

    log_every: int = field(default=10, metadata=MAY_CHANGE)
    validate_every: int | None = field(default=None, metadata=MAY_CHANGE)
    validation_windows: int = field(default=32, metadata=MAY_CHANGE)
    replicates: int = field(default=2, metadata=MAY_CHANGE)
    sample_every: int | None = field(default=None, metadata=MAY_CHANGE)
    samples: int = field(default=4, metadata=MAY_CHANGE)
    batch_size: int = field(default=16, metadata=MAY_CHANGE)
    judge: str = field(default="", metadata=MAY_CHANGE)
    judge_batch_size: int = field(default=16, metadata=MAY_CHANGE)
    trackers: tuple[str, ...] = field(default=(), metadata=MAY_CHANGE)
    project: str = field(default="hdlm", metadata=MAY_CHANGE)

    def __post_init__(self) -> None:
        sizes = ("validation_windows", "replicates", "samples", "batch_size", "judge_batch_size")
        for name in ("log_every", *sizes):
            require(getattr(self, name) > 0, f"watch.{name}", "positive", getattr(self, name))
        for name in ("validate_every", "sample_every"):
            value = getattr(self, name)
            require(value is None or value > 0, f"watch.{name}", "positive, or left out", value)
        unknown = sorted(set(self.trackers) - set(get_args(TrackerName)))
        require(not unknown, "watch.trackers", f"among {', '.join(get_args(TrackerName))}", unknown)
        require(bool(self.project), "watch.project", "a name", self.project)


@final
@dataclass(frozen=True)
class Recipe:
    """All choices of a run.

    Attributes:
        process: How tokens are noised: `type`, a class of `hdlm.process` or your own, and its fields except
            `num_words`, which follows from the tokenizer.
        noise_schedule: Noise as a function of time: `type`, a class of `hdlm.noise_schedule` or your own, and its
            fields.
        parameterization: Meaning of the network's outputs: `type`, a class of `hdlm.parameterization` or your own,
            and its fields.
        objective: The loss: `type`, a class of `hdlm.objective` or your own, and its fields.
    """

    data: DataSettings
    network: NetworkSettings
    mixture: tuple[MixturePart, ...]
    warm_start: WarmStartSettings
    optimizer: OptimizerSettings
    run: RunSettings
    watch: WatchSettings = WatchSettings()
    lora: LoraSettings = LoraSettings()
    process: Mapping[str, Any] = field(kw_only=True)
    noise_schedule: Mapping[str, Any] = field(default_factory=lambda: {"type": "Linear"}, kw_only=True)
    parameterization: Mapping[str, Any] = field(kw_only=True)
    objective: Mapping[str, Any] = field(kw_only=True)
    description: str = field(default="", kw_only=True)

    def __post_init__(self) -> None:
        require(bool(self.mixture), "mixture", "at least one part", self.mixture)
        # A piece may be written with or without its defaults; both are one recipe.
        for name in _PIECES:
            described = describe(self._piece(name))
            object.__setattr__(self, name, {key: described[key] for key in described if key != "num_words"})
        for option, acts, instead, *others in self._conditional():
            name, _, key = option.partition(".")
            settings = getattr(self, name)
            if not acts and (value := getattr(settings, key)) != getattr(type(settings), key):
                raise IdleOptionError(option, value, instead, *others)
        self.network_config(self.data.vocabulary + 1)
        for part in self.mixture:
            part.build(self.data.context)

    def _piece(self, name: str) -> Any:
        """Build one of `_PIECES`; errors begin with its name."""
        words = {"num_words": self.data.vocabulary} if name == "process" else {}
        package, kind = _PIECES[name]
        try:
            piece = build(package, {**getattr(self, name), **words})
        except ValueError as error:
            raise ValueError(f"[{name}]: {error}") from error
        require(
            isinstance(piece, kind), f"{name}.type", f"a subclass of {kind.__name__}", type(piece).__name__
        )
        return piece

    def build_process(self, num_words: int) -> AbstractNoiseProcess:
        """Build the noise process for a tokenizer of `num_words` words."""
        process: AbstractNoiseProcess = build(processes, {**self.process, "num_words": num_words})
        return process

    def build_noise_schedule(self) -> AbstractNoiseSchedule:
        """Build the noise schedule."""
        schedule: AbstractNoiseSchedule = build(noise_schedules, self.noise_schedule)
        return schedule

    def build_parameterization(self) -> AbstractParameterization:
        """Build the parameterization."""
        parameterization: AbstractParameterization = build(parameterizations, self.parameterization)
        return parameterization

    def build_objective(self) -> AbstractObjective:
        """Build the objective."""
        objective: AbstractObjective = build(objectives, self.objective)
        return objective

    def network_config(self, rows: int) -> DDiTConfig | DecoderConfig | DiffusionGemmaConfig:
        """The configuration of a network with `rows` rows: one for each word and, if there is one, for the mask."""
        shape, conditioned = self.network, self.is_conditioned
        if shape.type == "DiffusionGemma":
            return DiffusionGemmaConfig.from_dict(shape.decoder or {})
        if shape.type == "Decoder":
            sizes = {
                "vocab_size": rows,
                "hidden_size": shape.hidden_size,
                "num_blocks": shape.num_blocks,
                "num_heads": shape.num_heads,
                "num_kv_heads": shape.num_heads,
                "head_dim": shape.hidden_size // shape.num_heads,
                "intermediate_size": shape.mlp_ratio * shape.hidden_size,
                "max_length": self.data.context,
                "dropout": shape.dropout,
            }
            return read_table(DecoderConfig, sizes | dict(shape.decoder or {}), "network.decoder")
        return DDiTConfig(
            rows,
            **{name: getattr(shape, name) for name in _SHAPE},
            timestep_embedding=conditioned,
            condition_blocks=conditioned and shape.condition_blocks,
            condition_output=conditioned and shape.condition_output,
            max_length=self.data.context,
        )

    @property
    def is_conditioned(self) -> bool:
        """Whether the parameterization gives the network a number for the noise."""
        return self.build_parameterization().inputs(torch.tensor([0.5])).condition is not None

    def _conditional(self) -> Iterator[tuple[str, bool, str, *tuple[str, ...]]]:
        """Options that depend on others: name, whether it has an effect here, and what to do if not."""
        data, optimizer, watch = self.data, self.optimizer, self.watch
        validates, samples = watch.validate_every is not None, watch.sample_every is not None
        yield (
            "data.validation",
            not data.validation_corpus,
            "{} is measured with whole",
            "data.validation_corpus",
        )
        yield "data.cache", not data.streaming, "{} keeps nothing", "data.streaming"
        gemma = self.network.type == "DiffusionGemma"
        decoder = self.network.type == "Decoder"
        yield "network.decoder", decoder or gemma, "choose network.type=Decoder, or leave it out"
        for name in ("dropout", "mlp_ratio", "checkpoint_activations"):
            yield f"network.{name}", not gemma, "leave it out with network.type=DiffusionGemma"
        yield (
            "network.mlp_ratio",
            "intermediate_size" not in (self.network.decoder or {}),
            "{} says the width",
            "network.decoder",
        )
        for name in _CONDITIONING:
            instead = "choose a [parameterization] that gives the network the noise, or leave it out"
            yield f"network.{name}", self.is_conditioned, instead
        yield (
            "warm_start.batch_scale",
            self.warm_start.share > 0,
            "set {}, or leave it out",
            "warm_start.share",
        )
        yield (
            "optimizer.decay",
            optimizer.weight_decay > 0,
            "set {}, or leave it out",
            "optimizer.weight_decay",
        )
        yield "optimizer.muon_scale", optimizer.name == "muon", "only {} muon has it", "optimizer.name"
        yield "optimizer.floor", optimizer.schedule != "constant", "{} is constant", "optimizer.schedule"
        for name in ("validation_windows", "replicates"):
            yield f"watch.{name}", validates, "set {}, or leave it out", "watch.validate_every"
        for name in ("samples", "judge"):
            yield f"watch.{name}", samples, "set {}, or leave it out", "watch.sample_every"
        either = ("set {} or {}, or leave it out", "watch.validate_every", "watch.sample_every")
        yield "watch.batch_size", validates or samples, *either
        yield "watch.judge_batch_size", bool(watch.judge), "set {}, or leave it out", "watch.judge"
        yield "watch.project", bool(watch.trackers), "set {}, or leave it out", "watch.trackers"

    @classmethod
    def load(
        cls,
        path: Path,
        changes: Mapping[str, Mapping[str, Any]] | None = None,
        base: Mapping[str, Any] | None = None,
    ) -> Recipe:
        """Read a recipe file.

        Args:
            path: A TOML file.
            changes: Options to replace before anything is checked, by table: `{"run": {"seed": 1}}`.
            base: Options that hold if the file leaves them out; see `hdlm.training.finetuning.recipe_of`.

        Raises:
            ValueError: If the file is missing or not TOML, or an option is unknown, missing or out of range.
        """
        try:
            table = tomllib.loads(path.read_text(encoding="utf-8-sig"))
        except FileNotFoundError as error:
            raise ValueError(f"there is no recipe at {path}.") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not TOML: {error}.") from error
        table = with_options(base or {}, table)
        for name, options in (changes or {}).items():
            table[name] = {**table.get(name, {}), **options}
        import_own(table)
        return cls.from_table(table)

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> Recipe:
        """Build a recipe from plain values, in full or in the short form; see `load`."""
        return read_table(cls, in_full(table))

    @classmethod
    def recorded(cls, table: Mapping[str, Any]) -> Recipe:
        """The recipe of a run, read from its record.

        Earlier versions accepted options without effect, which are left out here, and knew full and no recomputation
        only.
        """
        network = table.get("network", {})
        if isinstance(earlier := network.get("checkpoint_activations"), bool):
            table = {**table, "network": {**network, "checkpoint_activations": "full" if earlier else "none"}}
        while True:
            try:
                return cls.from_table(table)
            except IdleOptionError as error:
                name, _, idle = error.option.partition(".")
                kept = {option: value for option, value in table[name].items() if option != idle}
                table = {**table, name: kept}

    def to_table(self) -> dict[str, Any]:
        """Plain values; the inverse of `from_table`."""
        return dataclasses.asdict(self)

    def identity(self) -> dict[str, Any]:
        """The options that the model depends on and that differ from their defaults, as plain values.

        Options that may change when a run is resumed are left out. A later version with more options gives an equal
        identity, as long as the recipe leaves them at their defaults. The values of defaults are not part of it, so it
        stays equal if a version changes one.
        """
        table = _changed(self)
        for name in _PIECES:
            described = describe(self._piece(name), defaults=False)
            table[name] = {key: described[key] for key in described if key != "num_words"}
        return {name: value for name, value in table.items() if name != "description"}


def _changed(settings: Any) -> dict[str, Any]:
    """The fields of a dataclass that differ from their defaults and may not change when a run is resumed."""
    table = {}
    for option in dataclasses.fields(settings):
        value = getattr(settings, option.name)
        if value == option.default or option.metadata.get("may_change"):
            continue
        if dataclasses.is_dataclass(value):
            value = _changed(value)
        elif isinstance(value, tuple) and any(map(dataclasses.is_dataclass, value)):
            value = [_changed(part) for part in value]
        if value != {}:
            table[option.name] = value
    return table


def with_options(table: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the table of a recipe with other options.

    Args:
        table: The table of the recipe.
        changes: The options by table. A table with a `type` describes a whole piece and replaces the other one.
    """
    changed = dict(table)
    for name, options in changes.items():
        earlier = changed.get(name)
        partial = isinstance(options, Mapping) and isinstance(earlier, Mapping) and "type" not in options
        changed[name] = {**earlier, **options} if partial and earlier is not None else options
    return changed


def import_own(table: object) -> None:
    """Import the modules of the user's own classes that a recipe names, `type = "mypackage.MyProcess"`.

    Importing a module runs its code, so this is only for recipes that the user has written.

    Raises:
        ValueError: If a module cannot be imported.
    """
    for value in table.values() if isinstance(table, Mapping) else table if isinstance(table, list) else ():
        import_own(value)
    kind = table.get("type") if isinstance(table, Mapping) else None
    module = kind.rpartition(".")[0] if isinstance(kind, str) else ""
    if not module or module in sys.modules:
        return
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"`type` is {kind!r}, but {module} cannot be imported: {error}.") from error
