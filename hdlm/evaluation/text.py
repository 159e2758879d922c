"""Text to be measured: its tokens, and exactly how many tokens, bytes, words and documents there are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Int
from torch import Tensor

from hdlm.data import NAMED, AbstractCorpus, NamedDataset, Tokenizer, corpus
from hdlm.data.corpora import Documents
from hdlm.data.corpora.named import part_of
from hdlm.evaluation.records.protocol import describe_data

__all__ = ["Text", "TextSource", "find_text", "tokenize_documents"]

_SHORTEST = 8
"""Tokens that are left to take and not worth another document."""


@final
@dataclass(frozen=True)
class TextSource:
    """Where a text comes from.

    Attributes:
        name: What the user calls it.
        part: Which part of a data set; `"all"` of files.
        detokenizer: What undoes the tokenisation that it comes in; None for text as it is.
        corpus: The text.
    """

    name: str
    part: str
    detokenizer: str | None
    corpus: AbstractCorpus

    def describe(self, text: Text) -> dict[str, Any]:
        """What the result says of the text; of one from the hub, also which commit it is from."""
        data = describe_data(self.name, self.part, text.documents, self.detokenizer)
        commit = self.corpus.revision() if isinstance(self.corpus, NamedDataset) else None
        return data if commit is None else {**data, "revision": commit}


def find_text(
    text: object, part: str = "test", folder: Path | None = None, *, detokenize: bool = True
) -> TextSource:
    """The text that a user means.

    Args:
        text: A named data set, with its part behind a colon if it has one of its own; files, a folder, a glob; a
            corpus; or documents, as a list of strings.
        part: Part of a named data set.
        folder: Where copies of named data sets lie, if not in the folder of the environment.
        detokenize: Whether to undo the tokenisation that some named data sets come in.

    Raises:
        ValueError: If there is no such text, or no such part of it.
    """
    if not isinstance(text, str | Path):
        given = text if isinstance(text, AbstractCorpus) else Documents.of(text)
        return TextSource(repr(given), "all", None, given)
    name = str(text)
    named, _, own_part = name.partition(":")
    if named not in NAMED:
        return TextSource(name, "all", None, corpus(name))
    found = NamedDataset(named, part_of(own_part or part), detokenize=detokenize)
    found = found if folder is None else replace(found, folder=folder)
    return TextSource(named, found.part, found.detokenizer, found)


@final
@dataclass(frozen=True, eq=False)
class Text:
    """Documents and their tokens.

    Attributes:
        documents: The text.
        tokens: All documents, end-of-text behind each.
        lengths: How many tokens each has, its end-of-text included.
    """

    documents: tuple[str, ...]
    tokens: Int[Tensor, " n"]
    lengths: tuple[int, ...]

    @cached_property
    def num_bytes(self) -> int:
        """Bytes of UTF-8, and one for each end-of-text."""
        return sum(len(document.encode()) + 1 for document in self.documents)


def tokenize_documents(tokenizer: Tokenizer, documents: Iterable[str], limit: int | None = None) -> Text:
    """Tokenise documents.

    Args:
        tokenizer: The model's.
        documents: The text; no more is taken from it than `limit` needs.
        limit: How many tokens to take, from the beginning; the last document is cut at a space, so that they are about
            as many.

    Raises:
        ValueError: If there is no text.
    """
    taken = tuple(documents if limit is None else _first(tokenizer, documents, limit))
    if not taken:
        raise ValueError("there are no documents to measure.")
    ids = tokenizer.encode_documents(taken)
    return Text(taken, torch.tensor([id for row in ids for id in row]), tuple(len(row) for row in ids))


def _first(tokenizer: Tokenizer, documents: Iterable[str], limit: int) -> Iterator[str]:
    """The first documents, up to about `limit` tokens."""
    left = limit
    for document in documents:
        (ids,) = tokenizer.encode_documents([document])
        while len(ids) > left and len(document) > 1:
            document = _beginning(document, left / len(ids))
            (ids,) = tokenizer.encode_documents([document])
        yield document
        left -= len(ids)
        if left < _SHORTEST:
            return


def _beginning(document: str, share: float) -> str:
    """The first part of a document, up to a space where there is one."""
    at = max(int(len(document) * share), 1)
    space = document.rfind(" ", 0, at + 1)
    return document[: space if space > 0 else at].rstrip() or document[:at]
