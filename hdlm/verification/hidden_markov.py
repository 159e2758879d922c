"""A hidden Markov model as a world: long sequences whose exact posteriors come from the forward-backward algorithm.

A state moves by a Markov chain, and each state emits a word. Noise acts on each word alone, so the noisy sequence is
the output of a hidden Markov model too, and every `p(x_0 | x_t)` is exact at any length and for any process.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hdlm.verification.world import AbstractWorld

__all__ = ["HiddenMarkov", "phrases"]


@final
@dataclass(frozen=True, eq=False)
class HiddenMarkov(AbstractWorld):
    """A stationary hidden Markov model.

    Attributes:
        transition: `p(next state | state)`, positive; rows sum to 1.
        emission: `p(word | state)`, positive; rows sum to 1.
        size: Number of positions.

    Raises:
        ValueError: If rows are not positive distributions over states or words, or there is no position.
    """

    transition: Float[Tensor, "h h"]
    emission: Float[Tensor, "h n"]
    size: int

    def __post_init__(self) -> None:
        for name in ("transition", "emission"):
            rows = getattr(self, name)
            if not bool((rows > 0).all()) or float((rows.sum(-1) - 1).abs().max()) > 1e-9:
                raise ValueError(f"Rows of `{name}` must be positive and sum to 1; got {rows.tolist()}.")
        if self.transition.shape != (len(self.emission), len(self.emission)) or self.size < 1:
            raise ValueError(
                f"`transition` needs a row and a column for each of the {len(self.emission)} states, and `size` at "
                f"least 1; got {tuple(self.transition.shape)} and {self.size}."
            )

    @property
    def num_words(self) -> int:
        return self.emission.shape[1]

    @property
    def length(self) -> int:
        return self.size

    @cached_property
    def stationary(self) -> Float[Tensor, " h"]:
        """The law of the state at every position."""
        law: Tensor = torch.linalg.matrix_power(self.transition, 2**20)[0]
        return law

    def cavity(
        self, log_q: Float[Tensor, "b k n"], positions: Int[Tensor, "b k"], visible: Bool[Tensor, "#b q k"]
    ) -> Float[Tensor, "b q n"]:
        start = positions.shape[1] - visible.shape[1]
        out = log_q.new_zeros(*positions[:, start:].shape, self.num_words)
        if bool((visible == visible[:, :1]).all()):
            kinds, kind = visible[:, 0].flatten()[None], torch.zeros(visible.shape[1])
        else:
            kinds, kind = visible.transpose(0, 1).flatten(1).unique(dim=0, return_inverse=True)
        for number, seen in enumerate(kinds.view(len(kinds), len(visible), -1)):
            queries = (kind == number).nonzero()[:, 0]
            everywhere = self._everywhere(log_q.exp(), positions, seen)
            place = positions[:, start + queries][..., None].expand(-1, -1, self.num_words)
            out[:, queries] = everywhere.gather(1, place)
        return out

    def _everywhere(
        self, q: Float[Tensor, "b k n"], positions: Int[Tensor, "b k"], seen: Bool[Tensor, "#b k"]
    ) -> Float[Tensor, "b l n"]:
        """`p(x_0)` of every position given the keys that are seen at all others, by forward-backward."""
        evidence = torch.ones(len(q), self.length, self.num_words, dtype=torch.float64)
        known = torch.where(seen[..., None], q.double(), 1.0)
        evidence.scatter_(1, positions[..., None].expand_as(known), known)
        of_state = evidence @ self.emission.T
        before, after = torch.empty_like(of_state), torch.empty_like(of_state)
        state = self.stationary.expand(len(q), -1)
        for i in range(self.length):
            before[:, i] = state
            state = (state * of_state[:, i]) @ self.transition
            state = state / state.sum(-1, keepdim=True)
        future = torch.ones_like(state)
        for i in reversed(range(self.length)):
            after[:, i] = future
            future = (future * of_state[:, i]) @ self.transition.T
            future = future / future.sum(-1, keepdim=True)
        words = (before * after) @ self.emission
        return words / words.sum(-1, keepdim=True)

    def log_probability(self, tokens: Int[Tensor, "b l"]) -> Float[Tensor, " b"]:
        state, total = self.stationary.expand(len(tokens), -1), torch.zeros(len(tokens), dtype=torch.float64)
        for word in tokens.unbind(1):
            joint = state * self.emission.T[word]
            total = total + joint.sum(-1).log()
            state = (joint / joint.sum(-1, keepdim=True)) @ self.transition
        return total

    def draw(self, count: int, seed: int) -> Int[Tensor, "b l"]:
        generator, words = torch.Generator().manual_seed(seed), []
        state = torch.multinomial(self.stationary, count, replacement=True, generator=generator)
        for _ in range(self.length):
            words.append(torch.multinomial(self.emission[state], 1, generator=generator)[:, 0])
            state = torch.multinomial(self.transition[state], 1, generator=generator)[:, 0]
        return torch.stack(words, 1)

    def law_of_run(self, length: int) -> Float[Tensor, " runs"]:
        """Probability of every run of `length` words in a row, in lexicographic order."""
        joint = self.stationary[None]  # rows: p(words so far, next state)
        for _ in range(length):
            joint = torch.einsum("rh,hn,hj->rnj", joint, self.emission, self.transition).flatten(0, 1)
        return joint.sum(-1)


def phrases(length: int = 64, num_words: int = 8, order: float = 0.9, topic: float = 0.02) -> HiddenMarkov:
    """Two topics, each with a cycle of words in an order of its own: neighbours and distant words depend on each other.

    Args:
        length: Number of positions.
        num_words: Number of words, an even number: the first topic prefers the first half, in rising order, and the
            second topic the other half, in falling order.
        order: Probability that a cycle moves to its next word, in (0, 1).
        topic: Probability that a topic ends at a position, in (0, 1).
    """
    half = num_words // 2
    cycle = (
        torch.eye(half, dtype=torch.float64).roll(1, 1) * (order - (1 - order) / half) + (1 - order) / half
    )
    cycle = cycle / cycle.sum(-1, keepdim=True)
    anywhere = torch.full((half, half), 1 / half, dtype=torch.float64)
    stay, leave = (1 - topic) * cycle, topic * anywhere
    transition = torch.cat([torch.cat([stay, leave], 1), torch.cat([leave, (1 - topic) * cycle.T], 1)])
    own = 0.95
    emission = torch.eye(num_words, dtype=torch.float64) * own + (1 - own) / num_words
    return HiddenMarkov(transition, emission / emission.sum(-1, keepdim=True), length)
