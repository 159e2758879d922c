"""Models on the command line: a folder, a file, a run, a shipped name, or a repository of the hub."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hdlm.cli._options import Options, whole_number
from hdlm.package_data import pretrained

if TYPE_CHECKING:
    import torch

    from hdlm.checkpoint import Checkpoint

ANY_MODEL = (
    "a folder (of hdlm, as on the hub, or a published run), a file of weights, the name of a model that ships with "
    "hdlm, or a hub id such as hdlm-group/hdlm-base-epsilon-0.01"
)
LOADING = Options(
    "hdlm.hub.load:load",
    source="it is the positional CHECKPOINT",
    device="--device names it, and sets threads as well",
    dtype="--dtype, where it is offered, names it",
    token="a secret is no argument: huggingface_hub reads HF_TOKEN",
)
"""Options for reading a checkpoint."""


def shipped() -> list[str]:
    """Names of the models that ship with the package."""
    return sorted(path.name for path in pretrained().iterdir() if (path / "config.json").is_file())


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Add the positional CHECKPOINT and the options for reading it."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help=ANY_MODEL)
    add_loading(parser)


def add_loading(parser: argparse.ArgumentParser) -> None:
    """Add the options of `LOADING`."""
    how = parser.add_argument_group("how to read the checkpoint")
    LOADING.add(how, "weights", "config", "tokenizer", "num_words")
    LOADING.add(how, "mask_id", type=whole_number)
    LOADING.add(how, "revision", "cache_dir", "offline")


def source_of(name: str) -> str | Path:
    """The source of a model that is named on the command line.

    Raises:
        ValueError: If it is neither a path, nor a shipped model, nor a repository id.
    """
    if Path(name).exists() or "/" in name:
        return name
    if name in shipped():
        return pretrained() / name
    raise ValueError(
        f"there is no checkpoint folder {name!r}, and no model of that name ships with hdlm "
        f"(there: {', '.join(shipped()) or 'none'})."
    )


def open_checkpoint(
    name: str, reading: dict[str, Any], device: torch.device | str = "cpu", dtype: str = "float32"
) -> Checkpoint:
    """Load a model.

    Args:
        name: The name on the command line.
        reading: Values of the options in `LOADING`.
        device: Device of the model.
        dtype: Precision of the weights.
    """
    import torch

    from hdlm.hub import load

    return load(source_of(name), device=device, dtype=getattr(torch, dtype), **reading)
