"""The result of testing a law: a number, its threshold, and whether the law held."""

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
        measure: `"error"`: the value must not exceed the threshold. `"p-value"`: it must not fall below it.
        value: The largest deviation, or the p-value.
        threshold: The limit of the value.
    """

    measure: Literal["error", "p-value"]
    value: float
    threshold: float

    @property
    def ok(self) -> bool:
        """Whether the law held; NaN never does."""
        return self.value <= self.threshold if self.measure == "error" else self.value >= self.threshold


def error(actual: Tensor, expected: Tensor | float, tolerance: float) -> Finding:
    """The largest absolute deviation of `actual` from `expected`.

    Raises:
        ValueError: If there is nothing to compare.
    """
    difference = (actual - expected).abs()
    if difference.numel() == 0:
        raise ValueError("Nothing was compared: the law has no cases here and should not have been tried.")
    value = float(difference.max()) if not bool(difference.isnan().any()) else float("nan")
    return Finding("error", value, tolerance)


def p_value(value: float) -> Finding:
    """A statistical finding, compared with the one failure rate of the project."""
    return Finding("p-value", value, FAILURE_RATE)


@final
@dataclass(frozen=True)
class Trial:
    """The effort of a test.

    Attributes:
        seed: Seed of all random numbers.
        samples: Number of samples of a statistical law.
    """

    seed: int = 0
    samples: int = 20_000

    def generator(self) -> torch.Generator:
        """A new generator with the seed of the trial."""
        return torch.Generator().manual_seed(self.seed)

    def numbers(self, *shape: int) -> Tensor:
        """Uniform float64 numbers in [0, 1), equal at every call."""
        return torch.rand(*shape, generator=self.generator(), dtype=torch.float64)

    @property
    def randomness(self) -> Randomness:
        """Counter-based random numbers with the seed of the trial."""
        return Randomness(self.seed)


Law = Callable[[Any, Trial], Finding | None]
"""A function of a subject and a trial; None means that the law does not apply. Its docstring states the law."""


@final
@dataclass(frozen=True)
class Verdict:
    """The result of one law for one subject.

    Attributes:
        law: Name of the law.
        statement: The law in one sentence.
        subject: Name of the tested object.
        finding: The measured result.
    """

    law: str
    statement: str
    subject: str
    finding: Finding


def try_laws(laws: Sequence[Law], subject: Any, trial: Trial, name: str | None = None) -> list[Verdict]:
    """Test an object against laws.

    Args:
        laws: The laws of its kind.
        subject: Object to be tested.
        trial: The effort of the test.
        name: Name of the object; its `repr` by default.
    """
    verdicts = []
    for law in laws:
        finding = law(subject, trial)
        if finding is not None:
            title = getattr(law, "__name__", repr(law)).replace("_", " ")
            statement = (law.__doc__ or "").strip().splitlines()[0]
            verdicts.append(Verdict(title, statement, name or repr(subject), finding))
    return verdicts
