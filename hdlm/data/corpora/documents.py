"""Documents that are in memory already."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import final

from hdlm.data.corpora.base import AbstractCorpus

__all__ = ["Documents"]

_LONGEST_NAME = 256
"""Only shorter strings are compared with the names of files."""


@final
@dataclass(frozen=True, repr=False)
class Documents(AbstractCorpus):
    """Documents that are in memory already.

    Attributes:
        texts: The documents, at least one.

    Raises:
        ValueError: If there is none.
    """

    texts: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.texts:
            raise ValueError("the text has no documents: give at least one string.")

    @classmethod
    def of(cls, texts: object) -> Documents:
        """The documents of a list of strings, or of any iterable of strings.

        Raises:
            ValueError: If it cannot be iterated, an item is not a string, or all items are names of files.
        """
        if not isinstance(texts, Iterable):
            raise ValueError(
                f"a text is a name, a corpus or a list of strings; got a {type(texts).__name__}."
            )
        items = tuple(texts)
        strings = tuple(item for item in items if isinstance(item, str))
        if len(strings) < len(items):
            other = next(item for item in items if not isinstance(item, str))
            raise ValueError(f"each document must be a string; got one of type {type(other).__name__}.")
        if strings and all(len(item) < _LONGEST_NAME and Path(item).exists() for item in strings):
            raise ValueError(
                f"a list of strings is a list of documents, but these are names of files: {', '.join(strings)}. Give "
                "them as pathlib.Path, or the name of their folder."
            )
        return cls(strings)

    def documents(self) -> Iterator[str]:
        yield from self.texts

    def version(self) -> str:
        return self._digest

    def __repr__(self) -> str:
        return f"Documents({len(self.texts)} texts, sha256 {self._digest})"

    @cached_property
    def _digest(self) -> str:
        """A hash of the text."""
        digest = hashlib.sha256()
        for text in self.texts:
            digest.update(f"{len(text)} ".encode() + text.encode("utf-8", "surrogatepass"))
        return digest.hexdigest()[:16]
