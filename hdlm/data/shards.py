"""Text that was tokenised once: a folder of memory-mapped shards and a manifest that says what they are.

    FOLDER/manifest.json     format, source with sizes and hashes, tokenizer's hash, counts, hash of each shard
    FOLDER/tokenizer.json    what made the tokens
    FOLDER/00000.npy, ..     tokens (uint16 or uint32), end-of-text behind each document: first those to learn from,
                             then those that are set aside

A shard is written beside its place and moved into it, then the manifest names it: whoever is killed goes on behind the
last shard that the manifest names. Shards that another text, tokenizer or share made are known by the manifest.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
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
"""Tokens of a shard, and a piece more."""
_FORMAT = 1
_MANIFEST, _TOKENIZER = "manifest.json", "tokenizer.json"

Side: TypeAlias = Literal["train", "validation"]


@final
@dataclass(frozen=True)
class Count:
    """How much text there is on one side.

    Attributes:
        documents: How many.
        tokens: How many, end-of-text included.
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
        path: Where it was.
        size: In bytes.
        modified: When, in nanoseconds; as long as it is the same, so is the hash.
        sha256: Of what is in it.
    """

    path: str
    size: int
    modified: int
    sha256: str


@final
@dataclass(frozen=True)
class TextVersion:
    """What the text is.

    Attributes:
        corpus: What was asked for, in words of Python.
        version: Which text it is, where no files say so.
        files: The files that it is in.
    """

    corpus: str
    version: str
    files: tuple[SourceFile, ...]

    @classmethod
    def of(cls, corpus: AbstractCorpus, known: TextVersion | None = None) -> TextVersion:
        """Look at the text.

        Args:
            corpus: The text.
            known: What it was before: files of the same size and time are not read again.
        """
        before = {} if known is None else {file.path: file for file in known.files}
        files = tuple(_looked_at(path, before.get(str(path))) for path in corpus.files())
        return cls(repr(corpus), corpus.version(), files)

    def difference(self, other: TextVersion) -> str | None:
        """What another source has that this has not, in words; None if they are the same."""
        if (self.corpus, self.version) != (other.corpus, other.version):
            return f"it is the text of {self.corpus} {self.version}".rstrip()
        mine, others = ({file.path: file.sha256 for file in source.files} for source in (self, other))
        changed = [path for path in {**mine, **others} if mine.get(path) != others.get(path)]
        return f"its source has changed: {', '.join(changed[:3])}" if changed else None


def _looked_at(path: Path, known: SourceFile | None) -> SourceFile:
    state = path.stat()
    if known is not None and (known.size, known.modified) == (state.st_size, state.st_mtime_ns):
        return known
    return SourceFile(str(path), state.st_size, state.st_mtime_ns, _hash(path))


@final
@dataclass(frozen=True)
class Shard:
    """One file of tokens.

    Attributes:
        file: Its name.
        pieces: Pieces of the text that are in this shard and those before.
        train: What it begins with, to learn from.
        validation: What follows, set aside.
        size: In bytes.
        sha256: Of what is in it.
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
    """What a folder of shards holds.

    Attributes:
        source: The text.
        tokenizer: Hash of the tokenizer.
        dtype: Type of the tokens.
        share: Part of the text that is set aside.
        shards: The files.
        complete: Whether the whole text is in them.
        format: Version of this layout.
        pieces: Characters of a piece, and pieces that are set aside together: an earlier version took 16.
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
            ValueError: If there is none, it is damaged, or of a version that is not known here.
        """
        path = folder / _MANIFEST
        try:
            table: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if table["format"] != _FORMAT:
                raise ValueError(f"it has format {table['format']}, this program knows {_FORMAT}")
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
        """Replace the manifest of a folder."""
        with replacing(folder / _MANIFEST) as aside:
            aside.write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n", encoding="utf-8")

    def difference(self, other: Manifest) -> str | None:
        """Why these shards are not those of another manifest, in words; None if they are, or were in their time."""
        if self.tokenizer != other.tokenizer:
            return "another tokenizer made it"
        if self.share != other.share:
            return f"{self.share:g} of it is set aside, not {other.share:g}"
        if self.pieces != other.pieces and not self.complete:
            return "an earlier version began it, which set other stretches aside"
        return self.source.difference(other.source)

    def count(self, side: Side) -> Count:
        """How much there is on one side."""
        return sum((getattr(shard, side) for shard in self.shards), Count())


@final
@dataclass(frozen=True, eq=False)
class Shards:
    """A folder of shards that is whole.

    Attributes:
        folder: Where.
        manifest: What is in it.
    """

    folder: Path
    manifest: Manifest

    @classmethod
    def are_in(cls, name: str | Path) -> bool:
        """Whether a name is that of a folder of shards."""
        return (Path(name) / _MANIFEST).is_file()

    @classmethod
    def open(cls, folder: Path) -> Shards:
        """Open a folder.

        Raises:
            ValueError: If it is unfinished, damaged, or a shard is missing or cut off.
        """
        manifest = Manifest.read(folder)
        if not manifest.complete:
            raise ValueError(
                f"{folder} is not finished; the same `hdlm tokenize` again goes on where it was stopped."
            )
        for shard in manifest.shards:
            if not _is_whole(folder, shard):
                raise ValueError(
                    f"{folder / shard.file} is missing or cut off; the same `hdlm tokenize` again makes it anew."
                )
        return cls(folder, manifest)

    def verify(self) -> None:
        """Read everything.

        Raises:
            ValueError: If a shard is not what was written.
        """
        for shard in self.manifest.shards:
            if _hash(self.folder / shard.file) != shard.sha256:
                raise ValueError(
                    f"{self.folder / shard.file} is damaged; remove it, and `hdlm tokenize` makes it anew."
                )

    def tokenizer(self) -> Tokenizer:
        """What made the tokens.

        Raises:
            ValueError: If it is missing, or another one lies there.
        """
        found = Tokenizer.load(self.folder / _TOKENIZER)
        self.check(found, str(self.folder / _TOKENIZER))
        return found

    def check(self, tokenizer: Tokenizer, origin: str) -> None:
        """Refuse a tokenizer that did not make the tokens.

        Args:
            tokenizer: One to use with them.
            origin: What to call it.

        Raises:
            ValueError: If it is another.
        """
        if _hash_of(tokenizer) != self.manifest.tokenizer:
            raise ValueError(f"the shards in {self.folder} were made by another tokenizer than {origin}.")

    def tokens(self, side: Side) -> MappedTokens:
        """The tokens of one side, in their files."""
        arrays = []
        for shard in self.manifest.shards:
            array = mapped(self.folder / shard.file)
            begin = shard.train.tokens
            arrays.append(array[:begin] if side == "train" else array[begin:])
        hashes = " ".join([side, *(shard.sha256 for shard in self.manifest.shards)])
        return MappedTokens(arrays, hashlib.sha256(hashes.encode()).hexdigest())

    def head(self, side: Side, most: int) -> TokenStream:
        """The first tokens of one side, in memory; they stand for as many bytes as so many do on average.

        Args:
            side: Which side.
            most: How many at most.

        Raises:
            ValueError: If there are none.
        """
        tokens = self.tokens(side)[:most]
        count = self.manifest.count(side)
        if not len(tokens):
            raise ValueError(
                f"in {self.folder} no document is set aside to measure with: tokenise with a (larger) `--validation`, "
                "or give data.validation_corpus."
                if side == "validation"
                else f"in {self.folder} there is no text."
            )
        return TokenStream(tokens, round(count.bytes * len(tokens) / count.tokens))


@final
@dataclass(frozen=True)
class TokenizationProgress:
    """How far tokenisation has come.

    Attributes:
        characters: Of the text, so far.
        tokens: So far.
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
    """Tokenise a text into a folder, or what is missing of it; nothing is done if all is there.

    Several processes may do so at once: one works, the others wait for it.

    Args:
        corpus: The text.
        tokenizer: What makes tokens of it.
        folder: Where to; made if it does not exist.
        share: Part of the text to set aside as validation text, in [0, 0.5].
        renew: Whether to replace shards of another text or tokenizer that are in the folder.
        watch: Told now and then how far it is.
        say: Told in a line what is done with what is there.
        shard_tokens: After how many tokens a shard ends.

    Raises:
        ValueError: If the text cannot be read or is empty, or the folder holds something else.
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
                raise ValueError(f"while {folder} was made {change}; say --renew to tokenise it anew.")
            writer.finish()
        return Shards.open(folder)


def _known(folder: Path, renew: bool, say: Callable[[str], None]) -> Manifest | None:
    """The manifest of a folder that holds shards or nothing."""
    if not (folder / _MANIFEST).exists():
        found = {file.name for file in folder.iterdir() if not file.name.startswith(".")}
        if other := sorted(found - {_TOKENIZER}):
            raise ValueError(f"{folder} holds something else ({other[0]}, ..): choose an empty folder.")
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
    """What of a folder can be kept, as a manifest."""
    shards: list[Shard] = []
    if known is not None and (difference := known.difference(wanted)) is not None:
        if not renew:
            raise ValueError(
                f"{folder} holds another text: {difference}. Choose another folder, or say --renew to replace it."
            )
        say(f"tokenising {folder} anew: {difference}")
    elif known is not None:
        for shard in known.shards:
            if not _is_whole(folder, shard):
                say(f"{shard.file} is missing or cut off; it is made anew, and those behind it")
                break
            shards.append(shard)
        if known.complete and len(shards) == len(known.shards):
            return known
        say(f"going on behind {len(shards)} shards that are there")
    return dataclasses.replace(wanted, shards=tuple(shards))


def _clear(folder: Path, kept: Manifest, tokenizer: Tokenizer) -> None:
    """Make a folder hold what is kept and nothing else; whoever finds the manifest finds the tokenizer."""
    with replacing(folder / _TOKENIZER) as aside:
        aside.write_text(tokenizer.to_json(), encoding="utf-8")
    kept.write(folder)
    for file in folder.glob("*.npy"):
        if file.name not in {shard.file for shard in kept.shards}:
            file.unlink()


@final
@dataclass
class _Writer:
    """Fills one shard after the other.

    Attributes:
        folder: Where to.
        manifest: What is there.
        most: Tokens after which a shard ends.
        watch: Told how far it is.
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
        """The pieces that are in no shard yet."""
        done = self.manifest.shards[-1].pieces if self.manifest.shards else 0
        for sided in pieces:
            if self.pieces < done:
                self.pieces += 1
                self.characters += len(sided.piece.text)
            else:
                yield sided

    def write(self, pieces: Iterable[tuple[SplitPiece, Ids]]) -> None:
        """Write shards of all that is missing."""
        for sided, ids in pieces:
            self._add(sided, ids)
            if sum(count.tokens for count in self.counts.values()) >= self.most:
                self._close()
        self._close()
        if not self.manifest.shards:
            raise ValueError("there are no documents to tokenise.")

    def finish(self) -> None:
        """Say that nothing is missing any more."""
        self.manifest = dataclasses.replace(self.manifest, complete=True)
        self.manifest.write(self.folder)

    def _add(self, sided: SplitPiece, ids: Ids) -> None:
        side: Side = "validation" if sided.aside else "train"
        text, last = sided.piece.text, sided.piece.last
        self.rows[side].append(ids)
        self.counts[side] += Count(int(last), len(ids), len(text.encode()) + last)
        self.pieces += 1
        self.characters += len(text)
        tokens = sum(count.tokens for count in self.counts.values())
        self.watch(TokenizationProgress(self.characters, tokens + _tokens(self.manifest.shards)))

    def _close(self) -> None:
        """Write what has come together as a shard, and name it in the manifest."""
        rows = [*self.rows["train"], *self.rows["validation"]]
        if not rows:
            return
        name = f"{len(self.manifest.shards):05}.npy"
        with replacing(self.folder / name) as aside:
            np.save(aside, np.concatenate(rows))
        path = self.folder / name
        shard = Shard(
            name,
            self.pieces,
            self.counts["train"],
            self.counts["validation"],
            path.stat().st_size,
            _hash(path),
        )
        self.manifest = dataclasses.replace(self.manifest, shards=(*self.manifest.shards, shard))
        self.manifest.write(self.folder)
        for side in self.rows:
            self.rows[side], self.counts[side] = [], Count()


def _tokens(shards: Sequence[Shard]) -> int:
    return sum(shard.train.tokens + shard.validation.tokens for shard in shards)


def _is_whole(folder: Path, shard: Shard) -> bool:
    path = folder / shard.file
    return path.is_file() and path.stat().st_size == shard.size


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hash_of(tokenizer: Tokenizer) -> str:
    return hashlib.sha256(tokenizer.to_json().encode()).hexdigest()
