"""Text to windows: every token counted in exactly one, none dropped, none invented.

Windows follow one another, or overlap: with a stride below their length, each begins `stride` tokens after the one
before, and counts only the tokens that are new; those it shares are given, clean. So a token has more before it, and
the bound is tighter, at the price of more passes. The last window is short where the text does not divide. It is not
padded: it is evaluated at its own length, on the first positions of the same hyperschedule. Windows cross from one
document into the next, unless each document is to have windows of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Int
from torch import Tensor

__all__ = ["Stack", "windows"]


@final
@dataclass(frozen=True)
class Stack:
    """Windows of one length.

    Attributes:
        tokens: The windows.
        given: How many of the first tokens of each are given: other windows count them.
    """

    tokens: Int[Tensor, "w l"]
    given: int = 0


def windows(
    tokens: Int[Tensor, " n"],
    length: int,
    stride: int | None = None,
    documents: Sequence[int] | None = None,
) -> tuple[Stack, ...]:
    """Cut a text into windows.

    Args:
        tokens: The text, at least one token.
        length: Tokens in a window, at least 1.
        stride: New tokens in a window, in [1, `length`]; by default all of them.
        documents: Tokens of each document, if no window is to cross from one into the next.

    Returns:
        Stacks of windows in the order of the text; the last window may be short, and then is a stack by itself. Windows
        of different documents share stacks, in the order in which the first of each kind occurs.

    Raises:
        ValueError: If there are no tokens, `length` or `stride` is out of range, or the documents are not the text.
    """
    if documents is None:
        return _stacks(tokens, length, stride)
    if sum(documents) != len(tokens) or any(size < 1 for size in documents):
        raise ValueError(
            f"`documents` must be at least one token each and {len(tokens)} together; got {len(documents)} documents "
            f"of {sum(documents)} tokens."
        )
    found: dict[tuple[int, int], list[Tensor]] = {}
    for document in tokens.split(list(documents)):
        for stack in _stacks(document, length, stride):
            found.setdefault((stack.tokens.shape[1], stack.given), []).append(stack.tokens)
    return tuple(Stack(torch.cat(rows), given) for (_, given), rows in found.items())


def _stacks(tokens: Int[Tensor, " n"], length: int, stride: int | None) -> tuple[Stack, ...]:
    """Windows of one document."""
    if length < 1:
        raise ValueError(f"`length` of a window must be at least 1; got {length}.")
    if not len(tokens):
        raise ValueError("there are no tokens to cut into windows; give at least one.")
    step = length if stride is None else stride
    if not 1 <= step <= length:
        raise ValueError(f"`stride` must lie in [1, {length}], the length of a window; got {stride}.")
    given = length - step
    starts = range(0, max(len(tokens) - given, 1), step)
    whole = [start for start in starts if start + length <= len(tokens)]
    stacks = [Stack(tokens[start : start + length][None]) for start in whole[:1]] if given else []
    rest = torch.tensor(whole[1:] if given else whole, device=tokens.device)
    if len(rest):
        stacks.append(Stack(tokens[rest.long()[:, None] + torch.arange(length, device=tokens.device)], given))
    stacks += [
        Stack(tokens[start:][None], given if start else 0) for start in starts if start + length > len(tokens)
    ]
    return tuple(stacks)
