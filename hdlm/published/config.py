"""The published configuration: what hydra composed becomes typed objects here, and a recipe for our own training.

Every option either acts, or is refused with the name of what to use instead. `ONLY` lists those that have one value
left; `Config.idle` those that mean nothing beside the other options: they may stand in a file, but not be asked for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, final

from hdlm.attention import Active, Context
from hdlm.data.corpora import NAMED
from hdlm.hub.cards.published import LOG_LINEAR_FLOOR
from hdlm.training.tables import key_of, read, require

__all__ = ["ONLY", "Config", "Family"]

Family = Literal["epsilon_hybrid", "gamma_hybrid"]

FLOOR = 4e-5 / 3e-4
"""Where the published cosine ends, relative to the peak it was published with."""

ONLY: Mapping[str, tuple[object, str]] = MappingProxyType(
    {
        "reset_step_for_finetuning": (True, "a run counts its own steps from 0"),
        "graph.report_all": (False, "metrics.jsonl in the run's folder has what is reported"),
        "graph.expanded_sigma": (
            True,
            "each position has its own noise; annealing.type=none gives all the same",
        ),
        "noise.expanded_sigma": (
            True,
            "each position has its own noise; annealing.type=none gives all the same",
        ),
        "noise.ar_diffusion": (False, "use annealing.type=block annealing.width=1 annealing.tau=1"),
        "sampling.steps_per_level": (1, "use annealing.eval_tau for more steps a position"),
        "annealing.steps_per_level": (1, "use annealing.eval_tau for more steps a position"),
        "sampling.noise_removal": (True, "finished text never holds a mask"),
        "sampling.strategy": ("direct", "use `hdlm sample --top-p` or `--temperature` on the checkpoint"),
        "annealing.match_inference": (
            True,
            "training sees what generation sees; annealing.type=none for all",
        ),
        "training.weight": ("standard", "use annealing.diffusion_loss_weight and annealing.ce_loss_weight"),
        "model.type": ("ddit", "use `hdlm train --recipe` for other networks"),
    }
)
"""Options with one value left, and what to use instead of the others."""


@final
@dataclass(frozen=True)
class TokenizerOptions:
    """`tokenizer.*`: `tokens` words, and where the tokenizer is found (`train`: made from the text)."""

    tokens: int
    model: str = "gpt2"


@final
@dataclass(frozen=True)
class TrainingOptions:
    """`training.*`: sizes and frequencies in optimizer steps; `lr` is finetuning's."""

    batch_size: int
    n_iters: int
    accum: int = 1
    snapshot_freq: int = 5000
    log_freq: int = 500
    eval_freq: int = 5000
    snapshot_freq_for_preemption: int = 5000
    snapshot_sampling: bool = True
    ema: float = 0.9999
    warmup_iter: int = 0
    weight: str | None = None
    loss_type: Literal["hybrid", "standard"] | None = None
    epsilon: float | None = None
    unmasked: float | None = field(default=None, metadata={"key": "lambda"})
    lr: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        frequencies = ("snapshot_freq", "log_freq", "eval_freq", "snapshot_freq_for_preemption")
        for name in ("batch_size", "n_iters", "accum", *frequencies):
            require(getattr(self, name) > 0, f"training.{name}", "positive", getattr(self, name))
        require(self.warmup_iter >= 0, "training.warmup_iter", "at least 0", self.warmup_iter)
        require(self.lr is None or self.lr > 0, "training.lr", "positive", self.lr)


@final
@dataclass(frozen=True)
class DataOptions:
    """`data.*`: names of data sets or places of text; `debug` takes the first thousand documents of each."""

    train: str
    valid: str
    cache_dir: str | None = None
    debug: bool = False


@final
@dataclass(frozen=True)
class GraphOptions:
    """`graph.*`: the process of the gamma family."""

    type: Literal["QGamma", "absorb", "uniform"] = "QGamma"
    gamma: float = 0.01
    report_all: bool = False
    expanded_sigma: bool = True

    @property
    def rate(self) -> float:
        """Share of the uniform rate: absorption and uniform noise are the ends of the family."""
        return {"QGamma": self.gamma, "absorb": 0.0, "uniform": 1.0}[self.type]


@final
@dataclass(frozen=True)
class NoiseOptions:
    """`noise.*`: how fast noise comes in the gamma family."""

    type: Literal["loglinear", "geometric"] = "loglinear"
    sigma_min: float = 1e-4
    sigma_max: float = 10.0
    ar_diffusion: bool = False
    expanded_sigma: bool = True

    @property
    def schedule(self) -> dict[str, Any]:
        """The same for a recipe."""
        if self.type == "loglinear":
            return {"type": "LogLinear", "floor": LOG_LINEAR_FLOOR}
        return {"type": "Geometric", "sigma_min": self.sigma_min, "sigma_max": self.sigma_max}


@final
@dataclass(frozen=True)
class SamplingOptions:
    """`sampling.*`: how snapshots of the gamma family are written."""

    predictor: Literal["analytic", "euler"] = "analytic"
    steps_per_level: int = 1
    noise_removal: bool = True
    strategy: str = "direct"
    strategy_param: float = 0.9


@final
@dataclass(frozen=True)
class AttentionOptions:
    """`annealing.attention.*`: what settled and active positions see of one another."""

    context_type: Context = "block_causal"
    block_type: Active = "full"


@final
@dataclass(frozen=True)
class AnnealingOptions:
    """`annealing.*`: when each position is noisy."""

    type: Literal["block", "simple", "hybrid", "none"]
    width: int
    tau: int
    eval_tau: int | None = None
    efficient: bool = False
    steps_per_level: int | None = None
    sampling_method: Literal["AR", "NAR", "SAR"] = "SAR"
    sampling_eps: float = 1e-4
    attention: AttentionOptions = field(default_factory=AttentionOptions)
    match_inference: bool = True
    diffusion_loss_weight: float | None = None
    ce_loss_weight: float | None = None

    def __post_init__(self) -> None:
        require(
            self.sampling_method != "AR",
            "annealing.sampling_method",
            "NAR or SAR; autoregression is SAR with annealing.type=block annealing.width=1 annealing.tau=1",
            self.sampling_method,
        )
        require(0 < self.sampling_eps < 0.5, "annealing.sampling_eps", "in (0, 0.5)", self.sampling_eps)
        require(
            not self.efficient or self.type in ("block", "none") or self.is_slide,
            "annealing.efficient",
            "false unless annealing.type is block, or simple with annealing.tau = annealing.width",
            self.efficient,
        )

    @property
    def is_slide(self) -> bool:
        """Whether the published `simple` is a countdown, of which two streams can be made."""
        return self.type == "simple" and self.tau == self.width

    def hyperschedule(self, tau: int) -> dict[str, Any]:
        """For a recipe, at some number of levels."""
        if self.type == "none":
            return {"type": "Block", "width": None, "num_levels": tau}
        family = {"block": "Block", "simple": "PublishedSlide", "hybrid": "PublishedWave"}[self.type]
        name = "Slide" if self.type == "simple" and tau == self.width else family
        return {"type": name, "width": self.width, "num_levels": tau}


@final
@dataclass(frozen=True)
class EvalOptions:
    """`eval.*`: sequences in a pass of validation, and generative perplexity of the snapshots' samples."""

    batch_size: int = 16
    perplexity: bool = True
    perplexity_batch_size: int = 16


@final
@dataclass(frozen=True)
class OptimOptions:
    """`optim.*`: AdamW, and how its rate rises and falls."""

    lr: float
    optimizer: Literal["AdamW", "Adam"] = "AdamW"
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.0
    warmup: int = 0
    grad_clip: float = 1.0
    scheduler: Literal["cosine", "lambda", "linear"] = "cosine"

    def __post_init__(self) -> None:
        require(
            self.grad_clip > 0, "optim.grad_clip", "positive (a large number clips nothing)", self.grad_clip
        )
        require(
            self.optimizer == "AdamW" or self.weight_decay == 0,
            "optim.weight_decay",
            "0 with optim.optimizer=Adam; use AdamW",
            self.weight_decay,
        )


@final
@dataclass(frozen=True)
class ExperimentOptions:
    """`experiment.*`: names of the run's folders."""

    name: str
    wandb_project: str


@final
@dataclass(frozen=True)
class ModelOptions:
    """`model.*`: the network; None is what the checkpoint has, in finetuning."""

    name: Literal["epsilon_hdlm", "gamma_hdlm"] | None = None
    type: str = "ddit"
    hidden_size: int | None = None
    cond_dim: int | None = None
    length: int | None = None
    n_blocks: int | None = None
    n_heads: int | None = None
    dropout: float = 0.1
    scale_by_sigma: bool | None = None
    transformer_sigma_conditioning: bool | None = None
    hybrid_sigma_embedding: bool | None = None
    post_process_logits: bool | None = None
    use_timestep_embedding: bool | None = None


@final
@dataclass(frozen=True)
class Config:
    """Everything that a published configuration says; the attributes are its sections.

    Attributes:
        ngpus: Processes that are expected; None for as many as there are.
        type: Whether outputs speak of their own position or of the next one.
        hf_model_id: What to finetune; None in training from nothing.
    """

    model_type: Family
    tokenizer: TokenizerOptions
    training: TrainingOptions
    data: DataOptions
    annealing: AnnealingOptions
    optim: OptimOptions
    experiment: ExperimentOptions
    model: ModelOptions
    eval: EvalOptions = field(default_factory=EvalOptions)
    graph: GraphOptions | None = None
    noise: NoiseOptions | None = None
    sampling: SamplingOptions | None = None
    ngpus: int | None = None
    gradient_accumulation_steps: int = 1
    type: Literal["aligned", "shifted"] = "aligned"
    reset_step_for_finetuning: bool = True
    hf_model_id: str | None = None

    @classmethod
    def read(cls, table: Mapping[str, Any], asked: Iterable[str] = ()) -> Config:
        """Read what hydra composed, with interpolations resolved.

        Args:
            table: Nested plain values.
            asked: Dotted options that were given by hand; those that would not act are refused.

        Raises:
            ValueError: If an option is unknown, missing, out of range, or would not act; it is named, and what to use.
        """
        config = read(cls, table)
        given = dict(_flat(table))
        for option, (value, instead) in ONLY.items():
            if given.get(option) not in (None, value):
                raise ValueError(f"`{option}` can only be {value!r} here, got {given[option]!r}: {instead}.")
        idle = config.idle
        for option in asked:
            if option in idle:
                raise ValueError(f"`{option}` would not act here: {idle[option]}.")
        return config

    def __post_init__(self) -> None:
        epsilon = self.model_type == "epsilon_hybrid"
        foreign = {
            "graph": self.graph,
            "noise": self.noise,
            "sampling": self.sampling,
            "annealing.diffusion_loss_weight": self.annealing.diffusion_loss_weight,
            "annealing.ce_loss_weight": self.annealing.ce_loss_weight,
            "training.weight": self.training.weight,
        }
        if not epsilon:
            names = ("loss_type", "epsilon", "unmasked")
            fields = {option.name: key_of(option) for option in dataclasses.fields(TrainingOptions)}
            foreign = {f"training.{fields[name]}": getattr(self.training, name) for name in names}
        for option, value in foreign.items():
            instead = "gamma_hybrid" if epsilon else "epsilon_hybrid"
            require(
                value is None, option, f"left out with model_type={self.model_type}; {instead} has it", value
            )
        require(
            self.training.accum == self.gradient_accumulation_steps,
            "training.accum",
            f"gradient_accumulation_steps, {self.gradient_accumulation_steps}",
            self.training.accum,
        )

    @property
    def is_gamma(self) -> bool:
        """Whether this is a gamma-hybrid."""
        return self.model_type == "gamma_hybrid"

    @property
    def idle(self) -> dict[str, str]:
        """Options that mean nothing beside the others, and why."""
        found = {"model.post_process_logits": "`smart_model_loader` reads it; samplers here never need it"}
        if self.optim.scheduler == "lambda":
            found["training.warmup_iter"] = "with optim.scheduler=lambda use optim.warmup"
        else:
            found["optim.warmup"] = f"with optim.scheduler={self.optim.scheduler} use training.warmup_iter"
        if self.hf_model_id is not None:
            found["optim.lr"] = "in finetuning use training.lr"
        else:
            found["training.lr"] = "use optim.lr; training.lr is hdlm/finetune.py's"
        if self.annealing.type == "none":
            found["annealing.width"] = "annealing.type=none has one block as wide as model.length"
        if self.training.loss_type == "standard":
            for option in ("training.epsilon", "training.lambda"):
                found[option] = "with training.loss_type=standard there are no wrong words; use hybrid"
        if not self.training.snapshot_sampling:
            for option in ("eval.perplexity", "eval.perplexity_batch_size", "annealing.sampling_method"):
                found[option] = "it is about snapshots' samples: use training.snapshot_sampling=true"
        return found | self._idle_of_gamma()

    def _idle_of_gamma(self) -> dict[str, str]:
        if not self.is_gamma:
            return {}
        found = {"sampling.strategy_param": "use `hdlm sample --top-p` on the checkpoint"}
        if (self.noise or NoiseOptions()).type == "loglinear":
            for option in ("noise.sigma_min", "noise.sigma_max"):
                found[option] = "use noise.type=geometric"
        if (self.graph or GraphOptions()).type != "QGamma":
            found["graph.gamma"] = "use graph.type=QGamma"
        return found

    def recipe(self, precision: str = "auto") -> dict[str, Any]:
        """The same as the table of a `hdlm.training.Recipe`.

        Args:
            precision: What networks compute in, which published configurations leave to `accelerate`.

        Raises:
            ValueError: If the network is not described in full.
        """
        training, optim, annealing = self.training, self.optim, self.annealing
        length = self._shape("length")
        schedule = annealing.hyperschedule(annealing.tau)
        if annealing.type == "none":
            schedule["width"] = length
        warmup = optim.warmup if optim.scheduler == "lambda" else training.warmup_iter
        rate = training.lr if self.hf_model_id is not None and training.lr is not None else optim.lr
        return {
            "data": {
                "corpus": (self._named(self.data.train, "train"),),
                "validation_corpus": (self._named(self.data.valid, "validation"),),
                "vocabulary": self.tokenizer.tokens,
                "tokenizer": self.tokenizer.model,
                "context": length,
            },
            "network": self._network(),
            "process": self._process(),
            "objective": self._objective(),
            "mixture": [
                {
                    "hyperschedule": schedule,
                    "two_stream": annealing.efficient and annealing.type != "none",
                    "continuous": True,
                }
            ],
            "optimizer": {
                "name": "adamw",
                **dict.fromkeys(("matrix_rate", "embedding_rate", "head_rate"), rate),
                "weight_decay": optim.weight_decay,
                "schedule": {"lambda": "constant"}.get(optim.scheduler, optim.scheduler),
                "floor": FLOOR if optim.scheduler == "cosine" else 0.0,
                "warmup": warmup / training.n_iters,
                "clip": optim.grad_clip,
                "ema": training.ema,
                **{name: getattr(optim, name) for name in ("beta1", "beta2", "eps")},
            },
            "run": {
                "steps": training.n_iters,
                "batch_size": training.batch_size,
                "accumulation": training.accum,
                "precision": precision,
                "seed": training.seed,
            },
        }

    def found(self, num_words: int) -> dict[str, Any]:
        """Options and what they came to, for whoever reads the configuration of a finished run.

        Args:
            num_words: Words of the tokenizer that was found or made.
        """
        shape = {f"model.{name}": value for name, value in dataclasses.asdict(self.model).items()}
        if self.graph is None:
            return {"tokenizer.tokens": num_words, **shape}
        return {
            "tokenizer.tokens": num_words,
            "graph.type": "QGamma",
            "graph.gamma": self.graph.rate,
            **shape,
        }

    def _shape(self, option: str) -> Any:
        value = getattr(self.model, option)
        if value is None:
            raise ValueError(
                f"`model.{option}` must be given; only hdlm/finetune.py takes it from a checkpoint."
            )
        return value

    def _network(self) -> dict[str, Any]:
        switches = ("transformer_sigma_conditioning", "use_timestep_embedding")
        for option in (*switches, "hybrid_sigma_embedding", "scale_by_sigma"):
            required = self.is_gamma if option in switches else None if self.is_gamma else False
            if required is not None and self._shape(option) is not required:
                raise ValueError(
                    f"`model.{option}` can only be {str(required).lower()} with model_type={self.model_type}: "
                    f"gamma-hybrids are told the noise, epsilon-hybrids are not; got {self._shape(option)}."
                )
        return {
            "hidden_size": self._shape("hidden_size"),
            "num_blocks": self._shape("n_blocks"),
            "num_heads": self._shape("n_heads"),
            "cond_dim": self._shape("cond_dim"),
            "dropout": self.model.dropout,
            "shifted": self.type == "shifted",
            "told_noise": self.is_gamma,
            "blend": self._shape("hybrid_sigma_embedding"),
            "scale_by_sigma": self._shape("scale_by_sigma") if self.is_gamma else True,
            "context": self.annealing.attention.context_type,
            "active": self.annealing.attention.block_type,
        }

    def _process(self) -> dict[str, Any]:
        if self.is_gamma:
            graph, noise = self.graph or GraphOptions(), self.noise or NoiseOptions()
            return {"type": "GammaHybrid", "gamma": graph.rate, "noise_schedule": noise.schedule}
        given = self.training.epsilon
        return {"type": "EpsilonHybrid", "epsilon": 0.0 if self.training.loss_type == "standard" else given}

    def _objective(self) -> dict[str, Any]:
        cap, annealing = 1 / self.annealing.sampling_eps, self.annealing
        if self.is_gamma:
            return {
                "type": "ScoreEntropy",
                "max_weight": cap,
                "diffusion": _or(annealing.diffusion_loss_weight, 1.0),
                "cross_entropy": _or(annealing.ce_loss_weight, 0.0),
            }
        unmasked = 0.0 if self.training.loss_type == "standard" else _or(self.training.unmasked, 1.0)
        return {"type": "WeightedCrossEntropy", "max_weight": cap, "unmasked": unmasked}

    @staticmethod
    def _named(name: str, part: str) -> str:
        return f"{name}:{part}" if name in NAMED else name

    def of_checkpoint(self, shape: Mapping[str, Any]) -> Config:
        """The same with what `model` leaves out taken from a checkpoint.

        Args:
            shape: Options of `model`, and `tokens`, as the checkpoint has them.

        Raises:
            ValueError: If an option that weights depend on is given otherwise.
        """
        free = {"dropout", "length", "name", "type"}
        options = {}
        for option, value in shape.items():
            given = getattr(self.model, option)
            if given is not None and option not in free and given != value:
                raise ValueError(f"`model.{option}` is {given}, but the checkpoint to finetune has {value}.")
            options[option] = value if given is None else given
        return dataclasses.replace(self, model=dataclasses.replace(self.model, **options))


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Every option of a nested table by its dotted name."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
