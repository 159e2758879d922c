"""Measures of generated text that need no judge: how varied the text is, and how much it repeats itself.

All measures use token ids, never text that was decoded and tokenised again. With `c_k` the count of token `k` among the
`n` tokens of a sample,

    entropy      = - sum_k (c_k / n) log(c_k / n)                 nats, mean over samples
    distinct-n   = different n-grams / n-grams                    all samples together (arXiv 1510.03055)
    repetition-n = 1 - different n-grams / n-grams                within a sample, mean over samples (arXiv 1908.04319)

A measure is not taken if samples are too short for it, and then is neither 0 nor 1. distinct-n needs one n-gram in all
samples, repetition-n one in each sample, and entropy a token in each sample.

Every number has a standard error by the jackknife: the number is computed without each of the samples in turn. Numbers
for other numbers or lengths of samples must not be compared: entropy grows with length, distinct-n falls with both.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import final

import numpy as np

__all__ = ["DIVERSITY", "Estimate", "diversity", "entropy", "jackknife", "mean", "share", "token_entropy"]

Gram = tuple[int, ...]


@final
@dataclass(frozen=True)
class Estimate:
    """A measured number and its standard error.

    Attributes:
        value: The measured number.
        error: Standard error; None if it is unknown, as for a single sample.
    """

    value: float
    error: float | None

    def __str__(self) -> str:
        """The number and its error, rounded for a reader."""
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
    """Entropy in nats of the token frequencies of one sample; 0 for an empty sample, as published.

    This is the "sample entropy" that SEDD and MDLM report (arXiv 2310.16834); arXiv 2409.02908 explains why every
    generative perplexity needs it.
    """
    return 0.0 - math.fsum(c / len(tokens) * math.log(c / len(tokens)) for c in Counter(tokens).values())


def diversity(samples: Sequence[Sequence[int]]) -> dict[str, Estimate]:
    """Entropy, distinct-n and repetition-n of samples, except for measures that the samples are too short for.

    Args:
        samples: Token ids of each sample.

    Raises:
        ValueError: If there is no sample.
    """
    _check_any(samples)
    estimates = {}
    for name, measure in DIVERSITY.items():
        with suppress(TooShortError):
            estimates[name] = measure(samples)
    return estimates


def entropy(samples: Sequence[Sequence[int]]) -> Estimate:
    """The mean entropy of samples.

    Raises:
        ValueError: If there is no sample, or a sample has no token.
    """
    _check_each(samples, "entropy", 1)
    return mean([token_entropy(tokens) for tokens in samples])


def _repetition(samples: Sequence[Sequence[int]], n: int) -> Estimate:
    """The mean share of n-grams of a sample that occurred before in it."""
    _check_each(samples, f"repetition-{n}", n)
    grams = [_grams(tokens, n) for tokens in samples]
    return mean([1 - len(set(own)) / len(own) for own in grams])


def _distinct(samples: Sequence[Sequence[int]], n: int) -> Estimate:
    """Different n-grams over n-grams, of all samples; each sample owns the n-grams that occur only in it."""
    _check_any(samples)
    every = [_grams(tokens, n) for tokens in samples]
    total = sum(map(len, every))
    if not total:
        longest = max(map(len, samples))
        raise TooShortError(
            f"the samples are too short for distinct-{n}, which needs {n} tokens in one of them; the longest has "
            f"{longest}."
        )
    holders = Counter(gram for grams in every for gram in set(grams))
    own = [sum(holders[gram] == 1 for gram in set(grams)) for grams in every]
    value = len(holders) / total
    if any(len(grams) == total for grams in every):
        return Estimate(value, None)
    return jackknife(
        value,
        [(len(holders) - alone) / (total - len(grams)) for alone, grams in zip(own, every, strict=True)],
    )


class TooShortError(ValueError):
    """Samples are too short or too few for a measure."""


def _check_any(samples: Sequence[Sequence[int]]) -> None:
    if not samples:
        raise ValueError("there are no samples to measure; give at least one.")


def _check_each(samples: Sequence[Sequence[int]], name: str, least: int) -> None:
    _check_any(samples)
    short = next((place for place, tokens in enumerate(samples) if len(tokens) < least), None)
    if short is not None:
        needs = "1 token" if least == 1 else f"{least} tokens"
        raise TooShortError(
            f"sample {short} is too short for {name}, which needs {needs} in each sample; it has {len(samples[short])}."
        )


DIVERSITY: Mapping[str, Callable[[Sequence[Sequence[int]]], Estimate]] = MappingProxyType(
    {
        "entropy": entropy,
        **{f"distinct-{n}": partial(_distinct, n=n) for n in (1, 2, 3)},
        "repetition-4": partial(_repetition, n=4),
    }
)
"""The measures of token ids by name. Each raises a ValueError if the samples are too short for it."""


def mean(values: Sequence[float]) -> Estimate:
    """The mean of one number per sample.

    Raises:
        ValueError: If there is no number.
    """
    if not values:
        raise ValueError("a mean needs at least one number.")
    total, n = math.fsum(values), len(values)
    return jackknife(total / n, [(total - value) / (n - 1) for value in values] if n > 1 else [total])


def share(parts: Sequence[float], wholes: Sequence[float]) -> Estimate:
    """The sum of `parts` over the sum of `wholes`, with the jackknife error over samples.

    Args:
        parts: A number for each sample, such as its words that were restored.
        wholes: The number that it is a part of, such as its words that were damaged.

    Raises:
        ValueError: If the sum of `wholes`, or the sum without one of the samples, is 0.
    """
    part, whole = math.fsum(parts), math.fsum(wholes)
    least = min((whole - own for own in wholes), default=0.0) if len(wholes) > 1 else whole
    if least <= 0:
        raise ValueError(
            "the share is undefined: it divides by 0, because fewer than two samples have something to count."
        )
    if len(wholes) == 1:
        return Estimate(part / whole, None)
    without = [(part - own) / (whole - of) for own, of in zip(parts, wholes, strict=True)]
    return jackknife(part / whole, without)


def _grams(tokens: Sequence[int], n: int) -> list[Gram]:
    return list(zip(*(tokens[start:] for start in range(n)), strict=False))
