"""Which model a word on the command line means: a folder, or the name of a model that ships with the package."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from hdlm.package_data import pretrained

if TYPE_CHECKING:
    import torch

    from hdlm.checkpoint import Checkpoint


def shipped() -> list[str]:
    """Names of the models that ship with the package."""
    return sorted(path.name for path in pretrained().iterdir() if (path / "config.json").is_file())


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Add the positional CHECKPOINT and `--weights`; read them with `open_checkpoint`."""
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="a checkpoint folder, or the name of a model that ships with hdlm",
    )
    parser.add_argument(
        "--weights",
        choices=("averaged", "raw"),
        default="averaged",
        help="the moving average of training (default), or the weights of its last step",
    )


def checkpoint_folder(name: str) -> Path:
    """The folder that a word means.

    Raises:
        ValueError: if it is neither a folder nor a name.
    """
    if Path(name).is_dir():
        return Path(name)
    if name in shipped():
        return pretrained() / name
    raise ValueError(
        f"there is no checkpoint folder {name!r}, and no model of that name ships with hdlm "
        f"(there: {', '.join(shipped()) or 'none'})."
    )


def check_vacant(folder: Path) -> None:
    """Look before a long run whether a folder can take its checkpoint.

    Raises:
        ValueError: if it is a file, or holds a checkpoint already.
    """
    if folder.is_file():
        raise ValueError(f"--output {folder} is a file; give the name of a folder.")
    if (folder / "config.json").exists():
        raise ValueError(
            f"--output {folder} already holds a checkpoint; choose another folder, or remove it."
        )


def open_checkpoint(args: argparse.Namespace, device: torch.device) -> Checkpoint:
    """Load what `add_checkpoint` took down."""
    from hdlm.checkpoint import load_checkpoint

    return load_checkpoint(checkpoint_folder(args.checkpoint), device, weights=args.weights)
