"""Where the files that travel with the package lie: hydra configs and the pretrained model.

In an installed wheel both are inside the package.  In a checkout the configs stay at its top, where the
published commands read them (`--config-file configs/accelerate/single.yaml`).
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["configs", "pretrained"]

_PACKAGE = Path(__file__).parent


def configs() -> Path:
    """The folder of hydra configs.

    Raises:
        FileNotFoundError: If neither an installed wheel nor a checkout surrounds this file.
    """
    return _first_folder(_PACKAGE / "configs", _PACKAGE.parent / "configs")


def pretrained() -> Path:
    """The folder that holds one folder for each model that ships with the package.

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
