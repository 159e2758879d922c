"""Worlds with an explicit law: a joint distribution over all sequences of a few words.

In an enumerable world nothing is learned or estimated: the exact denoiser is a sum, an entropy is a number, and the
samples of a sampler can be counted and compared with their law.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["AbstractWorld", "World", "agreeing_world", "all_sequences", "mirrored_world", "random_world"]

LARGEST = 4096
"""Largest number of sequences in a world."""
_IMPOSSIBLE = -1e30
"""Stands for the logarithm of zero in sums over keys, where minus infinity times zero would be undefined."""


class AbstractWorld(abc.ABC):
    """A known law of sequences of words, whose conditional distributions are computed exactly."""

    @property
    @abc.abstractmethod
    def num_words(self) -> int:
        """Number of words `N`."""

    @property
    @abc.abstractmethod
    def length(self) -> int:
        """Number of positions `l`."""

    @abc.abstractmethod
    def cavity(
        self, log_q: Float[Tensor, "b k n"], positions: Int[Tensor, "b k"], visible: Bool[Tensor, "#b q k"]
    ) -> Float[Tensor, "b q n"]:
        """`p(x_0 | everything that a query sees except its own token)`, over the words.

        Args:
            log_q: Log likelihood of the token of each key, for every clean word.
            positions: Position of each key. The last `q` keys are those of the queries.
            visible: The keys that each query sees.
        """

    @abc.abstractmethod
    def log_probability(self, tokens: Int[Tensor, "b l"]) -> Float[Tensor, " b"]:
        """Log probability of each sequence of words."""

    @abc.abstractmethod
    def draw(self, count: int, seed: int) -> Int[Tensor, "b l"]:
        """Independent sequences.

        Args:
            count: Number of sequences.
            seed: Seed of the draws.
        """


def all_sequences(num_symbols: int, length: int) -> Int[Tensor, "s l"]:
    """Every sequence of `length` symbols `0 .. num_symbols-1`, in lexicographic order."""
    symbols = torch.arange(num_symbols)
    return torch.cartesian_prod(*[symbols] * length).view(-1, length)


@final
@dataclass(frozen=True, eq=False)
class World(AbstractWorld):
    """A joint distribution over the sequences of `l` words.

    Attributes:
        joint: Probability (float64) of every sequence, with one axis of size `num_words` per position; positive, sum 1.

    Raises:
        ValueError: If it is not such a distribution, or has too many sequences to enumerate.
    """

    joint: Float[Tensor, "*words"]

    def __post_init__(self) -> None:
        shape = tuple(self.joint.shape)
        if not shape or len(set(shape)) > 1 or self.joint.numel() > LARGEST:
            raise ValueError(
                f"`joint` needs one axis of equal size per position and at most {LARGEST} entries; got shape {shape}."
            )
        total = float(self.joint.sum())
        if not bool((self.joint > 0).all()) or abs(total - 1) > 1e-9:
            raise ValueError(
                f"`joint` must be positive everywhere and sum to 1; got a least entry of "
                f"{float(self.joint.min())} and the sum {total}. Divide by the sum, and use positive entries only."
            )

    @property
    def num_words(self) -> int:
        """Number of words `N`."""
        return self.joint.shape[0]

    @property
    def length(self) -> int:
        """Number of positions `l`."""
        return self.joint.ndim

    @cached_property
    def sequences(self) -> Int[Tensor, "s l"]:
        """All sequences, in the order of `law`."""
        return all_sequences(self.num_words, self.length)

    @property
    def law(self) -> Float[Tensor, " s"]:
        """Probability of each of `sequences`."""
        return self.joint.flatten()

    @property
    def entropy(self) -> float:
        """Entropy of a sequence, in nats."""
        return -float(torch.xlogy(self.law, self.law).sum())

    def cavity(
        self, log_q: Float[Tensor, "b k n"], positions: Int[Tensor, "b k"], visible: Bool[Tensor, "#b q k"]
    ) -> Float[Tensor, "b q n"]:
        num_queries = visible.shape[1]
        start = positions.shape[1] - num_queries
        others = visible.clone()
        others[:, :, start:] &= ~torch.eye(num_queries, dtype=torch.bool)
        at_key = self.sequences.T[positions]  # [b k s]: the word of each sequence at the position of each key
        evidence = torch.einsum(
            "bqk,bks->bqs", others.double(), log_q.clamp_min(_IMPOSSIBLE).gather(-1, at_key)
        )
        posterior = torch.softmax(self.law.log() + evidence, -1)
        cavity = posterior.new_zeros(*posterior.shape[:2], self.num_words)
        return cavity.scatter_add(-1, at_key[:, start:], posterior)

    def log_probability(self, tokens: Int[Tensor, "b l"]) -> Float[Tensor, " b"]:
        return self.law[self.index(tokens)].log()

    def draw(self, count: int, seed: int) -> Int[Tensor, "b l"]:
        generator = torch.Generator().manual_seed(seed)
        return self.sequences[torch.multinomial(self.law, count, replacement=True, generator=generator)]

    def index(self, tokens: Int[Tensor, "*b l"]) -> Int[Tensor, "*b"]:
        """The index of each sequence of words in `sequences`."""
        place = self.num_words ** torch.arange(self.length - 1, -1, -1, device=tokens.device)
        return (tokens * place).sum(-1)

    def count(self, tokens: Int[Tensor, "b l"]) -> Int[Tensor, " s"]:
        """The number of times that each of `sequences` occurs.

        Raises:
            ValueError: If a token is not a word.
        """
        if int(tokens.min()) < 0 or int(tokens.max()) >= self.num_words:
            raise ValueError(
                f"Only words can be counted, ids in [0, {self.num_words}); got {int(tokens.max())}."
            )
        return self.index(tokens).bincount(minlength=len(self.law))


def random_world(num_words: int = 3, length: int = 3, seed: int = 0, temperature: float = 1.0) -> World:
    """A world without structure: `p ~ exp(normal / temperature)`, seeded.

    Args:
        num_words: Number of words.
        length: Number of positions.
        seed: Seed of the world.
        temperature: A positive number; large ones give nearly uniform worlds.
    """
    generator = torch.Generator().manual_seed(seed)
    energies = torch.randn([num_words] * length, generator=generator, dtype=torch.float64)
    return World(torch.softmax(energies.flatten() / temperature, 0).view(energies.shape))


def agreeing_world(num_words: int = 3, length: int = 3, strength: float = 1.5) -> World:
    """A world with structure: neighbours tend to be equal, and small words are a little more common (a Potts chain).

    Args:
        num_words: Number of words.
        length: Number of positions.
        strength: Log odds by which two equal neighbours are preferred.
    """
    sequences = all_sequences(num_words, length)
    agreements = (sequences[:, 1:] == sequences[:, :-1]).sum(-1)
    energies = strength * agreements.double() - 0.2 * sequences.sum(-1).double()
    return World(torch.softmax(energies, 0).view([num_words] * length))


def mirrored_world(num_words: int = 3, length: int = 4, strength: float = 3.0) -> World:
    """A world with long-range structure: positions `i` and `length - 1 - i` tend to be equal.

    Args:
        num_words: Number of words.
        length: Number of positions.
        strength: Log odds by which two equal partners are preferred; a third of it for the first two positions.
    """
    sequences = all_sequences(num_words, length)
    pairs = (sequences == sequences.flip(-1))[:, : length // 2].sum(-1).double()
    first = (sequences[:, 0] == sequences[:, 1]).double()
    energies = strength * pairs + strength / 3 * first - 0.2 * sequences.sum(-1).double()
    return World(torch.softmax(energies, 0).view([num_words] * length))
