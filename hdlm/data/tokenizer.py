"""Text to tokens and back: our own tokenizers, GPT-2's and BERT's.

Ours and GPT-2's are byte-pair encodings (Sennrich et al. 2016, arXiv:1508.07909) on bytes (Radford et al. 2019), so
every text has tokens and none is unknown. Ours puts a space before each document, so that its first word is the same
token as inside a sentence; GPT-2's does not. BERT's is WordPiece (Devlin et al. 2019, arXiv:1810.04805): words without
their spaces, and `##` before a token that continues a word.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Literal, final

import numpy as np
import numpy.typing as npt
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from hdlm.data import _tokenizer_json as tokenizer_json
from hdlm.data.corpora.base import Piece
from hdlm.vocabulary import MASK_TOKENS, Vocabulary

__all__ = ["END_OF_TEXT", "Place", "Tokenizer", "train_tokenizer"]

END_OF_TEXT = "<|endoftext|>"
"""The special token that ends every document of our tokenizers and of GPT-2's."""

Place = Literal["start", "spaced", "glued"]
"""Position of a piece of text: at the start of a document, after other text and a space, or directly after text."""

_BEGINNINGS = {
    END_OF_TEXT: END_OF_TEXT,
    "<|end_of_text|>": "<|begin_of_text|>",
    "[SEP]": "[CLS]",
    "</s>": "<s>",
}
"""Tokens that may end a document, and the token that begins it then."""
_PADS = ("[PAD]", "<pad>")
_BYTES = pre_tokenizers.ByteLevel.alphabet()
_SPACE = "\u0120"
"""The space in the vocabulary of a byte-pair encoding on bytes."""
_RUN = re.compile(r"(\S{1024})(?=\S)")
"""Longer runs without white space are cut before a tokenizer is trained, whose time grows with their square."""
_INCOMPLETE = "\ufffd"
"""What the first bytes of a character decode to while the others are missing."""
_BYTE_WORD = re.compile("<0x..>")
"""A token that stands for one byte, where a vocabulary has such tokens for the characters that it lacks."""
_OTHER_LETTER = "\ua66e"
"""A letter that stands for the word that a glued piece of text continues; hardly any vocabulary has it."""


@final
class Tokenizer:
    """A tokenizer of the `tokenizers` library that has a token to end documents, and ids without gaps.

    Args:
        backend: The tokenizer: byte-pair encoding on bytes, or WordPiece. It is changed in place so that it neither
            truncates nor pads.
        origin: Name of the tokenizer in messages.

    Attributes:
        vocabulary: Meaning of the ids. Documents end with `eos`: `<|endoftext|>`, `[SEP]` or `</s>`, the first of these
            that the tokenizer has.

    Raises:
        ValueError: If it is of another kind, has no token to end documents with, or its ids are not `0 .. N-1`.
    """

    def __init__(self, backend: tokenizers.Tokenizer, origin: str = "this tokenizer") -> None:
        tokenizer_json.check_ids(backend, origin)
        self._kind, document = tokenizer_json.kind_and_split(backend, origin)
        backend.no_truncation()
        backend.no_padding()
        ends = {end: id for end in _BEGINNINGS if (id := backend.token_to_id(end)) is not None}
        if not ends:
            known = ", ".join(map(repr, _BEGINNINGS))
            raise ValueError(
                f"{origin} has no token to end documents with, none of {known}; use a tokenizer that has one."
            )
        eos, self._end = next(iter(ends.items()))
        bos = _BEGINNINGS[eos] if backend.token_to_id(_BEGINNINGS[eos]) is not None else eos
        pad = next((pad for pad in _PADS if backend.token_to_id(pad) is not None), None)
        special = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
        backend.add_special_tokens([name for name in (bos, eos, pad) if name and name not in special])
        self._backend = backend
        self._continuing: str = getattr(backend.model, "continuing_subword_prefix", None) or ""
        self._adds_space = tokenizer_json.adds_prefix_space(document)
        decoder = backend.decoder
        self._joins = tokenizer_json.how_tokens_join(
            None if decoder is None else json.loads(decoder.__getstate__())
        )
        self.vocabulary = Vocabulary(
            backend.get_vocab_size(),
            bos=backend.token_to_id(bos),
            eos=self._end,
            pad=None if pad is None else backend.token_to_id(pad),
        )

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """Read a `tokenizer.json`.

        Raises:
            ValueError: If the file is missing or not a tokenizer.
        """
        if not path.is_file():
            raise ValueError(f"there is no tokenizer at {path}.")
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is damaged: {error}.") from error
        return cls.from_json(text, origin=str(path))

    @classmethod
    def from_json(cls, text: str, origin: str = "this text", num_words: int | None = None) -> Tokenizer:
        """Read the text of a `tokenizer.json`, for example from `to_json`.

        Args:
            text: Content of the file.
            origin: Name of the file in messages.
            num_words: Number of words that it must have, that of its network; None for any number.

        Raises:
            ValueError: If it is not a tokenizer, or has another size.
        """
        tokenizer_json.check(text, origin)
        tokenizer = cls(tokenizer_json.open_tokenizer_json(text, origin), origin)
        have = tokenizer.vocabulary.num_words
        if num_words not in (None, have):
            raise ValueError(
                f"{origin} has {have} words, its network {num_words}: they do not belong together. Restore the file "
                "that the network was trained with."
            )
        return tokenizer

    def to_json(self) -> str:
        """The whole tokenizer as the text of a `tokenizer.json`."""
        return str(self._backend.to_str())

    def without(self, token: int) -> Tokenizer:
        """A copy without one token; larger ids decrease by one.

        It belongs to a network whose mask had a row among the words, after that row was moved to the end.

        Raises:
            ValueError: If there is no such token, or other tokens need it.
        """
        content = self._backend.id_to_token(token) if 0 <= token < self.vocabulary.num_words else None
        if content is None:
            raise ValueError(f"there is no token {token}: ids are 0 to {self.vocabulary.num_words - 1}.")
        document = tokenizer_json.without_token(self._document, token, content)
        return Tokenizer.from_json(json.dumps(document), f"the tokenizer without {content!r}")

    def fitted(
        self, vocabulary: Vocabulary, mask_row: int | None = None, *, spare_rows: bool = False
    ) -> Tokenizer:
        """A copy with exactly the words that a network knows.

        Some tokenizers have the mask among the words, or behind them, and some networks add a padding token to the
        words of GPT-2.

        Args:
            vocabulary: The words of the network, without its mask.
            mask_row: Id of the mask in this tokenizer, where it lies among the words.
            spare_rows: Whether the network may have rows for which the tokenizer has no word. Each becomes a special
                token `<|unused_N|>`, which no text contains.

        Raises:
            ValueError: If the sizes differ, or there is no mask at `mask_row`.
        """
        have, want = self.vocabulary.num_words, vocabulary.num_words
        last = vocabulary.mask_id if mask_row is None else mask_row
        if last < have <= want + 1 and (spare_rows or (have == want + 1 and self._names_mask(last))):
            return self.without(last).fitted(vocabulary, spare_rows=spare_rows)
        if spare_rows and have < want:
            backend = tokenizers.Tokenizer.from_str(self.to_json())
            backend.add_special_tokens([f"<|unused_{row}|>" for row in range(have, want)])
            return Tokenizer(backend)
        if have == want - 1 == vocabulary.pad and self.vocabulary.pad is None:
            backend = tokenizers.Tokenizer.from_str(self.to_json())
            backend.add_special_tokens([_PADS[0]])
            return Tokenizer(backend)
        if have != want:
            mask = "" if mask_row is None else f" beside a mask at {mask_row}"
            raise ValueError(
                f"the tokenizer has {have} words, the network {want}{mask}: give the one that it was trained with."
            )
        return self

    def _names_mask(self, token: int) -> bool:
        return self._backend.id_to_token(token) in MASK_TOKENS

    def encode(self, text: str, place: Place = "start") -> list[int]:
        """Tokens of a text, without those that begin and end a document.

        Args:
            text: Text to be processed.
            place: Position of the text; a space between it and the text before it is not part of it.
        """
        if place == "glued" and self._kind == "WordPiece":
            return self._continued(text)
        if place == "start" or self._kind == "WordPiece":
            return list(self._backend.encode(text, add_special_tokens=False).ids)
        space = " " if place == "spaced" else ""
        return list(self._as_it_is.encode(space + text, add_special_tokens=False).ids)

    def _continued(self, text: str) -> list[int]:
        """Tokens of a text that continues a word."""
        stand_in = self.vocabulary.num_words
        ids = self._with_other_letter.encode(_OTHER_LETTER + text, add_special_tokens=False).ids
        return list(ids[1:]) if ids[:1] == [stand_in] else self.encode(text)

    @property
    def _document(self) -> tokenizer_json.TokenizerDocument:
        document: tokenizer_json.TokenizerDocument = json.loads(self.to_json())
        return document

    @cached_property
    def _as_it_is(self) -> tokenizers.Tokenizer:
        """A variant that adds no space before the text."""
        if not self._adds_space:
            return self._backend
        return _backend(tokenizer_json.without_prefix_space(self._document))

    @cached_property
    def _with_other_letter(self) -> tokenizers.Tokenizer:
        """A variant with one more word, which no text has."""
        return _backend(tokenizer_json.with_word(self._document, _OTHER_LETTER))

    def encode_documents(self, documents: Sequence[str]) -> list[list[int]]:
        """Tokens of each document, followed by end-of-text; encoded in parallel."""
        end = [self._end]
        return [
            encoding.ids + end
            for encoding in self._backend.encode_batch(list(documents), add_special_tokens=False)
        ]

    def encode_pieces(self, pieces: Sequence[Piece]) -> list[npt.NDArray[np.unsignedinteger]]:
        """Tokens of each piece of some documents, with end-of-text after the last piece of each; encoded in parallel.

        The arrays have the type `word_type`.
        """
        begins = [piece.first or self._kind == "WordPiece" for piece in pieces]
        batches = {
            begin: iter(
                backend.encode_batch_fast(
                    [piece.text for piece, is_begin in zip(pieces, begins, strict=True) if is_begin is begin],
                    add_special_tokens=False,
                )
            )
            for begin, backend in ((True, self._backend), (False, self._as_it_is))
        }
        end = [self._end]
        return [
            np.array(next(batches[begin]).ids + (end if piece.last else []), dtype=self.word_type)
            for piece, begin in zip(pieces, begins, strict=True)
        ]

    @property
    def word_type(self) -> type[np.unsignedinteger]:
        """The smallest unsigned integer that holds every word and has at least 16 bits."""
        return np.uint16 if self.vocabulary.num_words <= 2**16 else np.uint32

    def decode(self, ids: Sequence[int], *, keep_special: bool = False) -> str:
        """Text of some tokens; special tokens are left out by default.

        A space at its beginning is left out too, if the tokenizer adds one to every document.
        """
        text: str = self._backend.decode(list(ids), skip_special_tokens=not keep_special)
        return text.removeprefix(" ") if self._adds_space else text

    def documents(self, ids: Sequence[int]) -> list[str]:
        """Text of each document in some tokens, without special tokens and without empty documents."""
        return [text for text in self.split(ids) if text.strip()]

    def split(self, ids: Sequence[int]) -> list[str]:
        """Text of each document in some tokens, empty ones included; further tokens continue the last one.

        Consecutive tokens that begin and end documents count as one, so only the last document may have no token.
        """
        return [self.decode(run, keep_special=True) for run in self._runs(ids)]

    def settled_documents(self, ids: Sequence[int]) -> list[str]:
        """The result of `documents`, with the last text cut to the part that further tokens cannot change."""
        *before, last = self._runs(ids)
        texts = [self.decode(run, keep_special=True) for run in before]
        return [text for text in (*texts, self._settled(last)) if text.strip()]

    def _runs(self, ids: Sequence[int]) -> list[list[int]]:
        """The tokens of each document, without special tokens."""
        known = self.vocabulary
        borders = (known.bos, self._end)
        kept = [id for id in ids if id != known.pad]
        runs = [list(run) for is_border, run in groupby(kept, key=borders.__contains__) if not is_border]
        return runs if kept and kept[-1] not in borders else [*runs, []]

    def _settled(self, ids: list[int]) -> str:
        """The beginning of a document's text that further tokens cannot change."""
        if self._joins == "unknown":
            return ""
        if self._joins == "byte words":
            while ids and _BYTE_WORD.fullmatch(str(self._backend.id_to_token(ids[-1]))):
                ids = ids[:-1]
        text = self.decode(ids, keep_special=True)
        return text.removesuffix(_INCOMPLETE) if self._joins == "bytes" else text

    def piece(self, token: int) -> str:
        """The text of one token inside a text, with the space before it; end-of-text is a line break."""
        if token == self._end:
            return "\n"
        if token in (self.vocabulary.bos, self.vocabulary.pad):
            return ""
        if self._kind == "WordPiece":
            word = str(self._backend.id_to_token(token))
            return word.removeprefix(self._continuing) if word.startswith(self._continuing) else f" {word}"
        return str(self._backend.decode([token], skip_special_tokens=False))


def _backend(document: tokenizer_json.TokenizerDocument) -> tokenizers.Tokenizer:
    return tokenizer_json.open_tokenizer_json(json.dumps(document), "this tokenizer")


def train_tokenizer(documents: Iterable[str], size: int, *, merges: bool = True) -> Tokenizer:
    """Train a byte-pair encoding.

    Args:
        documents: Documents to train on.
        size: Number of tokens wanted, all bytes and end-of-text included; a short text gives fewer.
        merges: Whether bytes are merged to words. Without merges each byte is a token, which is a character of English,
            and the tokens are the bytes of the text alone. A byte that the text does not have then becomes "?", or a
            space if the text has no "?".

    Raises:
        ValueError: If `size` has no room for the bytes, or there is no text.
    """
    texts = [_RUN.sub(r"\1 ", document) for document in documents if document.strip()]
    if not texts:
        raise ValueError("there is no text to train a tokenizer on: every document is empty.")
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size if merges else 0,
        initial_alphabet=_BYTES if merges else [],
        special_tokens=[END_OF_TEXT],
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    if backend.get_vocab_size() > size:
        raise ValueError(
            f"`vocabulary` must have room for all bytes and end-of-text, at least {backend.get_vocab_size()}; "
            f"got {size}."
        )
    if not merges:
        backend.model.unk_token = "?" if backend.token_to_id("?") is not None else _SPACE
    return Tokenizer(backend)
