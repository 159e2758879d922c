"""Choose the times of the steps for sampling with few steps, on text that the model was not trained on.

Words that are written in one step are independent of each other. The cost of this at each time is measured on half of
the text. The best grid for each number of steps follows from it. The other half of the text shows what it saves.

Examples:
  hdlm tune runs/first --data book.txt --steps 4 8 16 --output grids.json
  hdlm sample runs/first --hyperschedule flat --steps 8 --grid grids.json
  hdlm tune runs/first --data wikitext2 --part validation --width 16 --output blocks.json     blocks of 16

The file is JSON: `grids` has the times of each number of steps; a list of times alone is a grid as well.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from hdlm.cli._models import LOADING, add_checkpoint, open_checkpoint
from hdlm.cli._options import Options, add_device, add_json, chosen_device, print_json
from hdlm.cli._outputs import FILE

GRIDS = Options("hdlm.evaluation.likelihood.learned_grids:GridOptions")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the model, the text and the grids."""
    add_checkpoint(parser)
    parser.add_argument(
        "--data",
        required=True,
        metavar="NAME_OR_FILE",
        help="a data set by name, or a file, a folder or a glob: text that the model was not trained on",
    )
    GRIDS.add(parser)
    add_device(parser)
    parser.add_argument("-o", "--output", type=FILE, required=True, metavar="FILE", help="the file of grids")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Measure the profile, compute the grids, write and print them."""
    from hdlm.evaluation.likelihood.learned_grids import learned_grids

    device = chosen_device(args.device, args.threads)
    document = learned_grids(
        open_checkpoint(args.checkpoint, LOADING.values(args), device),
        args.data,
        GRIDS.read(args),
        model=args.checkpoint,
        output=args.output,
        progress=not args.json and sys.stderr.isatty(),
    )
    if args.json:
        print_json(document)
    else:
        _print_gaps(
            document["gaps"], args.output, "flat" if args.width is None else f"block --width {args.width}"
        )
    return 0


def _print_gaps(gaps: dict[str, dict[str, dict[str, Any]]], output: Path, plan: str) -> None:
    """Print the cost of few steps along each grid."""
    from hdlm.evaluation.generation.metrics import Estimate

    names = list(next(iter(gaps.values())))
    print("What few steps cost, in nats a token, on windows from which nothing was learned:\n")
    print("steps  " + "".join(f"{name:>18}" for name in names))
    for steps, gap in gaps.items():
        print(f"{steps:>5}  " + "".join(f"{Estimate(**gap[name])!s:>18}" for name in names))
    print(f"\n{output}: use it by `hdlm sample ... --hyperschedule {plan} --steps N --grid {output}`.")
