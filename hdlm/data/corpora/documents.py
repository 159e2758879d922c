"""Documents that are in memory already."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import final

from hdlm.data.corpora.base import AbstractCorpus

__all__ = ["Documents"]


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

    def documents(self) -> Iterator[str]:
        yield from self.texts

    def version(self) -> str:
        return self._digest

    def __repr__(self) -> str:
        return f"Documents({len(self.texts)} texts, sha256 {self._digest})"

    @cached_property
    def _digest(self) -> str:
        """Which text it is."""
        digest = hashlib.sha256()
        for text in self.texts:
            digest.update(f"{len(text)} ".encode() + text.encode("utf-8", "surrogatepass"))
        return digest.hexdigest()[:16]
