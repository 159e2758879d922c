"""Ancestral sampling: draw from the exact posterior `p(x_s | x_t)` ("original" in the published code).

For the absorbing process a mask is replaced with probability `1 - s/t` by a draw from `p(x_0 | x_t)` (MDLM, arXiv
2406.07524). For other processes the posterior also replaces words, according to the process's closed form.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hdlm.process import AbstractNoiseProcess
from hdlm.sampling.base import Move
from hdlm.sampling.draws import draw_word

__all__ = ["Ancestral"]

_KIND, _MODEL, _WORD, _AGAIN, _WHEN = 0, 1, 2, 3, 4


@final
@dataclass(frozen=True)
class Ancestral:
    """A draw from `p(x_s | x_t)`.

    Attributes:
        process: The process to sample along; the denoiser's own by default. An epsilon-hybrid that is sampled along
            `Absorbing` draws from `p(x_0 | x_t)` itself: the sampler of the paper, which neither inserts uniform words
            nor repairs any.
    """

    process: AbstractNoiseProcess | None = None
    remasks: ClassVar[bool] = False
    """Where a word may become a mask, the step acts at every generation step, so nothing depends on this."""

    def __call__(self, x: Int[Tensor, "b l"], move: Move) -> Int[Tensor, "b l"]:
        process = self.process or move.process
        if process.only_masks:
            falls = move.masked & move.events_of(self)
            return x.masked_scatter(falls, move.reading.draw(falls, move.uniform(_MODEL)))
        own = torch.zeros_like(move.t)
        restless = move.visible & words_move(process, move)
        own = own.masked_scatter(restless, move.reading.own(restless).to(own.dtype))
        law = process.reverse(move.x, own, move.s, move.t)
        kind = self._kind(process, law.stay, move)
        leaves = move.moving & (kind >= law.stay)
        model = leaves & (kind < law.stay + law.model)
        word = leaves & ~model & (kind < law.stay + law.model + law.uniform)
        mask = leaves & ~model & ~word
        new = torch.where(mask, process.mask_id, x)
        if word.any():
            new = torch.where(word, draw_word(process.num_words, move.uniform(_WORD)), new)
        if model.any():
            new = new.masked_scatter(model, move.reading.draw(model, move.uniform(_MODEL)))
        return new

    def _kind(
        self, process: AbstractNoiseProcess, stay: Float[Tensor, "b l"], move: Move
    ) -> Float[Tensor, "b l"]:
        """The uniform number that decides the change of a token; a mask stays until its time has come."""
        kind = move.uniform(_KIND)
        if not process.words_stay:
            return kind
        now = move.falls_here(process, _WHEN, _AGAIN)
        return torch.where(move.x == process.mask_id, torch.where(now, stay + (1 - stay) * kind, -1.0), kind)

    def events(self, move: Move) -> Bool[Tensor, "b l"]:
        """Where a mask falls or a word may move; everywhere if words may change while masks fall."""
        process = self.process or move.process
        if not process.words_stay:
            return move.moving
        if process.only_masks:
            return move.moving & move.falls_here(process, _WHEN, _KIND)
        return move.moving & (move.falls_here(process, _WHEN, _AGAIN) | words_move(process, move))


def words_move(process: AbstractNoiseProcess, move: Move) -> Bool[Tensor, "b l"]:
    """Whether a word can change between `t` and `s`, so that the network must be called for it."""
    kernel = process.between(move.s, move.t)
    return (kernel.uniform > 0) | (kernel.release > 0)
