"""The sections of a published configuration, as typed objects that refuse values out of range.

None stands for an omitted option. Conditions that a recipe checks are not checked here: `Config.recipe` converts its
errors to the published names.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, final

from hdlm.attention import Active, Context
from hdlm.checkpoint import describe
from hdlm.published_names import (
    DEFAULTS,
    AnnealingName,
    GraphName,
    NoiseName,
    gamma_of,
    hyperschedule_class,
    noise_schedule,
)
from hdlm.strict_config import require

__all__ = [
    "AnnealingOptions",
    "AttentionOptions",
    "DataOptions",
    "EvalOptions",
    "ExperimentOptions",
    "GraphOptions",
    "ModelOptions",
    "NoiseOptions",
    "OptimOptions",
    "SamplingOptions",
    "TokenizerOptions",
    "TrainingOptions",
]


@final
@dataclass(frozen=True)
class TokenizerOptions:
    """`tokenizer.*`: the number of words, and the source of the tokenizer (`train`: it is trained on the text)."""

    tokens: int
    model: str = "gpt2"


@final
@dataclass(frozen=True)
class TrainingOptions:
    """`training.*`: sizes, and frequencies in optimizer steps; `lr` is for finetuning; hdlm adds `seed`, `resume`."""

    batch_size: int
    n_iters: int
    accum: int | None = None
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
    resume: bool = False

    def __post_init__(self) -> None:
        frequencies = ("snapshot_freq", "log_freq", "eval_freq", "snapshot_freq_for_preemption")
        for name in ("batch_size", "n_iters", *frequencies):
            require(getattr(self, name) > 0, f"training.{name}", "positive", getattr(self, name))
        require(self.warmup_iter >= 0, "training.warmup_iter", "at least 0", self.warmup_iter)


@final
@dataclass(frozen=True)
class DataOptions:
    """`data.*`: names of data sets or paths of text; `debug` takes the first thousand documents of each."""

    train: str
    valid: str
    cache_dir: str | None = None
    debug: bool = False


@final
@dataclass(frozen=True)
class GraphOptions:
    """`graph.*`: the process of the gamma family."""

    type: GraphName = DEFAULTS["graph.type"]
    gamma: float = DEFAULTS["graph.gamma"]
    report_all: bool = False
    expanded_sigma: bool = True

    @property
    def rate(self) -> float:
        """Share of the uniform rate: absorption and uniform noise are the two ends of the family."""
        return gamma_of(self.type, self.gamma)


@final
@dataclass(frozen=True)
class NoiseOptions:
    """`noise.*`: how fast noise grows in the gamma family."""

    type: NoiseName = DEFAULTS["noise.type"]
    sigma_min: float = DEFAULTS["noise.sigma_min"]
    sigma_max: float = DEFAULTS["noise.sigma_max"]
    ar_diffusion: bool = False
    expanded_sigma: bool = True

    def __post_init__(self) -> None:
        ends = self.sigma_min, self.sigma_max
        require(
            0 < self.sigma_min < self.sigma_max, "noise.sigma_min", "below noise.sigma_max, above 0", ends
        )

    @property
    def schedule(self) -> dict[str, Any]:
        """The noise schedule as a table of a recipe."""
        return describe(noise_schedule(self.type, self.sigma_min, self.sigma_max))


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
    """`annealing.attention.*`: the attention of settled and active positions."""

    context_type: Context = DEFAULTS["annealing.attention.context_type"]
    block_type: Active = DEFAULTS["annealing.attention.block_type"]


@final
@dataclass(frozen=True)
class AnnealingOptions:
    """`annealing.*`: when each position is noisy."""

    type: AnnealingName
    width: int
    tau: int
    eval_tau: int | None = None
    efficient: bool = False
    steps_per_level: int | None = None
    sampling_method: Literal["AR", "NAR", "SAR"] = "SAR"
    sampling_eps: float = DEFAULTS["annealing.sampling_eps"]
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
        for name in ("width", "tau", "eval_tau"):
            value = getattr(self, name)
            require(value is None or value > 0, f"annealing.{name}", "positive", value)

    def hyperschedule(self, tau: int) -> dict[str, Any]:
        """The hyperschedule as a table of a recipe, with this number of levels."""
        name = hyperschedule_class(self.type, self.width, tau).__name__
        return {"type": name, "width": None if self.type == "none" else self.width, "num_levels": tau}


@final
@dataclass(frozen=True)
class EvalOptions:
    """`eval.*`: sequences per validation pass, and the generative perplexity of the snapshots' samples."""

    batch_size: int = 16
    perplexity: bool = True
    perplexity_batch_size: int = 16

    def __post_init__(self) -> None:
        for name in ("batch_size", "perplexity_batch_size"):
            require(getattr(self, name) > 0, f"eval.{name}", "positive", getattr(self, name))


@final
@dataclass(frozen=True)
class OptimOptions:
    """`optim.*`: the optimizer, and how its learning rate rises and falls.

    Muon is an addition of hdlm. It updates the matrices of the blocks, scaled so that AdamW's learning rate and weight
    decay suit it; AdamW updates the other weights.
    """

    lr: float
    optimizer: Literal["AdamW", "Adam", "Muon"] = "AdamW"
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.0
    warmup: int = 0
    grad_clip: float = 1.0
    scheduler: Literal["cosine", "lambda", "linear"] = "cosine"

    def __post_init__(self) -> None:
        require(self.warmup >= 0, "optim.warmup", "at least 0", self.warmup)
        require(
            self.optimizer != "Adam" or self.weight_decay == 0,
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

    def __post_init__(self) -> None:
        for name in ("name", "wandb_project"):
            require(bool(getattr(self, name)), f"experiment.{name}", "a name", getattr(self, name))


@final
@dataclass(frozen=True)
class ModelOptions:
    """`model.*`: the network; in finetuning, None stands for the value of the checkpoint."""

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
