"""Compare quality and variety: generative perplexity over entropy, for samplers and models, over temperature or top-p.

Repetitive text has a good generative perplexity, and random text has a high entropy, so neither number is enough alone.
A sampler is better than another where its curve of both numbers is lower at the same entropy.

Examples:
  hdlm eval frontier runs/first --algorithm original acs --temperature 0.6 0.8 1.0 --judge models/gpt2 --output f
  hdlm eval frontier runs/a runs/b --top-p 0.8 0.9 0.95 1 --judge gpt2-large --reference wikitext2 --output ab
  hdlm eval frontier runs/first --temperature 0.7 1 --judge kjv-epsilon-4m --num 20 --length 64 --output quick

The folder gets results.json, report.md and frontier.png; every point is kept in points/ when it is measured, so the
same command resumes after a kill, and a command with more points measures only the new ones. All points have
samples of the same number and length, and one judge. If a measurement fails, the result has the reason, and the exit
status is 1.
"""

from __future__ import annotations

import argparse
import sys

from hdlm.cli._models import ANY_MODEL, LOADING, add_loading, open_checkpoint
from hdlm.cli._options import Options, add_device, add_json, chosen_device, print_json
from hdlm.cli._outputs import Output

FRONTIER = Options(
    "hdlm.evaluation.generation.frontier:FrontierOptions",
    swept="it is the flag that has values, --temperature or --top-p",
    values="they are those of --temperature or --top-p",
)
SETTINGS = Options(
    "hdlm.generation.settings:Settings",
    only=("eta", "hyperschedule", "width", "steps", "length"),
    otherwise="it is swept, or a frontier does not record it",
)
FOLDER = Output("folder", ("results.json", "report.md", "frontier.png"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the values to sweep over, the models, and the judge."""
    parser.add_argument("checkpoint", nargs="+", metavar="CHECKPOINT", help=f"models, each {ANY_MODEL}")
    what = parser.add_argument_group("what to sweep")
    FRONTIER.add(what, "algorithms", flags=("--algorithm",))
    swept = what.add_mutually_exclusive_group(required=True)
    swept.add_argument(
        "--temperature", nargs="+", type=float, help="temperatures; 1 leaves the model as it is"
    )
    swept.add_argument("--top-p", nargs="+", type=float, help="values of top-p, probabilities in (0, 1]")
    FRONTIER.add(parser, "judge", "reference", "data_dir")
    how = parser.add_argument_group("how to write")
    FRONTIER.add(how, "num", "prompt", "batch_size")
    SETTINGS.add(how)
    add_loading(parser)
    FRONTIER.add(parser, "seed")
    add_device(parser)
    add_json(parser)
    parser.add_argument(
        "--output", type=FOLDER, metavar="FOLDER", required=True, help="folder for the results"
    )


def run(args: argparse.Namespace) -> int:
    """Measure all points, draw, and report."""
    from hdlm.evaluation.generation.frontier import frontier_has_failed, measured_frontier
    from hdlm.view.frontier import frontier_table

    device = chosen_device(args.device, args.threads)
    swept = "temperature" if args.top_p is None else "top_p"
    models = {
        name: open_checkpoint(name, LOADING.values(args), device) for name in dict.fromkeys(args.checkpoint)
    }
    document = measured_frontier(
        models,
        SETTINGS.read(args),
        FRONTIER.read(args, swept=swept, values=tuple(getattr(args, swept))),
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
