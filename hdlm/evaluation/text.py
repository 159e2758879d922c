"""Text to be measured: its tokens, and exact numbers of tokens, bytes, words and documents."""

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
"""Number of remaining tokens that are not worth another document."""


@final
@dataclass(frozen=True)
class TextSource:
    """The origin of a text.

    Attributes:
        name: The user's name for the text.
        part: Part of a data set; `"all"` for files.
        detokenizer: Name of the detokenizer; None if the text is not changed.
        corpus: The documents of the text.
    """

    name: str
    part: str
    detokenizer: str | None
    corpus: AbstractCorpus

    def describe(self, text: Text) -> dict[str, Any]:
        """The fields of the result that describe the text; for a text from the hub, also its commit."""
        data = describe_data(self.name, self.part, text.documents, self.detokenizer)
        commit = self.corpus.revision() if isinstance(self.corpus, NamedDataset) else None
        return data if commit is None else {**data, "revision": commit}


def find_text(
    text: object, part: str = "test", folder: Path | None = None, *, detokenize: bool = True
) -> TextSource:
    """Find the text that a user names.

    Args:
        text: A named data set, with its part after a colon if it has parts; files, a folder, a glob; a corpus; or
            documents as a list of strings.
        part: Part of a named data set.
        folder: Folder with copies of named data sets, if it is not the folder of the environment.
        detokenize: Whether to undo the tokenisation that some named data sets come in.

    Raises:
        ValueError: If there is no such text or part.
    """
    if not isinstance(text, str | Path):
        given = text if isinstance(text, AbstractCorpus) else Documents.of(text)
        return TextSource(repr(given), "all", None, given)
    name = str(text)
    named, _, own_part = name.partition(":")
    if named not in NAMED:
        return TextSource(name, "all", None, corpus(name))
    dataset = NamedDataset(named, part_of(own_part or part), detokenize=detokenize)
    dataset = dataset if folder is None else replace(dataset, folder=folder)
    return TextSource(named, dataset.part, dataset.detokenizer, dataset)


@final
@dataclass(frozen=True, eq=False)
class Text:
    """Documents and their tokens.

    Attributes:
        documents: Documents of the text.
        tokens: Tokens of all documents, with end-of-text after each.
        lengths: Number of tokens of each document, including its end-of-text.
    """

    documents: tuple[str, ...]
    tokens: Int[Tensor, " n"]
    lengths: tuple[int, ...]

    @cached_property
    def num_bytes(self) -> int:
        """Bytes of UTF-8, plus one for each end-of-text."""
        return sum(len(document.encode()) + 1 for document in self.documents)


def tokenize_documents(tokenizer: Tokenizer, documents: Iterable[str], limit: int | None = None) -> Text:
    """Tokenise documents.

    Args:
        tokenizer: Tokenizer of the model.
        documents: The text; only as many documents are read as `limit` needs.
        limit: Number of tokens to take, from the beginning. The last document is cut at a space, so the number is
            approximate.

    Raises:
        ValueError: If there is no text.
    """
    taken = tuple(documents if limit is None else _first(tokenizer, documents, limit))
    if not taken:
        raise ValueError("the text has no documents, so there is nothing to measure.")
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
