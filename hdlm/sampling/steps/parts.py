"""Decoding in parts: another step, for one part of the positions after another."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import final

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from hdlm.network import Previous
from hdlm.sampling.base import Move, Reading, Step

__all__ = ["InParts"]


@final
@dataclass(frozen=True)
class InParts:
    """Another step, applied to one part of the moving positions after the other, from left to right.

    Without `block`, parts are counted from the first position that moves. Along a flat hyperschedule with one step,
    `InParts(ByThreshold(0.9, greedy=True), 32)` is the decoding of LLaDA by Fast-dLLM (arXiv 2505.22618).

    With `block`, parts are sub-blocks of blocks that are counted from the start of the canvas, and the first position
    of each block is a part of its own. Along `Block(length, 32, 1)`, `InParts(ByThreshold(0.9, greedy=True), 8, 32)` is
    the decoding of Fast-dLLM v2 (arXiv 2509.26328). There, a shifted network predicts the first position of a block
    from the block before it. With an approximate cache of all positions, it is the decoding with a block cache: a call
    computes the whole block while the first position of the sub-block is a mask, and the sub-block after that.

    It is a heuristic: it determines the order of the words.

    Attributes:
        inner: The step that writes a part. It should write all masks of a move, as `ByThreshold` does.
        width: Number of positions of a part.
        block: Width of blocks, a multiple of `width`; None for parts that begin at the first moving position.

    Raises:
        ValueError: If a width is not positive, or `block` is not a multiple of `width`.
    """

    inner: Step
    width: int
    block: int | None = None

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"`width` of parts must be positive; got {self.width}.")
        if self.block is not None and (self.block < 1 or self.block % self.width):
            raise ValueError(
                f"`block` must be a positive multiple of `width` ({self.width}); got {self.block}."
            )

    def __call__(self, x: Int[Tensor, "b l"], move: Move) -> Int[Tensor, "b l"]:
        moving, part = move.moving, self._part(move.moving)
        for number in part[moving].unique().tolist():
            own = moving & (part == number)
            asking = partial(self._ask, move, number, x)
            x = self.inner(x, replace(move, x=x, moving=own, ask=asking))
        return x

    def _part(self, moving: Bool[Tensor, "b l"]) -> Int[Tensor, "b l"]:
        """The number of the part of each position; parts are written in ascending order."""
        place = torch.arange(moving.shape[1], device=moving.device).expand_as(moving)
        if self.block is not None:
            return 2 * (place // self.width) + (place % self.block > 0).long()
        first = torch.where(moving, place, moving.shape[1]).amin(1, keepdim=True)
        return (place - first).div(self.width, rounding_mode="floor")

    def _ask(
        self,
        move: Move,
        number: int,
        before: Tensor,
        x: Tensor,
        u: Tensor,
        previous: Previous | None = None,
        /,
    ) -> Reading:
        """A reading for which a call with an approximate cache computes a whole block or sub-block."""
        reading = move.ask(x, u, previous)
        if self.block is not None and number % 2:
            first, end = number // 2 * self.width, (number // 2 + 1) * self.width
            if x is before or bool((x[:, first] == move.process.mask_id).any()):
                first, end = (edge // self.block * self.block for edge in (first, first + self.block))
            place = torch.arange(x.shape[1], device=x.device)
            computed = ((place > first) & (place < end)).expand_as(x)  # a shifted network adds the first
            reading.expected.append(lambda: computed)
        return reading
