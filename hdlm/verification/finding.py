"""What checking a law gives: a number, its threshold, and whether it held."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor

from hdlm.randomness import Randomness
from hdlm.verification.statistics import FAILURE_RATE

__all__ = ["Finding", "Law", "Trial", "Verdict", "error", "p_value", "try_laws"]


@final
@dataclass(frozen=True)
class Finding:
    """A measured law.

    Attributes:
        measure: `"error"`: the value must not exceed the threshold. `"p-value"`: it must not fall below.
        value: The greatest deviation, or the p-value.
        threshold: The bound.
    """

    measure: Literal["error", "p-value"]
    value: float
    threshold: float

    @property
    def ok(self) -> bool:
        """Whether the law held; a value that is not a number never does."""
        return self.value <= self.threshold if self.measure == "error" else self.value >= self.threshold


def error(actual: Tensor, expected: Tensor | float, tolerance: float) -> Finding:
    """The greatest absolute deviation of `actual` from `expected`.

    Raises:
        ValueError: If there is nothing to compare, which would prove nothing.
    """
    difference = (actual - expected).abs()
    if difference.numel() == 0:
        raise ValueError("Nothing was compared: the law has no cases here and should not have been tried.")
    value = float(difference.max()) if not bool(difference.isnan().any()) else float("nan")
    return Finding("error", value, tolerance)


def p_value(value: float) -> Finding:
    """A statistical finding, held against the one failure rate of the project."""
    return Finding("p-value", value, FAILURE_RATE)


@final
@dataclass(frozen=True)
class Trial:
    """How hard to try.

    Attributes:
        seed: Seed of everything random.
        samples: How many samples a statistical law draws.
    """

    seed: int = 0
    samples: int = 20_000

    def generator(self) -> torch.Generator:
        """A fresh generator with the seed of the trial."""
        return torch.Generator().manual_seed(self.seed)

    def numbers(self, *shape: int) -> Tensor:
        """Uniform float64 numbers in [0, 1), the same at every call."""
        return torch.rand(*shape, generator=self.generator(), dtype=torch.float64)

    @property
    def randomness(self) -> Randomness:
        """Counter-based random numbers with the seed of the trial."""
        return Randomness(self.seed)


Law = Callable[[Any, Trial], Finding | None]
"""A law takes what it is about and a trial; None means that it says nothing of this one. Its docstring states it."""


@final
@dataclass(frozen=True)
class Verdict:
    """A law, what it was tried on, and what was found.

    Attributes:
        law: Name of the law.
        statement: The law in one sentence.
        subject: What it was tried on.
        finding: What was found.
    """

    law: str
    statement: str
    subject: str
    finding: Finding


def try_laws(laws: Sequence[Law], subject: Any, trial: Trial, name: str | None = None) -> list[Verdict]:
    """Hold a subject against laws.

    Args:
        laws: The laws of its kind.
        subject: The object.
        trial: How hard to try.
        name: How to call it; its `repr` by default.
    """
    verdicts = []
    for law in laws:
        finding = law(subject, trial)
        if finding is not None:
            title = getattr(law, "__name__", repr(law)).replace("_", " ")
            statement = (law.__doc__ or "").strip().splitlines()[0]
            verdicts.append(Verdict(title, statement, name or repr(subject), finding))
    return verdicts
