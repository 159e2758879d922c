"""The user's prompt: tokens that generation keeps, at the beginning or anywhere else, or a draft that it corrects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Int
from torch import Tensor

__all__ = ["Prompt", "check_prompt", "prompt_rows"]


@final
@dataclass(frozen=True)
class Prompt:
    """Tokens, and which of them are fixed; the others are to be written.

    Attributes:
        tokens: One row for all sequences, or one row for each. Tokens at free positions are ignored, except in a draft.
        fixed: Which positions are given.
        lengths: Number of positions of each sequence; None if each has the length of the canvas.
        is_draft: Whether generation begins with `tokens` at free positions, too, and not with noise.

    Raises:
        ValueError: If the shapes do not fit together.
    """

    tokens: Int[Tensor, "#b l"]
    fixed: Bool[Tensor, "#b l"]
    lengths: Int[Tensor, " b"] | None = None
    is_draft: bool = False

    def __post_init__(self) -> None:
        if self.lengths is not None and len(self.lengths) != len(self.tokens):
            raise ValueError(
                f"`lengths` of a prompt needs a number for each row; got {len(self.lengths)} for {len(self.tokens)}."
            )
        if self.tokens.shape != self.fixed.shape:
            raise ValueError(
                f"`tokens` and `fixed` of a prompt must have one shape; got {tuple(self.tokens.shape)} "
                f"and {tuple(self.fixed.shape)}."
            )

    @staticmethod
    def prefix(ids: list[int] | Int[Tensor, " p"], length: int) -> Prompt:
        """A prompt at the beginning of a canvas of `length` positions.

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
    def ragged(prompts: Sequence[Sequence[int]], new: int) -> Prompt:
        """Prompts of different lengths, each followed by `new` free positions.

        Each sequence is computed without padding, so it gets the tokens that it gets alone.

        Raises:
            ValueError: If there is no prompt, or nothing is left to write.
        """
        if not prompts or new < 1:
            raise ValueError(
                f"A ragged prompt needs at least one prompt and one new token; got {len(prompts)} and {new}."
            )
        given = torch.tensor([len(prompt) for prompt in prompts])
        columns = torch.arange(int(given.max()) + new)[None]
        fixed = columns < given[:, None]
        tokens = torch.zeros(fixed.shape, dtype=torch.long)
        tokens[fixed] = torch.tensor([token for prompt in prompts for token in prompt], dtype=torch.long)
        return Prompt(tokens, fixed, given + new)

    @staticmethod
    def infill(ids: list[int] | Int[Tensor, " l"], blank: int) -> Prompt:
        """A whole canvas in which the token `blank` (usually the mask) marks the positions to be written.

        Raises:
            ValueError: If there is no blank.
        """
        tokens = torch.as_tensor(ids, dtype=torch.long)[None]
        if not (tokens == blank).any():
            raise ValueError(
                f"Nothing to fill in: none of the {tokens.shape[1]} tokens is the blank ({blank})."
            )
        return Prompt(torch.where(tokens == blank, 0, tokens), tokens != blank)


def prompt_rows(prompt: Prompt | None, rows: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """The prompt's tokens and marks for some sequences."""
    if prompt is None:
        return None, None
    tokens, fixed = prompt.tokens.to(rows.device), prompt.fixed.to(rows.device)
    return (tokens[rows], fixed[rows]) if len(tokens) > 1 else (tokens, fixed)


def check_prompt(prompt: Prompt | None, num_words: int, length: int, num_sequences: int) -> None:
    """Refuse a prompt that fits neither the canvas nor the vocabulary."""
    if prompt is not None:
        rows, columns = prompt.tokens.shape
        if columns != length or rows not in (1, num_sequences):
            raise ValueError(
                f"The prompt must have {length} positions, and 1 or {num_sequences} rows; got {columns} and {rows}."
            )
        given = prompt.tokens[prompt.fixed]
        if len(given) and not 0 <= int(given.min()) <= int(given.max()) < num_words:
            raise ValueError(
                f"Tokens of the prompt must be words, in [0, {num_words}); got {int(given.min())} to "
                f"{int(given.max())}. Was it encoded with the checkpoint's tokenizer?"
            )
        if prompt.is_draft and not 0 <= int(prompt.tokens.min()) <= int(prompt.tokens.max()) <= num_words:
            raise ValueError(f"Tokens of a draft must be words or the mask, in [0, {num_words}].")
