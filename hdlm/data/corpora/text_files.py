"""Text of your own: files, folders and globs of plain text, JSON lines or Parquet."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, TextIO, cast, final

from hdlm.data.corpora.base import AbstractCorpus, Piece, pieces_of

__all__ = ["KINDS", "JSONLines", "Parquet", "TextFiles", "files_of"]

_TEXT, _LINES, _PARQUET = (".txt", ".txt.gz"), (".jsonl", ".jsonl.gz"), (".parquet",)
_CHUNK = 2**20
_LONE = re.compile("[\ud800-\udfff]")
"""Half a surrogate pair, which JSON can express and UTF-8 cannot."""
_ROWS = 256
"""Rows of a Parquet file that are in memory at a time."""


@final
@dataclass(frozen=True)
class TextFiles(AbstractCorpus):
    """Plain text in UTF-8, compressed by gzip or not; a document is a file.

    Attributes:
        sources: Files, folders (all `*.txt` and `*.txt.gz` below them) and globs.
    """

    sources: tuple[str, ...]

    def documents(self) -> Iterator[str]:
        for path in self.files():
            yield "".join(_stripped(path))

    def pieces(self) -> Iterator[Piece]:
        for path in self.files():
            yield from pieces_of(_stripped(path))

    def lines(self) -> Iterator[str]:
        """Every line of all files, empty ones included, without its line end.

        Raises:
            ValueError: If a file holds only white space.
        """
        for path in self.files():
            blank = True
            with _reading(path) as text:
                for line in text:
                    blank = blank and not line.strip()
                    yield line.removesuffix("\n")
            if blank:
                raise ValueError(_no_text(path))

    def files(self) -> tuple[Path, ...]:
        return files_of(self.sources, _TEXT)

    def parts(self) -> Sequence[AbstractCorpus]:
        return [TextFiles((str(path),)) for path in self.files()]


@final
@dataclass(frozen=True)
class JSONLines(AbstractCorpus):
    """JSON objects, one per line; the value of one key is a document.

    Attributes:
        sources: Files, folders (all `*.jsonl` and `*.jsonl.gz` below them) and globs.
        key: Key of the text in each object.
    """

    sources: tuple[str, ...]
    key: str = "text"

    def documents(self) -> Iterator[str]:
        for value, where in self._values():
            if not isinstance(value, str):
                raise ValueError(f"{where} has no text under {self.key!r}, but {type(value).__name__}.")
            if _LONE.search(value):
                raise ValueError(
                    f"{where} has half of a surrogate pair under {self.key!r}: correct or remove this line."
                )
            yield value

    def conversations(self) -> Iterator[list[dict[str, Any]]]:
        """The messages of each line, in the place of text.

        Raises:
            ValueError: If a line has no list of tables under the key.
        """
        for value, where in self._values():
            if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
                raise ValueError(f"{where} has no list of messages under {self.key!r}, but {value!r}.")
            yield value

    def files(self) -> tuple[Path, ...]:
        return files_of(self.sources, _LINES)

    def parts(self) -> Sequence[AbstractCorpus]:
        return [replace(self, sources=(str(path),)) for path in self.files()]

    def _values(self) -> Iterator[tuple[object, str]]:
        """The value of the key in each line, and the place of the line."""
        for path in self.files():
            with _reading(path) as lines:
                for number, line in enumerate(lines, start=1):
                    if line.strip():
                        where = f"{path}, line {number}"
                        yield self._value(line, where), where

    def _value(self, line: str, where: str) -> object:
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where} is not JSON: {error}.") from error
        if not isinstance(row, dict) or self.key not in row:
            present = f"the keys {', '.join(row)}" if isinstance(row, dict) else type(row).__name__
            raise ValueError(f"{where} has no text under {self.key!r}, but {present}.")
        return row[self.key]


@final
@dataclass(frozen=True)
class Parquet(AbstractCorpus):
    """Parquet files, read by `pyarrow`; one column of each row is a document.

    Attributes:
        sources: Files, folders (all `*.parquet` below them) and globs.
        key: Name of the column.
    """

    sources: tuple[str, ...]
    key: str = "text"

    def documents(self) -> Iterator[str]:
        for path in self.files():
            yield from self._column(path)

    def files(self) -> tuple[Path, ...]:
        return files_of(self.sources, _PARQUET)

    def parts(self) -> Sequence[AbstractCorpus]:
        return [replace(self, sources=(str(path),)) for path in self.files()]

    def _column(self, path: Path) -> Iterator[str]:
        try:
            import pyarrow
            from pyarrow import parquet
        except ModuleNotFoundError as error:
            raise ValueError(f"{path} is read by the package `pyarrow`: pip install 'hdlm[data]'.") from error
        try:
            file = parquet.ParquetFile(path)
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(f"{path} is not a Parquet file: {error}.") from error
        with file:
            columns = file.schema_arrow.names
            if self.key not in columns:
                raise ValueError(f"{path} has no column {self.key!r}; it has: {', '.join(columns)}.")
            row = 0
            for batch in file.iter_batches(batch_size=_ROWS, columns=[self.key]):
                for text in batch.column(0).to_pylist():
                    row += 1
                    if not isinstance(text, str):
                        raise ValueError(
                            f"{path}, row {row} has no text under {self.key!r}, but {type(text).__name__}."
                        )
                    yield text


KINDS: Mapping[tuple[str, ...], Callable[[tuple[str, ...], str], AbstractCorpus]] = MappingProxyType(
    {_TEXT: lambda sources, key: TextFiles(sources), _LINES: JSONLines, _PARQUET: Parquet}
)
"""The corpus of each file ending; the first one reads files with other endings."""


def files_of(sources: tuple[str, ...], endings: tuple[str, ...]) -> tuple[Path, ...]:
    """The files that some sources name, in alphabetical order within a folder or glob.

    Args:
        sources: Files, folders and globs.
        endings: Endings of the files of a folder that are read.

    Raises:
        ValueError: If a source names no file.
    """
    files: list[Path] = []
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
            offered = endings if path.is_dir() else [ending for kind in KINDS for ending in kind]
            raise ValueError(
                f"no text at {source!r}: give a file, a folder of {'/'.join(offered)} files, or a glob."
            )
        files.extend(matches)
    return tuple(files)


def _matching(pattern: Path) -> list[Path]:
    """The files that match a glob."""
    relative = pattern.relative_to(pattern.anchor) if pattern.is_absolute() else pattern
    return sorted(file for file in Path(pattern.anchor).glob(str(relative)) if file.is_file())


@contextmanager
def _reading(path: Path) -> Iterator[TextIO]:
    """Open a text file, compressed or not; errors name the file.

    A byte-order mark is skipped, and all line ends become those of Python.
    """
    try:
        with (
            cast(TextIO, gzip.open(path, "rt", encoding="utf-8-sig"))
            if path.suffix == ".gz"
            else path.open(encoding="utf-8-sig")
        ) as text:
            yield text
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error.reason}); convert it first.") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is not a complete gzip file: {error}.") from error


def _stripped(path: Path) -> Iterator[str]:
    """A file in chunks, without white space at its beginning and end.

    Raises:
        ValueError: If the file holds only white space.
    """
    blank, begun = "", False
    with _reading(path) as text:
        while chunk := text.read(_CHUNK):
            chunk = blank + chunk if begun else chunk.lstrip()
            kept = chunk.rstrip()
            blank, begun = chunk[len(kept) :], begun or bool(kept)
            yield kept
    if not begun:
        raise ValueError(_no_text(path))


def _no_text(path: Path) -> str:
    return f"{path} holds no text; leave it out, or give a file with text in it."
