"""Text to words and back: byte-pair encoding on bytes, so that every text has tokens and none is unknown.

A document begins as if a space stood before it, so its first word is the same token as in the middle of a sentence.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import final

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from hdlm.vocabulary import Vocabulary

__all__ = ["END_OF_TEXT", "Tokenizer", "train_tokenizer"]

END_OF_TEXT = "<|endoftext|>"
"""The special token that ends every document, and the only one."""

_BYTES = pre_tokenizers.ByteLevel.alphabet()


@final
class Tokenizer:
    """A tokenizer of the `tokenizers` library whose end-of-text token is known.

    Args:
        backend: The tokenizer; it must have the token `END_OF_TEXT`.

    Attributes:
        vocabulary: What the ids mean; documents begin and end with `eos`.

    Raises:
        ValueError: If there is no end-of-text token.
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        end = backend.token_to_id(END_OF_TEXT)
        if end is None:
            raise ValueError(
                f"the tokenizer has no token {END_OF_TEXT!r} to end documents with; train one that has."
            )
        self._backend = backend
        self._end = int(end)
        self.vocabulary = Vocabulary(backend.get_vocab_size(), bos=end, eos=end)

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """Read a `tokenizer.json`.

        Raises:
            ValueError: If the file is missing or no tokenizer.
        """
        if not path.is_file():
            raise ValueError(f"there is no tokenizer at {path}.")
        return cls.from_json(path.read_text(encoding="utf-8"), origin=str(path))

    @classmethod
    def from_json(cls, text: str, origin: str = "this text", num_words: int | None = None) -> Tokenizer:
        """Read what `to_json` gave.

        Args:
            text: A `tokenizer.json`.
            origin: What to call it in an error.
            num_words: How many words it must have, those of the network that it goes with; None for any number.

        Raises:
            ValueError: If it is no tokenizer, or one of another size.
        """
        try:
            model = json.loads(text)["model"]
            kind, _ = model["type"], (model["vocab"], model["merges"])
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(
                f"{origin} is no tokenizer: it is not JSON with a `model` that has `type`, `vocab` and `merges`."
            ) from error
        if kind != "BPE":
            raise ValueError(f"{origin} holds a tokenizer of type {kind!r}; only BPE is known here.")
        tokenizer = cls(tokenizers.Tokenizer.from_str(text))
        have = tokenizer.vocabulary.num_words
        if num_words not in (None, have):
            raise ValueError(
                f"{origin} has {have} words, its network {num_words}: they do not belong together. Put the file "
                "back that the network was trained with."
            )
        return tokenizer

    def to_json(self) -> str:
        """Everything, as the text of a `tokenizer.json`."""
        return str(self._backend.to_str())

    def encode(self, text: str, *, glued: bool = False) -> list[int]:
        """Tokens of a text, without end-of-text.

        Args:
            text: The text.
            glued: Whether it follows other text without a space between them.
        """
        backend = self._without_first_space if glued else self._backend
        return list(backend.encode(text, add_special_tokens=False).ids)

    @cached_property
    def _without_first_space(self) -> tokenizers.Tokenizer:
        """The same merges for text that does not begin a word."""
        backend = tokenizers.Tokenizer.from_str(self.to_json())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        return backend

    def encode_documents(self, documents: Sequence[str]) -> list[list[int]]:
        """Tokens of each document and end-of-text behind each; encoded in parallel."""
        end = [self._end]
        return [
            encoding.ids + end
            for encoding in self._backend.encode_batch(list(documents), add_special_tokens=False)
        ]

    def decode(self, ids: Sequence[int], *, keep_special: bool = False) -> str:
        """Text of some tokens, without the space at its front; special tokens are left out unless asked for."""
        text: str = self._backend.decode(list(ids), skip_special_tokens=not keep_special)
        return text.removeprefix(" ")

    def piece(self, token: int) -> str:
        """One token as it reads inside a text, the space before it included; end-of-text is a line break."""
        if token == self._end:
            return "\n"
        return str(self._backend.decode([token], skip_special_tokens=False))


def train_tokenizer(documents: Iterable[str], size: int) -> Tokenizer:
    """Learn byte-pair merges.

    Args:
        documents: What to learn from.
        size: Number of tokens wanted, all bytes and end-of-text included; a small text gives fewer.

    Raises:
        ValueError: If `size` has no room for the bytes, or there is no text.
    """
    least = len(_BYTES) + 1
    if size < least:
        raise ValueError(
            f"`vocabulary` must have room for all bytes and end-of-text, at least {least}; got {size}."
        )
    texts = [document for document in documents if document.strip()]
    if not texts:
        raise ValueError("there is no text to train a tokenizer on: every document is empty.")
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[END_OF_TEXT], initial_alphabet=_BYTES, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    return Tokenizer(backend)
