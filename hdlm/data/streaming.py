"""Text that is tokenised while it is trained on: nothing is written, and little is held in memory.

    files in the epoch's order -> pieces -> tokens -> blocks of 1024 windows -> windows in the block's order

The files of each epoch and the windows of each block are shuffled, as functions of (seed, epoch or block). Epochs
follow each other without a gap, so no token is dropped. The number of a window depends on nothing else, so each process
uses its rows of the same batch; each of them reads and tokenises all of the text.

To begin at window `n`, all text before it must be read and tokenised again, which takes as long as the first time. With
shards, training can begin anywhere at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, count
from typing import final

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from hdlm.data.corpora.base import AbstractCorpus
from hdlm.data.encoding import Ids, encoded, split_pieces
from hdlm.data.order import permutation
from hdlm.data.packing import AbstractWindows
from hdlm.data.tokenizer import Tokenizer

__all__ = ["BLOCK", "StreamedText", "StreamedWindows"]

BLOCK = 1024
"""Number of windows that are shuffled together."""
_FILES, _WINDOWS = 0x83, 0x84
"""Random streams of this module."""


@final
@dataclass(frozen=True, eq=False)
class StreamedText:
    """Text and its tokenizer.

    Attributes:
        corpus: Source of the text.
        tokenizer: Tokenizer of the text.
        share: Share that is set aside for validation, and not in the stream.
    """

    corpus: AbstractCorpus
    tokenizer: Tokenizer
    share: float = 0.0

    def epoch(self, number: int, seed: int) -> Iterator[Ids]:
        """Tokens of one epoch, piece by piece."""
        order = permutation(seed, number, len(self._parts), _FILES).tolist()
        pieces = chain.from_iterable(self._parts[place].pieces() for place in order)
        kept = (piece for piece in split_pieces(pieces, self.share) if not piece.aside)
        for _, ids in encoded(self.tokenizer, kept):
            yield ids

    @cached_property
    def _parts(self) -> Sequence[AbstractCorpus]:
        """The parts that are shuffled; a file that is added to a folder later is not in this run."""
        return self.corpus.parts()

    def tokens(self, seed: int) -> Iterator[Ids]:
        """Tokens of all epochs, without end.

        Raises:
            ValueError: If there is no text.
        """
        for number in count():
            empty = True
            for ids in self.epoch(number, seed):
                empty = False
                yield ids
            if empty:
                raise ValueError("there are no documents to stream.")

    def fingerprint(self) -> str:
        """A hash of the text and the tokenizer; files are identified by name, size and time."""
        files = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in self.corpus.files()]
        key = (repr(self.corpus), self.corpus.version(), files, self.share, self.tokenizer.to_json())
        return hashlib.sha256(repr(key).encode()).hexdigest()


@final
class StreamedWindows(AbstractWindows):
    """Windows of a stream, which are fast to read in order.

    Args:
        stream: Text of the windows.
        length: Tokens in a window.
        seed: Seed of the order.

    Raises:
        ValueError: If `length` is not positive.
    """

    def __init__(self, stream: StreamedText, length: int, seed: int) -> None:
        if length < 1:
            raise ValueError(f"`length` must be at least 1; got {length}.")
        self.length = length
        self._stream, self._seed = stream, seed
        self._fingerprint = stream.fingerprint()
        self._restart()

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(f"{self._fingerprint} {self.length} {self._seed}".encode()).hexdigest()

    def batch(self, first: int, count: int) -> Int[Tensor, "count l"]:
        rows = [self._block(number // BLOCK)[number % BLOCK] for number in range(first, first + count)]
        return torch.stack(rows)

    def _restart(self) -> None:
        self._tokens = self._stream.tokens(self._seed)
        self._left: Ids = np.zeros(0, self._stream.tokenizer.word_type)
        self._next = 0
        self._blocks: dict[int, Int[Tensor, "block l"]] = {}

    def _block(self, number: int) -> Int[Tensor, "block l"]:
        """A block of windows; the last two are kept in memory."""
        if number not in self._blocks and number < self._next:
            self._restart()
        while number not in self._blocks:
            tokens = torch.from_numpy(self._read(BLOCK * self.length).astype(np.int64))
            order = permutation(self._seed, self._next, BLOCK, _WINDOWS)
            self._blocks.pop(self._next - 2, None)
            self._blocks[self._next] = tokens.view(BLOCK, self.length)[order]
            self._next += 1
        return self._blocks[number]

    def _read(self, size: int) -> Ids:
        """The next tokens of the stream."""
        rows, have = [self._left], len(self._left)
        while have < size:
            rows.append(next(self._tokens))
            have += len(rows[-1])
        tokens = np.concatenate(rows)
        self._left = tokens[size:].copy()
        return tokens[:size]
