"""Text of your own: files, folders and globs."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import final

from hdlm.data.corpora.base import AbstractCorpus

__all__ = ["JSONLines", "TextFiles"]


@final
@dataclass(frozen=True)
class TextFiles(AbstractCorpus):
    """Plain text in UTF-8, compressed by gzip or not; a document is a file.

    Attributes:
        sources: Files, folders (all `*.txt` and `*.txt.gz` below them) and globs.
    """

    sources: tuple[str, ...]

    def documents(self) -> Iterator[str]:
        for path in _files(self.sources, (".txt", ".txt.gz")):
            text = _read(path).strip()
            if not text:
                raise ValueError(f"{path} holds no text; leave it out, or give a file with text in it.")
            yield text


@final
@dataclass(frozen=True)
class JSONLines(AbstractCorpus):
    """One JSON object a line; a document is what stands under one of its keys.

    Attributes:
        sources: Files, folders (all `*.jsonl` and `*.jsonl.gz` below them) and globs.
        key: Where in each object the text is.
    """

    sources: tuple[str, ...]
    key: str = "text"

    def documents(self) -> Iterator[str]:
        for path in _files(self.sources, (".jsonl", ".jsonl.gz")):
            for number, line in enumerate(_read(path).splitlines(), start=1):
                if line.strip():
                    yield self._text(line, f"{path}, line {number}")

    def _text(self, line: str, where: str) -> str:
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where} is no JSON: {error}.") from error
        if not isinstance(row, dict) or not isinstance(row.get(self.key), str):
            keys = ", ".join(row) if isinstance(row, dict) else type(row).__name__
            raise ValueError(f"{where} has no text under {self.key!r}; it has: {keys}.")
        return str(row[self.key])


def _files(sources: tuple[str, ...], endings: tuple[str, ...]) -> list[Path]:
    """The files that the sources name, those of one folder or glob in alphabetical order."""
    found: list[Path] = []
    for source in sources:
        path = Path(source)
        if path.is_file():
            matches = [path]
        elif path.is_dir():
            matches = sorted(
                file for file in path.rglob("*") if file.is_file() and file.name.endswith(endings)
            )
        else:
            matches = _matching(path)
        if not matches:
            raise ValueError(
                f"no text at {source!r}: give a file, a folder of {'/'.join(endings)} files, or a glob."
            )
        found.extend(matches)
    return found


def _matching(pattern: Path) -> list[Path]:
    """The files that a glob means."""
    relative = pattern.relative_to(pattern.anchor) if pattern.is_absolute() else pattern
    return sorted(file for file in Path(pattern.anchor).glob(str(relative)) if file.is_file())


def _read(path: Path) -> str:
    raw = path.read_bytes()
    try:
        return (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start}); convert it first.") from error
    except (gzip.BadGzipFile, EOFError) as error:
        raise ValueError(f"{path} is not a complete gzip file: {error}.") from error
