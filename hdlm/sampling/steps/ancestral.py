"""Ancestral sampling: draw from the exact posterior `p(x_s | x_t)` ("original" in the published code).

For the absorbing process a mask is lifted with probability `1 - s/t` into a draw from `p(x_0 | x_t)` (MDLM,
arXiv 2406.07524). For the others the posterior also replaces words, as the closed form of the process says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from hdlm.process import AbstractNoiseProcess
from hdlm.sampling.base import Move
from hdlm.sampling.draws import draw_word

__all__ = ["Ancestral"]

_KIND, _MODEL, _WORD = 0, 1, 2


@final
@dataclass(frozen=True)
class Ancestral:
    """A draw from `p(x_s | x_t)`.

    Attributes:
        process: The process to walk back along; the denoiser's own by default. An epsilon-hybrid that walks back
            along `Absorbing` draws from `p(x_0 | x_t)` itself: the sampler of the paper, which puts no uniform words in
            and repairs none.
    """

    process: AbstractNoiseProcess | None = None

    def __call__(self, x: Int[Tensor, "b l"], move: Move) -> Int[Tensor, "b l"]:
        process = self.process or move.process
        own = torch.zeros_like(move.t)
        restless = move.visible & words_move(process, move)
        own = own.masked_scatter(restless, move.reading.own(restless).to(own.dtype))
        law = process.reverse(move.x, own, move.s, move.t)
        kind = move.uniform(_KIND)
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


def words_move(process: AbstractNoiseProcess, move: Move) -> Bool[Tensor, "b l"]:
    """Whether a word can change between `t` and `s`, so that the model must be asked about it."""
    kernel = process.between(move.s, move.t)
    return (kernel.uniform > 0) | (kernel.release > 0)
