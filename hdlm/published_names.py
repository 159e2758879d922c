"""The words of published configurations and the pieces that they name, in both directions, with one set of defaults.

| option | words | pieces |
|---|---|---|
| `graph.type` | `QGamma`, `absorb`, `uniform` | `GammaHybrid`, `Absorbing`, `Uniform` |
| `noise.type` | `loglinear`, `geometric` | `LogLinear(LOG_LINEAR_FLOOR)`, `Geometric` |
| `annealing.type` | `block`, `simple`, `hybrid`, `none` | `Block`, `PublishedSlide`, `PublishedWave`, one `Block` |
| `type` | `aligned`, `shifted` | a parameterization, `Shifted` around it |

`simple` with as many levels as positions in its window is `Slide`: both have the same levels at every step, and a
`Slide` packs into two streams as the published code does.

`DEFAULTS` has the values of the published configurations that a user does not set. They are for training and export. A
number that the weights of a trained model depend on (`graph.gamma`, `noise.sigma_max`) has no default when such a model
is read: the published code fails there, and a guess would be another model.

Reference: Unifying Autoregressive and Diffusion-Based Sequence Generation (arXiv 2504.06416).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args

from hdlm.hyperschedule import AbstractHyperschedule, Block, PublishedSlide, PublishedWave, Slide
from hdlm.hyperschedule.base import Windowed
from hdlm.noise_schedule import AbstractNoiseSchedule, Geometric, LogLinear
from hdlm.parameterization import AbstractParameterization, Shifted
from hdlm.process import Absorbing, AbstractNoiseProcess, GammaHybrid, Uniform
from hdlm.strict_config import require

__all__ = [
    "DEFAULTS",
    "LOG_LINEAR_FLOOR",
    "AlignmentName",
    "AnnealingName",
    "Family",
    "GraphName",
    "NoiseName",
    "alignment_of",
    "annealing_of",
    "dotted",
    "family_defaults",
    "gamma_of",
    "graph_of",
    "hyperschedule",
    "hyperschedule_class",
    "noise_of",
    "noise_process",
    "noise_schedule",
    "parameterization",
]

Family = Literal["epsilon_hybrid", "gamma_hybrid"]
"""Values of `model_type`."""
GraphName = Literal["QGamma", "absorb", "uniform"]
NoiseName = Literal["loglinear", "geometric"]
AnnealingName = Literal["block", "simple", "hybrid", "none"]
AlignmentName = Literal["aligned", "shifted"]

LOG_LINEAR_FLOOR = 5e-3
"""Weight of the data at the end of `noise.type: loglinear`; published configurations do not have this option."""

_GRAPHS: Mapping[str, Any] = {"QGamma": GammaHybrid, "absorb": Absorbing, "uniform": Uniform}
_WINDOWS: Mapping[str, type[Windowed]] = {
    "block": Block,
    "simple": PublishedSlide,
    "hybrid": PublishedWave,
    "none": Block,
}
_SHARED: Mapping[str, Any] = {
    "ngpus": 1,
    "gradient_accumulation_steps": 1,
    "training": {
        "batch_size": 512,
        "accum": 1,
        "n_iters": 1_000_000,
        "log_freq": 500,
        "eval_freq": 5000,
        "snapshot_freq_for_preemption": 5000,
        "snapshot_sampling": True,
        "ema": 0.9999,
        "warmup_iter": 50_000,
    },
    "data": {
        "train": "openwebtext-train",
        "valid": "wikitext103",
        "cache_dir": "~/cache_data",
        "debug": False,
    },
    "annealing": {
        "efficient": False,
        "sampling_method": "SAR",
        "sampling_eps": 1e-4,
        "attention": {"context_type": "block_causal", "block_type": "full"},
        "match_inference": True,
    },
    "eval": {"batch_size": 4, "perplexity": True, "perplexity_batch_size": 16},
    "optim": {
        "optimizer": "AdamW",
        "lr": 3e-4,
        "beta1": 0.9,
        "eps": 1e-8,
        "warmup": 10_000,
        "grad_clip": 1.0,
    },
    "model": {"type": "ddit"},
}
_OF_FAMILY: Mapping[Family, Mapping[str, Any]] = {
    "epsilon_hybrid": {
        "model_type": "epsilon_hybrid",
        "reset_step_for_finetuning": True,
        "type": "aligned",
        "training": {"snapshot_freq": 5000, "loss_type": "hybrid", "epsilon": 0.01, "lambda": 1.0},
        "optim": {"weight_decay": 0.1, "beta2": 0.95, "scheduler": "cosine"},
        "experiment": {"name": "epsilon-hdlm-1", "wandb_project": "hdlm-experiments"},
        "model": {
            "name": "epsilon_hdlm",
            "scale_by_sigma": False,
            "hybrid_sigma_embedding": False,
            "post_process_logits": False,
        },
    },
    "gamma_hybrid": {
        "model_type": "gamma_hybrid",
        "training": {"snapshot_freq": 10_000, "weight": "standard"},
        "graph": {"type": "QGamma", "gamma": 0.01, "report_all": False, "expanded_sigma": True},
        "noise": {
            "type": "loglinear",
            "sigma_min": 1e-4,
            "sigma_max": 10.0,
            "ar_diffusion": False,
            "expanded_sigma": True,
        },
        "sampling": {
            "predictor": "analytic",
            "steps_per_level": 1,
            "noise_removal": True,
            "strategy": "direct",
            "strategy_param": 0.9,
        },
        "annealing": {"steps_per_level": 1, "diffusion_loss_weight": 1.0, "ce_loss_weight": 1.0},
        "optim": {"weight_decay": 0.0, "beta2": 0.999, "scheduler": "lambda"},
        "experiment": {"name": "gamma-hdlm-1", "wandb_project": "hdlm-experiments"},
        "model": {"name": "gamma_hdlm", "post_process_logits": True},
    },
}
"""Options of each family, in addition to those that both share."""


def family_defaults(family: Family, *changes: Mapping[str, Any]) -> dict[str, Any]:
    """A published configuration of a family, without the options of one model: sizes, tokenizer and hyperschedule.

    Args:
        family: The value of `model_type`.
        changes: Nested tables with other values; later ones win.
    """
    return _merged(_SHARED, _OF_FAMILY[family], *changes)


def dotted(table: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Every option of a nested table by its dotted name."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from dotted(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def _merged(*tables: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of nested tables, merged; later ones win."""
    merged: dict[str, Any] = {}
    for table in tables:
        for name, value in table.items():
            both = isinstance(value, Mapping) and isinstance(merged.get(name), Mapping)
            merged[name] = _merged(merged[name], value) if both else copy.deepcopy(value)
    return merged


_DOTTED = [dict(dotted(family_defaults(family))) for family in _OF_FAMILY]
DEFAULTS: Mapping[str, Any] = {
    option: value
    for table in _DOTTED
    for option, value in table.items()
    if all(other.get(option, value) == value for other in _DOTTED)
}
"""Published defaults by dotted option, without those in which the two families differ."""


def _known(option: str, word: str, words: Any) -> None:
    require(word in get_args(words), option, f"one of {', '.join(get_args(words))}", word)


def noise_process(graph: str, num_words: int, gamma: float = 0.0) -> AbstractNoiseProcess:
    """The process of a `graph.type`.

    Args:
        graph: Value of `graph.type`.
        num_words: Number of words.
        gamma: Value of `graph.gamma`, which only QGamma uses.

    Raises:
        ValueError: If the value is unknown, or gamma is out of range.
    """
    _known("graph.type", graph, GraphName)
    process: AbstractNoiseProcess = _GRAPHS[graph](num_words, *([gamma] if graph == "QGamma" else []))
    return process


def graph_of(process: AbstractNoiseProcess) -> str | None:
    """The `graph.type` of a process, or None."""
    return next((word for word, kind in _GRAPHS.items() if isinstance(process, kind)), None)


def gamma_of(graph: str, gamma: float) -> float:
    """The gamma with which a gamma-hybrid is the process of a graph: absorbing and uniform noise are its two ends.

    Training uses it. Published networks for uniform noise have no row for the mask; networks trained here have one, as
    every gamma-hybrid has.

    Args:
        graph: Value of `graph.type`.
        gamma: Value of `graph.gamma`.
    """
    return {"QGamma": gamma, "absorb": 0.0, "uniform": 1.0}[graph]


def noise_schedule(
    noise: str, sigma_min: float = math.nan, sigma_max: float = math.nan
) -> AbstractNoiseSchedule:
    """The noise schedule of a `noise.type`.

    Args:
        noise: Value of `noise.type`.
        sigma_min: Value of `noise.sigma_min`, which only geometric uses.
        sigma_max: Value of `noise.sigma_max`, which only geometric uses.

    Raises:
        ValueError: If the value is unknown, or the ends are out of range.
    """
    _known("noise.type", noise, NoiseName)
    return Geometric(sigma_min, sigma_max) if noise == "geometric" else LogLinear(LOG_LINEAR_FLOOR)


def noise_of(schedule: AbstractNoiseSchedule) -> dict[str, Any] | None:
    """The `noise` options of a noise schedule, or None."""
    if isinstance(schedule, Geometric):
        return {"type": "geometric", "sigma_min": schedule.sigma_min, "sigma_max": schedule.sigma_max}
    return {"type": "loglinear"} if schedule == LogLinear(LOG_LINEAR_FLOOR) else None


def hyperschedule_class(annealing: str, width: int, levels: int) -> type[Windowed]:
    """The class of the hyperschedule of an `annealing.type`.

    Args:
        annealing: Value of `annealing.type`.
        width: Positions of a window.
        levels: Number of levels.

    Raises:
        ValueError: If the value is unknown.
    """
    _known("annealing.type", annealing, AnnealingName)
    return Slide if annealing == "simple" and width == levels else _WINDOWS[annealing]


def hyperschedule(
    annealing: str, length: int, width: int | None = None, levels: int | None = None
) -> AbstractHyperschedule:
    """The hyperschedule of an `annealing.type`.

    Args:
        annealing: Value of `annealing.type`.
        length: Number of positions.
        width: Value of `annealing.width`; `none` has one window over all positions instead.
        levels: Value of `annealing.tau` or `annealing.eval_tau`; by default the width.

    Raises:
        ValueError: If the value is unknown, or the sizes do not fit.
    """
    width = length if annealing == "none" or width is None else width
    levels = width if levels is None else levels
    return hyperschedule_class(annealing, width, levels)(length, width, levels)


def annealing_of(schedule: AbstractHyperschedule, length: int) -> dict[str, Any] | None:
    """`type`, `width` and `tau` of `annealing` for a hyperschedule, or None.

    Args:
        schedule: Hyperschedule to be named.
        length: Number of positions of the network, all of which it must cover.
    """
    if not isinstance(schedule, Windowed) or schedule.length != length:
        return None
    width, levels = schedule.width, schedule.num_levels
    names: dict[type, str] = {kind: word for word, kind in _WINDOWS.items() if word != "none"}
    word = names.get(type(schedule), "simple" if isinstance(schedule, Slide) and width == levels else None)
    word = "none" if word == "block" and width == length else word
    return None if word is None else {"type": word, "width": width, "tau": levels}


def parameterization(alignment: str, aligned: AbstractParameterization) -> AbstractParameterization:
    """The parameterization of a `type`.

    Args:
        alignment: Value of `type`: whether outputs describe their own position or the next one.
        aligned: The meaning of the outputs at that position.

    Raises:
        ValueError: If the value is unknown.
    """
    _known("type", alignment, AlignmentName)
    return Shifted(aligned) if alignment == "shifted" else aligned


def alignment_of(outputs: AbstractParameterization) -> tuple[str, AbstractParameterization]:
    """The `type` of a parameterization, and the meaning of the outputs at their position."""
    return "shifted" if outputs.lookback else "aligned", outputs.aligned
