"""How well a model predicts text: a bound on -log p with its standard error.

Examples:
  hdlm eval likelihood runs/first --data wikitext2 --data-dir data --target-stderr 0.01
  hdlm eval likelihood runs/first --data book.txt --bound hybrid --stride 64 --output results/book
  hdlm eval likelihood runs/first --data book.txt --hyperschedule autoregressive      exact: no error
  hdlm eval likelihood runs/first --data ptb lambada --part validation --limit 20000  a quick look

All tokens are counted. With --output, results.json, report.md and replicates.png are written after every piece of
replicates (several data sets: a folder each), and the same command goes on where it was stopped.
Under `accelerate launch` the replicates are shared out among the processes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hdlm.atomic import NotKeptError, check_folder
from hdlm.cli._models import add_checkpoint, open_checkpoint
from hdlm.cli._options import add_device, add_json, add_seed, at_least_one, device_option, print_json
from hdlm.cli._outputs import FOLDER

if TYPE_CHECKING:
    from hdlm.evaluation.likelihood.evaluate import LikelihoodOptions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what to measure, how, and how well."""
    add_checkpoint(parser)
    text = parser.add_argument_group("the text")
    text.add_argument(
        "--data",
        nargs="+",
        required=True,
        metavar="NAME_OR_FILE",
        help="data sets by name (ptb, wikitext2, wikitext103, lambada, lm1b, ...), files, folders or globs",
    )
    text.add_argument("--part", default="test", help="part of named data sets (default: %(default)s)")
    text.add_argument("--data-dir", type=Path, help="folder of data sets (default: $HDLM_DATA_DIR)")
    text.add_argument(
        "--as-it-is", action="store_true", help="do not undo the tokenisation that some named data sets have"
    )
    text.add_argument(
        "--limit", type=at_least_one, metavar="TOKENS", help="take about this many, for a quick look"
    )
    text.add_argument("--length", type=at_least_one, help="tokens in a window (default: the model's context)")
    text.add_argument(
        "--stride", type=at_least_one, help="new tokens in a window: below --length, windows overlap"
    )
    text.add_argument(
        "--documents", action="store_true", help="windows do not cross from one document into the next"
    )
    how = parser.add_argument_group("how to measure")
    how.add_argument(
        "--bound",
        choices=("absorbing", "hybrid"),
        help="absorbing: the paper's (default, where noise ends in masks); hybrid: that of the process itself",
    )
    how.add_argument(
        "--estimator",
        choices=("exact", "count", "stratified", "random"),
        help="default: the one with the least variance that fits",
    )
    often = how.add_mutually_exclusive_group()
    often.add_argument(
        "--replicates", type=at_least_one, default=8, help="independent estimates (default: %(default)s)"
    )
    often.add_argument(
        "--target-stderr",
        type=float,
        metavar="BITS",
        help="as many as bring the error per token down to this",
    )
    how.add_argument(
        "--hyperschedule",
        metavar="FAMILY",
        help="autoregressive, flat, block, slide or wave (default: as the checkpoint says)",
    )
    how.add_argument("--width", type=at_least_one, help="positions that are noisy together")
    how.add_argument("--steps", type=at_least_one, help="steps that a position takes from noise to word")
    how.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16", "float64"),
        default="float32",
        help="precision of the weights (default: %(default)s)",
    )
    how.add_argument(
        "--batch-size",
        type=windows_or_auto,
        default=None,
        metavar="WINDOWS",
        help="in a pass; halved when memory runs out (default: auto)",
    )
    add_seed(parser)
    add_device(parser)
    parser.add_argument("--output", type=FOLDER, help="folder for results.json, report.md and replicates.png")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Measure every data set; the status is 1 if one could not be."""
    import torch

    from hdlm.cli._errors import explained
    from hdlm.distributed import Processes
    from hdlm.evaluation.likelihood.evaluate import FILES, likelihood_document
    from hdlm.view.likelihood import likelihood_table

    processes, own_device = Processes.launched(cpu=args.device == "cpu")
    device = device_option(args) if own_device is None else own_device
    names = list(dict.fromkeys(args.data))
    folders = folders_of(args.output, names)
    for folder in folders.values():
        if folder is not None:
            check_folder(folder, *FILES)
    checkpoint = open_checkpoint(args, device, getattr(torch, args.dtype))
    documents: dict[str, dict[str, Any]] = {}
    for name in names:
        try:
            documents[name] = likelihood_document(
                checkpoint,
                name,
                likelihood_options(args),
                model=args.checkpoint,
                weights=args.weights,
                output=folders[name],
                processes=processes,
                progress=sys.stderr.isatty(),
            )
        except (ValueError, OSError) as error:
            if len(names) == 1 or isinstance(error, NotKeptError):
                raise
            documents[name] = {"failed": explained(error)}
    if processes.is_main:
        if args.json:
            print_json(documents)
        else:
            print(likelihood_table(documents))
            if args.output is not None:
                print(f"\nresults: {args.output}")
    return int(any("failed" in document for document in documents.values()))


def windows_or_auto(text: str) -> int | None:
    """The `type` of `--batch-size`: None for `auto`."""
    return None if text == "auto" else at_least_one(text)


def folders_of(output: Path | None, names: Sequence[str]) -> dict[str, Path | None]:
    """Where the result of each data set goes: the folder itself for one, a folder in it for each of several.

    Raises:
        ValueError: If two would go to the same place.
    """
    if output is None:
        return dict.fromkeys(names)
    if len(names) == 1:
        return {names[0]: output}
    folders = {name: output / (Path(name).stem.replace(":", "-") or "data") for name in names}
    if len(set(folders.values())) < len(folders):
        raise ValueError(f"two of {', '.join(names)} have the same name: measure them one by one.")
    return dict(folders)


def likelihood_options(args: argparse.Namespace) -> LikelihoodOptions:
    """How to measure, as the options say."""
    from hdlm.evaluation.likelihood.evaluate import LikelihoodOptions

    alike = ("part", "data_dir", "limit", "length", "stride", "bound", "estimator", "replicates")
    how = ("hyperschedule", "width", "steps", "batch_size", "seed")
    return LikelihoodOptions(
        **{name: getattr(args, name) for name in (*alike, *how)},
        detokenize=not args.as_it_is,
        within_documents=args.documents,
        target_error=args.target_stderr,
    )
