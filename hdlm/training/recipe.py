"""A recipe: every choice of a training run, in one file that can be read, compared and committed.

Recipes are TOML; each table is one of the frozen classes below, so a misspelt or impossible option is an error that
names it. The mixture is what makes a model hybrid: each optimizer step trains one of its parts, in proportion to their
shares.

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
import difflib
import math
import tomllib
from collections import abc
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, final, get_args, get_origin, get_type_hints

__all__ = [
    "DataSettings",
    "MixturePart",
    "NetworkSettings",
    "ObjectiveSettings",
    "OptimizerSettings",
    "ProcessSettings",
    "Recipe",
    "RunSettings",
    "WarmStartSettings",
]

T = TypeVar("T")
OptimizerName = Literal["muon", "adamw"]
ScheduleName = Literal["linear", "cosine", "constant"]
Precision = Literal["auto", "bf16", "no"]


def _require(condition: bool, option: str, expected: str, got: object) -> None:
    if not condition:
        raise ValueError(f"`{option}` must be {expected}; got {got!r}.")


@final
@dataclass(frozen=True)
class DataSettings:
    """The text.

    Attributes:
        corpus: A name out of `hdlm.data.CORPORA`, or files, folders and globs.
        vocabulary: Size of the tokenizer to train.
        validation: Share of the text that is kept from training.
        context: Tokens in a window.
    """

    corpus: tuple[str, ...] = ("kjv",)
    vocabulary: int = 4096
    validation: float = 0.025
    context: int = 128

    def __post_init__(self) -> None:
        _require(bool(self.corpus), "data.corpus", "at least one name", self.corpus)
        _require(self.vocabulary > 0, "data.vocabulary", "positive", self.vocabulary)
        _require(0 < self.validation <= 0.5, "data.validation", "in (0, 0.5]", self.validation)
        _require(self.context > 0, "data.context", "positive", self.context)


@final
@dataclass(frozen=True)
class NetworkSettings:
    """The DDiT; its vocabulary and length follow from the data.

    Attributes:
        hidden_size: Width of a position.
        num_blocks: Depth.
        num_heads: Heads of attention.
        dropout: Share of activations that training drops.
        shifted: Whether the output at a position speaks of the next one, as in next-token prediction: then nothing has
            to be unlearnt after a warm start.
    """

    hidden_size: int = 256
    num_blocks: int = 2
    num_heads: int = 4
    dropout: float = 0.0
    shifted: bool = False


@final
@dataclass(frozen=True)
class ProcessSettings:
    """The epsilon-hybrid noise process.

    Attributes:
        epsilon: Share of wrong words among the visible ones.
    """

    epsilon: float = 0.01

    def __post_init__(self) -> None:
        _require(0 <= self.epsilon < 1, "process.epsilon", "in [0, 1)", self.epsilon)


@final
@dataclass(frozen=True)
class ObjectiveSettings:
    """The paper's weighted cross-entropy.

    Attributes:
        unmasked: The paper's lambda.
        max_weight: Cap on the weights `1 / p` and `1 / (1 - p)`.
    """

    unmasked: float = 0.1
    max_weight: float = math.inf


@final
@dataclass(frozen=True)
class MixturePart:
    """One way to noise a batch.

    Attributes:
        hyperschedule: `type`, a name out of `hdlm.hyperschedule`, and its fields but for `length`, the context.
        share: Part of the optimizer steps, relative to the other parts.
        two_stream: Whether clean and noisy tokens are packed into one pass.
        continuous: Whether noise falls anywhere between the levels, or on them.
        batch_scale: Sequences in its batches, relative to `run.batch_size`: one canvas costs half of two streams.
    """

    hyperschedule: Mapping[str, Any]
    share: float = 1.0
    two_stream: bool = True
    continuous: bool = False
    batch_scale: int = 1

    def __post_init__(self) -> None:
        _require(self.share > 0, "mixture.share", "positive", self.share)
        _require(self.batch_scale > 0, "mixture.batch_scale", "positive", self.batch_scale)
        _require(
            "type" in self.hyperschedule, "mixture.hyperschedule", "a table with a `type`", self.hyperschedule
        )
        _require(
            "length" not in self.hyperschedule,
            "mixture.hyperschedule",
            "without `length`, which is data.context",
            self.hyperschedule,
        )


@final
@dataclass(frozen=True)
class WarmStartSettings:
    """Next-token prediction before any noise.

    Attributes:
        share: Part of the run that it takes, in [0, 1).
        batch_scale: Sequences in its batches, relative to `run.batch_size`.
    """

    share: float = 0.0
    batch_scale: int = 2

    def __post_init__(self) -> None:
        _require(0 <= self.share < 1, "warm_start.share", "in [0, 1)", self.share)
        _require(self.batch_scale > 0, "warm_start.batch_scale", "positive", self.batch_scale)


@final
@dataclass(frozen=True)
class OptimizerSettings:
    """How weights move.

    Attributes:
        name: `"muon"` trains the matrices of the blocks by Muon and the rest by AdamW; `"adamw"` all by AdamW.
        matrix_rate: Peak learning rate of the matrices of the blocks.
        embedding_rate: Peak learning rate of the embedding.
        head_rate: Peak learning rate of the output layer, norms and biases.
        weight_decay: Of matrices; norms, biases and embeddings have none.
        schedule: What follows the warm-up: a line or a cosine to `floor`, or nothing.
        warmup: Share of the run in which the rates rise to their peaks.
        floor: Where the schedule ends, relative to the peak.
        clip: Largest norm of the gradient.
        ema: Decay of the average of the weights.
    """

    name: OptimizerName = "muon"
    matrix_rate: float = 0.02
    embedding_rate: float = 0.005
    head_rate: float = 0.005
    weight_decay: float = 0.0
    schedule: ScheduleName = "linear"
    warmup: float = 0.02
    floor: float = 0.0
    clip: float = 1.0
    ema: float = 0.99

    def __post_init__(self) -> None:
        for name in ("matrix_rate", "embedding_rate", "head_rate", "clip"):
            _require(getattr(self, name) > 0, f"optimizer.{name}", "positive", getattr(self, name))
        for name in ("warmup", "floor", "ema"):
            _require(0 <= getattr(self, name) < 1, f"optimizer.{name}", "in [0, 1)", getattr(self, name))
        _require(self.weight_decay >= 0, "optimizer.weight_decay", "at least 0", self.weight_decay)

    def rate(self, progress: float) -> float:
        """Learning rate relative to its peak.

        Args:
            progress: Share of the run that is done, in [0, 1].
        """
        if progress < self.warmup:
            return progress / self.warmup
        done = (progress - self.warmup) / (1 - self.warmup)
        fall = {"linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2, "constant": 1.0}[
            self.schedule
        ]
        return self.floor + (1 - self.floor) * fall


@final
@dataclass(frozen=True)
class RunSettings:
    """How long, how much at a time, and how.

    Attributes:
        steps: Optimizer steps after which the run ends; None for no limit.
        minutes: Minutes after which the run ends; None for no limit. The learning rate follows whichever limit
            is nearer, so a run limited by time is not repeatable to the bit.
        batch_size: Sequences in an optimizer step.
        accumulation: Passes that an optimizer step is split into.
        precision: `"bf16"` autocast, `"no"`, or `"auto"`: bf16 where it is the faster one.
        compile: Whether the network is compiled, where there is a compiler.
        save_every: Minutes between checkpoints.
        seed: Seed of everything.
    """

    steps: int | None = None
    minutes: float | None = None
    batch_size: int = 8
    accumulation: int = 1
    precision: Precision = "auto"
    compile: bool = False
    save_every: float = 2.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "minutes"):
            value = getattr(self, name)
            _require(value is None or value > 0, f"run.{name}", "positive", value)
        _require(
            self.steps is not None or self.minutes is not None, "run.steps or run.minutes", "given", None
        )
        _require(self.save_every > 0, "run.save_every", "positive", self.save_every)
        _require(0 <= self.seed < 2**64, "run.seed", "in [0, 2^64)", self.seed)
        _require(
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
class Recipe:
    """All of a run."""

    data: DataSettings
    network: NetworkSettings
    process: ProcessSettings
    objective: ObjectiveSettings
    mixture: tuple[MixturePart, ...]
    warm_start: WarmStartSettings
    optimizer: OptimizerSettings
    run: RunSettings
    description: str = field(default="", kw_only=True)

    def __post_init__(self) -> None:
        _require(bool(self.mixture), "mixture", "at least one part", self.mixture)

    @classmethod
    def load(cls, path: Path, changes: Mapping[str, Mapping[str, Any]] | None = None) -> Recipe:
        """Read a recipe file.

        Args:
            path: A TOML file.
            changes: Options to replace before anything is checked, by table: `{"run": {"seed": 1}}`.

        Raises:
            ValueError: If the file is missing or no TOML, or an option is unknown, missing or out of range.
        """
        try:
            table = tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise ValueError(f"there is no recipe at {path}.") from error
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"{path} is no TOML: {error}.") from error
        for name, options in (changes or {}).items():
            table[name] = {**table.get(name, {}), **options}
        return cls.from_table(table)

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> Recipe:
        """Build a recipe from plain values; see `load`."""
        _check_keys(cls, table, "")
        parts = table.get("mixture", [])
        _require(isinstance(parts, list | tuple), "mixture", "a list of tables, [[mixture]]", parts)
        return cls(
            data=_build(DataSettings, table, "data"),
            network=_build(NetworkSettings, table, "network"),
            process=_build(ProcessSettings, table, "process"),
            objective=_build(ObjectiveSettings, table, "objective"),
            mixture=tuple(_build(MixturePart, {"mixture": part}, "mixture") for part in parts),
            warm_start=_build(WarmStartSettings, table, "warm_start"),
            optimizer=_build(OptimizerSettings, table, "optimizer"),
            run=_build(RunSettings, table, "run"),
            description=str(table.get("description", "")),
        )

    def to_table(self) -> dict[str, Any]:
        """Plain values; the inverse of `from_table`."""
        return dataclasses.asdict(self)


def _build(cls: type[T], tables: Mapping[str, Any], name: str) -> T:
    """One settings class from its table; what is left out has its default."""
    table = tables.get(name, {})
    _require(isinstance(table, Mapping), name, f"a table, [{name}]", table)
    _check_keys(cls, table, f"{name}.")
    hints = get_type_hints(cls)
    required = {option.name for option in dataclasses.fields(cls) if _is_required(option)}  # type: ignore[arg-type]
    for option in sorted(required - table.keys()):
        raise ValueError(f"`{name}.{option}` must be given.")
    return cls(
        **{option: _convert(value, hints[option], f"{name}.{option}") for option, value in table.items()}
    )


def _is_required(option: dataclasses.Field[Any]) -> bool:
    return option.default is dataclasses.MISSING and option.default_factory is dataclasses.MISSING


def _convert(value: Any, hint: Any, option: str) -> Any:
    """A value of TOML as the type that an option is declared to have.

    Raises:
        ValueError: If it is of another type.
    """
    kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    if value is None and NoneType in kinds:
        return None
    kind = next(kind for kind in kinds if kind is not NoneType)
    if get_origin(kind) is tuple:
        items = [value] if isinstance(value, str) else value
        _require(
            isinstance(items, list | tuple) and all(isinstance(item, str) for item in items),
            option,
            "names",
            value,
        )
        return tuple(items)
    if kind is float and type(value) is int:
        return float(value)
    if get_origin(kind) is Literal:
        _require(value in get_args(kind), option, f"one of {', '.join(get_args(kind))}", value)
        return value
    plain = Mapping if get_origin(kind) is abc.Mapping else kind
    _require(
        isinstance(value, plain) and (plain is bool or not isinstance(value, bool)),
        option,
        plain.__name__,
        value,
    )
    return value


def _check_keys(cls: type, table: Mapping[str, Any], prefix: str) -> None:
    known = [option.name for option in dataclasses.fields(cls)]
    for key in table:
        if key not in known:
            nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
            raise ValueError(f"unknown option `{prefix}{key}`; did you mean `{prefix}{nearest}`?")
