"""A corpus is a sequence of documents: strings of English, or of anything else."""

from __future__ import annotations

import abc
from collections.abc import Iterator

__all__ = ["AbstractCorpus"]


class AbstractCorpus(abc.ABC):
    """Where text comes from. A subclass is one file, frozen, and says `documents`."""

    @abc.abstractmethod
    def documents(self) -> Iterator[str]:
        """Every document, always in the same order.

        Raises:
            ValueError: If the text cannot be found or is no text; the message says what to do.
        """
