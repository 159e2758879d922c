"""The short form of a recipe: options of the published families in place of the pieces that they describe.

In full, a recipe has one table for each piece, as `hdlm.checkpoint.build` reads it:

    [process]             type = "EpsilonHybrid", epsilon = 0.01
    [noise_schedule]      type = "Linear"
    [parameterization]    type = "Shifted", inner = { type = "Mean" }
    [objective]           type = "WeightedCrossEntropy", unmasked = 0.1

The short form leaves `[parameterization]` and `[noise_schedule]` out. `OutputOptions` are then part of `[network]`,
`noise_schedule` is part of `[process]`, and `ObjectiveOptions` are the options of the objective. Recipes of earlier
versions, what their runs recorded, and published configurations are in the short form; `in_full` converts them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, final

from hdlm.objective import ScoreEntropy
from hdlm.objective.score_entropy import Ratios
from hdlm.strict_config import IdleOptionError, options_of, read_table, require

__all__ = ["SHORT_OPTIONS", "ObjectiveOptions", "OutputOptions", "ProcessOptions", "in_full"]

Formula = Literal["paper", "published_code"]


@final
@dataclass(frozen=True)
class OutputOptions:
    """Options of `[network]` that describe its outputs.

    Attributes:
        shifted: Whether the output at a position predicts the next token; see `Shifted`.
        told_noise: Whether the network gets the total noise of each position, as gamma-hybrids do.
        blend: Whether the embedding of the mask is blended into all others as noise rises; gamma-hybrids only.
        scale_by_sigma: Whether log scores are relative to those of the absorbing process; see `LogScore`.
    """

    shifted: bool = False
    told_noise: bool = False
    blend: bool = False
    scale_by_sigma: bool = True

    def piece(self, process: Mapping[str, Any], *, scores: bool) -> dict[str, Any]:
        """The parameterization in full.

        Args:
            process: The table of the process.
            scores: Whether the objective is the score entropy, which trains log scores.
        """
        gamma = process["type"] == "GammaHybrid"
        require(
            not self.blend or (scores and gamma),
            "network.blend",
            "false, except for a GammaHybrid with objective.type=ScoreEntropy",
            self.blend,
        )
        require(
            self.told_noise or not scores,
            "network.told_noise",
            "true with objective.type=ScoreEntropy, or [parameterization] given: log scores depend on the noise",
            self.told_noise,
        )
        if not (self.scale_by_sigma or scores):
            raise IdleOptionError("network.scale_by_sigma", False, "only objective.type=ScoreEntropy has it")
        inner: dict[str, Any] = {"type": "Mean", "conditioning": "sigma" if self.told_noise else "none"}
        if scores:
            rate = process["gamma"] if self.blend else None
            inner = {"type": "LogScore", "scale_by_sigma": self.scale_by_sigma, "blend_rate": rate}
        return {"type": "Shifted", "inner": inner} if self.shifted else inner


@final
@dataclass(frozen=True)
class ProcessOptions:
    """The two hybrid processes.

    Attributes:
        type: Family of the process.
        epsilon: Option of the epsilon-hybrid: share of wrong words among the visible ones, 0.01 by default.
        gamma: Option of the gamma-hybrid: share of the uniform rate in the total rate.
    """

    type: Literal["EpsilonHybrid", "GammaHybrid"] = "EpsilonHybrid"
    epsilon: float | None = None
    gamma: float | None = None

    def __post_init__(self) -> None:
        own, other = ("epsilon", "gamma") if self.type == "EpsilonHybrid" else ("gamma", "epsilon")
        value = getattr(self, other)
        require(value is None, f"process.{other}", f"left out: {self.type} has `{own}`", value)
        require(self.epsilon is None or 0 <= self.epsilon < 1, "process.epsilon", "in [0, 1)", self.epsilon)
        require(self.gamma is None or 0 <= self.gamma <= 1, "process.gamma", "in [0, 1]", self.gamma)
        require(self.gamma is not None or self.type != "GammaHybrid", "process.gamma", "given", self.gamma)

    def piece(self) -> dict[str, Any]:
        """The process in full."""
        if self.type == "GammaHybrid":
            return {"type": self.type, "gamma": self.gamma}
        return {"type": self.type, "epsilon": 0.01 if self.epsilon is None else self.epsilon}


@final
@dataclass(frozen=True)
class ObjectiveOptions:
    """The objectives of the published families.

    Attributes:
        type: The weighted cross-entropy of the paper, the exact bound of the hyperschedule's own steps (`NELBO`), or
            the score entropy.
        unmasked: Option of the weighted cross-entropy: the paper's lambda.
        unmasked_weight: Option of the weighted cross-entropy; see `WeightedCrossEntropy`.
        score_entropy: Option of the score entropy: its `ratios`.
        max_weight: Cap on the weights `1 / p` and `1 / (1 - p)`. The `floor` of the score entropy is its inverse.
        diffusion: Weight of the score entropy in the sum.
        cross_entropy: Weight of a cross-entropy that is added to the score entropy; 0 for none.
    """

    type: Literal["WeightedCrossEntropy", "ScoreEntropy", "NELBO"] = "WeightedCrossEntropy"
    unmasked: float = 0.1
    unmasked_weight: Formula = "paper"
    score_entropy: Ratios = "exact"
    max_weight: float = math.inf
    diffusion: float = 1.0
    cross_entropy: float = 0.0

    def __post_init__(self) -> None:
        require(self.max_weight > 0, "objective.max_weight", "positive", self.max_weight)
        for name in ("diffusion", "cross_entropy", "unmasked"):
            value = getattr(self, name)
            require(0 <= value < math.inf, f"objective.{name}", "at least 0 and finite", value)
        others = {
            "unmasked": "WeightedCrossEntropy",
            "unmasked_weight": "WeightedCrossEntropy",
            "score_entropy": "ScoreEntropy",
            "cross_entropy": "ScoreEntropy",
            "diffusion": "ScoreEntropy",
        }
        for name, owner in others.items():
            value = getattr(self, name)
            expected = f"left out with objective.type={self.type}; {owner} has it"
            require(
                self.type == owner or value == getattr(type(self), name), f"objective.{name}", expected, value
            )
        require(
            self.max_weight == math.inf or self.type != "NELBO",
            "objective.max_weight",
            "left out with objective.type=NELBO, which caps nothing",
            self.max_weight,
        )
        require(self.diffusion + self.cross_entropy > 0, "objective.diffusion", "positive", self.diffusion)
        for name in ("score_entropy", "max_weight"):
            value = getattr(self, name)
            if self.diffusion == 0 and value != getattr(type(self), name):
                raise IdleOptionError(f"objective.{name}", value, "{} is 0", "objective.diffusion")

    def piece(self) -> dict[str, Any]:
        """The objective in full."""
        if self.type == "NELBO":
            return {"type": "NELBO"}
        if self.type == "WeightedCrossEntropy":
            names = ("type", "unmasked", "unmasked_weight", "max_weight")
            return {name: getattr(self, name) for name in names}
        floor = max(1 / self.max_weight, ScoreEntropy.floor)
        scores = {"type": "ScoreEntropy", "floor": floor, "ratios": self.score_entropy}
        if (self.diffusion, self.cross_entropy) == (1, 0):
            return scores
        weighted = ((self.diffusion, scores), (self.cross_entropy, {"type": "CrossEntropy"}))
        return {"type": "Combination", "parts": tuple(part for part in weighted if part[0])}


SHORT_OPTIONS = (
    *options_of(OutputOptions, "network."),
    *options_of(ProcessOptions, "process."),
    "process.noise_schedule",
    *options_of(ObjectiveOptions, "objective."),
)
"""Dotted names of the options that only the short form has."""


def in_full(table: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe in full, with each piece in a table of its own; a recipe in full is returned unchanged.

    Raises:
        ValueError: If an option of the short form is out of range or does not suit the others.
    """
    full = dict(table)
    for name in ("network", "process", "objective"):
        require(isinstance(full.setdefault(name, {}), Mapping), name, f"a table, [{name}]", full[name])
    process, network = dict(full["process"]), dict(full["network"])
    if "noise_schedule" in process:
        schedule = process.pop("noise_schedule")
        require(
            "noise_schedule" not in full,
            "process.noise_schedule",
            "left out beside [noise_schedule]",
            schedule,
        )
        full["noise_schedule"] = schedule
    if process.get("type", "EpsilonHybrid") in ("EpsilonHybrid", "GammaHybrid"):
        process = read_table(ProcessOptions, process, "process").piece()
    objective = full["objective"]
    kind = objective.get("type", "WeightedCrossEntropy")
    if kind in ("WeightedCrossEntropy", "NELBO") or (
        kind == "ScoreEntropy" and not {"floor", "ratios"} & {*objective}
    ):
        full["objective"] = read_table(ObjectiveOptions, objective, "objective").piece()
    outputs = {name: network.pop(name) for name in options_of(OutputOptions) if name in network}
    if "parameterization" not in full:
        options = read_table(OutputOptions, outputs, "network")
        full["parameterization"] = options.piece(process, scores=kind == "ScoreEntropy")
    for name, value in outputs.items():
        if "parameterization" in table:
            raise IdleOptionError(f"network.{name}", value, "[parameterization] says what outputs mean")
    return full | {"process": process, "network": network}
