"""Undo the tokenisation that some data sets come in: `do n't`, `role @-@ playing`, `( 95 ° F )`.

The literature measures perplexity on these data sets after detokenisation; without it the numbers cannot be compared.
Each function is an ordered table of replacements: the rules of the literature, including their mistakes (`players '
union` becomes `players'union`, and a number of Penn Treebank becomes `1`). The order matters: a rule sees the result of
the rules before it.

    wikitext    the rules that Megatron-LM evaluates WikiText-103 by
    ptb, lm1b, lambada, scientific_papers    those of the masked diffusion literature (SEDD, MDLM)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TypeAlias

__all__ = [
    "DETOKENIZERS",
    "Detokenizer",
    "detokenizer_of",
    "lambada",
    "lm1b",
    "ptb",
    "row_of_line",
    "rows_are_lines",
    "scientific_papers",
    "wikitext",
]

Detokenizer: TypeAlias = Callable[[str], str]
"""Turns the text of one row of a data set into ordinary text."""
_Rule: TypeAlias = tuple[str | re.Pattern[str], str]

_NUMBERS = 10
"""Number of times that a rule for numbers is applied: neighbours share a space, so one pass changes every other one."""

_PTB: tuple[_Rule, ...] = (
    (" 's", "'s"),
    ("s ' ", "s' "),
    (" n't", "n't"),
    (" \n ", "\n"),
    ("\\/", "/"),
    *[(" N ", " 1 ")] * _NUMBERS,
    ("$ 1", "$1"),
    ("# 1", "#1"),
    ("<unk>", "?"),
)

_WIKITEXT: tuple[_Rule, ...] = (
    ("s '", "s'"),
    (re.compile(r"/' [0-9]/"), "/'[0-9]/"),
    (" @-@ ", "-"),
    (" @,@ ", ","),
    (" @.@ ", "."),
    *((f" {mark} ", f"{mark} ") for mark in ":;.!?,"),
    (re.compile(r"\(\s*([^\)]*?)\s*\)"), r"(\1)"),
    (re.compile(r"\[\s*([^\]]*?)\s*\]"), r"[\1]"),
    (re.compile(r"{\s*([^}]*?)\s*}"), r"{\1}"),
    (re.compile(r"\"\s*([^\"]*?)\s*\""), r'"\1"'),
    (re.compile(r"'\s*([^']*?)\s*'"), r"'\1'"),
    ("= = = =", "===="),
    ("= = =", "==="),
    ("= =", "=="),
    (" ° ", "°"),
    (" \n", "\n"),
    ("\n ", "\n"),
    (" N ", " 1 "),
    (" 's", "'s"),
)

_LM1B: tuple[_Rule, ...] = (
    ("http : / / ", "http://"),
    ("https : / / ", "https://"),
    (re.compile(r" '(\w+)"), r"'\1"),
    (re.compile(r" (\w+) \. "), r" \1. "),
    (re.compile(r" (\w+) \.$"), r" \1."),
    (" ? ", "? "),
    (re.compile(r" \?$"), "?"),
    (" ! ", "! "),
    (re.compile(r" !$"), "!"),
    *((f" {mark} ", f"{mark} ") for mark in ",:;"),
    (" / ", "/"),
    (re.compile(r"\" ([^\"]+) \""), r'"\1"'),
    (re.compile(r"' ([^']+) '"), r"'\1'"),
    (re.compile(r"\( ([^()]+) \)"), r"(\1)"),
    (re.compile(r"\[ ([^\[\]]+) \]"), r"[\1]"),
    ("$ ", "$"),
    ("£ ", "£"),
)


def ptb(text: str) -> str:
    """A row of Penn Treebank: a sentence in lower case, numbers as `N`, rare words as `<unk>`."""
    return _apply(_PTB, text)


def wikitext(text: str) -> str:
    """A row of WikiText: a heading or a paragraph, numbers as `1 @,@ 000`."""
    return _apply(_WIKITEXT, text)


def lm1b(text: str) -> str:
    """A row of the One Billion Word benchmark: a sentence."""
    return _apply(_LM1B, text)


def lambada(text: str) -> str:
    """A row of LAMBADA: a passage with printer's quotation marks. It begins on a new line."""
    return "\n" + text.replace("“", '"').replace("”", '"').strip()


def scientific_papers(text: str) -> str:
    """A paper of arXiv or PubMed: the rules of WikiText, then those of the One Billion Word benchmark."""
    return lm1b(wikitext(text))


DETOKENIZERS: Mapping[str, Detokenizer] = MappingProxyType(
    {rules.__name__: rules for rules in (ptb, wikitext, lm1b, lambada, scientific_papers)}
)
"""The functions of this module by the names that results record."""
_OF: Mapping[str, str] = MappingProxyType(
    {
        "ptb": "ptb",
        "wikitext2": "wikitext",
        "wikitext103": "wikitext",
        "lm1b": "lm1b",
        "lambada": "lambada",
        "scientific_papers_arxiv": "scientific_papers",
        "scientific_papers_pubmed": "scientific_papers",
    }
)

_EDGES: Mapping[str, tuple[str, str]] = MappingProxyType(
    {"ptb": ("", ""), "wikitext": (" ", " \n"), "lm1b": ("", "")}
)
"""Text before and after the words of a row, in data sets whose rows are lines."""


def detokenizer_of(data_set: str) -> str | None:
    """Name of the detokenizer of a data set; None for one in ordinary text."""
    return _OF.get(data_set)


def rows_are_lines(data_set: str) -> bool:
    """Whether each line of a data set's text file is a row; otherwise the whole file is one row."""
    return detokenizer_of(data_set) in _EDGES


def row_of_line(data_set: str, line: str) -> str:
    """The row of the hub for a line of a text file; an empty row for an empty line.

    Args:
        data_set: A data set whose rows are lines.
        line: The line, with or without the white space around its words.
    """
    before, behind = _EDGES[_OF[data_set]]
    words = line.strip()
    return f"{before}{words}{behind}" if words else ""


def _apply(rules: tuple[_Rule, ...], text: str) -> str:
    for old, new in rules:
        text = text.replace(old, new) if isinstance(old, str) else old.sub(new, text)
    return text
