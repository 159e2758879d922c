"""Measure whether the probability that a word is wrong means it: calibration on noised text.

Examples:
  hdlm eval calibration runs/first --data book.txt --output results/calibration
  hdlm eval calibration runs/first --data wikitext2 --data-dir data --num 200 --planted 0.1
  hdlm eval calibration runs/first --data book.txt --hyperschedule flat --levels 0.2 0.5 1

Held-out text is noised by the process of the model. The network's probability that each visible word is wrong is
compared with the truth: reliability curve, calibration error, and the area under the ROC curve of separating replaced
words from others. With --output, results.json, report.md and calibration.png are written.
"""

from __future__ import annotations

import argparse
import sys

from hdlm.cli._models import LOADING, add_checkpoint, open_checkpoint
from hdlm.cli._options import Options, add_device, add_json, chosen_device, print_json
from hdlm.cli._outputs import Output

CALIBRATION = Options("hdlm.evaluation.calibration:CalibrationOptions")
FOLDER = Output("folder", ("results.json", "report.md", "calibration.png"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the text and the noise."""
    add_checkpoint(parser)
    add_data(parser)
    CALIBRATION.add(parser)
    add_device(parser)
    parser.add_argument("--output", type=FOLDER, metavar="FOLDER", help="folder for the results")
    add_json(parser)


def add_data(parser: argparse.ArgumentParser) -> None:
    """Add `--data`, the held-out text of a measurement of correction."""
    parser.add_argument(
        "--data",
        required=True,
        metavar="NAME_OR_FILE",
        help="a data set by name, or a file, a folder or a glob: text that the model was not trained on",
    )


def run(args: argparse.Namespace) -> int:
    """Measure, and report; the status is 0 unless the text cannot be used."""
    from hdlm.evaluation.calibration import measured_calibration
    from hdlm.view.calibration import calibration_table

    device = chosen_device(args.device, args.threads)
    document = measured_calibration(
        open_checkpoint(args.checkpoint, LOADING.values(args), device),
        args.data,
        CALIBRATION.read(args),
        model=args.checkpoint,
        weights=args.weights,
        output=args.output,
        progress=not args.json and sys.stderr.isatty(),
    )
    if args.json:
        print_json(document)
    else:
        print(calibration_table(document))
        if args.output is not None:
            print(f"\nresults: {args.output}")
    return 0
