r"""Standard output and standard error, for every verb and every published command.

Whatever they are connected to, the program runs, and what it prints gets there as far as that is possible:

    closed (`>&-`)                        what is printed is thrown away
    not in UTF-8 (a console, a locale)    what cannot be written has a stand-in: `+-` for ±, `\u4e2d` for a character
    a pipe whose reader has gone          the program ends with the status that a shell reports for SIGPIPE
    a full disk                           the program ends with one line and the status of bad input
"""

from __future__ import annotations

import codecs
import io
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol, TextIO, runtime_checkable

STAND_INS = {
    **dict(zip("·░▒▓█▀▄", ".:+*#^_", strict=True)),
    **dict(zip("▁▂▃▄▅▆▇", "1234567", strict=True)),
    **{"±": "+-", "→": "->", "—": "-", "–": "-", "…": "...", "×": "x", "≤": "<=", "≥": ">="},
    **dict.fromkeys("“”", '"'),
    **dict.fromkeys("‘’", "'"),
}
"""What this program prints by itself, in ASCII."""
_STAND_IN = "hdlm.stand-in"
_CANNOT_SAY = (OSError, ValueError)
"""What a stream raises: the second one if it was closed."""


@runtime_checkable
class _Stream(Protocol):
    """What a standard stream does, or what stands for one."""

    def flush(self) -> None:
        """Write what it holds."""

    def fileno(self) -> int:
        """Its descriptor."""


def prepare() -> None:
    """Make both streams fit to be printed to.

    A closed descriptor is connected to the null device: else the next file that is opened gets its number, and what
    anybody prints goes into that file.
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


def print_result(content: str) -> None:
    """Print a result on standard output, else on standard error."""
    try:
        print(content, flush=True)
    except _CANNOT_SAY:
        say(content)


def flush_streams() -> OSError | None:
    """Write what is left to be written; what cannot be written is dropped, so that Python does not try again.

    Returns:
        Why standard output could not be written, else why standard error could not; None if both could.
    """
    errors = [_flushed(stream) for stream in (sys.stdout, sys.stderr)]
    return next((error for error in errors if error is not None), None)


def can_print(text: str) -> bool:
    """Whether standard output has all characters of a text."""
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def check_words(words: Sequence[str]) -> None:
    """Check that the words of a command line are text.

    Paths that are no text exist, but the program writes paths into results, reports and pictures, which are in UTF-8.

    Raises:
        ValueError: If a word has bytes that are no text in the encoding of this system.
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
    """What to write for characters that an encoding does not have."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text, end = codecs.backslashreplace_errors(
        UnicodeEncodeError(error.encoding, error.object, error.start, error.start + 1, error.reason)
    )
    return STAND_INS.get(error.object[error.start], text), end


def _flushed(stream: _Stream) -> OSError | None:
    """Why a stream cannot be written; what it holds is then dropped."""
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
    """Connect a stream to the null device, and let go of what it holds."""
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, stream.fileno())
    finally:
        os.close(null)
    stream.flush()
