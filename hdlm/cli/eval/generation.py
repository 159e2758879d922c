"""Measure the text of a model: variety, repetition, perplexity under judges, MAUVE, and the effect of correction.

CHECKPOINT and the options of sampling are those of `hdlm sample`. Entropy is printed beside every perplexity, because
repetitive text has a good perplexity. Controls are trivial writers, for comparison.

Examples:
  hdlm eval generation runs/first --num 100 --algorithm acs --eta 0.1 --output results/acs     judged by gpt2-large
  hdlm eval generation runs/first --judge models/gpt2 --judge kjv-epsilon-4m --output results/judged
  hdlm eval generation runs/first --reference wikitext2 --controls repeat unigram shuffle data
  hdlm eval generation runs/first --num 1000 --judge models/gpt2 --mauve --reference book.txt --output results/mauve
  hdlm eval generation runs/first --reference book.txt --infill 0.5 --eta-sweep 0 0.01 0.05 0.1 0.3

With --output the folder gets results.json, report.md, metrics.png and samples.jsonl. Samples are kept as they are
written, so the same command resumes after a kill. If a measurement fails, the result holds the reason, and the exit
status is 1.
"""

from __future__ import annotations

import argparse
import sys

from hdlm.cli._models import LOADING, add_checkpoint, open_checkpoint
from hdlm.cli._options import (
    Options,
    add_device,
    add_json,
    choices,
    chosen_device,
    constant,
    count_or_auto,
    print_json,
)
from hdlm.cli._outputs import Output
from hdlm.cli.sample import SETTINGS, read_settings

GENERATION = Options(
    "hdlm.evaluation.generation.evaluate:GenerationOptions",
    judges="--judge is given once for each, and `none` stands for no judge",
)
FOLDER = Output("folder", ("results.json", "report.md", "metrics.png", "samples.json"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the samples and their measurements."""
    add_checkpoint(parser)
    GENERATION.add(parser, "num", "prompt")
    GENERATION.add(parser, "batch_size", type=count_or_auto)
    what = parser.add_argument_group("what to measure")
    usual, none = (
        constant(f"hdlm.evaluation.generation.judges:{name}") for name in ("USUAL_JUDGE", "NO_JUDGE")
    )
    what.add_argument(
        "--judge",
        action="append",
        metavar="MODEL",
        help=f"{GENERATION.declared['judges'].text}; may be given again; {none} for no judge "
        f"(default: {usual})",
    )
    GENERATION.add(what, "mauve", "reference", "data_dir")
    names = choices("hdlm.evaluation.generation.controls:ControlName")
    GENERATION.add(what, "controls", choices=names)
    GENERATION.add(what, "infill", "eta_sweep")
    SETTINGS.add(parser.add_argument_group("how to write"))
    GENERATION.add(parser, "seed")
    add_device(parser)
    add_json(parser)
    parser.add_argument(
        "--output", type=FOLDER, metavar="FOLDER", help="folder for the results (default: print only)"
    )
    parser.add_argument("--save-samples", action="store_true", help="write samples.json as well")


def run(args: argparse.Namespace) -> int:
    """Write samples, measure them, and report.

    Raises:
        ValueError: If an option is out of range, or needs another one.
    """
    if args.save_samples and args.output is None:
        raise ValueError("--save-samples needs --output, the folder to write them to.")
    from hdlm.evaluation.generation.evaluate import has_failed, measured_generation
    from hdlm.evaluation.generation.judges import named_judges
    from hdlm.view.generation import summary

    options = GENERATION.read(args, judges=named_judges(args.judge))
    device = chosen_device(args.device, args.threads)
    result = measured_generation(
        open_checkpoint(args.checkpoint, LOADING.values(args), device),
        read_settings(args),
        options,
        model=args.checkpoint,
        weights=args.weights,
        output=args.output,
        save_samples=args.save_samples,
        progress=not args.json and sys.stderr.isatty(),
    )
    if args.json:
        print_json(result.document)
    else:
        print(summary(result.document))
        if args.output is not None:
            print(f"\nresults: {args.output}")
    return int(has_failed(result.document["result"]))
