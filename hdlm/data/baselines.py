"""Unigram and bigram models over the tokens of the network, as baselines.

A model that has learned anything beats the unigram; one that has learned grammar beats the bigram.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["Bigram", "Unigram"]


@final
@dataclass(frozen=True)
class Unigram:
    """`p(x) = (count(x) + 1) / (n + N)`.

    Attributes:
        probabilities: Probability of each of the `N` words.
    """

    probabilities: Float[Tensor, " words"]

    @classmethod
    def fit(cls, tokens: Int[Tensor, " n"], num_words: int) -> Unigram:
        """Count the words of a text."""
        counts = torch.bincount(tokens, minlength=num_words).double() + 1
        return cls(counts / counts.sum())

    def nats(self, tokens: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """`-log p` of every token."""
        return -self.probabilities[tokens].log()


@final
@dataclass(frozen=True)
class Bigram:
    """`p(x | h) = max(count(h, x) - D, 0) / count(h) + D kinds(h) / count(h) p(x)`: absolute discounting.

    `kinds(h)` is the number of different words that follow `h`; the discounted mass goes to the unigram (Ney, Essen and
    Kneser, *On structuring probabilistic dependences in stochastic language modelling*, 1994).

    Attributes:
        unigram: The model of the discounted mass.
        pairs: Sorted codes `h N + x` of the pairs that occur.
        counts: Number of times that each pair occurs.
        discount: The constant `D`, in (0, 1).
    """

    unigram: Unigram
    pairs: Int[Tensor, " kinds"]
    counts: Int[Tensor, " kinds"]
    discount: float = 0.75

    @classmethod
    def fit(cls, tokens: Int[Tensor, " n"], num_words: int) -> Bigram:
        """Count the words and the pairs of a text."""
        pairs, counts = torch.unique(tokens[:-1] * num_words + tokens[1:], return_counts=True)
        return cls(Unigram.fit(tokens, num_words), pairs, counts)

    def nats(self, tokens: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """`-log p` of every token given the one before; the first one has the unigram's."""
        num_words = len(self.unigram.probabilities)
        before, now = tokens[:-1], tokens[1:]
        heads = self.pairs // num_words
        seen = torch.zeros(num_words).double().index_add(0, heads, self.counts.double())
        kinds = torch.bincount(heads, minlength=num_words).double()
        code = before * num_words + now
        slot = torch.searchsorted(self.pairs, code).clamp_max(len(self.pairs) - 1)
        count = torch.where(self.pairs[slot] == code, self.counts[slot], 0).double()
        back_off = torch.where(seen > 0, self.discount * kinds / seen.clamp_min(1), 1.0)[before]
        p = (count - self.discount).clamp_min(0) / seen[before].clamp_min(1)
        p = p + back_off * self.unigram.probabilities[now]
        return torch.cat([self.unigram.nats(tokens[:1]), -p.log()])
