"""Write a checkpoint in the published layout, which the published code of the paper reads as its own.

What has no published form (a noise process, a hyperschedule, ...) is an error that names it. A published config names
one hyperschedule: the first of the checkpoint, or that of --hyperschedule.

Examples:
  hdlm export runs/book --output book-published
  hdlm export runs/book --output book-published --hyperschedule 2 --bin
"""

from __future__ import annotations

import argparse

from hdlm.cli._models import add_checkpoint, check_output_is_vacant, open_checkpoint
from hdlm.cli._options import add_json, print_json
from hdlm.cli._outputs import FOLDER


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what to write, and where to."""
    add_checkpoint(parser)
    parser.add_argument("--output", type=FOLDER, required=True, help="folder to write")
    parser.add_argument("--bin", action="store_true", help="write pytorch_model.bin besides the safetensors")
    parser.add_argument(
        "--hyperschedule",
        type=int,
        default=0,
        metavar="N",
        help="which of the checkpoint's to name, counted from 0 (default: %(default)s)",
    )
    parser.add_argument(
        "--license", default="mit", help="licence of the weights, for the model card (default: %(default)s)"
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Write, and list what was written."""
    from hdlm.sharing.export import export

    check_output_is_vacant(args.output)
    checkpoint = open_checkpoint(args)
    export(checkpoint, args.output, hyperschedule=args.hyperschedule, pickled=args.bin, licence=args.license)
    written = {file.name: file.stat().st_size for file in sorted(args.output.iterdir())}
    if args.json:
        print_json({"folder": str(args.output), "files": written})
        return 0
    for name, size in written.items():
        print(f"{size:>13,}  {args.output / name}")
    return 0
