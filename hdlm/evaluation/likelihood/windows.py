"""Split text into windows; every token is counted in exactly one window.

Windows follow one another, or overlap: with a stride below their length, each window begins `stride` tokens after the
one before it and counts only its new tokens; the tokens that it shares are given, clean. So a token has more context,
and the bound is tighter, at the price of more passes. The last window is short if the length does not divide the text.
It is not padded: it is evaluated at its own length, on the first positions of the same hyperschedule. Windows may
contain parts of several documents, unless each document has its own windows.

A `Window` holds tokens that are measured behind given tokens. A text that is longer than the network's context is cut
into several windows (`split_text`), each token in one of them, behind as many tokens as fit: the last window is full,
and so is a first window that is cut on its left.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch
from jaxtyping import Int
from torch import Tensor

__all__ = ["Stack", "Window", "WindowedText", "split_text", "windows"]


@final
@dataclass(frozen=True)
class Stack:
    """Windows of one length.

    Attributes:
        tokens: Token ids of the windows.
        given: How many of the first tokens of each window are given; other windows count them.
    """

    tokens: Int[Tensor, "w l"]
    given: int = 0


@final
@dataclass(frozen=True, eq=False)
class WindowedText:
    """A text and its division into windows; see `windows`.

    Attributes:
        tokens: Words of the text in order.
        length: Tokens in a window.
        stride: New tokens in each window, if windows overlap.
        documents: Tokens of each document, if no window may contain parts of two documents.
        num_bytes: Bytes of UTF-8 of the tokens, for bits per byte.
    """

    tokens: Int[Tensor, " n"]
    length: int
    stride: int | None = None
    documents: Sequence[int] | None = None
    num_bytes: int | None = None

    @cached_property
    def stacks(self) -> tuple[Stack, ...]:
        """The windows by length."""
        return windows(self.tokens, self.length, self.stride, self.documents)

    @property
    def num_windows(self) -> int:
        """Number of windows of the text."""
        return sum(len(stack.tokens) for stack in self.stacks)


def windows(
    tokens: Int[Tensor, " n"],
    length: int,
    stride: int | None = None,
    documents: Sequence[int] | None = None,
) -> tuple[Stack, ...]:
    """Split a text into windows.

    Args:
        tokens: The text, at least one token.
        length: Tokens in a window, at least 1.
        stride: New tokens in a window, in [1, `length`]; by default all of them.
        documents: Tokens of each document, if no window may contain parts of two documents.

    Returns:
        Stacks of windows in the order of the text; the last window may be short, and then is a stack by itself. Windows
        of different documents share stacks, in the order in which the first window of each kind occurs.

    Raises:
        ValueError: If there are no tokens, `length` or `stride` is out of range, or the documents do not add up to the
            text.
    """
    if documents is None:
        return _stacks(tokens, length, stride)
    if sum(documents) != len(tokens) or any(size < 1 for size in documents):
        raise ValueError(
            f"`documents` must be at least one token each and {len(tokens)} together; got {len(documents)} documents "
            f"of {sum(documents)} tokens."
        )
    rows_by_kind: dict[tuple[int, int], list[Tensor]] = {}
    for document in tokens.split(list(documents)):
        for stack in _stacks(document, length, stride):
            rows_by_kind.setdefault((stack.tokens.shape[1], stack.given), []).append(stack.tokens)
    return tuple(Stack(torch.cat(rows), given) for (_, given), rows in rows_by_kind.items())


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


@final
@dataclass(frozen=True)
class Window:
    """Tokens to be measured, behind given tokens.

    Attributes:
        tokens: All tokens of the window.
        given: How many of the first tokens are given.
        key: Number that determines the window's noise, in [0, 2^32).
    """

    tokens: tuple[int, ...]
    given: int
    key: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.given < len(self.tokens):
            raise ValueError(
                f"`given` must be less than {len(self.tokens)}, the number of tokens, so that something is "
                f"measured; got {self.given}."
            )


def split_text(tokens: Sequence[int], given: int, length: int, *, alike: bool = False) -> list[Window]:
    """Split a text into windows that the network can read.

    Args:
        tokens: The given tokens, then the tokens to measure.
        given: How many tokens are given.
        length: Tokens that the network can read, at least 2.
        alike: Whether the noise depends only on the given tokens, not on the measured ones.

    Raises:
        ValueError: If `length` or `given` is out of range.
    """
    if length < 2:
        raise ValueError(
            f"a text is measured after at least one given token, so a window needs 2 positions; `length` is {length}."
        )
    if not 0 <= given <= len(tokens):
        raise ValueError(f"`given` must lie in [0, {len(tokens)}], the number of tokens; got {given}.")
    windows, done = [], given
    while done < len(tokens):
        end = min(len(tokens), done + length - min(done, 1))
        start = max(end - length, 0)
        known = tokens[start : done if alike else end]
        windows.append(
            Window(tuple(tokens[start:end]), done - start, zlib.crc32(repr(tuple(known)).encode()))
        )
        done = end
    return windows
