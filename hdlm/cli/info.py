"""Describe a checkpoint: format, network, noise, hyperschedules, vocabulary and how it was trained.

Without CHECKPOINT, list the models that ship with hdlm. All formats that hdlm reads are described in the same way. Keys
of the config that hdlm does not know are listed too.

Examples:
  hdlm info
  hdlm info runs/first
  hdlm info runs/first --json
  hdlm info hdlm-group/hdlm-base-epsilon-0.01
  hdlm info exp_local/openwebtext-train/hdlm-experiments/epsilon-hdlm-1 --weights raw
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from hdlm.cli._models import ANY_MODEL, LOADING, add_loading, open_checkpoint, shipped, source_of
from hdlm.cli._options import add_json, print_json
from hdlm.package_data import pretrained

if TYPE_CHECKING:
    from collections.abc import Iterator

KINDS = {
    "averaged": "the moving average of training",
    "raw": "raw, of the last step",
    "only": "the only ones in the file",
}
"""Descriptions of the weights that were read."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the checkpoint."""
    parser.add_argument("checkpoint", nargs="?", metavar="CHECKPOINT", help=ANY_MODEL)
    add_loading(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Load the checkpoint, strictly, and print its description."""
    if args.checkpoint is None:
        return _list(args)
    document = _document(args)
    if args.json:
        print_json(document)
        return 0
    from rich.console import Console
    from rich.table import Table

    document["training"].pop("config", None)
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


def _document(args: argparse.Namespace) -> dict[str, Any]:
    """The description of a checkpoint, and its counts."""
    from hdlm.hub import inspect
    from hdlm.hub.load import OWN

    reading = LOADING.values(args)
    checkpoint = open_checkpoint(args.checkpoint, reading)
    inspected = inspect(
        source_of(args.checkpoint), **{name: value for name, value in reading.items() if name != "tokenizer"}
    )
    tokenizer = checkpoint.tokenizer if checkpoint.tokenizer_json else None
    named = inspected.blueprint.tokenizer
    without = f"none here; trained with {named}" if named else "none"
    size = sum(
        file.stat().st_size for file in inspected.files if file.suffix not in (".json", ".yaml", ".yml")
    )
    config = checkpoint.config()
    own = inspected.card == OWN
    kind = KINDS[args.weights if own else config["training"]["weights"]]
    return {
        **config,
        "format": inspected.card,
        "files": [str(file) for file in inspected.files],
        "weights": f"{kind}, {size / 1e6:.1f} MB",
        "parameters": sum(weight.numel() for weight in checkpoint.network.parameters()),
        "tokenizer": f"{tokenizer.vocabulary.num_words} words" if tokenizer else without,
        "unknown config keys": list(inspected.blueprint.unknown),
    }


def _rows(document: dict[str, Any], within: str = "") -> Iterator[tuple[str, Any]]:
    """The entries of the document; a table of tables gives one row per inner table."""
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
    """A value in readable form."""
    if isinstance(value, dict):
        kind = value.get("type")
        inside = ", ".join(f"{k}={_readable(v)}" for k, v in value.items() if k != "type")
        return f"{kind}({inside})" if kind else inside
    if isinstance(value, list):
        return ("\n" if any(isinstance(item, dict) for item in value) else ", ").join(
            map(_readable, value)
        ) or "none"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
