"""Quality against variety: generative perplexity over entropy, for samplers and models, over temperature or top-p.

Generative perplexity alone can be had by saying little; so can entropy by saying anything. Their frontier cannot: a
sampler is better than another where its curve is lower at the same entropy.

Examples:
  hdlm eval frontier runs/first --algorithm original acs --temperature 0.6 0.8 1.0 --judge models/gpt2 --output f
  hdlm eval frontier runs/a runs/b --top-p 0.8 0.9 0.95 1 --judge gpt2-large --reference wikitext2 --output ab
  hdlm eval frontier runs/first --temperature 0.7 1 --judge kjv-epsilon-4m --num 20 --length 64 --output quick

The folder gets results.json, report.md and frontier.png; every point is kept in points/ when it is done, so the same
command goes on after a kill, and one with more points measures only those. All points have as many samples of the same
length, and one judge. What cannot be measured is in the result with the reason, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from hdlm.cli._models import ANY_MODEL, add_reading, open_checkpoint
from hdlm.cli._options import add_device, add_json, add_seed, at_least_one, device_option, print_json
from hdlm.cli._outputs import Output

FOLDER = Output("folder", ("results.json", "report.md", "frontier.png"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what to sweep, for whom, and who judges."""
    parser.add_argument("checkpoint", nargs="+", metavar="CHECKPOINT", help=f"models, each {ANY_MODEL}")
    what = parser.add_argument_group("what to sweep")
    what.add_argument("--algorithm", nargs="+", default=["acs"], help="samplers (default: acs)")
    swept = what.add_mutually_exclusive_group(required=True)
    swept.add_argument(
        "--temperature", nargs="+", type=float, help="temperatures; 1 leaves the model as it is"
    )
    swept.add_argument("--top-p", nargs="+", type=float, help="shares of probability to draw from, in (0, 1]")
    parser.add_argument(
        "--judge",
        required=True,
        metavar="MODEL",
        help="a causal language model, by folder or hub name (gpt2-large, say), or a checkpoint of hdlm",
    )
    parser.add_argument(
        "--reference", metavar="DATA", help="real text, its own point: a data set, file or folder"
    )
    parser.add_argument("--data-dir", type=Path, help="folder of data sets (default: $HDLM_DATA_DIR)")
    how = parser.add_argument_group("how to write")
    how.add_argument("--num", type=at_least_one, default=50, help="samples a point (default: %(default)s)")
    how.add_argument("--length", type=at_least_one, help="tokens in a sample (default: the model's context)")
    how.add_argument("--prompt", default="", help="text that all samples begin with")
    how.add_argument("--eta", type=float, default=0.05, help="strength of corrections (default: %(default)s)")
    how.add_argument(
        "--hyperschedule",
        metavar="FAMILY",
        help="autoregressive, flat, block, slide or wave (default: as the checkpoint says)",
    )
    how.add_argument("--width", type=at_least_one, help="positions that are written together")
    how.add_argument("--steps", type=at_least_one, help="steps that a position takes from noise to word")
    how.add_argument("--batch-size", type=at_least_one, help="samples at a time (default: as many as fit)")
    add_reading(parser)
    add_seed(parser)
    add_device(parser)
    add_json(parser)
    parser.add_argument("--output", type=FOLDER, metavar="FOLDER", required=True, help="for the results")


def run(args: argparse.Namespace) -> int:
    """Sweep, draw, report."""
    from hdlm.evaluation.generation.frontier import FrontierOptions, frontier_has_failed, measured_frontier
    from hdlm.generation import Settings
    from hdlm.view.frontier import frontier_table

    device = device_option(args)
    alike = ("prompt", "num", "batch_size", "seed", "reference", "data_dir", "offline", "judge")
    options = FrontierOptions(
        swept="temperature" if args.top_p is None else "top_p",
        values=tuple(args.temperature if args.top_p is None else args.top_p),
        algorithms=tuple(args.algorithm),
        **{name: getattr(args, name) for name in alike},
    )
    settings = {name: getattr(args, name) for name in ("eta", "hyperschedule", "width", "steps", "length")}
    models = {
        name: open_checkpoint(argparse.Namespace(**{**vars(args), "checkpoint": name}), device)
        for name in dict.fromkeys(args.checkpoint)
    }
    document = measured_frontier(
        models,
        Settings(**settings),
        options,
        args.output,
        weights=args.weights,
        progress=not args.json and sys.stderr.isatty(),
    )
    if args.json:
        print_json(document)
    else:
        print(frontier_table(document))
        print(f"\nresults: {args.output}")
    return int(frontier_has_failed(document))
