"""Reports in Markdown that can also be read as plain text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from hdlm.atomic import replacing

__all__ = ["Measurement", "markdown_table", "number", "table", "write_report"]


@final
@dataclass(frozen=True)
class Measurement:
    """One line of a table of likelihoods.

    Attributes:
        name: Name of the model.
        bits_per_byte: Bound in bits per byte.
        perplexity: Bound as perplexity per token.
        bits_error: Standard error of the bits per byte; None if it is exact or unknown.
        perplexity_error: Standard error of the perplexity; None if it is exact or unknown.
    """

    name: str
    bits_per_byte: float
    perplexity: float
    bits_error: float | None = None
    perplexity_error: float | None = None

    def cells(self) -> tuple[str, str, str]:
        """The cells of the table."""
        return (
            self.name,
            _with_error(self.bits_per_byte, self.bits_error, 3),
            _with_error(self.perplexity, self.perplexity_error, 1),
        )


def _with_error(value: float, error: float | None, digits: int) -> str:
    return f"{value:,.{digits}f}" + ("" if error is None else f" ± {error:,.{digits}f}")


def table(measurements: Sequence[Measurement]) -> str:
    """A Markdown table with one measurement per line."""
    return markdown_table(
        [("model", "bits per byte", "perplexity per token"), *(m.cells() for m in measurements)]
    )


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first row is its heading."""
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*escaped, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |"
        for row in escaped
    ]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines)


def number(value: float, error: float | None, *, sign: bool = False) -> str:
    """A number rounded to its error, which is shown with two digits.

    Args:
        value: Number to be formatted.
        error: Standard error of the number; None if unknown, 0 if it is exact.
        sign: Whether to write a plus sign.
    """
    digits = 4
    if error:
        digits = min(max(1 - math.floor(math.log10(error)), 0), 12)
    shown = f"{value:{'+' if sign else ''}z,.{digits}f}"
    return f"{shown} ± {error:,.{digits}f}" if error else shown


def write_report(path: Path, title: str, sections: Mapping[str, str]) -> None:
    """Write a report.

    Args:
        path: The file; it is written completely or not at all.
        title: Heading of the report.
        sections: Markdown by heading, in order.
    """
    body = "\n\n".join(f"## {heading}\n\n{text}" for heading, text in sections.items())
    with replacing(path) as temporary:
        temporary.write_text(f"# {title}\n\n{body}\n", encoding="utf-8")
