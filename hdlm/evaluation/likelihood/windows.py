"""Text to windows: every token counted in exactly one, none dropped, none invented.

Windows follow one another, or overlap: with a stride below their length, each begins `stride` tokens after the one
before, and counts only the tokens that are new; those it shares are given, clean. So a token has more before it, and
the bound is tighter, at the price of more passes. The last window is short where the text does not divide. It is not
padded: it is evaluated at its own length, on the first positions of the same hyperschedule. Windows cross from one
document into the next, unless each document is to have windows of its own.

A `Window` holds tokens that are measured behind tokens that are given. A text that is longer than the network is cut
into several of them (`split_text`), each token in one, behind as much as fits: the last window is full, and so is a
first window that has to be cut on its left.
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
        tokens: The windows.
        given: How many of the first tokens of each are given: other windows count them.
    """

    tokens: Int[Tensor, "w l"]
    given: int = 0


@final
@dataclass(frozen=True, eq=False)
class WindowedText:
    """A text, and how it is cut into windows; see `windows`.

    Attributes:
        tokens: The text: words, in order.
        length: Tokens in a window.
        stride: New tokens in each window, where windows are to overlap.
        documents: Tokens of each document, if no window is to cross from one into the next.
        num_bytes: Bytes of UTF-8 that the tokens stand for, if bits per byte are wanted.
    """

    tokens: Int[Tensor, " n"]
    length: int
    stride: int | None = None
    documents: Sequence[int] | None = None
    num_bytes: int | None = None

    @cached_property
    def stacks(self) -> tuple[Stack, ...]:
        """The windows."""
        return windows(self.tokens, self.length, self.stride, self.documents)

    @property
    def num_windows(self) -> int:
        """How many windows there are."""
        return sum(len(stack.tokens) for stack in self.stacks)


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


@final
@dataclass(frozen=True)
class Window:
    """Tokens to be measured behind tokens that are given.

    Attributes:
        tokens: All of them.
        given: How many of the first are given.
        key: What the window's noise depends on, in [0, 2^32).
    """

    tokens: tuple[int, ...]
    given: int
    key: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.given < len(self.tokens):
            raise ValueError(
                f"`given` must leave something to measure of {len(self.tokens)} tokens; got {self.given}."
            )


def split_text(tokens: Sequence[int], given: int, length: int, *, alike: bool = False) -> list[Window]:
    """A text as windows that the network can read.

    Args:
        tokens: What is given, then what is to be measured.
        given: How many tokens are given.
        length: Tokens that the network can read, at least 2.
        alike: Whether the noise depends on what is given only, not on what is measured.

    Raises:
        ValueError: If `length` or `given` is out of range.
    """
    if length < 2:
        raise ValueError(
            f"a text is measured behind something, which takes 2 positions; `length` is {length}."
        )
    if not 0 <= given <= len(tokens):
        raise ValueError(f"`given` must lie in [0, {len(tokens)}], the tokens there are; got {given}.")
    found, done = [], given
    while done < len(tokens):
        end = min(len(tokens), done + length - min(done, 1))
        start = max(end - length, 0)
        known = tokens[start : done if alike else end]
        found.append(Window(tuple(tokens[start:end]), done - start, zlib.crc32(repr(tuple(known)).encode())))
        done = end
    return found
