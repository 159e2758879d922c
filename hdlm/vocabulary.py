"""Vocabularies: words `0 .. N-1`, and one mask token `N` after them.

This module is the only place with special ids; all other code uses a `Vocabulary`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

__all__ = ["GPT2", "MASK_TOKENS", "Vocabulary"]

MASK_TOKENS = (
    "[MASK]",
    "<mask>",
    "<|mask|>",
    "<|mdm_mask|>",
    "<|MASK|>",
    "|<MASK>|",
    "[\N{DIAERESIS}M\N{DIAERESIS}]",
)
"""How the mask is spelt in tokenizers: by BERT, RoBERTa, Dream, LLaDA, SDAR, Fast-dLLM v2 and DiffuGPT."""


@final
@dataclass(frozen=True)
class Vocabulary:
    """`num_words` real tokens, followed by the mask token.

    Attributes:
        num_words: Number `N` of real tokens (ids `0 .. N-1`), at least 1.
        bos: Id of the begin-of-sequence token, if the tokenizer has one.
        eos: Id of the end-of-document token, if the tokenizer has one.
        pad: Id of the padding token, if the tokenizer has one.

    Raises:
        ValueError: If `num_words` is not positive, or a special id is not a word.
    """

    num_words: int
    bos: int | None = None
    eos: int | None = None
    pad: int | None = None

    def __post_init__(self) -> None:
        if self.num_words < 1:
            raise ValueError(f"`num_words` must be at least 1; got {self.num_words}.")
        for name in ("bos", "eos", "pad"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < self.num_words:
                raise ValueError(f"`{name}` must be a word, in [0, {self.num_words}); got {value}.")

    @property
    def mask_id(self) -> int:
        """Id of the mask token: the last row of every network."""
        return self.num_words

    @property
    def text_start(self) -> list[int]:
        """The tokens before every text: `bos`, if there is one."""
        return [] if self.bos is None else [self.bos]

    @property
    def document_start(self) -> list[int]:
        """The tokens before a document whose first token is predicted: `bos`, or else `eos`, if there is one."""
        return self.text_start or ([] if self.eos is None else [self.eos])

    @property
    def size(self) -> int:
        """Number of rows of a network: the words and the mask."""
        return self.num_words + 1


GPT2 = Vocabulary(num_words=50257, bos=50256, eos=50256)
"""The vocabulary of the published checkpoints: GPT-2's, with its end-of-text token as `bos` and `eos`."""
