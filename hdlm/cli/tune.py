"""Learn when the steps of few-step sampling should be, on text that the model was not trained on.

Words that are written in one step do not see each other. How much that costs at each time is measured on half of the
text, the best grid of each number of steps is computed from it, and the other half says what it saves.

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
from typing import TYPE_CHECKING, Any

from hdlm.atomic import keeping
from hdlm.cli._models import add_checkpoint, open_checkpoint
from hdlm.cli._options import (
    add_device,
    add_json,
    add_seed,
    at_least_one,
    device_option,
    json_text,
    print_json,
)
from hdlm.cli._outputs import FILE
from hdlm.progress import share_bar

if TYPE_CHECKING:
    from hdlm.checkpoint import Checkpoint
    from hdlm.evaluation.generation.metrics import Estimate
    from hdlm.evaluation.likelihood.grids import Profile

OTHERS = ("uniform", "cosine")
"""Grids that need no learning."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what to learn, and from what."""
    add_checkpoint(parser)
    parser.add_argument(
        "--data",
        required=True,
        metavar="NAME_OR_FILE",
        help="a data set by name, or a file, a folder or a glob: text that the model was not trained on",
    )
    parser.add_argument(
        "--part", default="validation", help="part of a named data set (default: %(default)s)"
    )
    parser.add_argument("--data-dir", type=Path, help="folder of data sets (default: $HDLM_DATA_DIR)")
    parser.add_argument(
        "--limit",
        type=at_least_one,
        default=16384,
        metavar="TOKENS",
        help="take about this many (default: %(default)s)",
    )
    parser.add_argument(
        "--steps",
        type=at_least_one,
        nargs="+",
        default=[4, 8, 16, 32],
        metavar="STEPS",
        help="numbers of steps to learn grids for (default: 4 8 16 32)",
    )
    parser.add_argument(
        "--width", type=at_least_one, help="positions that are written together (default: all)"
    )
    parser.add_argument(
        "--length", type=at_least_one, help="positions on the canvas (default: the model's context)"
    )
    parser.add_argument(
        "--batch-size", type=at_least_one, default=16, help="windows in a pass (default: %(default)s)"
    )
    add_seed(parser)
    add_device(parser)
    parser.add_argument("-o", "--output", type=FILE, required=True, metavar="FILE", help="the file of grids")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Measure, learn, write and tell."""
    from dataclasses import asdict

    from hdlm.evaluation import windows
    from hdlm.evaluation.likelihood.grids import as_times, check_steps, measured_profile
    from hdlm.evaluation.records import protocol
    from hdlm.evaluation.text import find_text, tokenize_documents
    from hdlm.generation import Settings, planned

    for steps in args.steps:
        check_steps(steps)
    device = device_option(args)
    checkpoint = open_checkpoint(args, device)
    length = args.length or checkpoint.length
    settings = Settings(hyperschedule="block", width=args.width or length, steps=1)
    plan = planned(checkpoint, settings, length, infilling=False).hyperschedule
    source = find_text(args.data, args.part, args.data_dir)
    text = tokenize_documents(checkpoint.tokenizer, source.corpus.documents(), args.limit)
    (whole, *_) = windows(text.tokens.to(device), length)
    with share_bar("measuring", shown=not args.json and sys.stderr.isatty()) as bar:
        profile = measured_profile(
            checkpoint,
            plan,
            whole.tokens,
            batch_size=args.batch_size,
            seed=args.seed,
            watch=lambda share: bar(share, "measuring"),
        )
    learned, measured = profile.halves()
    grids = {steps: learned.best(steps) for steps in sorted(set(args.steps))}
    gaps = {steps: _gaps(checkpoint, measured, steps, grid) for steps, grid in grids.items()}
    document: dict[str, Any] = {
        "kind": "grids",
        "model": args.checkpoint,
        "weights_sha256": protocol.weights_sha256(checkpoint.network),
        "hyperschedule": repr(plan),
        "noise_schedule": repr(checkpoint.noise_schedule),
        "data": source.describe(text),
        "windows": {"learned on": len(learned.nats), "measured on": len(measured.nats)},
        "seed": args.seed,
        "versions": protocol.versions(),
        "profile": profile.nats.mean(0).tolist(),
        "gaps": {str(steps): {name: asdict(one) for name, one in gap.items()} for steps, gap in gaps.items()},
        "grids": {str(steps): as_times(grid, checkpoint) for steps, grid in grids.items()},
    }
    with keeping(lambda: json_text(document)):
        protocol.write_result(args.output, document)
    if args.json:
        print_json(document)
    else:
        _print_gaps(gaps, args.output, "flat" if args.width is None else f"block --width {args.width}")
    return 0


def _gaps(
    checkpoint: Checkpoint, measured: Profile, steps: int, learned: tuple[float, ...]
) -> dict[str, Estimate]:
    """What each grid costs."""
    from hdlm.evaluation.likelihood.grids import as_masks
    from hdlm.noise_schedule import time_grid

    others = {name: as_masks(time_grid(name), steps, checkpoint) for name in OTHERS}
    return {name: measured.gap(grid) for name, grid in {**others, "learned": learned}.items()}


def _print_gaps(gaps: dict[int, dict[str, Estimate]], output: Path, plan: str) -> None:
    print("What few steps cost, in nats a token, on windows from which nothing was learned:\n")
    names = [*OTHERS, "learned"]
    print("steps  " + "".join(f"{name:>18}" for name in names))
    for steps, gap in gaps.items():
        print(f"{steps:5}  " + "".join(f"{gap[name]!s:>18}" for name in names))
    print(f"\n{output}: use it by `hdlm sample ... --hyperschedule {plan} --steps N --grid {output}`.")
