"""The texts of Python's `help()` on the language, which come with every Python."""

from __future__ import annotations

import pydoc_data.topics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import final

from hdlm.data.corpora.base import AbstractCorpus

__all__ = ["PydocTopics"]


@final
@dataclass(frozen=True)
class PydocTopics(AbstractCorpus):
    """About 80 documents of 0.7 MB in all, one per topic, in alphabetical order."""

    def documents(self) -> Iterator[str]:
        for _, text in sorted(pydoc_data.topics.topics.items()):
            yield text.strip()

    def files(self) -> tuple[Path, ...]:
        return (Path(pydoc_data.topics.__file__),)
