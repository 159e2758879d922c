"""Files that are either whole or not there: written beside their place, then moved into it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Lend a temporary path in the folder of `target`; it becomes `target` if nothing is raised.

    Missing folders are created.  The temporary name keeps the suffix, for writers that go by it.

    Yields:
        The path to write to.

    Raises:
        OSError: if nothing can be written there; it names `target`.
    """
    temporary = _beside(target)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(target)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def _beside(target: Path) -> Path:
    """A new empty file in the folder of `target`."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.stem}-", suffix=target.suffix)
    except OSError as error:
        raise type(error)(error.errno, error.strerror, str(target)) from error
    os.close(handle)
    return Path(name)


def _umask() -> int:
    """The mask of permissions that new files get; it can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
