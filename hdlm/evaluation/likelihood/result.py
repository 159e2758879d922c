"""A measured likelihood: a number, its error, and the settings for measuring it again.

With `B` the total in nats over `n` tokens with `m` bytes,

    perplexity = exp(B / n)      bits per token = B / (n log 2)      bits per byte = B / (m log 2)

and the standard error of each follows from that of `B` by the delta method (`d exp(B/n) = exp(B/n) dB / n`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, final

from hdlm.student import student_quantile

__all__ = ["BoundName", "Estimator", "LikelihoodResult"]

BoundName = Literal["absorbing", "hybrid"]
Estimator = Literal["exact", "count", "stratified", "random"]


@final
@dataclass(frozen=True)
class LikelihoodResult:
    """An upper bound on `-log p` of a text.

    Attributes:
        estimates: Total nats over all tokens, one independent and unbiased estimate per replicate.
        num_tokens: Tokens of the text; all are counted.
        num_bytes: Bytes of UTF-8 of the text, if known.
        bound: Name of the bound; numbers under different bounds must not be compared.
        estimator: Name of the estimator; an `"exact"` result is not random, and has no error.
        seed: Seed of all random numbers.
        num_windows: Number of windows of the text.
        stride: New tokens in each window.
        hyperschedule: When each position of a window is noisy, as `describe` gives it, with the `length` of a window.
        noise_schedule: How fast noise grows, as `describe` gives it; the absorbing bound does not depend on it.
        context: Attention among settled positions.
        active: Attention among active positions.
        within_documents: Whether each document had windows of its own.

    Raises:
        ValueError: If there is no estimate or no token, or an estimate is not finite.
    """

    estimates: tuple[float, ...]
    num_tokens: int
    num_bytes: int | None
    bound: BoundName
    estimator: Estimator
    seed: int
    num_windows: int
    stride: int
    hyperschedule: Mapping[str, Any]
    noise_schedule: Mapping[str, Any]
    context: str
    active: str
    within_documents: bool = False

    def __post_init__(self) -> None:
        if not self.estimates or self.num_tokens < 1:
            raise ValueError(
                f"A likelihood needs at least one estimate and one token; got {self.estimates} and "
                f"{self.num_tokens} tokens."
            )
        if self.num_bytes is not None and self.num_bytes < 1:
            raise ValueError(f"`num_bytes` must be positive, or None if unknown; got {self.num_bytes}.")
        if not isinstance(self.hyperschedule, Mapping) or "length" not in self.hyperschedule:
            raise ValueError(
                f"`hyperschedule` must be a description with a `length`; got {self.hyperschedule!r}. An earlier "
                "version may have written it: measure again."
            )
        strange = [estimate for estimate in self.estimates if not math.isfinite(estimate)]
        if strange:
            raise ValueError(
                f"{len(strange)} of {self.replicates} estimates are not finite, the first is {strange[0]}: the model "
                "gives some token the probability 0, or its outputs are not numbers."
            )

    @property
    def replicates(self) -> int:
        """Number of independent estimates."""
        return len(self.estimates)

    @property
    def nats(self) -> float:
        """The bound on `-log p` of the whole text: the mean of the estimates."""
        return math.fsum(self.estimates) / self.replicates

    @property
    def standard_error(self) -> float | None:
        """Standard error of `nats`, with `replicates - 1` degrees of freedom; None if there is one replicate."""
        if self.estimator == "exact":
            return 0.0
        if self.replicates < 2:
            return None
        squares = math.fsum((estimate - self.nats) ** 2 for estimate in self.estimates)
        return math.sqrt(squares / (self.replicates - 1) / self.replicates)

    def interval(self, level: float = 0.95) -> tuple[float, float] | None:
        """An interval that contains the bound on the whole text, in nats, with probability `level`, by Student's t.

        The standard error is estimated from the replicates, so the interval is wider than that of the normal
        distribution. An exact likelihood has an interval of length 0. With one estimate the interval is unknown, and
        the result is None.

        Args:
            level: Probability in (0, 1) with which such an interval holds the mean of the estimates.

        Raises:
            ValueError: If `level` is out of range.
        """
        error = self.standard_error
        if error is None:
            return None
        reach = student_quantile(level, max(self.replicates - 1, 1)) * error
        return self.nats - reach, self.nats + reach

    @property
    def nats_per_token(self) -> float:
        """The bound per token."""
        return self.nats / self.num_tokens

    @property
    def perplexity(self) -> float:
        """`exp(nats / num_tokens)`.

        Raises:
            ValueError: If the value overflows a float.
        """
        try:
            return math.exp(self.nats_per_token)
        except OverflowError as error:
            raise ValueError(
                f"the bound is {self.nats_per_token:.0f} nats a token, and its exponential, the perplexity, is too "
                "large for a float: the model is far worse than a uniform guess."
            ) from error

    @property
    def perplexity_error(self) -> float | None:
        """Standard error of `perplexity`."""
        return self._error(self.perplexity / self.num_tokens)

    @property
    def bits_per_token(self) -> float:
        """The bound in bits per token."""
        return self.nats_per_token / math.log(2)

    @property
    def bits_per_token_error(self) -> float | None:
        """Standard error of `bits_per_token`."""
        return self._error(1 / (self.num_tokens * math.log(2)))

    @property
    def bits_per_byte(self) -> float | None:
        """The bound in bits per byte, the number to compare across tokenizers; None if bytes are unknown."""
        return None if self.num_bytes is None else self.nats / (self.num_bytes * math.log(2))

    @property
    def bits_per_byte_error(self) -> float | None:
        """Standard error of `bits_per_byte`."""
        return None if self.num_bytes is None else self._error(1 / (self.num_bytes * math.log(2)))

    def with_replicates_of(self, later: LikelihoodResult) -> LikelihoodResult:
        """This measurement with the replicates of another measurement added.

        Raises:
            ValueError: If the other measurement has another protocol.
        """
        if replace(later, estimates=self.estimates) != self:
            ours, theirs = asdict(self), asdict(later)
            apart = [name for name in ours if name != "estimates" and ours[name] != theirs[name]]
            raise ValueError(
                f"replicates of different measurements cannot be joined: {', '.join(apart)} differ."
            )
        return replace(self, estimates=self.estimates + later.estimates)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LikelihoodResult:
        """Build a result from `to_dict`.

        Raises:
            ValueError: If a field is missing.
        """
        names = [field.name for field in fields(cls)]
        missing = [name for name in names if name not in values]
        if missing:
            raise ValueError(f"this is not a likelihood result: it lacks {', '.join(missing)}.")
        return cls(**{name: values[name] for name in names} | {"estimates": tuple(values["estimates"])})

    def to_dict(self) -> dict[str, Any]:
        """All fields and derived numbers, ready for JSON."""
        derived = (name for name, value in vars(type(self)).items() if isinstance(value, property))
        return asdict(self) | {name: getattr(self, name) for name in derived}

    def _error(self, slope: float) -> float | None:
        """Standard error of a quantity with derivative `slope` with respect to `nats`."""
        return None if self.standard_error is None else slope * self.standard_error
