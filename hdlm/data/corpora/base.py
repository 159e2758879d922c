"""A corpus is a sequence of documents, which are strings.

Long documents are read in pieces, so that a text of any size needs bounded memory. A piece ends before a run of white
space, where byte-pair encodings and WordPiece begin a new word, so the tokens are those of the whole document. Where
64 Ki characters have no white space, it ends anywhere.
"""

from __future__ import annotations

import abc
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple, final

__all__ = ["PIECE", "AbstractCorpus", "First", "Piece", "pieces_of"]

PIECE = 2**16
"""Largest number of characters in a piece."""
_SPACES = " \n\t\r"
"""White space that all tokenizers treat alike."""


class Piece(NamedTuple):
    """A part of a document.

    Attributes:
        text: Characters of the piece.
        first: Whether it begins the document.
        last: Whether it ends the document.
    """

    text: str
    first: bool
    last: bool


class AbstractCorpus(abc.ABC):
    """A source of text. A subclass is one file, a frozen dataclass, and defines `documents`."""

    @abc.abstractmethod
    def documents(self) -> Iterator[str]:
        """Every document, always in the same order.

        Raises:
            ValueError: If the text cannot be found or is not text; the message says what to do.
        """

    def pieces(self) -> Iterator[Piece]:
        """All documents, long ones in pieces."""
        for document in self.documents():
            yield from pieces_of(document[at : at + PIECE] for at in range(0, len(document) or 1, PIECE))

    def files(self) -> tuple[Path, ...]:
        """The files of the text; empty if it is not in files."""
        return ()

    def size(self) -> int | None:
        """Bytes of the files; None if the text is not in files."""
        files = self.files()
        return sum(path.stat().st_size for path in files) if files else None

    def version(self) -> str:
        """The version of the text, if it is not in files."""
        return ""

    def parts(self) -> Sequence[AbstractCorpus]:
        """Corpora that together are this one, in order, each of which can be read alone."""
        return (self,)


@final
@dataclass(frozen=True)
class First(AbstractCorpus):
    """The first documents of a corpus.

    Attributes:
        corpus: The whole corpus.
        count: Number of documents.
    """

    corpus: AbstractCorpus
    count: int

    def documents(self) -> Iterator[str]:
        yield from islice(self.corpus.documents(), self.count)

    def files(self) -> tuple[Path, ...]:
        return self.corpus.files()

    def version(self) -> str:
        return self.corpus.version()


def pieces_of(chunks: Iterable[str], longest: int = PIECE) -> Iterator[Piece]:
    """One document in pieces.

    Args:
        chunks: The document, cut anywhere.
        longest: Largest number of characters in a piece.
    """
    rest, first = "", True
    for chunk in chunks:
        rest += chunk
        while len(rest) > longest:
            at = _cut(rest, longest)
            yield Piece(rest[:at], first, False)
            rest, first = rest[at:], False
    yield Piece(rest, first, True)


def _cut(text: str, longest: int) -> int:
    """The end of a piece: before the last run of white space in it, or else at its largest length."""
    at = longest
    while at > 0:
        at = max(text.rfind(space, 0, at) for space in _SPACES)
        at = len(text[: at + 1].rstrip(_SPACES))
        if at > 0 and not text[at - 1].isspace():
            return at
    return longest
