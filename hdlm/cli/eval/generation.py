"""Measure what a model writes: variety, repetition, perplexity under judges, MAUVE, and what correction did.

CHECKPOINT is whatever `hdlm sample` takes, and so are the options of writing. Entropy stands beside every perplexity: a
writer that repeats itself has a good perplexity. Controls are writers that know nothing, for comparison.

Examples:
  hdlm eval generation runs/first --num 100 --algorithm acs --eta 0.1 --output results/acs     judged by gpt2-large
  hdlm eval generation runs/first --judge models/gpt2 --judge kjv-epsilon-4m --output results/judged
  hdlm eval generation runs/first --reference wikitext2 --controls repeat unigram shuffle data
  hdlm eval generation runs/first --num 1000 --judge models/gpt2 --mauve --reference book.txt --output results/mauve
  hdlm eval generation runs/first --reference book.txt --infill 0.5 --eta-sweep 0 0.01 0.05 0.1 0.3

With --output the folder gets results.json, report.md, metrics.png and samples.jsonl. Samples are kept as they come: the
same command goes on after a kill. What cannot be measured is in the result with the reason, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from hdlm.cli._judges import add_judge, judges_asked
from hdlm.cli._models import add_checkpoint, open_checkpoint
from hdlm.cli._options import add_device, add_json, add_seed, at_least_one, device_option, print_json
from hdlm.cli._outputs import Output
from hdlm.cli.sample import add_settings, settings_of

if TYPE_CHECKING:
    from hdlm.evaluation.generation.evaluate import GenerationOptions

CONTROLS = ("repeat", "unigram", "shuffle", "data")
FOLDER = Output("folder", ("results.json", "report.md", "metrics.png", "samples.json"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what to write, and what to measure of it."""
    add_checkpoint(parser)
    parser.add_argument("--num", type=at_least_one, default=100, help="samples (default: %(default)s)")
    parser.add_argument("--prompt", default="", help="text that all samples begin with")
    parser.add_argument(
        "--batch-size", default="auto", help="samples at a time, or auto: as many as fit (default)"
    )
    what = parser.add_argument_group("what to measure")
    add_judge(what)
    what.add_argument(
        "--mauve", action="store_true", help="MAUVE against --reference, by the first judge's features"
    )
    what.add_argument("--reference", metavar="DATA", help="real text: a data set, file or folder")
    what.add_argument("--data-dir", type=Path, help="folder of data sets (default: $HDLM_DATA_DIR)")
    what.add_argument(
        "--controls",
        nargs="+",
        choices=CONTROLS,
        default=[],
        help="writers that know nothing, made from --reference, to be measured beside the model",
    )
    what.add_argument(
        "--infill",
        type=float,
        metavar="SHARE",
        help="take this share of the words of --reference away, and see what filling in and correcting makes of it",
    )
    what.add_argument(
        "--eta-sweep", nargs="+", type=float, default=[], metavar="ETA", help="the same at other strengths"
    )
    add_settings(parser)
    add_seed(parser)
    add_device(parser)
    add_json(parser)
    parser.add_argument(
        "--output", type=FOLDER, metavar="FOLDER", help="for the results (default: print only)"
    )
    parser.add_argument("--save-samples", action="store_true", help="write samples.json, too")


def run(args: argparse.Namespace) -> int:
    """Write, measure, report."""
    options = generation_options(args)
    from hdlm.evaluation.generation.evaluate import has_failed, measured_generation

    result = measured_generation(
        open_checkpoint(args, device_option(args)),
        settings_of(args),
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
        from hdlm.view.generation import summary

        print(summary(result.document))
        if args.output is not None:
            print(f"\nresults: {args.output}")
    return int(has_failed(result.document["result"]))


def generation_options(args: argparse.Namespace) -> GenerationOptions:
    """What to write and to measure, as the options say.

    Raises:
        ValueError: If an option is out of range, or needs another one.
    """
    if args.save_samples and args.output is None:
        raise ValueError("--save-samples needs --output, the folder to write them to.")
    try:
        batch_size = None if args.batch_size == "auto" else at_least_one(args.batch_size)
    except argparse.ArgumentTypeError as error:
        raise ValueError(f"--batch-size {error}, or auto.") from error
    judges = tuple(judges_asked(args))
    from hdlm.evaluation.generation.evaluate import GenerationOptions

    alike = ("prompt", "num", "seed", "offline", "reference", "data_dir", "mauve", "infill")
    return GenerationOptions(
        **{name: getattr(args, name) for name in alike},
        batch_size=batch_size,
        judges=judges,
        controls=tuple(args.controls),
        eta_sweep=tuple(args.eta_sweep),
    )
