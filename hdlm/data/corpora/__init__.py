"""Corpora by name, and text of your own. One file each; add yours to `CORPORA`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from hdlm.data.corpora.base import AbstractCorpus
from hdlm.data.corpora.kjv import KingJamesBible
from hdlm.data.corpora.pydoc_topics import PydocTopics
from hdlm.data.corpora.text_files import JSONLines, TextFiles

__all__ = [
    "CORPORA",
    "AbstractCorpus",
    "JSONLines",
    "KingJamesBible",
    "PydocTopics",
    "TextFiles",
    "corpus",
]

CORPORA: Mapping[str, Callable[[], AbstractCorpus]] = MappingProxyType(
    {"kjv": KingJamesBible, "pydoc_topics": PydocTopics}
)
"""Corpora that need no files of yours."""


def corpus(*names: str) -> AbstractCorpus:
    """The corpus that a user means: one name out of `CORPORA`, or files, folders and globs.

    Args:
        names: What the user wrote; all of one kind.

    Raises:
        ValueError: If nothing is named, or JSON lines are mixed with plain text.
    """
    if len(names) == 1 and names[0] in CORPORA:
        return CORPORA[names[0]]()
    if not names:
        raise ValueError(f"no text was named: give files, folders, globs, or one of {', '.join(CORPORA)}.")
    lines = [name.removesuffix(".gz").endswith(".jsonl") for name in names]
    if any(lines) and not all(lines):
        raise ValueError(f"JSON lines and plain text cannot be mixed in one corpus; got {', '.join(names)}.")
    return JSONLines(names) if all(lines) else TextFiles(names)
