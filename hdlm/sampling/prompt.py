"""What the user gives: tokens that generation keeps, at the beginning or anywhere else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Int
from torch import Tensor

__all__ = ["Prompt"]


@final
@dataclass(frozen=True)
class Prompt:
    """Tokens and which of them are fixed; the rest is to be written.

    Attributes:
        tokens: One row for all sequences, or one for each. What stands at free positions does not matter.
        fixed: Which positions are given.

    Raises:
        ValueError: If the two have different shapes.
    """

    tokens: Int[Tensor, "#b l"]
    fixed: Bool[Tensor, "#b l"]

    def __post_init__(self) -> None:
        if self.tokens.shape != self.fixed.shape:
            raise ValueError(
                f"`tokens` and `fixed` of a prompt must have one shape; got {tuple(self.tokens.shape)} "
                f"and {tuple(self.fixed.shape)}."
            )

    @staticmethod
    def prefix(ids: list[int] | Int[Tensor, " p"], length: int) -> Prompt:
        """A prompt in front, on a canvas of `length` positions.

        Raises:
            ValueError: If the prompt leaves no room.
        """
        given = torch.as_tensor(ids, dtype=torch.long)
        if len(given) >= length:
            raise ValueError(
                f"The prompt has {len(given)} tokens and the canvas {length} positions: nothing is left to write. "
                "Shorten the prompt or lengthen the canvas."
            )
        tokens = torch.zeros(1, length, dtype=torch.long)
        tokens[0, : len(given)] = given
        return Prompt(tokens, torch.arange(length)[None] < len(given))

    @staticmethod
    def infill(ids: list[int] | Int[Tensor, " l"], blank: int) -> Prompt:
        """A whole canvas in which the token `blank` (the mask, usually) stands where something is to be written.

        Raises:
            ValueError: If there is no blank.
        """
        tokens = torch.as_tensor(ids, dtype=torch.long)[None]
        if not (tokens == blank).any():
            raise ValueError(
                f"Nothing to fill in: none of the {tokens.shape[1]} tokens is the blank ({blank})."
            )
        return Prompt(torch.where(tokens == blank, 0, tokens), tokens != blank)
