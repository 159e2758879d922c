r"""Standard output and standard error, for every verb and every published command.

The program runs with any kind of stream, and prints as much as possible:

    closed (`>&-`)                        printed text is discarded
    not in UTF-8 (a console, a locale)    replacements for missing characters: `+-` for ±, `\u4e2d` for a character
    a pipe whose reader has exited        the program ends with the status that a shell reports for SIGPIPE
    a full disk                           the program ends with one line and the status of bad input
"""

from __future__ import annotations

import codecs
import io
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol, TextIO, runtime_checkable

STAND_INS = {
    **dict(zip("·░▒▓█▀▄", ".:+*#^_", strict=True)),
    **dict(zip("▁▂▃▄▅▆▇", "1234567", strict=True)),
    **{"±": "+-", "→": "->", "—": "-", "–": "-", "…": "...", "×": "x", "≤": "<=", "≥": ">="},
    **dict.fromkeys("“”", '"'),
    **dict.fromkeys("‘’", "'"),
}
"""Replacements in ASCII for the characters that this program prints."""
_STAND_IN = "hdlm.stand-in"
_CANNOT_SAY = (OSError, ValueError)
"""Errors of a stream: the second one if it was closed."""


@runtime_checkable
class _Stream(Protocol):
    """The interface of a standard stream or its replacement."""

    def flush(self) -> None:
        """Write the buffered text."""

    def fileno(self) -> int:
        """The file descriptor of the stream."""


def prepare() -> None:
    """Make both streams ready for printing.

    A closed descriptor is connected to the null device. Otherwise the next opened file would get its number, and
    printed text would go into that file.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    sys.stdout = sys.stdout or _nowhere()
    sys.stderr = sys.stderr or _nowhere()
    codecs.register_error(_STAND_IN, _stand_in)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_STAND_IN)


def say(line: str) -> None:
    """Print a line on standard error, if it can be printed there."""
    with suppress(*_CANNOT_SAY):
        print(line, file=sys.stderr, flush=True)


@contextmanager
def warnings_as_lines(program: str) -> Iterator[None]:
    """Print the warnings of the library to its users as lines on standard error, without a place in the source."""
    with warnings.catch_warnings(record=True) as noted:
        warnings.simplefilter("always", UserWarning)
        yield
    for warning in noted:
        say(f"{program}: {warning.message}")


def print_result(content: str) -> None:
    """Print a result on standard output; if that fails, on standard error."""
    try:
        print(content, flush=True)
    except _CANNOT_SAY:
        say(content)


def flush_streams() -> OSError | None:
    """Write buffered text; text that cannot be written is dropped, so that Python does not try again.

    Returns:
        The error of standard output, otherwise the error of standard error; None if both were written.
    """
    errors = [_flushed(stream) for stream in (sys.stdout, sys.stderr)]
    return next((error for error in errors if error is not None), None)


def can_print(text: str) -> bool:
    """Whether standard output can encode all characters of a text."""
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def check_words(words: Sequence[str]) -> None:
    """Check that the arguments of a command line are valid text.

    Paths may have invalid bytes, but the program writes paths into results, reports and pictures, which are in UTF-8.

    Raises:
        ValueError: If an argument has bytes that are invalid in the encoding of this system.
    """
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError:
            shown = word.encode("ascii", "backslashreplace").decode()
            raise ValueError(
                f"the argument '{shown}' has bytes that are not text in {sys.getfilesystemencoding()}; give it in "
                "that encoding, and rename a file of such a name."
            ) from None


def _nowhere() -> TextIO:
    return Path(os.devnull).open("w", encoding="utf-8")


def _stand_in(error: UnicodeError) -> tuple[str | bytes, int]:
    """The replacement for characters that an encoding lacks."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text, end = codecs.backslashreplace_errors(
        UnicodeEncodeError(error.encoding, error.object, error.start, error.start + 1, error.reason)
    )
    return STAND_INS.get(error.object[error.start], text), end


def _flushed(stream: _Stream) -> OSError | None:
    """Flush a stream; if that fails, drop its buffer and return the error."""
    try:
        stream.flush()
    except ValueError:
        return None
    except OSError as error:
        with suppress(*_CANNOT_SAY):
            _drop(stream)
        return error
    return None


def _drop(stream: _Stream) -> None:
    """Connect a stream to the null device, and discard its buffer."""
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, stream.fileno())
    finally:
        os.close(null)
    stream.flush()
