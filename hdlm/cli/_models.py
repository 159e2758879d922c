"""Which model a word on the command line means: a folder, a file, a run, a shipped name, or a repository of the hub."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hdlm.package_data import pretrained

if TYPE_CHECKING:
    import torch

    from hdlm.checkpoint import Checkpoint

ANY_MODEL = (
    "a folder (of hdlm, as on the hub, or a published run), a file of weights, the name of a model that ships with "
    "hdlm, or a hub id such as hdlm-group/hdlm-base-epsilon-0.01"
)


def shipped() -> list[str]:
    """Names of the models that ship with the package."""
    return sorted(path.name for path in pretrained().iterdir() if (path / "config.json").is_file())


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Add the positional CHECKPOINT and what says how to read it; open it with `open_checkpoint`."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help=ANY_MODEL)
    add_reading(parser)


def add_reading(parser: argparse.ArgumentParser) -> None:
    """Add the options of reading a checkpoint: which weights, and what lies elsewhere."""
    how = parser.add_argument_group("how to read the checkpoint")
    how.add_argument(
        "--weights",
        choices=("averaged", "raw"),
        default="averaged",
        help="the moving average of training (default), or the weights of its last step",
    )
    how.add_argument(
        "--config", type=Path, help="its config, or the folder that has it, if not beside the weights"
    )
    how.add_argument("--tokenizer", help="a tokenizer file, folder or name instead of its own")
    how.add_argument("--revision", help="branch, tag or commit of the hub")
    how.add_argument("--cache-dir", type=Path, help="where files of the hub are kept")
    how.add_argument("--offline", action="store_true", help="use only files of the hub that are here already")


def source_of(name: str) -> str | Path:
    """What to load for a word.

    Raises:
        ValueError: if it can be nothing that there is.
    """
    if Path(name).exists() or "/" in name:
        return name
    if name in shipped():
        return pretrained() / name
    raise ValueError(
        f"there is no checkpoint folder {name!r}, and no model of that name ships with hdlm "
        f"(there: {', '.join(shipped()) or 'none'})."
    )


def check_output_is_vacant(folder: Path) -> None:
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


def reading_of(args: argparse.Namespace) -> dict[str, Any]:
    """What the options say of how to find a checkpoint, for `hdlm.hub.load` and `hdlm.hub.inspect`."""
    names = ("weights", "config", "revision", "cache_dir", "offline")
    return {name: getattr(args, name) for name in names}


def open_checkpoint(
    args: argparse.Namespace, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> Checkpoint:
    """Load what `add_checkpoint` took down, in float32 unless another precision is asked for."""
    from hdlm.hub import load

    source = source_of(args.checkpoint)
    options = reading_of(args) | ({} if dtype is None else {"dtype": dtype})
    return load(source, tokenizer=args.tokenizer, device=device, **options)


def open_fast(args: argparse.Namespace, device: torch.device | str) -> Checkpoint:
    """Load what `add_checkpoint` took down, to write with, as `--dtype`, `--compile` and `--slots` say."""
    import torch

    checkpoint = open_checkpoint(args, device, getattr(torch, args.dtype))
    checkpoint.network.speed_up(compiled=args.compile, slots=args.slots)
    return checkpoint
