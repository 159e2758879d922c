"""Sums of several objectives, and the simplest objective, the cross-entropy of the clean token.

The published gamma-hybrids are trained on the score entropy plus a cross-entropy (HDLM, arXiv 2504.06416).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import final

import torch

from hdlm.objective.base import AbstractObjective, CleanToken, Term
from hdlm.objective.canvas import Canvas
from hdlm.process import AbstractNoiseProcess

__all__ = ["Combination", "CrossEntropy"]


@final
@dataclass(frozen=True)
class CrossEntropy(AbstractObjective):
    """`measure * -log p(x_0 | x_t)`: a loss on every active position, masked or not, with equal weight at every noise.

    With `kept = 0` there is no loss at words that noise has not replaced (arXiv 2510.22926). Nothing then teaches the
    network that a visible word may be right, so it does not learn how likely it is wrong.

    Attributes:
        worst: Cap on `-log p`, in nats: scores that belong to no distribution give some words the probability 0.
        kept: Weight of visible words that are the clean token, at least 0, relative to masks and replaced words.
    """

    worst: float = 30.0
    kept: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.kept < math.inf:
            raise ValueError(f"`kept` must be a finite number of at least 0; got {self.kept}.")

    def terms(self, process: AbstractNoiseProcess, canvas: Canvas) -> tuple[Term, ...]:
        weight = canvas.measure
        if self.kept != 1:
            weight = torch.where(canvas.x_t == canvas.x_0, self.kept * weight, weight)
        return (Term(weight, CleanToken(self.worst)),)


@final
@dataclass(frozen=True)
class Combination(AbstractObjective):
    """`sum_k weight_k objective_k`; the network is called once.

    Attributes:
        parts: Pairs of a weight, positive and finite, and an objective.

    Raises:
        ValueError: If there is no part, or a weight is out of range.
    """

    parts: tuple[tuple[float, AbstractObjective], ...]

    def __post_init__(self) -> None:
        weights = [weight for weight, _ in self.parts]
        if not weights or not all(0 < weight < math.inf for weight in weights):
            raise ValueError(
                f"`parts` must have at least one part, each with a weight above 0; got the weights {weights}."
            )

    @property
    def divides_by_tokens(self) -> bool:
        return any(objective.divides_by_tokens for _, objective in self.parts)

    def terms(self, process: AbstractNoiseProcess, canvas: Canvas) -> tuple[Term, ...]:
        return tuple(
            replace(term, weight=weight * term.weight)
            for weight, objective in self.parts
            for term in objective.terms(process, canvas)
        )
