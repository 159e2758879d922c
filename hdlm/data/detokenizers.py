"""Undo the tokenisation that some data sets come in: `do n't`, `role @-@ playing`, `( 95 ° F )`.

A perplexity is of a text, and the literature measures these data sets on text that was mended first, so whoever does
not mend it measures another number. Each function is an ordered table of replacements: the rules that the literature
uses, mistakes and all (`players ' union` becomes `players'union`, and a number of Penn Treebank becomes `1`), since
numbers can be compared only under the same rules. The order matters: later rules see what earlier ones left.

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
"""From the text of one row of a data set to the text that people would write."""
_Rule: TypeAlias = tuple[str | re.Pattern[str], str]

_NUMBERS = 10
"""How often a rule for numbers is tried: neighbours share a space, and one pass mends every other."""

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
    """A row of Penn Treebank: a sentence in small letters, numbers as `N`, rare words as `<unk>`."""
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
"""The functions of this module by name: what a result is recorded under."""
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
"""What stands before and behind the words of a row, where rows are lines."""


def detokenizer_of(data_set: str) -> str | None:
    """Name of the detokenizer that a data set is measured with; None where it comes as people write."""
    return _OF.get(data_set)


def rows_are_lines(data_set: str) -> bool:
    """Whether a text file of a data set has a row in each line; elsewhere the whole file is one row."""
    return detokenizer_of(data_set) in _EDGES


def row_of_line(data_set: str, line: str) -> str:
    """The row that the hub has for a line of a text file; an empty row for an empty line.

    Args:
        data_set: One whose rows are lines.
        line: The line, with or without the white space around its words.
    """
    before, behind = _EDGES[_OF[data_set]]
    words = line.strip()
    return f"{before}{words}{behind}" if words else ""


def _apply(rules: tuple[_Rule, ...], text: str) -> str:
    for old, new in rules:
        text = text.replace(old, new) if isinstance(old, str) else old.sub(new, text)
    return text
