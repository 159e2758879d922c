"""The text of a run: what a recipe names, read, tokenised and laid out in windows.

    recipe -> documents -> tokenizer -> tokens to learn from, tokens to measure with -> windows

Short text is held in memory; long text lies in shards that were made once, by `hdlm tokenize` or in `data.cache`, or
streams from its files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import final

from hdlm.checkpoint import Checkpoint
from hdlm.data import (
    AbstractCorpus,
    AbstractWindows,
    Split,
    Tokenizer,
    TokenStream,
    Windows,
    corpus,
    find_tokenizer,
    split,
    tokenise,
    train_tokenizer,
)
from hdlm.data.corpora import First, JSONLines, Parquet
from hdlm.data.encoding import SAMPLE, first_tokens, sample_of
from hdlm.data.mapped import Tokens
from hdlm.data.shards import Shards, write_shards
from hdlm.data.streaming import StreamedText, StreamedWindows
from hdlm.strict_config import IdleOptionError, require
from hdlm.training.recipe import TRAINED_HERE, DataSettings, Recipe

__all__ = ["Corpora", "TrainingText", "read_training_text", "refuse_idle"]

_SHORT = 2**26
"""Bytes of text that are rather held in memory than in shards."""
_LONG = 2**30
"""Bytes of text that are not held in memory."""
_COUNTED = 2**22
"""Tokens of long text that are held to be counted."""
_MEASURED = 2**18
"""Tokens that are held to measure with, of text that is set aside from long text."""

Say = Callable[[str], None]


@final
@dataclass(frozen=True)
class Corpora:
    """Text to learn from, and text to measure with.

    Attributes:
        train: Where the text to learn from comes from.
        validation: Where the other comes from; None for a share of the first.
    """

    train: AbstractCorpus
    validation: AbstractCorpus | None = None

    @classmethod
    def of(cls, data: DataSettings) -> Corpora:
        """What a recipe names.

        Raises:
            ValueError: If it names nothing.
        """
        return cls(corpus(*data.corpus, key=data.key), _other(data))


def _other(data: DataSettings) -> AbstractCorpus | None:
    """Where the text to measure with comes from, if it has its own place."""
    return corpus(*data.validation_corpus, key=data.key) if data.validation_corpus else None


@final
@dataclass(frozen=True)
class TrainingText:
    """What a run learns from and is measured with.

    Attributes:
        tokenizer: Trained on the training text, found, or that of the checkpoint to begin with.
        train: Tokens to learn from; of long text, its beginning.
        validation: Tokens that training never sees; of much, the beginning.
        source: Where windows come from.
    """

    tokenizer: Tokenizer
    train: TokenStream
    validation: TokenStream
    source: Tokens | StreamedText

    def windows(self, length: int, seed: int) -> AbstractWindows:
        """The training tokens in the order of a run.

        Args:
            length: Tokens in a window.
            seed: Seed of the order.

        Raises:
            ValueError: If there is less than one window.
        """
        if isinstance(self.source, StreamedText):
            return StreamedWindows(self.source, length, seed)
        return Windows(self.source, length, seed)


def read_training_text(
    recipe: Recipe,
    say: Say = lambda line: None,
    start: Checkpoint | None = None,
    text: Corpora | None = None,
) -> TrainingText:
    """Read the text, and train the tokenizer or take it from a checkpoint.

    Args:
        recipe: What to do.
        say: Told in a line what has been done.
        start: Where to begin: its tokenizer.
        text: Where the text comes from, if not as the recipe says.

    Raises:
        ValueError: If the text or the tokenizer cannot be had; the message names the option.
    """
    data = recipe.data
    if text is None and len(data.corpus) == 1 and Shards.are_in(data.corpus[0]):
        require(not data.streaming, "data.streaming", f"false with the shards in {data.corpus[0]}", True)
        return _of_shards(data, Shards.open(Path(data.corpus[0])), start, say)
    named = Corpora.of(data) if text is None else text
    size = 0 if isinstance(named.train, First) else named.train.size()
    if data.streaming:
        return _streamed(data, named, start, say)
    if data.cache is not None and (size is None or size > _SHORT):
        return _cached(data, named, Path(data.cache).expanduser(), start, say)
    if size is not None and size > _LONG:
        raise ValueError(
            f"the text has {size / 2**30:.1f} GiB, too much for memory: set `data.cache` to a folder where it is "
            "tokenised once, use `hdlm tokenize`, or set `data.streaming` to true."
        )
    return _in_memory(data, named, start, say)


def refuse_idle(data: DataSettings, text: Corpora | None = None, start: Checkpoint | None = None) -> None:
    """Refuse options that would not act on such text, or beside such a checkpoint; for runs that begin.

    Args:
        data: What the recipe says.
        text: Where the text comes from, if not as it says.
        start: Where to begin.

    Raises:
        ValueError: If one would not act; it is named, and why.
    """
    for option, acts, reason in _conditional(data, text, start):
        value = getattr(data, option)
        if not acts and value != getattr(DataSettings, option):
            raise IdleOptionError(f"data.{option}", value, reason)


def _conditional(
    data: DataSettings, text: Corpora | None, start: Checkpoint | None
) -> Iterator[tuple[str, bool, str]]:
    """Options that only act with some text: which, whether they do here, and why not."""
    if text is None and len(data.corpus) == 1 and Shards.are_in(data.corpus[0]):
        shards = Shards.open(Path(data.corpus[0]))
        share, words = shards.manifest.share, shards.tokenizer().vocabulary.num_words
        yield "validation", data.validation == share, f"{shards.folder} was made with {share:g} set aside"
        yield "cache", False, f"{shards.folder} is tokenised already"
        yield "vocabulary", data.vocabulary == words, f"{shards.folder} has {words} words"
        sources: tuple[AbstractCorpus | None, ...] = (_other(data),)
    else:
        named = Corpora.of(data) if text is None else text
        sources = (named.train, named.validation)
    inner = [source.corpus if isinstance(source, First) else source for source in sources]
    keyed = any(isinstance(source, JSONLines | Parquet) for source in inner)
    yield "key", keyed, "only JSON lines and Parquet have it"
    if start is not None and start.tokenizer_json is not None:
        words = start.vocabulary.num_words
        own = f"the checkpoint to begin with brings its tokenizer of {words} words"
        yield "tokenizer", False, own
        yield "vocabulary", data.vocabulary in (words, _recorded(start)), own


def _recorded(start: Checkpoint) -> object:
    """Words that a run was to have; a short text gives fewer."""
    return start.training.get("recipe", {}).get("data", {}).get("vocabulary")


def _in_memory(data: DataSettings, named: Corpora, start: Checkpoint | None, say: Say) -> TrainingText:
    documents = tuple(named.train.documents())
    if named.validation is None:
        parts = split(documents, data.validation)
    else:
        parts = Split(documents, tuple(named.validation.documents()))
    tokenizer = _tokenizer(data, parts.train, start)
    train, validation = tokenise(tokenizer, parts.train), tokenise(tokenizer, parts.validation)
    text = TrainingText(tokenizer, train, validation, train.tokens)
    _tell(say, len(train.tokens), text)
    return text


def _of_shards(data: DataSettings, shards: Shards, start: Checkpoint | None, say: Say) -> TrainingText:
    """Text that `hdlm tokenize` has made."""
    tokenizer = shards.tokenizer()
    if start is not None or data.tokenizer != TRAINED_HERE:
        asked = _tokenizer(data, (), start)
        shards.check(asked, "that of the checkpoint" if start is not None else data.tokenizer)
    return _sharded(shards, tokenizer, _other(data), say)


def _cached(
    data: DataSettings, named: Corpora, cache: Path, start: Checkpoint | None, say: Say
) -> TrainingText:
    """Long text, tokenised into a folder of the cache unless it has been."""
    share = data.validation if named.validation is None else 0.0
    tokenizer = _tokenizer(data, sample_of(named.train, SAMPLE, share), start)
    what = repr((named.train, share, tokenizer.to_json()))
    folder = cache / f"hdlm-{hashlib.sha256(what.encode()).hexdigest()[:16]}"
    say(f"text: tokenised once, in {folder}")
    shards = write_shards(named.train, tokenizer, folder, share=share, renew=True, say=say)
    return _sharded(shards, tokenizer, named.validation, say)


def _sharded(shards: Shards, tokenizer: Tokenizer, other: AbstractCorpus | None, say: Say) -> TrainingText:
    validation = (
        shards.head("validation", _MEASURED) if other is None else first_tokens(other, tokenizer, _MEASURED)
    )
    tokens = shards.tokens("train")
    text = TrainingText(tokenizer, shards.head("train", _COUNTED), validation, tokens)
    _tell(say, len(tokens), text)
    return text


def _streamed(data: DataSettings, named: Corpora, start: Checkpoint | None, say: Say) -> TrainingText:
    """Text that is read as it is trained on."""
    share = data.validation if named.validation is None else 0.0
    tokenizer = _tokenizer(data, sample_of(named.train, SAMPLE, share), start)
    validation = (
        first_tokens(named.train, tokenizer, _MEASURED, share, aside=True)
        if named.validation is None
        else first_tokens(named.validation, tokenizer, _MEASURED)
    )
    train = first_tokens(named.train, tokenizer, _MEASURED, share)
    text = TrainingText(tokenizer, train, validation, StreamedText(named.train, tokenizer, share))
    _tell(say, None, text)
    return text


def _tell(say: Say, tokens: int | None, text: TrainingText) -> None:
    say(
        f"text: {'a stream of' if tokens is None else f'{tokens:,}'} tokens to learn from, "
        f"{len(text.validation.tokens):,} to measure with; {text.tokenizer.vocabulary.num_words} words of "
        f"{text.train.bytes_per_token:.2f} bytes"
    )


def _tokenizer(data: DataSettings, documents: Iterable[str], start: Checkpoint | None) -> Tokenizer:
    """That of the checkpoint to begin with, one that is found, or a new one."""
    if start is not None and start.tokenizer_json is not None:
        return Tokenizer.from_json(
            start.tokenizer_json, "the tokenizer.json to begin with", start.vocabulary.num_words
        )
    if data.tokenizer != TRAINED_HERE:
        return find_tokenizer(data.tokenizer, num_words=data.vocabulary)
    if start is not None:
        raise ValueError("the checkpoint to begin with has no tokenizer.json, so its ids mean nothing.")
    return train_tokenizer(documents, data.vocabulary)
