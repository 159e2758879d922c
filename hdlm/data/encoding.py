"""Pieces of text to tokens: in parallel, in order, and with a few batches in memory at a time.

The choice of validation text depends on the characters of a document only: neither on the order of the documents nor on
the others, so equal documents are on the same side. A document of more than 64 Ki characters is divided into pieces,
which are chosen separately as if they were documents.
"""

from __future__ import annotations

import hashlib
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from hdlm.data.corpora.base import AbstractCorpus, Piece
from hdlm.data.packing import TokenStream
from hdlm.data.tokenizer import Tokenizer

__all__ = ["SAMPLE", "Ids", "SplitPiece", "encoded", "first_tokens", "sample_of", "split_pieces", "tokenise"]

Ids: TypeAlias = npt.NDArray[np.unsignedinteger]

SAMPLE = 2**25
"""Characters of text that a tokenizer is trained on."""
_BATCH = 2**21
"""Characters in a batch."""
_MOST = 4096
"""Largest number of pieces in a batch."""
_THREADS = 2
"""One thread encodes on all cores while the other one delivers its result."""


class SplitPiece(NamedTuple):
    """A piece of text with its side.

    Attributes:
        piece: The text; its `last` is also true if the next piece of the document is on the other side.
        aside: Whether it is set aside for validation.
    """

    piece: Piece
    aside: bool


def split_pieces(pieces: Iterable[Piece], share: float) -> Iterator[SplitPiece]:
    """Determine the side of each piece.

    Args:
        pieces: Pieces of the text.
        share: Share to set aside for validation, in [0, 0.5].

    Raises:
        ValueError: If `share` is out of range.
    """
    if not 0 <= share <= 0.5:
        raise ValueError(f"`validation` must lie in [0, 0.5]; got {share}.")
    before: SplitPiece | None = None
    for piece in pieces:
        aside = _hash_fraction(piece.text, b"aside") < share
        if before is not None:
            parted = before.piece.last or before.aside != aside
            yield SplitPiece(before.piece._replace(last=parted), before.aside)
        before = SplitPiece(piece, aside)
    if before is not None:
        yield before


def _hash_fraction(text: str, purpose: bytes) -> float:
    """A number in [0, 1) that is a hash of the text."""
    digest = hashlib.blake2b(text.encode(), digest_size=6, person=purpose).digest()
    return int.from_bytes(digest) / 2**48


def encoded(tokenizer: Tokenizer, pieces: Iterable[SplitPiece]) -> Iterator[tuple[SplitPiece, Ids]]:
    """Each piece with its tokens, in order."""
    batches = _batches(iter(pieces))
    waiting: deque[tuple[list[SplitPiece], Future[list[Ids]]]] = deque()
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="tokenise") as threads:
        while True:
            for batch in islice(batches, _THREADS - len(waiting)):
                pieces_only = [split_piece.piece for split_piece in batch]
                waiting.append((batch, threads.submit(tokenizer.encode_pieces, pieces_only)))
            if not waiting:
                return
            done, ids = waiting.popleft()
            yield from zip(done, ids.result(), strict=True)


def _batches(pieces: Iterator[SplitPiece]) -> Iterator[list[SplitPiece]]:
    batch: list[SplitPiece] = []
    size = 0
    for split_piece in pieces:
        batch.append(split_piece)
        size += len(split_piece.piece.text)
        if size >= _BATCH or len(batch) == _MOST:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def first_tokens(
    corpus: AbstractCorpus, tokenizer: Tokenizer, most: int, share: float = 0.0, *, aside: bool = False
) -> TokenStream:
    """The first tokens of one side of a corpus, in memory; only the text that they need is read.

    Args:
        corpus: Source of the text.
        tokenizer: Tokenizer of the text.
        most: Approximate number of tokens; the piece that reaches it is the last.
        share: Share that is set aside for validation.
        aside: Whether to read the validation text, or the training text.

    Raises:
        ValueError: If there is no text on this side.
    """
    chosen = (piece for piece in split_pieces(corpus.pieces(), share) if piece.aside is aside)
    stream = _joined(encoded(tokenizer, chosen), most)
    if stream is None:
        side = f"the {100 * share:.4g}% of the text that is set aside for validation" if aside else "the text"
        raise ValueError(
            f"{side} holds no document: give more text, a larger share, or another validation text."
        )
    return stream


def tokenise(tokenizer: Tokenizer, documents: Iterable[str]) -> TokenStream:
    """Join documents into one stream, in memory.

    Raises:
        ValueError: If there are none.
    """
    pieces = (SplitPiece(Piece(document, first=True, last=True), aside=False) for document in documents)
    stream = _joined(encoded(tokenizer, pieces))
    if stream is None:
        raise ValueError("there are no documents to tokenise.")
    return stream


def _joined(pieces: Iterable[tuple[SplitPiece, Ids]], most: int = sys.maxsize) -> TokenStream | None:
    """The first pieces as one stream; None if there are none."""
    rows: list[Ids] = []
    tokens = num_bytes = 0
    for (piece, _), ids in pieces:
        rows.append(ids)
        tokens += len(ids)
        num_bytes += len(piece.text.encode()) + piece.last
        if tokens >= most:
            break
    return TokenStream(torch.from_numpy(np.concatenate(rows, dtype=np.int64)), num_bytes) if rows else None


def sample_of(corpus: AbstractCorpus, characters: int, share: float = 0.0) -> Iterator[str]:
    """Pieces of the training text of a corpus, drawn from all of it if its size is known.

    Args:
        corpus: Source of the text.
        characters: Approximate number of characters in all.
        share: Share that is set aside for validation.
    """
    size = corpus.size()
    rate = 1.0 if size is None else min(1.0, 1.1 * characters / max(size, 1))
    taken = 0
    for piece, aside in split_pieces(corpus.pieces(), share):
        if not aside and _hash_fraction(piece.text, b"sample") < rate:
            yield piece.text
            taken += len(piece.text)
        if taken >= characters:
            return
