"""All files are written here: each is written completely or not at all, and nothing else is destroyed.

The content is written to a temporary file, which then replaces the target:

    a regular file      is replaced in one step; its permissions and, if that is allowed, its owner are kept
    nothing             is made, with the permissions of the umask
    a link              is followed: its target is replaced or made
    a FIFO or a device  is not replaced: the finished content is written to it, and so to `/dev/stdout`

`check_file` and `check_folder` test before long work whether its result can be written there.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["NotKeptError", "check_file", "check_folder", "keeping", "replacing"]

_NAME_LENGTH, _SUFFIX_LENGTH = 32, 16
"""Limits on what a temporary name takes from its target's, so that it is not too long if the target's fits."""


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Yield a temporary path whose content becomes that of `target` if nothing is raised.

    Missing folders are created. The temporary name has the suffix of `target`, for writers that depend on it.

    Yields:
        The path to write to.

    Raises:
        OSError: If nothing can be written there; it names `target`.
    """
    with _errors_name(target):
        state = _state(target)
        if state is not None and stat.S_ISDIR(state.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        place = None if _is_stream(state) else Path(os.path.realpath(target))
        temporary = _temporary(target, None if place is None else place.parent)
    try:
        with _errors_name(target, temporary):
            yield temporary
            if place is None:
                _pour(temporary, target, state)
            else:
                _inherit(temporary, state)
                temporary.replace(place)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


class NotKeptError(OSError):
    """A result that could not be written, and must be shown so that it is not lost.

    Attributes:
        content: The result as text.
    """

    def __init__(self, error: OSError, content: str, target: Path | None = None) -> None:
        super().__init__(
            error.errno, error.strerror or str(error), error.filename or (target and str(target))
        )
        self.content = content


@contextmanager
def keeping(content: Callable[[], str], target: Path | None = None) -> Iterator[None]:
    """Write a result in the block; if it cannot be written, the error contains it.

    Raises:
        NotKeptError: In place of an `OSError`.
    """
    try:
        yield
    except NotKeptError:
        raise
    except OSError as error:
        raise NotKeptError(error, content(), target) from error


def check_file(path: Path, *, resumed: bool = False) -> None:
    """Check that a file can be written, before the work whose result it is for.

    Args:
        path: The file; neither it nor its folder need exist.
        resumed: Whether it is also read again, so that it must be a regular file.

    Raises:
        ValueError: If it cannot be written; the message begins with the path.
    """
    with _errors_are_bad_input(path):
        state = _state(path)
        if state is None:
            _check_new(path)
            return
        if stat.S_ISDIR(state.st_mode):
            raise ValueError(f"{path} is a folder; give the name of a file.")
        if resumed and not stat.S_ISREG(state.st_mode):
            raise ValueError(
                f"{path} is a FIFO or a device; it must be a regular file, because its content is read again when "
                "the command is resumed."
            )
        if stat.S_ISSOCK(state.st_mode):
            raise ValueError(f"{path} is a socket; give the name of a file.")
        if not os.access(path, os.W_OK):
            raise ValueError(f"{path} is read-only; make it writable, or give another name.")
        if not _is_stream(state):
            _try_to_write(Path(os.path.realpath(path)).parent, path)


def check_folder(path: Path, *names: str) -> None:
    """Check that files can be written to a folder, before the work whose results they are for.

    Args:
        path: The folder; it need not exist.
        names: Files in it that will be written or replaced.

    Raises:
        ValueError: If one of them cannot be written; the message begins with its path.
    """
    with _errors_are_bad_input(path):
        state = _state(path)
        if state is None:
            _check_new(path)
            return
        if not stat.S_ISDIR(state.st_mode):
            raise ValueError(f"{path} is a file; give the name of a folder.")
        _try_to_write(path, path)
    for name in names:
        check_file(path / name)


def _state(path: Path) -> os.stat_result | None:
    """The status of a path, links followed; None if nothing is there."""
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _is_stream(state: os.stat_result | None) -> bool:
    """Whether content is written to the target itself, and not to a file that replaces it."""
    return state is not None and (not stat.S_ISREG(state.st_mode) or _standard(state) is not None)


def _standard(state: os.stat_result) -> int | None:
    """The descriptor of the standard output or error with this status; None if it is neither."""
    for descriptor in (1, 2):
        with suppress(OSError):
            if os.path.samestat(os.fstat(descriptor), state):
                return descriptor
    return None


def _temporary(target: Path, folder: Path | None) -> Path:
    """A new empty file in a folder, which is created if it is missing; by default in the folder of temporary files."""
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    suffix = target.suffix if len(target.suffix) <= _SUFFIX_LENGTH else ""
    handle, name = tempfile.mkstemp(dir=folder, prefix=f".{target.stem[:_NAME_LENGTH]}-", suffix=suffix)
    os.close(handle)
    return Path(name)


def _pour(source: Path, target: Path, state: os.stat_result | None) -> None:
    """Write the content of a file to a stream or a device; opening a FIFO waits for its reader."""
    standard = None if state is None else _standard(state)
    if standard is None:
        handle = os.open(target, os.O_WRONLY | getattr(os, "O_NOCTTY", 0))
    else:
        for text in (sys.stdout, sys.stderr):
            text.flush()
        handle = os.dup(standard)
    with source.open("rb") as content, os.fdopen(handle, "wb") as stream:
        shutil.copyfileobj(content, stream)


def _inherit(temporary: Path, state: os.stat_result | None) -> None:
    """Give a file the owner and the permissions of the one that it replaces, or those of a new file."""
    if state is None:
        temporary.chmod(0o666 & ~_umask())
        return
    own = temporary.stat()
    if hasattr(os, "chown") and (own.st_uid, own.st_gid) != (state.st_uid, state.st_gid):
        with suppress(PermissionError):  # only root may change owners; the content matters more
            os.chown(temporary, state.st_uid, state.st_gid)
    temporary.chmod(stat.S_IMODE(state.st_mode))


def _umask() -> int:
    """The permissions that new files do not get; they can only be read by setting them."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _check_new(path: Path) -> None:
    """Check that something can be made at an empty path, with its missing folders.

    Raises:
        ValueError: If it cannot be made.
        OSError: If the system refuses the check.
    """
    place = Path(os.path.realpath(path))
    folder = next(parent for parent in place.parents if parent.exists())
    if not folder.is_dir():
        raise ValueError(f"{path} cannot be made: {folder} is a file, not a folder.")
    if hasattr(os, "pathconf"):
        most = os.pathconf(folder, "PC_NAME_MAX")
        for name in place.relative_to(folder).parts:
            if len(os.fsencode(name)) > most:
                raise ValueError(f"{path} cannot be made: a name may have {most} bytes at most.")
    _try_to_write(folder, path)


def _try_to_write(folder: Path, path: Path) -> None:
    """Make a file without a name in a folder.

    Raises:
        ValueError: If the folder does not allow it; the message begins with `path`.
    """
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(
            f"{path} cannot be written: {error.strerror or error} ({folder}); remove the cause, or give another place."
        ) from error


@contextmanager
def _errors_name(target: Path, temporary: Path | None = None) -> Iterator[None]:
    """Make errors of the system name the target: all of them, or those that name nothing or the temporary file."""
    try:
        yield
    except OSError as error:
        known = temporary is None or error.filename in (None, str(temporary))
        if error.errno is None or not known:
            raise
        raise OSError(error.errno, error.strerror, str(target)) from error


@contextmanager
def _errors_are_bad_input(path: Path) -> Iterator[None]:
    """Turn errors of the system into errors about the path.

    Raises:
        ValueError: In place of an `OSError`.
    """
    try:
        yield
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror or error}.") from error
