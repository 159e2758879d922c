"""Tokens that stay in their files: several memory-mapped arrays that are indexed as one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias, final

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Int
from torch import Tensor

__all__ = ["MappedTokens", "Tokens", "mapped"]


def mapped(path: Path) -> npt.NDArray[np.unsignedinteger]:
    """A row of tokens in a `.npy` file, mapped into memory.

    `numpy.load` would keep the file open, and the number of open files is limited.
    """
    known = np.load(path, mmap_mode="r")
    size = path.stat().st_size
    whole = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8).numpy()
    return whole[known.offset :].view(known.dtype)


@final
class MappedTokens:
    """Tokens in several arrays, one after another; only the tokens that are indexed are read.

    Args:
        arrays: Unsigned integers, mapped from files or not.
        fingerprint: A hash of the tokens.
    """

    def __init__(self, arrays: Sequence[npt.NDArray[np.unsignedinteger]], fingerprint: str) -> None:
        self._arrays = tuple(arrays)
        self._ends = np.cumsum([len(array) for array in arrays], dtype=np.int64)
        self.fingerprint = fingerprint

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, where: slice) -> Int[Tensor, " n"]:
        """A contiguous slice of tokens, as a copy in int64."""
        start, stop, step = where.indices(len(self))
        if step != 1:
            raise ValueError(f"mapped tokens are read in contiguous slices; got a step of {step}.")
        parts = [np.zeros(0, np.int64)]
        number = int(np.searchsorted(self._ends, start, side="right"))
        while start < stop:
            array, end = self._arrays[number], int(self._ends[number])
            begin = end - len(array)
            parts.append(array[start - begin : min(stop, end) - begin].astype(np.int64))
            start, number = end, number + 1
        return torch.from_numpy(np.concatenate(parts))


Tokens: TypeAlias = Int[Tensor, " n"] | MappedTokens
"""A long row of tokens, in memory or not: it has a length, and slices of it are int64 tensors."""
