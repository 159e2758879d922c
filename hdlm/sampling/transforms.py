"""Changes to the model's distribution before a word is drawn. All are off by default."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["MinP", "RepetitionPenalty", "Suppress", "Temperature", "TopK", "TopP"]

_MOST_PENALTY = 1e6
"""Factor of log probabilities beyond which the product may overflow float32."""


@final
@dataclass(frozen=True)
class Temperature:
    """`p^(1 / temperature)`.

    Attributes:
        temperature: 0, which keeps only the likeliest word (the first of equal ones), or a number in the range of
            float32, [1.2e-38, 3.4e38].
    """

    temperature: float

    def __post_init__(self) -> None:
        least, most = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max
        if self.temperature != 0 and not least <= self.temperature <= most:
            raise ValueError(
                f"`temperature` must be 0, or lie in [{least:.2g}, {most:.2g}], the range of float32; got "
                f"{self.temperature}."
            )

    def __call__(
        self, log_p: Float[Tensor, "n v"], tokens: Int[Tensor, "b l"], row: Int[Tensor, " n"]
    ) -> Float[Tensor, "n v"]:
        if self.temperature == 0:
            best = log_p.argmax(-1, keepdim=True)
            return torch.full_like(log_p, -torch.inf).scatter(-1, best, 0.0)
        return (
            log_p - log_p.amax(-1, keepdim=True)
        ) / self.temperature  # the likeliest word keeps a finite weight


@final
@dataclass(frozen=True)
class TopK:
    """Keeps the `k` likeliest words (and words as likely as the last of them).

    Attributes:
        k: Number of words, at least 1.
    """

    k: int

    def __post_init__(self) -> None:
        if not float(self.k).is_integer() or self.k < 1:
            raise ValueError(f"`k` of top-k must be an integer of at least 1; got {self.k}.")

    def __call__(
        self, log_p: Float[Tensor, "n v"], tokens: Int[Tensor, "b l"], row: Int[Tensor, " n"]
    ) -> Float[Tensor, "n v"]:
        worst = log_p.topk(min(self.k, log_p.shape[-1]), dim=-1).values[:, -1:]
        return log_p.masked_fill(log_p < worst, -torch.inf)


@final
@dataclass(frozen=True)
class TopP:
    """Nucleus sampling: keeps the fewest likeliest words whose probabilities reach `p` (arXiv 1904.09751).

    Attributes:
        p: Probability in (0, 1].
    """

    p: float

    def __post_init__(self) -> None:
        if not 0 < self.p <= 1:
            raise ValueError(f"`p` of top-p must lie in (0, 1]; got {self.p}.")

    def __call__(
        self, log_p: Float[Tensor, "n v"], tokens: Int[Tensor, "b l"], row: Int[Tensor, " n"]
    ) -> Float[Tensor, "n v"]:
        ordered, order = log_p.softmax(-1, dtype=torch.float64).sort(-1, descending=True)
        before = ordered.cumsum(-1) - ordered
        drop = torch.zeros_like(log_p, dtype=torch.bool).scatter(-1, order, before >= self.p)
        return log_p.masked_fill(drop, -torch.inf)


@final
@dataclass(frozen=True)
class MinP:
    """Keeps the words that are at least `p` times as likely as the likeliest word (arXiv 2407.01082).

    Attributes:
        p: Relative probability in [0, 1].
    """

    p: float

    def __post_init__(self) -> None:
        if not 0 <= self.p <= 1:
            raise ValueError(f"`p` of min-p must lie in [0, 1]; got {self.p}.")

    def __call__(
        self, log_p: Float[Tensor, "n v"], tokens: Int[Tensor, "b l"], row: Int[Tensor, " n"]
    ) -> Float[Tensor, "n v"]:
        least = log_p.amax(-1, keepdim=True) + torch.tensor(self.p, dtype=log_p.dtype).log()
        return log_p.masked_fill(log_p < least, -torch.inf)


@final
@dataclass(frozen=True)
class RepetitionPenalty:
    """Multiplies the *log probability* of words that the same sequence already holds (CTRL, arXiv 1909.05858).

    Log probabilities are never positive, so the penalty always lowers them; logits, to which the usual implementations
    apply it, have no natural zero.

    Attributes:
        penalty: Penalty in [1, 1e6]; 1 has no effect.
    """

    penalty: float

    def __post_init__(self) -> None:
        if not 1 <= self.penalty <= _MOST_PENALTY:
            raise ValueError(
                f"`penalty` for repetitions must lie in [1, {_MOST_PENALTY:g}]; got {self.penalty}."
            )

    def __call__(
        self, log_p: Float[Tensor, "n v"], tokens: Int[Tensor, "b l"], row: Int[Tensor, " n"]
    ) -> Float[Tensor, "n v"]:
        seen = torch.zeros(len(tokens), log_p.shape[-1], dtype=torch.bool, device=log_p.device)
        seen = seen.scatter(1, tokens, True)[row]
        return torch.where(seen, log_p.log_softmax(-1) * self.penalty, log_p.log_softmax(-1))


@final
@dataclass(frozen=True)
class Suppress:
    """Never writes some words, for example the end-of-text token (`suppress_tokens`, `logits_eos_inf`).

    Attributes:
        words: Ids of the words.
    """

    words: tuple[int, ...]

    def __call__(
        self, log_p: Float[Tensor, "n v"], tokens: Int[Tensor, "b l"], row: Int[Tensor, " n"]
    ) -> Float[Tensor, "n v"]:
        return log_p.index_fill(
            -1, torch.tensor(self.words, dtype=torch.long, device=log_p.device), -torch.inf
        )
