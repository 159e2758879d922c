"""A stand-in for the Hugging Face hub: its cache on disk, laid out by hand, so that no test needs a network.

publish(cache, "org/name", {"config.json": b"{}"})
use(monkeypatch, cache)          # in this process
environment(cache)               # for a process to start
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import pytest


def publish(cache: Path, repo: str, files: Mapping[str, bytes | Path], revision: str = "main") -> Path:
    """Lay out a model repository as `huggingface_hub` would after downloading all of it.

    Args:
        cache: The cache folder, what `HF_HUB_CACHE` points to.
        repo: Its id, `org/name`.
        files: Name in the repository, and content or where it lies.
        revision: The branch that it is the newest state of.

    Returns:
        The snapshot folder; its files are links, as they are in a real cache.
    """
    contents = {
        name: file.read_bytes() if isinstance(file, Path) else file for name, file in sorted(files.items())
    }
    listing = "\n".join(f"{name} {hashlib.sha1(content).hexdigest()}" for name, content in contents.items())
    commit = hashlib.sha1(f"{repo} {revision}\n{listing}".encode()).hexdigest()
    top = cache / f"models--{repo.replace('/', '--')}"
    snapshot = top / "snapshots" / commit
    for name, content in contents.items():
        blob = top / "blobs" / hashlib.sha256(content).hexdigest()
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(content)
        link = snapshot / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    reference = top / "refs" / revision
    reference.parent.mkdir(parents=True, exist_ok=True)
    reference.write_text(commit)
    return snapshot


def environment(cache: Path) -> dict[str, str]:
    """Environment variables that make a new process use only this cache."""
    return {**os.environ, "HF_HUB_CACHE": str(cache), "HF_HOME": str(cache), "HF_HUB_OFFLINE": "1"}


def use(monkeypatch: pytest.MonkeyPatch, cache: Path, *, offline: bool = True) -> None:
    """Make this process find this cache, although `huggingface_hub` may have read its environment already."""
    import huggingface_hub.constants

    for name, value in (("HF_HUB_CACHE", str(cache)), ("HF_HOME", str(cache))):
        monkeypatch.setenv(name, value)
        monkeypatch.setattr(huggingface_hub.constants, name, value)
    monkeypatch.setenv("HF_HUB_OFFLINE", str(int(offline)))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
