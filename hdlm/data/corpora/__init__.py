"""Corpora by name, and text of your own. One file each; add yours to `CORPORA`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from hdlm.data.corpora.base import AbstractCorpus
from hdlm.data.corpora.kjv import KingJamesBible
from hdlm.data.corpora.named import DATA_DIR, NAMED, NamedDataset, Part, part_of
from hdlm.data.corpora.pydoc_topics import PydocTopics
from hdlm.data.corpora.text_files import JSONLines, TextFiles

__all__ = [
    "CORPORA",
    "DATA_DIR",
    "NAMED",
    "AbstractCorpus",
    "JSONLines",
    "KingJamesBible",
    "NamedDataset",
    "Part",
    "PydocTopics",
    "TextFiles",
    "corpus",
]

CORPORA: Mapping[str, Callable[[], AbstractCorpus]] = MappingProxyType(
    {"kjv": KingJamesBible, "pydoc_topics": PydocTopics}
)
"""Corpora that need no files of yours."""


def corpus(*names: str) -> AbstractCorpus:
    """The corpus that a user means: one name out of `CORPORA` or `NAMED`, or files, folders and globs.

    A part of a named data set is named behind a colon, `ptb:train`; without one it is the test part.

    Args:
        names: What the user wrote; all of one kind.

    Raises:
        ValueError: If nothing is named, or JSON lines are mixed with plain text.
    """
    if len(names) == 1 and names[0] in CORPORA:
        return CORPORA[names[0]]()
    if len(names) == 1 and (named := names[0].partition(":"))[0] in NAMED:
        return NamedDataset(named[0], part_of(named[2] or "test"))
    if not names:
        raise ValueError(
            f"no text was named: give files, folders, globs, or one of {', '.join([*CORPORA, *NAMED])}."
        )
    lines = [name.removesuffix(".gz").endswith(".jsonl") for name in names]
    if any(lines) and not all(lines):
        raise ValueError(f"JSON lines and plain text cannot be mixed in one corpus; got {', '.join(names)}.")
    return JSONLines(names) if all(lines) else TextFiles(names)
