"""Text to batches: corpora (one file each), tokenisation, packing, and n-gram baselines."""

from __future__ import annotations

from hdlm.data.baselines import Bigram, Unigram
from hdlm.data.corpora import (
    CORPORA,
    NAMED,
    AbstractCorpus,
    JSONLines,
    KingJamesBible,
    NamedDataset,
    Parquet,
    PydocTopics,
    TextFiles,
    corpus,
)
from hdlm.data.encoding import tokenise
from hdlm.data.packing import AbstractWindows, Split, TokenStream, Windows, split
from hdlm.data.pretrained_tokenizers import find_tokenizer
from hdlm.data.tokenizer import END_OF_TEXT, Tokenizer, train_tokenizer

__all__ = [
    "CORPORA",
    "END_OF_TEXT",
    "NAMED",
    "AbstractCorpus",
    "AbstractWindows",
    "Bigram",
    "JSONLines",
    "KingJamesBible",
    "NamedDataset",
    "Parquet",
    "PydocTopics",
    "Split",
    "TextFiles",
    "TokenStream",
    "Tokenizer",
    "Unigram",
    "Windows",
    "corpus",
    "find_tokenizer",
    "split",
    "tokenise",
    "train_tokenizer",
]
