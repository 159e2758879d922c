"""Corpora by name, and text of your own. Each is one file; add yours to `CORPORA`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from hdlm.data.corpora.base import AbstractCorpus, First, Piece
from hdlm.data.corpora.documents import Documents
from hdlm.data.corpora.kjv import KingJamesBible
from hdlm.data.corpora.named import DATA_DIR, NAMED, NamedDataset, Part, part_of
from hdlm.data.corpora.pydoc_topics import PydocTopics
from hdlm.data.corpora.text_files import KINDS, JSONLines, Parquet, TextFiles, files_of

__all__ = [
    "CORPORA",
    "DATA_DIR",
    "NAMED",
    "AbstractCorpus",
    "Documents",
    "First",
    "JSONLines",
    "KingJamesBible",
    "NamedDataset",
    "Parquet",
    "Part",
    "Piece",
    "PydocTopics",
    "TextFiles",
    "corpus",
]

CORPORA: Mapping[str, Callable[[], AbstractCorpus]] = MappingProxyType(
    {"kjv": KingJamesBible, "pydoc_topics": PydocTopics}
)
"""Corpora that need no files of the user."""


def corpus(*names: str, key: str = "text") -> AbstractCorpus:
    """The corpus of some names: one name of `CORPORA` or `NAMED`, or files, folders and globs.

    A part of a named data set follows a colon, `ptb:train`; the default is the test part.

    Args:
        names: Names as the user wrote them, all of one kind.
        key: Field of the text in JSON lines and Parquet.

    Raises:
        ValueError: If there is no name, or plain text, JSON lines and Parquet are mixed.
    """
    if len(names) == 1 and names[0] in CORPORA:
        return CORPORA[names[0]]()
    if len(names) == 1 and (named := names[0].partition(":"))[0] in NAMED:
        return NamedDataset(named[0], part_of(named[2] or "test"))
    if not all(names) or not names:
        raise ValueError(
            f"no text is named: give files, folders, globs, or one of {', '.join([*CORPORA, *NAMED])}."
        )
    kinds = {kind for name in names for kind in _kinds(name)}
    if len(kinds) > 1:
        raise ValueError(
            f"plain text, JSON lines and Parquet cannot be mixed in one corpus; got {', '.join(names)}: name files of "
            "one kind, by a glob if they lie in one folder."
        )
    return KINDS[kinds.pop()](names, key)


def _kinds(name: str) -> set[tuple[str, ...]]:
    """The kinds of the files that a source names, by their endings."""
    text = next(iter(KINDS))
    every = tuple(ending for kind in KINDS for ending in kind)
    names = [name]
    if not name.endswith(every) and (Path(name).is_dir() or any(mark in name for mark in "*?[")):
        names = [path.name for path in files_of((name,), every)]
    return {next((kind for kind in KINDS if file.endswith(kind)), text) for file in names}
