"""Measure a model: how well it predicts text, the quality of what it writes, and its scores on tasks of other projects.

Examples:
  hdlm eval likelihood runs/first --data wikitext2 --data-dir data --target-stderr 0.01
  hdlm eval likelihood runs/first --data book.txt --bound hybrid --stride 64 --output results/book
  hdlm eval generation runs/first --num 200 --algorithm acs --judge models/gpt2 --controls repeat unigram
  hdlm eval frontier runs/first --algorithm original acs --temperature 0.6 0.8 1.0 --judge models/gpt2
  hdlm eval calibration runs/first --data book.txt --output results/calibration
  hdlm eval repair runs/first --data book.txt --share 0.05 --algorithm acs --eta 0.5 --output results/repair
  hdlm eval harness runs/first --tasks tasks/mine.yaml

Every number has its standard error and the protocol it was made under; `hdlm compare` puts results side by side.
"""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path


def kinds() -> list[str]:
    """The kinds of measurements: one file each, `likelihood.py` for `hdlm eval likelihood`."""
    return sorted(path.stem for path in Path(__file__).parent.glob("[!_]*.py"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the kinds of measurements, each with its options."""
    parsers = parser.add_subparsers(dest="kind", metavar="WHAT", required=True, title="what to measure")
    for kind in kinds():
        module = import_module(f"{__name__}.{kind}")
        summary = str(module.__doc__).partition("\n")[0]
        kind_parser = parsers.add_parser(kind, help=summary, description=module.__doc__)
        module.add_arguments(kind_parser)
        kind_parser.set_defaults(measure=module.run)


def run(args: argparse.Namespace) -> int:
    """Run the measurement."""
    status: int = args.measure(args)
    return status
