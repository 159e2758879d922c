"""Write a checkpoint in the published layout, which the published code of the paper can read.

A part that has no published form (a noise process, a hyperschedule, ...) gives an error that names it. A published
config names one hyperschedule: the first of the checkpoint, or the one that --hyperschedule selects.

Examples:
  hdlm export runs/tiny --output tiny-published
  hdlm export runs/tiny --output tiny-published --hyperschedule 2 --bin
"""

from __future__ import annotations

import argparse

from hdlm.cli._models import LOADING, add_checkpoint, open_checkpoint
from hdlm.cli._options import Options, add_json, print_json
from hdlm.cli._outputs import FOLDER

EXPORT = Options(
    "hdlm.sharing.export:export",
    checkpoint="it is the positional CHECKPOINT",
    folder="it is --output",
    source="the folder is the source",
    evaluation="`hdlm push` has it",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the checkpoint and the output."""
    add_checkpoint(parser)
    parser.add_argument("--output", type=FOLDER, required=True, help="folder to write")
    EXPORT.add(parser, "pickled", flags=("--bin",))
    EXPORT.add(parser, "hyperschedule", metavar="N")
    EXPORT.add(parser, "licence", flags=("--license",))
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Write the files, and list them."""
    from hdlm.sharing.export import export
    from hdlm.training.launch import check_vacant

    check_vacant(args.output, "hdlm train --resume")
    export(open_checkpoint(args.checkpoint, LOADING.values(args)), args.output, **EXPORT.values(args))
    written = {file.name: file.stat().st_size for file in sorted(args.output.iterdir())}
    if args.json:
        print_json({"folder": str(args.output), "files": written})
        return 0
    for name, size in written.items():
        print(f"{size:>13,}  {args.output / name}")
    return 0
