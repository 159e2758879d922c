"""Say what a checkpoint is: network, noise, hyperschedules, vocabulary and how it was trained.

Without CHECKPOINT, the models that ship with hdlm.

Examples:
  hdlm info
  hdlm info runs/first
  hdlm info runs/first --json
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from hdlm.cli._models import checkpoint_folder, shipped
from hdlm.cli._options import add_json, print_json
from hdlm.package_data import pretrained

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the folder."""
    parser.add_argument(
        "checkpoint", nargs="?", metavar="CHECKPOINT", help="a checkpoint folder or a shipped model"
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Load the checkpoint, strictly, and print what it says of itself."""
    if args.checkpoint is None:
        return _list(args)
    folder = checkpoint_folder(args.checkpoint)
    document = _document(folder)
    if args.json:
        print_json(document)
        return 0
    from rich.console import Console
    from rich.table import Table

    table = Table(title=str(args.checkpoint), show_header=False, title_justify="left")
    for name, value in _rows(document):
        table.add_row(name, _readable(value))
    Console().print(table)
    return 0


def _list(args: argparse.Namespace) -> int:
    models = {name: str(pretrained() / name) for name in shipped()}
    if args.json:
        print_json(models)
        return 0
    for name, folder in models.items():
        print(f"{name}  {folder}")
    return 0


def _document(folder: Path) -> dict[str, Any]:
    """What a checkpoint says of itself, and what was counted."""
    from hdlm.checkpoint import load_checkpoint
    from hdlm.generation import tokenizer_of

    checkpoint = load_checkpoint(folder)
    tokenizer = tokenizer_of(checkpoint) if checkpoint.tokenizer else None
    weights = folder / "model.safetensors"
    return {
        "parameters": sum(weight.numel() for weight in checkpoint.network.parameters()),
        "weights": f"{weights.stat().st_size / 1e6:.1f} MB",
        "tokenizer": f"{tokenizer.vocabulary.num_words} words" if tokenizer else "none",
        **checkpoint.config(),
    }


def _rows(document: dict[str, Any], within: str = "") -> Iterator[tuple[str, Any]]:
    """What the document says, a table of tables as one row for each of them."""
    for name, value in document.items():
        if (
            isinstance(value, dict)
            and "type" not in value
            and any(isinstance(inner, dict) for inner in value.values())
        ):
            yield from _rows(value, f"{within}{name}.")
        else:
            yield within + name, value


def _readable(value: Any) -> str:
    """A value as a person writes it."""
    if isinstance(value, dict):
        kind = value.get("type")
        inside = ", ".join(f"{k}={_readable(v)}" for k, v in value.items() if k != "type")
        return f"{kind}({inside})" if kind else inside
    if isinstance(value, list):
        return ("\n" if any(isinstance(item, dict) for item in value) else ", ").join(map(_readable, value))
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
