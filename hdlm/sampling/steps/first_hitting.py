"""First-hitting sampling: draw the time of each mask's fall, and call the network once for each (arXiv 2409.02908).

The distribution is that of ancestral sampling with infinitely many steps, with at most one network call per token.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hdlm.process import AbstractNoiseProcess
from hdlm.sampling.base import Move
from hdlm.sampling.draws import draw_word
from hdlm.sampling.steps.ancestral import Ancestral

__all__ = ["FirstHitting"]

_WHEN, _MODEL, _KIND, _WORD = 0, 1, 2, 3


@final
@dataclass(frozen=True)
class FirstHitting:
    """Unmasks the masks of a move one at a time, in the order in which they fall; each sees the words before it.

    Attributes:
        process: The process to sample along, as in `Ancestral`; words must not change while masks fall, as in the
            absorbing and epsilon-hybrid processes.
    """

    process: AbstractNoiseProcess | None = None

    def __call__(self, x: Int[Tensor, "b l"], move: Move) -> Int[Tensor, "b l"]:
        process = self.process or move.process
        nearly = torch.where(move.s > 0, move.s, torch.finfo(move.s.dtype).tiny)
        waiting = replace(move, s=nearly)
        if not process.words_stay:
            raise ValueError(
                f"First-hitting needs a process that changes no word while masks are replaced; got {process!r}. "
                "Use the ancestral or the analytic step."
            )
        falls = torch.where(move.masked, move.uniform(_WHEN), -1.0)
        falls = torch.where(falls >= waiting.still_masked, falls, -1.0)
        when, order = falls.sort(dim=1, descending=True)
        asked = move
        for turn in range(int((when >= 0).sum(1).max())):
            lifted = torch.zeros_like(move.moving).scatter(
                1, order[:, turn : turn + 1], when[:, turn : turn + 1] >= 0
            )
            now = torch.where(move.moving, when[:, turn : turn + 1].clamp_min(0) * move.t, move.t)
            if turn:
                asked = replace(move, x=x, t=torch.maximum(now, nearly))
            x = self._lift(x, asked, lifted, process)
        settle = replace(move, x=x, t=torch.minimum(nearly, move.t)).sub(1)
        return Ancestral(process)(x, settle)

    def _lift(
        self, x: Tensor, asked: Move, lifted: Tensor, process: AbstractNoiseProcess
    ) -> Int[Tensor, "b l"]:
        w = process.weights(
            asked.t.clamp(torch.finfo(asked.t.dtype).tiny, 1 - torch.finfo(asked.t.dtype).eps)
        )
        wrong: Float[Tensor, "b l"] = w.uniform / (w.clean + w.uniform)
        uniform = lifted & (asked.uniform(_KIND) < wrong)
        model = lifted & ~uniform
        new = x.clone()
        if uniform.any():
            new[uniform] = draw_word(process.num_words, asked.uniform(_WORD)[uniform])
        if model.any():
            new[model] = asked.reading.draw(model, asked.uniform(_MODEL))
        return new
