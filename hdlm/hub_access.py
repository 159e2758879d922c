"""The one place that asks the Hugging Face hub for the files of a repository.

Models, tokenizers and judges look for local files first, then in the cache of the hub, then on the hub itself. This
module holds the last two, with one timeout and one kind of error. `huggingface_hub` is imported when it is needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import final

from hdlm.strict_config import one_line

__all__ = ["MissingRepositoryError", "cached_file", "files_on_hub", "hub_errors"]

_SECONDS = 10.0
"""Seconds that the hub may take to answer."""
_LONGEST_REASON = 240
"""Characters of an error of the hub that are kept."""


@final
class MissingRepositoryError(OSError):
    """The hub has no repository of this name, or does not show it to this user."""


@contextmanager
def hub_errors() -> Iterator[None]:
    """Turn every error of the hub into an `OSError` whose message is one line.

    Failed connections are `OSError`s in old versions of `huggingface_hub`, and errors of an HTTP library in new ones.

    Raises:
        MissingRepositoryError: If the repository does not exist.
        OSError: If the hub cannot be reached, refuses, or rejects the name.
    """
    from huggingface_hub import errors

    try:
        yield
    except errors.RepositoryNotFoundError as error:
        raise MissingRepositoryError(_reason(error)) from error
    except (OSError, vars(errors)["HTTPError"], errors.HFValidationError) as error:
        raise OSError(_reason(error)) from error


def files_on_hub(
    name: str, *, revision: str | None = None, token: str | None = None, offline: bool = False
) -> set[str]:
    """The names of all files of a repository, as the hub lists them now.

    Args:
        name: `owner/name`, or an old name without an owner.
        revision: Branch, tag or commit; None for the newest.
        token: Access token for private repositories; None for that of `hf auth login`, if any.
        offline: Whether the hub must not be asked. The variable HF_HUB_OFFLINE has the same effect.

    Raises:
        MissingRepositoryError: If there is no such repository.
        OSError: If the hub must not be asked, does not answer within 10 seconds, or refuses.
    """
    import huggingface_hub
    from huggingface_hub import constants

    if offline or constants.HF_HUB_OFFLINE:
        raise OSError("the hub was not asked (offline)")
    with hub_errors():
        info = huggingface_hub.HfApi(token=token).model_info(name, revision=revision, timeout=_SECONDS)
    return {entry.rfilename for entry in info.siblings or ()}


def cached_file(
    name: str, file: str, *, revision: str | None = None, cache_dir: str | Path | None = None
) -> Path | None:
    """A file of a repository in the local cache of the hub; None if it is not there."""
    import huggingface_hub

    with hub_errors():
        path = huggingface_hub.try_to_load_from_cache(name, file, cache_dir=cache_dir, revision=revision)
    return Path(path) if isinstance(path, str) else None


def _reason(error: Exception) -> str:
    return one_line(error)[:_LONGEST_REASON]
