"""The published configuration: turns hydra's composed configuration into typed objects, and into a recipe of hdlm.

Every option either has an effect, or is refused with the name of its replacement. `ONLY` lists options that support a
single value. `Config.idle` lists options without effect given the other options: a file may contain them, but the
command line refuses them. Recipe options that have no published name are set as `recipe.TABLE.OPTION`. `GOVERNED` maps
recipe options to the published options that set them; error messages use the published names.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import attrgetter
from types import MappingProxyType
from typing import Any, final

from hdlm.data.corpora import NAMED
from hdlm.data.shards import Shards
from hdlm.evaluation.generation.judges import USUAL_JUDGE
from hdlm.published.options import (
    AnnealingOptions,
    DataOptions,
    EvalOptions,
    ExperimentOptions,
    GraphOptions,
    ModelOptions,
    NoiseOptions,
    OptimOptions,
    SamplingOptions,
    TokenizerOptions,
    TrainingOptions,
)
from hdlm.published_names import DEFAULTS, AlignmentName, Family, dotted
from hdlm.strict_config import OptionError, key_of, options_of, read_table, require
from hdlm.training import Recipe
from hdlm.training.short_form import SHORT_OPTIONS

__all__ = ["GOVERNED", "ONLY", "Config", "refuse"]

FLOOR = 4e-5 / 3e-4
"""Learning rate at the end of the published cosine, relative to its peak."""

ONLY: Mapping[str, tuple[object, str]] = MappingProxyType(
    {
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
"""Options that support a single value, and the replacement for other values."""

COPIED: Mapping[str, str] = MappingProxyType(
    {
        "data.vocabulary": "tokenizer.tokens",
        "data.tokenizer": "tokenizer.model",
        "network.dropout": "model.dropout",
        "network.context": "annealing.attention.context_type",
        "network.active": "annealing.attention.block_type",
        "optimizer.weight_decay": "optim.weight_decay",
        "optimizer.clip": "optim.grad_clip",
        "optimizer.ema": "training.ema",
        "optimizer.beta1": "optim.beta1",
        "optimizer.beta2": "optim.beta2",
        "optimizer.eps": "optim.eps",
        "run.steps": "training.n_iters",
        "run.batch_size": "training.batch_size",
        "run.accumulation": "gradient_accumulation_steps",
        "run.seed": "training.seed",
        "run.save_steps": "training.snapshot_freq_for_preemption",
        "watch.log_every": "training.log_freq",
        "watch.validate_every": "training.eval_freq",
        "watch.batch_size": "eval.batch_size",
    }
)
"""Recipe options whose value is that of one published option."""

GOVERNED: Mapping[str, str] = MappingProxyType(
    {
        **COPIED,
        "data.corpus": "data.train",
        "data.validation_corpus": "data.valid",
        "data.validation": "data.valid",
        "data.context": "model.length",
        "data.cache": "data.cache_dir",
        "network.hidden_size": "model.hidden_size",
        "network.num_blocks": "model.n_blocks",
        "network.num_heads": "model.n_heads",
        "network.cond_dim": "model.cond_dim",
        "network.shifted": "type",
        "network.told_noise": "model.use_timestep_embedding",
        "network.blend": "model.hybrid_sigma_embedding",
        "network.scale_by_sigma": "model.scale_by_sigma",
        "process.type": "model_type",
        "process.epsilon": "training.epsilon",
        "process.gamma": "graph.gamma",
        "process.noise_schedule": "noise.type",
        "noise_schedule": "noise.type",
        "parameterization": "type",
        "objective.type": "model_type",
        "objective.unmasked": "training.lambda",
        "objective.max_weight": "annealing.sampling_eps",
        "objective.diffusion": "annealing.diffusion_loss_weight",
        "objective.cross_entropy": "annealing.ce_loss_weight",
        "optimizer.name": "optim.optimizer",
        "optimizer.schedule": "optim.scheduler",
        "mixture": "annealing",
        "watch.sample_every": "training.snapshot_freq",
        "watch.judge": "eval.perplexity",
        "watch.judge_batch_size": "eval.perplexity_batch_size",
        "watch.project": "experiment.wandb_project",
    }
)
"""Recipe options, and the published options that set them."""


@final
@dataclass(frozen=True)
class Config:
    """A complete published configuration; the attributes are its sections.

    Attributes:
        ngpus: Expected number of processes; None for any number.
        type: Whether outputs predict their own position or the next one.
        hf_model_id: The checkpoint to finetune; None for training from scratch.
        beyond: Recipe options without a published name, by table: `{"run": {"compile": True}}`.
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
    type: AlignmentName = DEFAULTS["type"]
    reset_step_for_finetuning: bool = True
    hf_model_id: str | None = None
    beyond: Mapping[str, Any] = field(default_factory=dict, metadata={"key": "recipe"})

    @classmethod
    def options(cls) -> tuple[str, ...]:
        """Dotted names of all options; `read` refuses a recipe option under its own name if it has a published name."""
        return (*options_of(cls), *(f"recipe.{option}" for option in (*options_of(Recipe), *SHORT_OPTIONS)))

    @classmethod
    def read(cls, table: Mapping[str, Any], asked: Iterable[str] = ()) -> Config:
        """Read hydra's composed configuration, with interpolations resolved.

        Args:
            table: Nested plain values.
            asked: Dotted options of the command line; those without effect are refused.

        Raises:
            ValueError: If an option is unknown, missing, out of range, or without effect. The message names a
                replacement.
        """
        config = read_table(cls, table)
        given = dict(dotted(table))
        for option, (value, instead) in ONLY.items():
            if given.get(option) not in (None, value):
                raise ValueError(f"`{option}` can only be {value!r} here, got {given[option]!r}: {instead}.")
        refuse(config.idle, asked)
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
            self.training.accum in (None, self.gradient_accumulation_steps),
            "training.accum",
            f"left out, or gradient_accumulation_steps, {self.gradient_accumulation_steps}",
            self.training.accum,
        )
        require(self.ngpus is None or self.ngpus > 0, "ngpus", "positive or null", self.ngpus)
        own = "gamma_hdlm" if self.is_gamma else "epsilon_hdlm"
        require(
            self.model.name in (None, own),
            "model.name",
            f"{own} with model_type={self.model_type}",
            self.model.name,
        )
        for option in self._beyond:
            published = _governor(option)
            if published is not None:
                raise ValueError(f"`recipe.{option}` has a published name: use `{published}`.")

    @property
    def _beyond(self) -> list[str]:
        """Dotted names of the recipe options that are set without a published name."""
        tables = self.beyond.items()
        return [
            f"{name}.{option}" if option else name
            for name, options in tables
            for option in (options if isinstance(options, Mapping) else ("",))
        ]

    def _beyond_of(self, table: str, option: str) -> object:
        """The value of a recipe option that is set without a published name; None if it is not set."""
        options = self.beyond.get(table)
        return options.get(option) if isinstance(options, Mapping) else None

    @property
    def _keeps_nothing(self) -> bool:
        """Whether text is not tokenised into the cache."""
        return bool(self._beyond_of("data", "streaming")) or Shards.are_in(self.data.train)

    @property
    def is_gamma(self) -> bool:
        """Whether this is a gamma-hybrid."""
        return self.model_type == "gamma_hybrid"

    @property
    def idle(self) -> dict[str, str]:
        """Options without effect given the other options, and the reasons."""
        ineffective = {
            "model.post_process_logits": "`smart_model_loader` reads it; samplers here never need it"
        }
        if self.optim.scheduler == "lambda":
            ineffective["training.warmup_iter"] = "with optim.scheduler=lambda use optim.warmup"
        else:
            ineffective["optim.warmup"] = (
                f"with optim.scheduler={self.optim.scheduler} use training.warmup_iter"
            )
        if self.hf_model_id is None:
            ineffective["training.lr"] = "use optim.lr; training.lr is hdlm/finetune.py's"
            ineffective["reset_step_for_finetuning"] = "it is hdlm/finetune.py's"
        elif self.training.lr is not None:
            ineffective["optim.lr"] = "in finetuning use training.lr"
        if self.annealing.type == "none":
            ineffective["annealing.width"] = "annealing.type=none has one block as wide as model.length"
            if self.annealing.efficient:
                ineffective["annealing.efficient"] = (
                    "with annealing.type=none one canvas teaches every position"
                )
        if self.training.loss_type == "standard":
            for option in ("training.epsilon", "training.lambda"):
                ineffective[option] = "with training.loss_type=standard there are no wrong words; use hybrid"
        if self.model.use_timestep_embedding is False:
            ineffective["model.cond_dim"] = "the network is told no noise; gamma_hybrid is"
        if self._keeps_nothing and not {self.data.train, self.data.valid} & set(NAMED):
            ineffective["data.cache_dir"] = (
                "nothing is fetched, and text that is streamed or in shards needs no cache"
            )
        return ineffective | self._idle_of_samples() | self._idle_of_gamma()

    def _idle_of_samples(self) -> dict[str, str]:
        judged = ("eval.perplexity_batch_size",)
        if not self.training.snapshot_sampling:
            of_gamma = ("sampling.predictor",) if self.is_gamma else ()
            written = (
                "eval.perplexity",
                *judged,
                "annealing.sampling_method",
                "recipe.watch.samples",
                *of_gamma,
            )
            return dict.fromkeys(
                written, "it is about snapshots' samples: use training.snapshot_sampling=true"
            )
        if not self.eval.perplexity:
            return dict.fromkeys(judged, "no perplexity of samples is measured: use eval.perplexity=true")
        return {}

    def _idle_of_gamma(self) -> dict[str, str]:
        if not self.is_gamma:
            return {}
        ineffective = {"sampling.strategy_param": "use `hdlm sample --top-p` on the checkpoint"}
        if (self.noise or NoiseOptions()).type == "loglinear":
            for option in ("noise.sigma_min", "noise.sigma_max"):
                ineffective[option] = "use noise.type=geometric"
        if self.annealing.diffusion_loss_weight == 0:
            ineffective["annealing.sampling_eps"] = (
                "it is of the score entropy: use annealing.diffusion_loss_weight"
            )
        if (self.graph or GraphOptions()).type != "QGamma":
            ineffective["graph.gamma"] = "use graph.type=QGamma"
        return ineffective

    def recipe(self, precision: str = "auto") -> Recipe:
        """The recipe for hdlm's training.

        Args:
            precision: Precision of the networks, which published configurations leave to `accelerate`.

        Raises:
            ValueError: If the network is not fully described, or an option is out of range.
        """
        table = self._table(precision)
        for name, options in self.beyond.items():
            table[name] = {**table.get(name, {}), **options} if isinstance(options, Mapping) else options
        with self.in_published_words():
            return Recipe.from_table(table)

    def _table(self, precision: str) -> dict[str, Any]:
        """The recipe as a plain table, without the options of `beyond`."""
        training, annealing = self.training, self.annealing
        table: dict[str, dict[str, Any]] = defaultdict(dict)
        for option, published in COPIED.items():
            name, _, own = option.partition(".")
            table[name][own] = attrgetter(published)(self)
        length, judged = self._shape("length"), self.eval.perplexity and training.snapshot_sampling
        schedule = annealing.hyperschedule(annealing.tau)
        if annealing.type == "none":
            schedule["width"] = length
        return {
            "data": {
                **table["data"],
                "corpus": (self._named(self.data.train, "train"),),
                "validation_corpus": self._validation(),
                "context": length,
                "cache": None if self._keeps_nothing else self.data.cache_dir,
            },
            "network": {**table["network"], **self._network()},
            "process": self._process(),
            "objective": self._objective(),
            "mixture": [
                {
                    "hyperschedule": schedule,
                    "two_stream": annealing.efficient and annealing.type != "none",
                    "continuous": True,
                }
            ],
            "optimizer": {**table["optimizer"], **self._optimizer()},
            "run": {**table["run"], "save_every": None, "precision": precision},
            "watch": {
                **table["watch"],
                "sample_every": training.snapshot_freq if training.snapshot_sampling else None,
                "judge": USUAL_JUDGE if judged else "",
                **({"judge_batch_size": self.eval.perplexity_batch_size} if judged else {}),
                **(
                    {"project": self.experiment.wandb_project} if self._beyond_of("watch", "trackers") else {}
                ),
            },
        }

    def _optimizer(self) -> dict[str, Any]:
        training, optim = self.training, self.optim
        finetunes = self.hf_model_id is not None and training.lr is not None
        warmup = optim.warmup if optim.scheduler == "lambda" else training.warmup_iter
        return {
            "name": "muon" if optim.optimizer == "Muon" else "adamw",
            **dict.fromkeys(
                ("matrix_rate", "embedding_rate", "head_rate"), training.lr if finetunes else optim.lr
            ),
            **({"muon_scale": "match_rms_adamw"} if optim.optimizer == "Muon" else {}),
            "schedule": "constant" if optim.scheduler == "lambda" else optim.scheduler,
            "floor": FLOOR if optim.scheduler == "cosine" else 0.0,
            "warmup": warmup / training.n_iters,
        }

    @contextmanager
    def in_published_words(self) -> Iterator[None]:
        """Replace option names in errors of recipes and networks by the published names.

        Raises:
            OptionError: The error with the published name.
        """
        try:
            yield
        except OptionError as error:
            raise error.renamed(self._published) from error

    def _published(self, option: str) -> str:
        """The published name of an option of a recipe, network or hyperschedule; otherwise its name in the recipe."""
        if option in _RATES:
            return (
                "training.lr" if self.hf_model_id is not None and self.training.lr is not None else "optim.lr"
            )
        if option in _ALONE or option in GOVERNED:
            return _ALONE.get(option) or GOVERNED[option]
        is_ours = option.partition(".")[0] in {table.name for table in dataclasses.fields(Recipe)}
        return f"recipe.{option}" if is_ours else option

    def found(self, num_words: int) -> dict[str, Any]:
        """Options and their final values, for readers of the configuration of a finished run.

        Args:
            num_words: Number of words of the tokenizer.
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
                    f"the networks of gamma-hybrids are conditioned on the noise, those of epsilon-hybrids are "
                    f"not; got {self._shape(option)}."
                )
        return {
            "hidden_size": self._shape("hidden_size"),
            "num_blocks": self._shape("n_blocks"),
            "num_heads": self._shape("n_heads"),
            **({"cond_dim": self._shape("cond_dim")} if self.is_gamma else {}),
            "shifted": self.type == "shifted",
            "told_noise": self.is_gamma,
            "blend": self._shape("hybrid_sigma_embedding"),
            "scale_by_sigma": self._shape("scale_by_sigma") if self.is_gamma else True,
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
            diffusion = _or(annealing.diffusion_loss_weight, 1.0)
            return {
                "type": "ScoreEntropy",
                **({"max_weight": cap} if diffusion else {}),
                "diffusion": diffusion,
                "cross_entropy": _or(annealing.ce_loss_weight, 0.0),
            }
        unmasked = 0.0 if self.training.loss_type == "standard" else _or(self.training.unmasked, 1.0)
        return {"type": "WeightedCrossEntropy", "max_weight": cap, "unmasked": unmasked}

    def _validation(self) -> tuple[str, ...]:
        """Validation text; empty if it is the training text, of which a part is then set aside."""
        train, valid = self.data.train, self.data.valid
        return () if valid == train and valid not in NAMED else (self._named(valid, "validation"),)

    @staticmethod
    def _named(name: str, part: str) -> str:
        return f"{name}:{part}" if name in NAMED else name

    def of_checkpoint(self, shape: Mapping[str, Any]) -> Config:
        """A copy in which a checkpoint supplies the options that `model` leaves out.

        Args:
            shape: Options of `model` in the checkpoint.

        Raises:
            ValueError: If an option that weights depend on differs from the checkpoint.
        """
        free = {"dropout", "length", "name", "type"}
        options = {}
        for option, value in shape.items():
            given = getattr(self.model, option)
            if given is not None and option not in free and given != value:
                raise ValueError(f"`model.{option}` is {given}, but {value} in the checkpoint to finetune.")
            options[option] = value if given is None else given
        return dataclasses.replace(self, model=dataclasses.replace(self.model, **options))


def refuse(idle: Mapping[str, str], asked: Iterable[str]) -> None:
    """Refuse command-line options without effect.

    Args:
        idle: Dotted options without effect, and the reasons.
        asked: Dotted options of the command line.

    Raises:
        ValueError: If an option of the command line has no effect.
    """
    for option in asked:
        if option in idle:
            raise ValueError(f"`{option}` has no effect here: {idle[option]}.")


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


_RATES = tuple(f"optimizer.{group}_rate" for group in ("matrix", "embedding", "head"))
_NETWORK = ("hidden_size", "num_blocks", "num_heads", "cond_dim", "dropout")
_ALONE = {name: GOVERNED[f"network.{name}"] for name in _NETWORK}
_ALONE |= {"width": "annealing.width", "num_levels": "annealing.tau"}
"""Options of networks and hyperschedules, which belong to no table, and the published options that set them."""


def _governor(option: str) -> str | None:
    """The published option that sets a recipe option, if any."""
    return GOVERNED.get(option, GOVERNED.get(option.partition(".")[0]))
