"""Writers without a model, as controls: a metric that prefers them to a model is not evidence for that model.

repeat    one frequent word, repeated
unigram   random words with the frequencies of the text
shuffle   passages of the text, their words in random order
data      passages of the text: the score of a perfect writer
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

__all__ = ["CONTROLS", "ControlName", "control"]

ControlName = Literal["repeat", "unigram", "shuffle", "data"]
ControlWriter = Callable[[Tensor, int, int, torch.Generator], Tensor]


def _data(text: Tensor, num: int, length: int, random: torch.Generator) -> Tensor:
    starts = torch.randint(len(text) - length + 1, (num, 1), generator=random)
    return text[starts + torch.arange(length)]


def _shuffle(text: Tensor, num: int, length: int, random: torch.Generator) -> Tensor:
    order = torch.rand(num, length, generator=random).argsort(1)
    return _data(text, num, length, random).gather(1, order)


def _unigram(text: Tensor, num: int, length: int, random: torch.Generator) -> Tensor:
    return text[torch.randint(len(text), (num, length), generator=random)]


def _repeat(text: Tensor, num: int, length: int, random: torch.Generator) -> Tensor:
    return _unigram(text, num, 1, random).expand(num, length).clone()


CONTROLS: Mapping[str, ControlWriter] = MappingProxyType(
    {"repeat": _repeat, "unigram": _unigram, "shuffle": _shuffle, "data": _data}
)
"""The writers by name."""


def control(
    name: str, text: Int[Tensor, " n"], num: int, length: int, seed: int = 0
) -> Int[Tensor, "num length"]:
    """Samples of a writer without a model.

    Args:
        name: One of `CONTROLS`.
        text: Tokens to take words from.
        num: How many samples, at least 1.
        length: Tokens in each sample, at least 1 and at most the length of the text.
        seed: Seed of all random numbers.

    Raises:
        ValueError: If the name is unknown, or the text is too short.
    """
    if name not in CONTROLS:
        raise ValueError(f"there is no control {name!r}; known: {', '.join(CONTROLS)}.")
    if num < 1 or not 1 <= length <= len(text):
        raise ValueError(
            f"a control needs at least one sample and a length in [1, {len(text)}], the tokens of its text; "
            f"got {num} samples of {length}."
        )
    return CONTROLS[name](text, num, length, torch.Generator().manual_seed(seed))
