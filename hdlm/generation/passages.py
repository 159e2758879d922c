"""The end of a passage's text, and the part of it that is certain while it is being generated.

The text of some tokens is that of their documents, without white space around them, with a line break between two. A
passage ends before the first place after its prompt where a stop string begins. So stop strings depend on the text
only, and not on the borders of tokens or on how many tokens settle at a time.

While a passage is being generated, the end of its text is not certain. A character may lack bytes, white space may turn
out to be at the end, and the last characters may be the beginning of a stop string. `Reader` returns the beginning that
is certain: the text of the whole passage begins with it.
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
        at_end_of_text: Whether a passage ends after the first token that ends a text.
        strings: Stop strings; a passage ends before the first of them.

    Raises:
        ValueError: If a string is empty.
    """

    at_end_of_text: bool = False
    strings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if "" in self.strings:
            raise ValueError("A string to stop at must not be empty.")

    def place(self, text: str, start: int, *, whole: bool) -> int:
        """The first place in a text, from `start`, where a stop string begins, or may begin if text follows.

        Args:
            text: Text to be processed.
            start: Place where the generated part begins.
            whole: Whether the text is complete, so that no text follows.

        Returns:
            The place; the length of the text if there is none.
        """
        places = [len(text)]
        for string in self.strings:
            place = text.find(string, start)
            if place >= 0:
                places.append(place)
            elif not whole:
                first = max(start, len(text) - len(string) + 1)
                places += [at for at in range(first, len(text)) if string.startswith(text[at:])]
        return min(places)

    def begins(self, text: str, place: int) -> bool:
        """Whether a stop string is at this place of a text."""
        return text.startswith(self.strings, place)


def text_of(ids: Sequence[int], tokenizer: Tokenizer) -> str:
    """The text of some tokens: their documents, without white space around them, with a line break between two."""
    return "\n".join(document.strip() for document in tokenizer.documents(ids))


@final
@dataclass(frozen=True)
class PassageText:
    """The certain part of a passage.

    Attributes:
        text: The beginning of its text that no further token changes.
        length: Number of its tokens that count, if it has ended before its canvas is full; otherwise None.
    """

    text: str
    length: int | None


@final
class Reader:
    """Reads the text of passages while they are being generated; it is a `hdlm.sampling.Stop`.

    Args:
        tokenizer: Tokenizer of the text.
        ending: Where passages may end before the canvas is full.
        given: The tokens that all passages begin with; stop strings are not searched for in their text.
        length: Positions on the canvas.

    Attributes:
        texts: The texts of the passages that have ended before their canvas was full, by index in the run.

    Raises:
        ValueError: If passages may end at the token that ends a text, and the tokenizer has none.
    """

    def __init__(self, tokenizer: Tokenizer, ending: Ending, given: Sequence[int], length: int) -> None:
        if ending.at_end_of_text and tokenizer.vocabulary.eos is None:
            raise ValueError(
                "The checkpoint's tokenizer has no token that ends a text, so passages cannot end there."
            )
        self._tokenizer, self._ending = tokenizer, ending
        self._given, self._length = len(given), length
        self._prompt = text_of(given, tokenizer)
        self.texts: dict[int, str] = {}

    def __call__(self, sequence: int, tokens: Tensor) -> int | None:
        """The number of tokens of a passage that count, if it ends within these; its text is stored."""
        passage = self.read(tokens.tolist())
        if passage.length is not None:
            self.texts[sequence] = passage.text
        return passage.length

    def read(self, ids: Sequence[int]) -> PassageText:
        """The certain part of a passage that begins with some tokens.

        If it has ended at a string, the tokens that count are the fewest that contain all of its text.
        """
        end = self._end(ids)
        whole = end is not None or len(ids) >= self._length
        ids = ids[:end]
        documents = self._tokenizer.documents if whole else self._tokenizer.settled_documents
        text = "\n".join(document.strip() for document in documents(ids))
        start = sum(
            1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(text, self._prompt, strict=False))
        )
        place = self._ending.place(text, start, whole=whole)
        if self._ending.begins(text, place):
            return PassageText(text[:place], self._fewest(ids, text[:place]))
        return PassageText(text[:place], end)

    def _end(self, ids: Sequence[int]) -> int | None:
        """The place after the first token that ends a text, if the passage ends there."""
        eos = self._tokenizer.vocabulary.eos
        written = ids[self._given :]
        if not self._ending.at_end_of_text or eos not in written:
            return None
        return self._given + written.index(eos) + 1

    def _fewest(self, ids: Sequence[int], text: str) -> int:
        """The least number of tokens, with the given ones, whose text begins with `text`."""

        def suffices(count: int) -> bool:
            *before, last = self._tokenizer.split(ids[:count])
            begun = [document.strip() for document in before if document.strip()]
            return "\n".join([*begun, last.lstrip()]).startswith(text)

        return bisect.bisect_left(range(len(ids)), True, lo=self._given, key=suffices)


@final
class PassageStreamer:
    """Passes the text of passages on, piece by piece, while they are being generated.

    Args:
        reader: Reads the passages.
        show: Called with the index of a passage in the run, and the next piece of its text. The pieces of a passage,
            joined, are its text.
    """

    def __init__(self, reader: Reader, show: Callable[[int, str], None]) -> None:
        self._reader, self._show = reader, show
        self._shown: dict[int, int] = {}

    def read(self, sequence: int, ids: Sequence[int]) -> None:
        """Show the newly certain text of a passage that begins with some tokens."""
        self.finish(sequence, self._reader.read(ids).text)

    def finish(self, sequence: int, text: str) -> None:
        """Show the rest of a text."""
        shown = self._shown.get(sequence, 0)
        if len(text) > shown:
            self._show(sequence, text[shown:])
            self._shown[sequence] = len(text)
