"""Where the text of a passage ends, and what of it is certain while it is being written.

The text of some tokens is that of their documents, without white space around them, with a line break between two. A
passage ends before the first place behind its prompt where one of the strings to stop at begins. So a string to stop
at is a property of the text: where the borders of tokens lie, and how many tokens settle at a time, changes nothing.

While a passage is being written, the end of its text is not certain yet. A character may still lack bytes, white
space may turn out to be at the end, and what has been written may turn out to be the beginning of a string to stop at.
`Reader` gives the beginning that is certain: the text of the whole passage begins with it.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import final

from torch import Tensor

from hdlm.data.tokenizer import Tokenizer

__all__ = ["Ending", "PassageStreamer", "PassageText", "Reader", "text_of"]


@final
@dataclass(frozen=True)
class Ending:
    """Where a passage may end before its canvas is full.

    Attributes:
        at_end_of_text: Behind the first token of the checkpoint's that ends a text.
        strings: Before the first of these in what is written.

    Raises:
        ValueError: If a string is empty.
    """

    at_end_of_text: bool = False
    strings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if "" in self.strings:
            raise ValueError("A string to stop at must not be empty.")

    def place(self, text: str, start: int, *, whole: bool) -> int:
        """The first place in a text, from `start`, where a string to stop at begins, or may begin if text follows.

        Args:
            text: The text.
            start: Where the written part of it begins.
            whole: Whether no text follows.

        Returns:
            The place; the length of the text if there is none.
        """
        places = [len(text)]
        for string in self.strings:
            found = text.find(string, start)
            if found >= 0:
                places.append(found)
            elif not whole:
                first = max(start, len(text) - len(string) + 1)
                places += [at for at in range(first, len(text)) if string.startswith(text[at:])]
        return min(places)

    def begins(self, text: str, place: int) -> bool:
        """Whether one of the strings to stop at is at this place of a text."""
        return text.startswith(self.strings, place)


def text_of(ids: Sequence[int], tokenizer: Tokenizer) -> str:
    """The text of some tokens: their documents, without white space around them, with a line break between two."""
    return "\n".join(document.strip() for document in tokenizer.documents(ids))


@final
@dataclass(frozen=True)
class PassageText:
    """What is known of a passage.

    Attributes:
        text: The beginning of its text that no further token changes.
        length: How many of its tokens count, if it has ended before its canvas is full; else None.
    """

    text: str
    length: int | None


@final
class Reader:
    """Reads the text of passages while they are being written; it is a `hdlm.sampling.Stop`.

    Args:
        tokenizer: What the tokens mean.
        ending: Where passages may end before the canvas is full.
        given: The tokens that all passages begin with; strings to stop at are not searched for in their text.
        length: Positions on the canvas.

    Attributes:
        texts: The texts of the passages that have ended before their canvas was full, by index in the run.

    Raises:
        ValueError: If the tokenizer has no token that ends a text, and passages may end at one.
    """

    def __init__(self, tokenizer: Tokenizer, ending: Ending, given: Sequence[int], length: int) -> None:
        if ending.at_end_of_text and tokenizer.vocabulary.eos is None:
            raise ValueError("The checkpoint's tokenizer has no token that ends a text: nothing to stop at.")
        self._tokenizer, self._ending = tokenizer, ending
        self._given, self._length = len(given), length
        self._prompt = text_of(given, tokenizer)
        self.texts: dict[int, str] = {}

    def __call__(self, sequence: int, tokens: Tensor) -> int | None:
        """How many tokens of a passage count, if it ends within these; and remember its text."""
        found = self.read(tokens.tolist())
        if found.length is not None:
            self.texts[sequence] = found.text
        return found.length

    def read(self, ids: Sequence[int]) -> PassageText:
        """What is known of a passage that begins with some tokens.

        Where it has ended at a string, the tokens that count are the fewest that have all of its text.
        """
        end = self._end(ids)
        whole = end is not None or len(ids) >= self._length
        ids = ids[:end]
        text = text_of(ids, self._tokenizer) if whole else self._certain(ids)
        start = sum(1 for _ in takewhile(lambda two: two[0] == two[1], zip(text, self._prompt, strict=False)))
        place = self._ending.place(text, start, whole=whole)
        if self._ending.begins(text, place):
            return PassageText(text[:place], self._fewest(ids, text[:place]))
        return PassageText(text[:place], end)

    def _end(self, ids: Sequence[int]) -> int | None:
        """The place behind the first token that ends a text, if the passage ends there."""
        eos = self._tokenizer.vocabulary.eos
        written = ids[self._given :]
        if not self._ending.at_end_of_text or eos not in written:
            return None
        return self._given + written.index(eos) + 1

    def _certain(self, ids: Sequence[int]) -> str:
        return "\n".join(document.strip() for document in self._tokenizer.settled_documents(ids))

    def _fewest(self, ids: Sequence[int], text: str) -> int:
        """The fewest of some tokens, those given among them, whose text begins with `text`."""

        def suffices(count: int) -> bool:
            *before, last = self._tokenizer.split(ids[:count])
            begun = [document.strip() for document in before if document.strip()]
            return "\n".join([*begun, last.lstrip()]).startswith(text)

        return bisect.bisect_left(range(len(ids)), True, lo=self._given, key=suffices)


@final
class PassageStreamer:
    """Gives the text of passages piece by piece, while they are being written.

    Args:
        reader: Reads them.
        show: Called with the index of a passage in the run, and the next piece of its text. The pieces of a passage,
            joined, are its text.
    """

    def __init__(self, reader: Reader, show: Callable[[int, str], None]) -> None:
        self._reader, self._show = reader, show
        self._shown: dict[int, int] = {}

    def read(self, sequence: int, ids: Sequence[int]) -> None:
        """Show what is newly certain of a passage that begins with some tokens."""
        self.finish(sequence, self._reader.read(ids).text)

    def finish(self, sequence: int, text: str) -> None:
        """Show the rest of a text."""
        shown = self._shown.get(sequence, 0)
        if len(text) > shown:
            self._show(sequence, text[shown:])
            self._shown[sequence] = len(text)
