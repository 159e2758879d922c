"""Text that was tokenised once: a folder of memory-mapped shards, and a manifest that describes them.

    FOLDER/manifest.json     format, source with sizes and hashes, tokenizer's hash, counts, hash of each shard
    FOLDER/tokenizer.json    the tokenizer of the tokens
    FOLDER/00000.npy, ..     tokens (uint16 or uint32), end-of-text after each document: first the training tokens, then
                             the validation tokens

A shard is written to a temporary file and moved, then the manifest names it. A run that was stopped is resumed after
the last shard in the manifest. Shards of another text, tokenizer or share are recognised by the manifest.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias, final

import numpy as np

from hdlm.atomic import replacing
from hdlm.data.corpora.base import PIECE, AbstractCorpus
from hdlm.data.encoding import Ids, SplitPiece, encoded, split_pieces
from hdlm.data.mapped import MappedTokens, mapped
from hdlm.data.packing import TokenStream
from hdlm.data.tokenizer import Tokenizer

__all__ = [
    "SHARD",
    "Count",
    "Manifest",
    "Shard",
    "Shards",
    "TextVersion",
    "TokenizationProgress",
    "write_shards",
]

SHARD = 2**25
"""Tokens of a shard, without the piece that exceeds the number."""
_FORMAT = 1
_MANIFEST, _TOKENIZER = "manifest.json", "tokenizer.json"

Side: TypeAlias = Literal["train", "validation"]


@final
@dataclass(frozen=True)
class Count:
    """Amount of text on one side, training or validation.

    Attributes:
        documents: Number of documents.
        tokens: Number of tokens, end-of-text included.
        bytes: Bytes of UTF-8, and one for each end-of-text.
    """

    documents: int = 0
    tokens: int = 0
    bytes: int = 0

    def __add__(self, other: Count) -> Count:
        return Count(self.documents + other.documents, self.tokens + other.tokens, self.bytes + other.bytes)


@final
@dataclass(frozen=True)
class SourceFile:
    """A file that text was read from.

    Attributes:
        path: Path of the file.
        size: Size in bytes.
        modified: Modification time in nanoseconds; while it is equal, the hash is not computed again.
        sha256: Hash of the content.
    """

    path: str
    size: int
    modified: int
    sha256: str


@final
@dataclass(frozen=True)
class TextVersion:
    """The identity of a text.

    Attributes:
        corpus: Python representation of the corpus.
        version: Version of the text, if it is not in files.
        files: The files of the text.
    """

    corpus: str
    version: str
    files: tuple[SourceFile, ...]

    @classmethod
    def of(cls, corpus: AbstractCorpus, known: TextVersion | None = None) -> TextVersion:
        """Read the identity of a text.

        Args:
            corpus: Source of the text.
            known: An earlier identity: files of equal size and time are not read again.
        """
        before = {} if known is None else {file.path: file for file in known.files}
        files = []
        for path in corpus.files():
            state, file = path.stat(), before.get(str(path))
            if file is None or (file.size, file.modified) != (state.st_size, state.st_mtime_ns):
                file = SourceFile(str(path), state.st_size, state.st_mtime_ns, _hash(path))
            files.append(file)
        return cls(repr(corpus), corpus.version(), tuple(files))

    def difference(self, other: TextVersion) -> str | None:
        """A description of how another text differs; None if it is the same text."""
        if (self.corpus, self.version) != (other.corpus, other.version):
            return f"it is the text of {self.corpus} {self.version}".rstrip()
        mine, others = ({file.path: file.sha256 for file in source.files} for source in (self, other))
        changed = [path for path in {**mine, **others} if mine.get(path) != others.get(path)]
        return f"its source has changed: {', '.join(changed[:3])}" if changed else None


@final
@dataclass(frozen=True)
class Shard:
    """One file of tokens.

    Attributes:
        file: Name of the file.
        pieces: Pieces of the text in this shard and all shards before.
        train: Training text, at the beginning of the shard.
        validation: Validation text, after it.
        size: Size in bytes.
        sha256: Hash of the content.
    """

    file: str
    pieces: int
    train: Count
    validation: Count
    size: int
    sha256: str


@final
@dataclass(frozen=True)
class Manifest:
    """The description of a folder of shards.

    Attributes:
        source: Identity of the text.
        tokenizer: Hash of the tokenizer.
        dtype: Data type of the tokens.
        share: Share of the text that is set aside for validation.
        shards: The shards, in order.
        complete: Whether the shards hold the whole text.
        format: Version of this layout.
        pieces: Characters of a piece, and pieces that are set aside together, which were 16 in an earlier version.
    """

    source: TextVersion
    tokenizer: str
    dtype: str
    share: float
    shards: tuple[Shard, ...] = ()
    complete: bool = False
    format: int = _FORMAT
    pieces: tuple[int, int] = (PIECE, 1)

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read the manifest of a folder.

        Raises:
            ValueError: If there is none, it is damaged, or its format is unknown.
        """
        path = folder / _MANIFEST
        try:
            table: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if table["format"] != _FORMAT:
                raise ValueError(f"it has format {table['format']}, and this version reads {_FORMAT}")
            source = table["source"]
            files = tuple(SourceFile(**file) for file in source["files"])
            shards = tuple(
                Shard(**{**shard, **{side: Count(**shard[side]) for side in ("train", "validation")}})
                for shard in table["shards"]
            )
            table |= {"source": TextVersion(**{**source, "files": files}), "shards": shards}
            return cls(**{**table, "pieces": tuple(table["pieces"])})
        except FileNotFoundError as error:
            raise ValueError(f"there are no shards in {folder}: it has no {_MANIFEST}.") from error
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} cannot be used: {error}. Tokenise the text again.") from error

    def write(self, folder: Path) -> None:
        """Write the manifest into a folder."""
        with replacing(folder / _MANIFEST) as aside:
            aside.write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n", encoding="utf-8")

    def difference(self, other: Manifest) -> str | None:
        """A description of why these shards cannot be used for another manifest; None if they can."""
        if self.tokenizer != other.tokenizer:
            return "another tokenizer made it"
        if self.share != other.share:
            return f"{self.share:g} of it is set aside, not {other.share:g}"
        if self.pieces != other.pieces and not self.complete:
            return "an earlier version began it, which set other pieces aside"
        return self.source.difference(other.source)

    def count(self, side: Side) -> Count:
        """The amount of text on one side."""
        return sum((getattr(shard, side) for shard in self.shards), Count())


@final
@dataclass(frozen=True, eq=False)
class Shards:
    """A complete folder of shards.

    Attributes:
        folder: Folder of the shards.
        manifest: Manifest of the folder.
    """

    folder: Path
    manifest: Manifest

    @classmethod
    def are_in(cls, name: str | Path) -> bool:
        """Whether a folder of this name holds shards."""
        return (Path(name) / _MANIFEST).is_file()

    @classmethod
    def open(cls, folder: Path) -> Shards:
        """Open a folder.

        Raises:
            ValueError: If it is unfinished or damaged, or a shard is missing or incomplete.
        """
        manifest = Manifest.read(folder)
        if not manifest.complete:
            raise ValueError(f"{folder} is not finished; run the same `hdlm tokenize` again to resume it.")
        for shard in manifest.shards:
            if not _is_whole(folder, shard):
                raise ValueError(
                    f"{folder / shard.file} is missing or incomplete; run the same `hdlm tokenize` again to write it."
                )
        return cls(folder, manifest)

    def verify(self) -> None:
        """Compare every shard with its hash.

        Raises:
            ValueError: If a shard differs.
        """
        for shard in self.manifest.shards:
            if _hash(self.folder / shard.file) != shard.sha256:
                raise ValueError(
                    f"{self.folder / shard.file} is damaged; remove it and run `hdlm tokenize` again to write it."
                )

    def tokenizer(self) -> Tokenizer:
        """Load the tokenizer of the tokens.

        Raises:
            ValueError: If it is missing, or the file holds another one.
        """
        tokenizer = Tokenizer.load(self.folder / _TOKENIZER)
        self.check(tokenizer, str(self.folder / _TOKENIZER))
        return tokenizer

    def check(self, tokenizer: Tokenizer, origin: str) -> None:
        """Refuse a tokenizer that did not make the tokens.

        Raises:
            ValueError: If it is another tokenizer.
        """
        if _hash_of(tokenizer) != self.manifest.tokenizer:
            raise ValueError(f"the shards in {self.folder} were made by another tokenizer than {origin}.")

    def tokens(self, side: Side) -> MappedTokens:
        """The tokens of one side, memory-mapped."""
        arrays = []
        for shard in self.manifest.shards:
            array = mapped(self.folder / shard.file)
            begin = shard.train.tokens
            arrays.append(array[:begin] if side == "train" else array[begin:])
        hashes = " ".join([side, *(shard.sha256 for shard in self.manifest.shards)])
        return MappedTokens(arrays, hashlib.sha256(hashes.encode()).hexdigest())

    def head(self, side: Side, most: int) -> TokenStream:
        """The first tokens of one side, in memory; their number of bytes is estimated from the mean of the side.

        Raises:
            ValueError: If there are none.
        """
        tokens = self.tokens(side)[:most]
        count = self.manifest.count(side)
        if not len(tokens):
            raise ValueError(
                f"no document in {self.folder} is set aside for validation: tokenise with a (larger) `--validation`, "
                "or give data.validation_corpus."
                if side == "validation"
                else f"in {self.folder} there is no text."
            )
        return TokenStream(tokens, round(count.bytes * len(tokens) / count.tokens))


@final
@dataclass(frozen=True)
class TokenizationProgress:
    """The progress of tokenisation.

    Attributes:
        characters: Characters of the text so far.
        tokens: Number of tokens so far.
    """

    characters: int
    tokens: int


def write_shards(
    corpus: AbstractCorpus,
    tokenizer: Tokenizer,
    folder: Path,
    *,
    share: float = 0.0,
    renew: bool = False,
    watch: Callable[[TokenizationProgress], None] = lambda progress: None,
    say: Callable[[str], None] = lambda line: None,
    shard_tokens: int = SHARD,
) -> Shards:
    """Tokenise a text into a folder, or only the part that is missing there.

    Several processes may call this at once: one works, and the others wait.

    Args:
        corpus: Source of the text.
        tokenizer: Tokenizer of the text.
        folder: The folder; it is made if it does not exist.
        share: Share of the text to set aside for validation, in [0, 0.5].
        renew: Whether to replace shards of another text or tokenizer.
        watch: Called from time to time with the progress.
        say: Called with a line on what is done with existing shards.
        shard_tokens: Number of tokens after which a shard ends.

    Raises:
        ValueError: If the text cannot be read or is empty, or the folder holds other files.
    """
    from filelock import FileLock

    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        known = _known(folder, renew, say)
        source = TextVersion.of(corpus, known and known.source)
        wanted = Manifest(source, _hash_of(tokenizer), tokenizer.word_type.__name__, share)
        manifest = _kept(folder, known, wanted, renew, say)
        if not manifest.complete:
            _clear(folder, manifest, tokenizer)
            writer = _Writer(folder, manifest, shard_tokens, watch)
            writer.write(encoded(tokenizer, writer.missing(split_pieces(corpus.pieces(), share))))
            if (change := source.difference(TextVersion.of(corpus, source))) is not None:
                raise ValueError(f"while {folder} was made, {change}; use --renew to tokenise it again.")
            writer.finish()
        return Shards.open(folder)


def _known(folder: Path, renew: bool, say: Callable[[str], None]) -> Manifest | None:
    """The manifest of a folder that holds shards or nothing."""
    if not (folder / _MANIFEST).exists():
        names = {file.name for file in folder.iterdir() if not file.name.startswith(".")}
        if other := sorted(names - {_TOKENIZER}):
            raise ValueError(f"{folder} holds other files ({other[0]}, ..): choose an empty folder.")
        return None
    try:
        return Manifest.read(folder)
    except ValueError as error:
        if not renew:
            raise
        say(str(error))
        return None


def _kept(
    folder: Path, known: Manifest | None, wanted: Manifest, renew: bool, say: Callable[[str], None]
) -> Manifest:
    """The manifest of the shards that can be kept."""
    shards: list[Shard] = []
    if known is not None and (difference := known.difference(wanted)) is not None:
        if not renew:
            raise ValueError(
                f"{folder} holds another text: {difference}. Choose another folder, or use --renew to replace it."
            )
        say(f"tokenising {folder} again: {difference}")
    elif known is not None:
        for shard in known.shards:
            if not _is_whole(folder, shard):
                say(f"{shard.file} is missing or incomplete; it is written again, and so are those after it")
                break
            shards.append(shard)
        if known.complete and len(shards) == len(known.shards):
            return known
        say(f"resuming after {len(shards)} shards")
    return dataclasses.replace(wanted, shards=tuple(shards))


def _clear(folder: Path, kept: Manifest, tokenizer: Tokenizer) -> None:
    """Remove all other shards; the tokenizer is written before the manifest, so a manifest always has a tokenizer."""
    with replacing(folder / _TOKENIZER) as aside:
        aside.write_text(tokenizer.to_json(), encoding="utf-8")
    kept.write(folder)
    for file in folder.glob("*.npy"):
        if file.name not in {shard.file for shard in kept.shards}:
            file.unlink()


@final
@dataclass
class _Writer:
    """Writes one shard after another.

    Attributes:
        folder: Folder of the shards.
        manifest: Describes the shards that are written.
        most: Number of tokens after which a shard ends.
        watch: Called with the progress.
    """

    folder: Path
    manifest: Manifest
    most: int
    watch: Callable[[TokenizationProgress], None]
    pieces: int = 0
    characters: int = 0
    rows: dict[Side, list[Ids]] = field(default_factory=lambda: {"train": [], "validation": []})
    counts: dict[Side, Count] = field(default_factory=lambda: {"train": Count(), "validation": Count()})

    def missing(self, pieces: Iterable[SplitPiece]) -> Iterator[SplitPiece]:
        """The pieces that are not in a shard yet."""
        done = self.manifest.shards[-1].pieces if self.manifest.shards else 0
        for split_piece in pieces:
            if self.pieces < done:
                self.pieces += 1
                self.characters += len(split_piece.piece.text)
            else:
                yield split_piece

    def write(self, pieces: Iterable[tuple[SplitPiece, Ids]]) -> None:
        """Write shards of some pieces."""
        for split_piece, ids in pieces:
            self._add(split_piece, ids)
            if sum(count.tokens for count in self.counts.values()) >= self.most:
                self._close()
        self._close()
        if not self.manifest.shards:
            raise ValueError("there are no documents to tokenise.")

    def finish(self) -> None:
        """Record that the shards are complete."""
        self.manifest = dataclasses.replace(self.manifest, complete=True)
        self.manifest.write(self.folder)

    def _add(self, split_piece: SplitPiece, ids: Ids) -> None:
        side: Side = "validation" if split_piece.aside else "train"
        text, last = split_piece.piece.text, split_piece.piece.last
        self.rows[side].append(ids)
        self.counts[side] += Count(int(last), len(ids), len(text.encode()) + last)
        self.pieces += 1
        self.characters += len(text)
        shards = self.manifest.shards
        tokens = sum(count.tokens for shard in shards for count in (shard.train, shard.validation))
        tokens += sum(count.tokens for count in self.counts.values())
        self.watch(TokenizationProgress(self.characters, tokens))

    def _close(self) -> None:
        """Write a shard, and name it in the manifest."""
        rows = [*self.rows["train"], *self.rows["validation"]]
        if not rows:
            return
        name = f"{len(self.manifest.shards):05}.npy"
        path = self.folder / name
        with replacing(path) as aside:
            np.save(aside, np.concatenate(rows))
        train, validation = self.counts["train"], self.counts["validation"]
        shard = Shard(name, self.pieces, train, validation, path.stat().st_size, _hash(path))
        self.manifest = dataclasses.replace(self.manifest, shards=(*self.manifest.shards, shard))
        self.manifest.write(self.folder)
        for side in self.rows:
            self.rows[side], self.counts[side] = [], Count()


def _is_whole(folder: Path, shard: Shard) -> bool:
    path = folder / shard.file
    return path.is_file() and path.stat().st_size == shard.size


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hash_of(tokenizer: Tokenizer) -> str:
    return hashlib.sha256(tokenizer.to_json().encode()).hexdigest()
