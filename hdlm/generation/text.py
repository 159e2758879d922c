"""Text and tokens: generated passages, and gaps to fill."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, final

from hdlm.data.tokenizer import Place, Tokenizer

__all__ = ["BLANK", "Passage", "Passages", "blanks", "has_gaps"]

BLANK = re.compile(r"\[MASK(?::([0-9]+))?\]")
"""A gap in a text: `[MASK]` for one token, `[MASK:5]` for five."""

_LONGEST_SHOWN = 40
"""Largest number of characters of a gap in a message."""


@final
@dataclass(frozen=True)
class Passage:
    """A generated text.

    Attributes:
        text: The words, the prompt included; documents are separated by a newline.
        tokens: Their ids, with special ones. If the text ends at a string, the fewest that contain all of it.
        given: Number of tokens that were given.
        num_evaluations: Calls of the network for all passages of the run.
        evaluations: Calls that this passage took part in.
        computed: Positions of it that these calls computed in all.
    """

    text: str
    tokens: tuple[int, ...]
    given: int
    num_evaluations: int
    evaluations: int
    computed: int


@final
class Passages(list[Passage]):
    """Generated passages: a list that can also show how they were generated.

    Args:
        passages: The passages in order.
        again: Generates them again with a trace, and returns the page that plays it.
    """

    def __init__(self, passages: Iterable[Passage], again: Callable[[], Any]) -> None:
        super().__init__(passages)
        self._again = again

    def replay(self) -> Any:
        """Generate the passages again from their seed, with a trace: equal text, and a page that plays it.

        Returns:
            A `hdlm.view.page.ReplayPage`, which a notebook shows, and which `save(path)` writes.
        """
        return self._again()


def has_gaps(prompt: str | Sequence[int | None]) -> bool:
    """Whether a prompt is a whole canvas with gaps: a text with `[MASK]`, or token ids."""
    return not isinstance(prompt, str) or BLANK.search(prompt) is not None


def blanks(text: str, tokenizer: Tokenizer, mask_id: int, most: int | None = None) -> list[int]:
    """Tokens of a text in which `[MASK]` (or `[MASK:n]`) stands for masks, as a whole document.

    Args:
        text: Text to be processed.
        tokenizer: Tokenizer of the text.
        mask_id: Id of the mask.
        most: Largest number of masks; None for any number.

    Raises:
        ValueError: If there is nothing to fill in, a gap has no token, or there are more masks than `most`.
    """
    text = text.strip()
    _check_gaps(text, most)
    ids = tokenizer.vocabulary.text_start
    end = 0
    for gap in BLANK.finditer(text):
        ids += _piece(text[end : gap.start()], tokenizer, first=end == 0) + [mask_id] * _width(gap)
        end = gap.end()
    ids += _piece(text[end:], tokenizer, first=end == 0)
    if mask_id not in ids:
        raise ValueError("Nothing to fill in: the text has no [MASK] (one token) or [MASK:n] (n tokens).")
    return ids if tokenizer.vocabulary.eos is None else [*ids, tokenizer.vocabulary.eos]


def _width(gap: re.Match[str]) -> int:
    """Number of tokens of a gap."""
    return int((gap[1] or "1").lstrip("0"))


def _check_gaps(text: str, most: int | None) -> None:
    """Check that gaps have tokens, and that they fit, before any list is made of them."""
    room = most
    for gap in BLANK.finditer(text):
        digits = (gap[1] or "1").lstrip("0")
        if not digits:
            raise ValueError(
                f"The gap {gap[0]} has no token: write [MASK] for one token, [MASK:n] for n tokens, at least 1."
            )
        if room is None:
            continue
        if len(digits) > len(str(room)) or int(digits) > room:
            shown = gap[0] if len(gap[0]) <= _LONGEST_SHOWN else f"{gap[0][:_LONGEST_SHOWN]}...]"
            raise ValueError(
                f"The gap {shown} does not fit: the canvas has {most} positions, the network's context, for the text "
                "and all of its gaps."
            )
        room -= int(digits)


def _piece(text: str, tokenizer: Tokenizer, *, first: bool) -> list[int]:
    """Tokens of the text before, between or after gaps; a space beside a gap belongs to the word after it."""
    place: Place = "start" if first else "spaced" if text.startswith(" ") else "glued"
    words = (text if first else text.removeprefix(" ")).removesuffix(" ")
    return tokenizer.encode(words, place) if words else []
