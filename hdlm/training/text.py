"""The text of a run: what a recipe names, read, tokenised and laid out in windows.

recipe -> documents -> tokenizer -> tokens to learn from, tokens to measure with -> windows
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

from hdlm.checkpoint import Checkpoint
from hdlm.data import (
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
from hdlm.training.recipe import TRAINED_HERE, Recipe

__all__ = ["TrainingText", "read_text"]


@final
@dataclass(frozen=True)
class TrainingText:
    """What a run learns from and is measured with.

    Attributes:
        tokenizer: Trained on the training text, found, or that of the checkpoint to begin with.
        train: Tokens to learn from.
        validation: Tokens that training never sees.
    """

    tokenizer: Tokenizer
    train: TokenStream
    validation: TokenStream

    def windows(self, length: int, seed: int) -> AbstractWindows:
        """The training tokens in the order of a run.

        Args:
            length: Tokens in a window.
            seed: Seed of the order.

        Raises:
            ValueError: If there is less than one window.
        """
        return Windows(self.train.tokens, length, seed)


def read_text(
    recipe: Recipe,
    say: Callable[[str], None] = lambda line: None,
    start: Checkpoint | None = None,
    text: Split | None = None,
) -> TrainingText:
    """Read the text, and train the tokenizer or take it from a checkpoint.

    Args:
        recipe: What to do.
        say: Told in a line what has been done.
        start: Where to begin: its tokenizer.
        text: What to learn from and to measure with, if it has been read already.

    Raises:
        ValueError: If the text or the tokenizer cannot be had; the message names the option.
    """
    parts = _documents(recipe) if text is None else text
    tokenizer = _tokenizer(recipe, parts.train, start)
    train, validation = tokenise(tokenizer, parts.train), tokenise(tokenizer, parts.validation)
    say(
        f"text: {len(train.tokens):,} tokens to learn from, {len(validation.tokens):,} to measure with; "
        f"{tokenizer.vocabulary.num_words} words of {train.bytes_per_token:.2f} bytes"
    )
    return TrainingText(tokenizer, train, validation)


def _documents(recipe: Recipe) -> Split:
    """Documents to learn from, and documents to measure with."""
    data = recipe.data
    documents = tuple(corpus(*data.corpus).documents())
    if not data.validation_corpus:
        return split(documents, data.validation)
    return Split(documents, tuple(corpus(*data.validation_corpus).documents()))


def _tokenizer(recipe: Recipe, documents: Sequence[str], start: Checkpoint | None) -> Tokenizer:
    """That of the checkpoint to begin with, one that is found, or a new one."""
    data = recipe.data
    if start is not None and start.tokenizer is not None:
        return Tokenizer.from_json(
            start.tokenizer, "the tokenizer.json to begin with", start.vocabulary.num_words
        )
    if data.tokenizer != TRAINED_HERE:
        return find_tokenizer(data.tokenizer, num_words=data.vocabulary)
    if start is not None:
        raise ValueError("the checkpoint to begin with has no tokenizer.json, so its ids mean nothing.")
    return train_tokenizer(documents, data.vocabulary)
