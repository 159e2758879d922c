"""The text of a run: documents are read, tokenised and laid out in windows.

    recipe -> documents -> tokenizer -> training tokens, validation tokens -> windows

Short text is held in memory. Long text lies in shards that `hdlm tokenize` or `data.cache` made once, or is streamed
from its files.
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
from hdlm.data.conversations import (
    ConversationWindows,
    EncodedConversation,
    Fill,
    chat_template,
    encode_conversation,
)
from hdlm.data.corpora import First, JSONLines, Parquet
from hdlm.data.encoding import SAMPLE, first_tokens, sample_of
from hdlm.data.mapped import Tokens
from hdlm.data.shards import Shards, write_shards
from hdlm.data.streaming import StreamedText, StreamedWindows
from hdlm.strict_config import IdleOptionError, require
from hdlm.training.recipe import CHARACTERS, TRAINED_HERE, DataSettings, Recipe

__all__ = ["Corpora", "TrainingText", "read_training_text", "refuse_idle"]

_SHORT = 2**26
"""Text of fewer bytes is held in memory and not in shards."""
_LONG = 2**30
"""Text of more bytes is not held in memory."""
_COUNTED = 2**22
"""Tokens of long text that are held in memory to be counted."""
_MEASURED = 2**18
"""Tokens of long validation text that are held in memory."""

Say = Callable[[str], None]


@final
@dataclass(frozen=True)
class Corpora:
    """Training text and validation text.

    Attributes:
        train: Source of the training text.
        validation: Source of the validation text; None for a share of the training text.
    """

    train: AbstractCorpus
    validation: AbstractCorpus | None = None

    @classmethod
    def of(cls, data: DataSettings) -> Corpora:
        """The corpora that a recipe names.

        Raises:
            ValueError: If a name matches nothing.
        """
        return cls(corpus(*data.corpus, key=data.key), _validation_corpus(data))


def _validation_corpus(data: DataSettings) -> AbstractCorpus | None:
    return corpus(*data.validation_corpus, key=data.key) if data.validation_corpus else None


@final
@dataclass(frozen=True)
class TrainingText:
    """The text of a run.

    Attributes:
        tokenizer: A tokenizer trained on this text, a given one, or that of the initial checkpoint.
        train: Training tokens; the first ones of long text.
        validation: Tokens that training never uses; the first ones of long text.
        source: Source of the windows.
        fill: How windows with samples are filled.
    """

    tokenizer: Tokenizer
    train: TokenStream
    validation: TokenStream
    source: Tokens | StreamedText | tuple[EncodedConversation, ...]
    fill: Fill = "padding"

    def windows(self, length: int, seed: int, width: int = 1) -> AbstractWindows:
        """The training windows in the order of a run.

        Args:
            length: Tokens in a window.
            seed: Seed of the order.
            width: Packed samples begin at multiples of this number.

        Raises:
            ValueError: If the text is shorter than one window.
        """
        if isinstance(self.source, tuple):
            end = self.tokenizer.vocabulary.eos
            assert end is not None  # every tokenizer has a token for the end of a document
            return ConversationWindows.pack(self.source, length, end, seed, width=width, fill=self.fill)
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
        recipe: The recipe of the run.
        say: Called with a line for each finished piece of work.
        start: Initial checkpoint, whose tokenizer is used.
        text: Corpora in place of those that the recipe names.

    Raises:
        ValueError: If the text or the tokenizer cannot be read; the message names the option.
    """
    read = _read(recipe.data, say, start, text)
    tokens = "a stream of" if isinstance(read.source, StreamedText) else f"{_count(read.source):,}"
    say(
        f"text: {tokens} training tokens, {len(read.validation.tokens):,} validation tokens; "
        f"{read.tokenizer.vocabulary.num_words} words of {read.train.bytes_per_token:.2f} bytes"
    )
    return read


def _count(source: Tokens | tuple[EncodedConversation, ...]) -> int:
    """Number of tokens of a text or of some samples."""
    return sum(len(sample.tokens) for sample in source) if isinstance(source, tuple) else len(source)


def _read(data: DataSettings, say: Say, start: Checkpoint | None, text: Corpora | None) -> TrainingText:
    if data.format == "messages":
        return _of_conversations(data, start, text)
    if text is None and len(data.corpus) == 1 and Shards.are_in(data.corpus[0]):
        require(not data.streaming, "data.streaming", f"false with the shards in {data.corpus[0]}", True)
        return _of_shards(data, Shards.open(Path(data.corpus[0])), start)
    named = Corpora.of(data) if text is None else text
    size = 0 if isinstance(named.train, First) else named.train.size()
    if data.streaming:
        return _streamed(data, named, start)
    if data.cache is not None and (size is None or size > _SHORT):
        return _cached(data, named, Path(data.cache).expanduser(), start, say)
    if size is not None and size > _LONG:
        raise ValueError(
            f"the text has {size / 2**30:.1f} GiB, too much for memory: set `data.cache` to a folder where it is "
            "tokenised once, use `hdlm tokenize`, or set `data.streaming` to true."
        )
    return _in_memory(data, named, start)


def refuse_idle(data: DataSettings, text: Corpora | None = None, start: Checkpoint | None = None) -> None:
    """Refuse options that have no effect with this text or this checkpoint; for new runs only.

    Raises:
        ValueError: If an option has no effect; it names the option and the reason.
    """
    for option, acts, reason in _conditional(data, text, start):
        value = getattr(data, option)
        if not acts and value != getattr(DataSettings, option):
            raise IdleOptionError(f"data.{option}", value, reason)


def _conditional(
    data: DataSettings, text: Corpora | None, start: Checkpoint | None
) -> Iterator[tuple[str, bool, str]]:
    """Options that depend on the text: name, whether it has an effect here, and why not."""
    if text is None and len(data.corpus) == 1 and Shards.are_in(data.corpus[0]):
        shards = Shards.open(Path(data.corpus[0]))
        share, words = shards.manifest.share, shards.tokenizer().vocabulary.num_words
        yield "validation", data.validation == share, f"{shards.folder} was made with {share:g} set aside"
        yield "cache", False, f"{shards.folder} is tokenised already"
        yield "vocabulary", data.vocabulary == words, f"{shards.folder} has {words} words"
        sources: tuple[AbstractCorpus | None, ...] = (_validation_corpus(data),)
    else:
        named = Corpora.of(data) if text is None else text
        sources = (named.train, named.validation)
    inner = [source.corpus if isinstance(source, First) else source for source in sources]
    keyed = any(isinstance(source, JSONLines | Parquet) for source in inner)
    yield "key", keyed or data.format == "messages", "only JSON lines and Parquet have it"
    if start is not None and start.tokenizer_json is not None:
        words = start.vocabulary.num_words
        own = f"the checkpoint to begin with brings its tokenizer of {words} words"
        recorded = (
            start.training.get("recipe", {}).get("data", {}).get("vocabulary")
        )  # short text gives fewer words
        yield "tokenizer", False, own
        yield "vocabulary", data.vocabulary in (words, recorded), own


def _in_memory(data: DataSettings, named: Corpora, start: Checkpoint | None) -> TrainingText:
    documents = tuple(named.train.documents())
    if named.validation is None:
        parts = split(documents, data.validation)
    else:
        parts = Split(documents, tuple(named.validation.documents()))
    tokenizer = _tokenizer(data, parts.train, start)
    train, validation = tokenise(tokenizer, parts.train), tokenise(tokenizer, parts.validation)
    return TrainingText(tokenizer, train, validation, train.tokens)


def _of_conversations(data: DataSettings, start: Checkpoint | None, text: Corpora | None) -> TrainingText:
    """Samples of conversations, and their text for validation and counts."""
    require(text is None, "data.format", "text, unless the corpus is named by its files", data.format)
    template = chat_template(data.chat_template)
    key = "messages" if data.key == DataSettings.key else data.key
    train = tuple(JSONLines(data.corpus, key).conversations())
    aside = tuple(JSONLines(data.validation_corpus, key).conversations()) if data.validation_corpus else ()
    if not aside:
        every = max(2, round(1 / data.validation))
        aside = train[every // 2 :: every]
        train = tuple(messages for index, messages in enumerate(train) if index % every != every // 2)
    if not train or not aside:
        raise ValueError("there are too few conversations to set one aside for validation: give more.")
    tokenizer = _tokenizer(data, (template(messages, False) for messages in train), start)
    shown, measured = (
        tokenise(tokenizer, [template(messages, False) for messages in part]) for part in (train, aside)
    )
    samples = tuple(encode_conversation(tokenizer, messages, template) for messages in train)
    return TrainingText(tokenizer, shown, measured, samples, data.fill)


def _of_shards(data: DataSettings, shards: Shards, start: Checkpoint | None) -> TrainingText:
    tokenizer = shards.tokenizer()
    if start is not None or data.tokenizer != TRAINED_HERE:
        asked = _tokenizer(data, (), start)
        shards.check(asked, "that of the checkpoint" if start is not None else data.tokenizer)
    return _sharded(shards, tokenizer, _validation_corpus(data))


def _cached(
    data: DataSettings, named: Corpora, cache: Path, start: Checkpoint | None, say: Say
) -> TrainingText:
    """Long text, tokenised into a folder of the cache unless it is there already."""
    share = data.validation if named.validation is None else 0.0
    tokenizer = _tokenizer(data, sample_of(named.train, SAMPLE, share), start)
    key = repr((named.train, share, tokenizer.to_json()))
    folder = cache / f"hdlm-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    say(f"text: tokenised once, in {folder}")
    shards = write_shards(named.train, tokenizer, folder, share=share, renew=True, say=say)
    return _sharded(shards, tokenizer, named.validation)


def _sharded(shards: Shards, tokenizer: Tokenizer, other: AbstractCorpus | None) -> TrainingText:
    validation = (
        shards.head("validation", _MEASURED) if other is None else first_tokens(other, tokenizer, _MEASURED)
    )
    return TrainingText(tokenizer, shards.head("train", _COUNTED), validation, shards.tokens("train"))


def _streamed(data: DataSettings, named: Corpora, start: Checkpoint | None) -> TrainingText:
    share = data.validation if named.validation is None else 0.0
    tokenizer = _tokenizer(data, sample_of(named.train, SAMPLE, share), start)
    validation = (
        first_tokens(named.train, tokenizer, _MEASURED, share, aside=True)
        if named.validation is None
        else first_tokens(named.validation, tokenizer, _MEASURED)
    )
    train = first_tokens(named.train, tokenizer, _MEASURED, share)
    return TrainingText(tokenizer, train, validation, StreamedText(named.train, tokenizer, share))


def _tokenizer(data: DataSettings, documents: Iterable[str], start: Checkpoint | None) -> Tokenizer:
    """The tokenizer of the initial checkpoint, a given one, or a new one."""
    if start is not None and start.tokenizer_json is not None:
        return Tokenizer.from_json(
            start.tokenizer_json, "the tokenizer.json to begin with", start.vocabulary.num_words
        )
    if data.tokenizer not in (TRAINED_HERE, CHARACTERS):
        return find_tokenizer(data.tokenizer, num_words=data.vocabulary)
    if start is not None:
        raise ValueError(
            "the checkpoint to begin with has no tokenizer.json, so the meaning of its token ids is unknown."
        )
    return train_tokenizer(documents, data.vocabulary, merges=data.tokenizer != CHARACTERS)
