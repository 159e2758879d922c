"""Documents to an endless, ordered sequence of windows.

Documents, each followed by end-of-text, are joined into one stream of tokens, which is cut into windows of equal
length. The last window of an epoch is completed with the beginning of the stream, so no token is dropped. Every epoch
shifts the cuts and shuffles the windows, both as functions of (seed, epoch), so the batch of any step is known without
those before it. Tokens may stay in their files; only one batch is read and held in memory.
"""

from __future__ import annotations

import abc
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from hdlm.data.mapped import MappedTokens, Tokens
from hdlm.data.order import shuffled
from hdlm.randomness import Randomness

__all__ = ["AbstractWindows", "Samples", "Split", "TokenStream", "Windows", "split"]

_SHIFT, _SHUFFLE = 0x81, 0x82
"""Random streams of this module."""


@final
@dataclass(frozen=True)
class Split:
    """Training documents and validation documents."""

    train: tuple[str, ...]
    validation: tuple[str, ...]


def split(documents: Sequence[str], share: float) -> Split:
    """Set documents aside for validation, evenly spread over the corpus; of very few documents, the end of each.

    Args:
        documents: Documents of the corpus.
        share: Share to set aside, in (0, 0.5].

    Raises:
        ValueError: If `share` is out of range, or there is too little text for two parts.
    """
    if not 0 < share <= 0.5:
        raise ValueError(f"`validation` must lie in (0, 0.5]; got {share}.")
    every = round(1 / share)
    if len(documents) >= 2 * every:
        aside = range(every // 2, len(documents), every)
        kept = [document for index, document in enumerate(documents) if index not in aside]
        return Split(tuple(kept), tuple(documents[index] for index in aside))
    cuts = [(document, _tail(document, share)) for document in documents]
    parts = Split(
        tuple(head for document, at in cuts if (head := document[:at].strip())),
        tuple(tail for document, at in cuts if (tail := document[at:].strip())),
    )
    if not parts.train or not parts.validation:
        raise ValueError(
            f"there is too little text to set {100 * share:.4g}% of it aside for validation; give more text."
        )
    return parts


def _tail(document: str, share: float) -> int:
    """The index where the last `share` of a document begins, at a space if there is one."""
    at = len(document) - int(len(document) * share)
    space = document.rfind(" ", 0, at)
    return space if space > 0 else at


@final
@dataclass(frozen=True)
class TokenStream:
    """Documents as one row of tokens.

    Attributes:
        tokens: All documents, with end-of-text after each.
        num_bytes: Bytes of UTF-8 of the text, and one for each end-of-text, for bits per byte.
    """

    tokens: Int[Tensor, " n"]
    num_bytes: int

    @property
    def bytes_per_token(self) -> float:
        """Mean number of bytes per token."""
        return self.num_bytes / len(self.tokens)


@final
@dataclass(frozen=True)
class Samples:
    """The samples in some windows.

    Attributes:
        given: Tokens that are never noised and have no loss: prompts and padding.
        documents: Sample of each token, which attends to no other sample.
    """

    given: Bool[Tensor, "count l"]
    documents: Int[Tensor, "count l"]


class AbstractWindows(abc.ABC):
    """An endless, ordered sequence of windows of equal length with random access.

    Attributes:
        length: Tokens in a window.
        fingerprint: A hash of text, tokenizer, length and seed.
    """

    length: int

    @property
    @abc.abstractmethod
    def fingerprint(self) -> str:
        """A hash of text, tokenizer, length and seed, which a resumed run compares."""

    @abc.abstractmethod
    def batch(self, first: int, count: int) -> Int[Tensor, "count l"]:
        """Windows number `first .. first + count - 1` of the endless order.

        Args:
            first: Number of windows before; `step * batch_size` at a step of training.
            count: Number of windows.
        """

    def samples(self, first: int, count: int) -> Samples | None:
        """The samples in these windows; None for text, in which every token has a loss.

        Args:
            first: Number of windows before.
            count: Number of windows.
        """
        return None


@final
@dataclass(frozen=True)
class Windows(AbstractWindows):
    """Windows number `0, 1, 2, ..` of an endless sequence of epochs.

    Attributes:
        tokens: The stream of tokens.
        length: Tokens in a window.
        seed: Seed of the order.
    """

    tokens: Tokens
    length: int
    seed: int

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError(f"`length` must be at least 1; got {self.length}.")
        if len(self.tokens) < self.length:
            raise ValueError(
                f"the text has {len(self.tokens)} tokens, less than one window of {self.length}; "
                "give more text or a shorter context."
            )

    def __len__(self) -> int:
        """Windows in an epoch: the least number that covers every token."""
        return -(-len(self.tokens) // self.length)

    @cached_property
    def fingerprint(self) -> str:
        text = (
            self.tokens.fingerprint
            if isinstance(self.tokens, MappedTokens)
            else hashlib.sha256(self.tokens.numpy().data).hexdigest()
        )
        return hashlib.sha256(f"{text} {self.length} {self.seed}".encode()).hexdigest()

    def batch(self, first: int, count: int) -> Int[Tensor, "count l"]:
        starts = torch.cat([self._starts(*run) for run in self._runs(first, count)])
        return torch.stack([self._window(start) for start in (starts % len(self.tokens)).tolist()])

    def _window(self, start: int) -> Int[Tensor, " l"]:
        window = self.tokens[start : start + self.length]
        missing = self.length - len(window)
        return torch.cat([window, self.tokens[:missing]]) if missing else window

    def _runs(self, first: int, count: int) -> list[tuple[int, int, int]]:
        """The windows as runs `(epoch, from, to)` within epochs."""
        stop, size = first + count, len(self)
        return [
            (epoch, max(first - epoch * size, 0), min(stop - epoch * size, size))
            for epoch in range(first // size, (stop - 1) // size + 1)
        ]

    def _starts(self, epoch: int, low: int, high: int) -> Int[Tensor, " windows"]:
        """First tokens of the windows at some places of an epoch."""
        zero = torch.zeros(1, dtype=torch.long)
        shift = (Randomness(self.seed).uniform(zero, epoch, zero, stream=_SHIFT) * self.length).long()
        windows = shuffled(self.seed, epoch, len(self), torch.arange(low, high), _SHUFFLE)
        return windows * self.length + shift
