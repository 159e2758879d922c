"""A corpus is a sequence of documents: strings of English, or of anything else.

Long documents come in pieces, so that a text of any size passes through a bounded memory. A piece ends before a run of
white space, where byte-pair encodings and WordPiece begin a new word anyway: the tokens are those of the whole. Where
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
"""Characters of the longest piece."""
_SPACES = " \n\t\r"
"""White space of which all tokenizers think alike."""


class Piece(NamedTuple):
    """A part of a document.

    Attributes:
        text: Its characters.
        first: Whether it begins the document.
        last: Whether it ends the document.
    """

    text: str
    first: bool
    last: bool


class AbstractCorpus(abc.ABC):
    """Where text comes from. A subclass is one file, frozen, and says `documents`."""

    @abc.abstractmethod
    def documents(self) -> Iterator[str]:
        """Every document, always in the same order.

        Raises:
            ValueError: If the text cannot be found or is no text; the message says what to do.
        """

    def pieces(self) -> Iterator[Piece]:
        """The same documents, long ones in pieces."""
        for document in self.documents():
            yield from pieces_of(document[at : at + PIECE] for at in range(0, len(document) or 1, PIECE))

    def files(self) -> tuple[Path, ...]:
        """The files that the text is in, if it is in files."""
        return ()

    def size(self) -> int | None:
        """Bytes of the files; None if the text is not in files."""
        files = self.files()
        return sum(path.stat().st_size for path in files) if files else None

    def version(self) -> str:
        """Which text it is, where no files say so."""
        return ""

    def parts(self) -> Sequence[AbstractCorpus]:
        """Corpora that make up this one, in its order, of which each can be read by itself."""
        return (self,)


@final
@dataclass(frozen=True)
class First(AbstractCorpus):
    """The first documents of a corpus.

    Attributes:
        corpus: Where they come from.
        count: How many.
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
        longest: Characters of the longest piece.
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
    """Where a piece ends: before the last run of white space that it has room for, or else at its longest."""
    at = longest
    while at > 0:
        at = max(text.rfind(space, 0, at) for space in _SPACES)
        at = len(text[: at + 1].rstrip(_SPACES))
        if at > 0 and not text[at - 1].isspace():
            return at
    return longest
