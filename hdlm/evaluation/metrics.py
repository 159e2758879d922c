"""Measures of generated text that need no judge: how varied it is, and how much it repeats itself.

All are over token ids, never over text that was decoded and tokenised again. With `c_k` the count of token `k` among
the `n` tokens of a sample,

    entropy      = - sum_k (c_k / n) log(c_k / n)                 nats, mean over samples
    distinct-n   = different n-grams / n-grams                    all samples together (arXiv 1510.03055)
    repetition-n = 1 - different n-grams / n-grams                within a sample, mean over samples (arXiv 1908.04319)

Every number has a standard error, by the jackknife: what the number becomes without each of the samples. Numbers of
other numbers or lengths of samples must not be compared: entropy grows with length, distinct-n falls with both.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

__all__ = ["Estimate", "diversity", "jackknife", "mean", "token_entropy"]

Gram = tuple[int, ...]


@final
@dataclass(frozen=True)
class Estimate:
    """A measured number and how sure it is.

    Attributes:
        value: The number.
        error: Its standard error; None if there is but one sample.
    """

    value: float
    error: float | None

    def __str__(self) -> str:
        """As a person writes it."""
        return f"{self.value:.3f}" if self.error is None else f"{self.value:.3f} ± {self.error:.3f}"


def jackknife(value: float, without: Sequence[float]) -> Estimate:
    """A number and its standard error, `sqrt((n - 1) / n sum_i (x_i - mean)^2)`.

    Args:
        value: The number on all samples.
        without: The number `x_i` without sample `i`, for each of the `n` samples.
    """
    n = len(without)
    if n < 2:
        return Estimate(value, None)
    return Estimate(value, math.sqrt((n - 1) * float(np.var(without))))


def token_entropy(tokens: Sequence[int]) -> float:
    """Entropy in nats of the token frequencies of one sample; 0 of an empty one.

    This is the "sample entropy" that SEDD and MDLM report (arXiv 2310.16834); arXiv 2409.02908 says why it must stand
    beside every generative perplexity.
    """
    return 0.0 - math.fsum(c / len(tokens) * math.log(c / len(tokens)) for c in Counter(tokens).values())


def diversity(samples: Sequence[Sequence[int]]) -> dict[str, Estimate]:
    """Entropy, distinct-n and repetition-n of samples.

    Args:
        samples: Token ids of each sample.

    Raises:
        ValueError: If there is no sample.
    """
    if not samples:
        raise ValueError("there are no samples to measure; give at least one.")
    found = {"entropy": mean([token_entropy(tokens) for tokens in samples])}
    for n in (1, 2, 3):
        found[f"distinct-{n}"] = _distinct([_grams(tokens, n) for tokens in samples])
    found["repetition-4"] = mean([_repeated(tokens, 4) for tokens in samples])
    return found


def mean(values: Sequence[float]) -> Estimate:
    """The mean of one number a sample."""
    total, n = math.fsum(values), len(values)
    return jackknife(total / n, [(total - value) / (n - 1) for value in values] if n > 1 else [total])


def _grams(tokens: Sequence[int], n: int) -> list[Gram]:
    return list(zip(*(tokens[start:] for start in range(n)), strict=False))


def _repeated(tokens: Sequence[int], n: int) -> float:
    grams = _grams(tokens, n)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _distinct(samples: Sequence[Sequence[Gram]]) -> Estimate:
    """Different n-grams over n-grams, of all samples together; a sample takes along the n-grams that only it has."""
    holders = Counter(gram for grams in samples for gram in set(grams))
    own = [sum(holders[gram] == 1 for gram in set(grams)) for grams in samples]
    total = sum(map(len, samples))
    without = [
        _share(len(holders) - alone, total - len(grams)) for alone, grams in zip(own, samples, strict=True)
    ]
    return jackknife(_share(len(holders), total), without)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
