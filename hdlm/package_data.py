"""The folders of the package's own files: configs, recipes and pretrained models.

In an installed wheel all of them are inside the package. In a checkout, configs and recipes are at its top, where the
published commands expect them (`--config-file configs/accelerate/single.yaml`).
"""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["configs", "is_path", "pretrained", "recipes"]

_PACKAGE = Path(__file__).parent
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_FILES = frozenset(
    {
        ".bin",
        ".bpe",
        ".ckpt",
        ".json",
        ".jsonl",
        ".pt",
        ".pth",
        ".safetensors",
        ".toml",
        ".txt",
        ".yaml",
        ".yml",
    }
)


def is_path(word: str | Path) -> bool:
    """Whether a word can only be a local path, and not a name of the hub (`name` or `org/name`).

    All code that takes a folder or a name of the hub uses this rule for its message if nothing is there.
    """
    if isinstance(word, Path) or not _HUB_NAME.fullmatch(word):
        return True
    return Path(word).suffix in _FILES or ".." in Path(word).parts


def configs() -> Path:
    """The folder of configs: those of `accelerate launch`, and of hydra.

    Raises:
        FileNotFoundError: If neither an installed wheel nor a checkout surrounds this file.
    """
    return _first_folder(_PACKAGE / "configs", _PACKAGE.parent / "configs")


def recipes() -> Path:
    """The folder of training recipes, one `.toml` each.

    Raises:
        FileNotFoundError: If neither an installed wheel nor a checkout surrounds this file.
    """
    return _first_folder(_PACKAGE / "recipes", _PACKAGE.parent / "recipes")


def pretrained() -> Path:
    """The folder with one folder for each model that ships with the package.

    Raises:
        FileNotFoundError: If the package was installed without its data.
    """
    return _first_folder(_PACKAGE / "pretrained")


def _first_folder(*candidates: Path) -> Path:
    for folder in candidates:
        if folder.is_dir():
            return folder
    raise FileNotFoundError(
        f"files of hdlm itself are missing: expected {' or '.join(map(str, candidates))}; reinstall hdlm."
    )
