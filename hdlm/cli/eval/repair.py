"""Measure whether correction repairs text: planted errors that are restored, and other words that are damaged.

Examples:
  hdlm eval repair runs/first --data book.txt --share 0.05 --algorithm acs --eta 0.5 --steps 16 --output results/repair
  hdlm eval repair runs/first --data wikitext2 --data-dir data --hyperschedule flat --noise 0.3
  hdlm eval repair runs/first --data book.txt --algorithm remdm --eta 0.3 --start masks --noise 0.3

A share of the words is replaced by other words, uniformly. The sampler begins with this text at a noise fraction and
takes its usual steps. Controls change as many words at random places: `plain` writes them by ancestral sampling,
`random` draws them from the frequencies of the text. With --output, results.json, report.md and repair.png are written.
"""

from __future__ import annotations

import argparse
import sys

from hdlm.cli._models import LOADING, add_checkpoint, open_checkpoint
from hdlm.cli._options import Options, add_device, add_json, chosen_device, print_json
from hdlm.cli._outputs import Output
from hdlm.cli.eval.calibration import add_data
from hdlm.cli.sample import SETTINGS, read_settings

REPAIR = Options("hdlm.evaluation.repair:RepairOptions")
FOLDER = Output("folder", ("results.json", "report.md", "repair.png"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the text, the damage and the sampler."""
    add_checkpoint(parser)
    add_data(parser)
    REPAIR.add(parser)
    SETTINGS.add(parser.add_argument_group("how to correct"))
    add_device(parser)
    parser.add_argument("--output", type=FOLDER, metavar="FOLDER", help="folder for the results")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Damage, correct, and report; the status is 0 unless the text cannot be used."""
    from hdlm.evaluation.repair import measured_repair
    from hdlm.view.repair import repair_table

    device = chosen_device(args.device, args.threads)
    document = measured_repair(
        open_checkpoint(args.checkpoint, LOADING.values(args), device),
        args.data,
        read_settings(args),
        REPAIR.read(args),
        model=args.checkpoint,
        weights=args.weights,
        output=args.output,
        progress=not args.json and sys.stderr.isatty(),
    )
    if args.json:
        print_json(document)
    else:
        print(repair_table(document))
        if args.output is not None:
            print(f"\nresults: {args.output}")
    return 0
