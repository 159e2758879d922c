"""Measure how well a model predicts text: a bound on -log p with its standard error.

Examples:
  hdlm eval likelihood runs/first --data wikitext2 --data-dir data --target-stderr 0.01
  hdlm eval likelihood runs/first --data book.txt --bound hybrid --stride 64 --output results/book
  hdlm eval likelihood runs/first --data book.txt --hyperschedule autoregressive      exact: no error
  hdlm eval likelihood runs/first --data ptb lambada --part validation --limit 20000  a quick look

All tokens are counted. With --output, results.json, report.md and replicates.png are written after every part of
the replicates (with several data sets, in a folder for each), and the same command resumes a stopped measurement.
Under `accelerate launch` the replicates are divided among the processes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hdlm.atomic import NotKeptError, check_folder
from hdlm.cli._models import LOADING, add_checkpoint, open_checkpoint
from hdlm.cli._options import Options, add_device, add_json, chosen_device, count_or_auto, print_json
from hdlm.cli._outputs import FOLDER

LIKELIHOOD = Options("hdlm.evaluation.likelihood.evaluate:LikelihoodOptions")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the text, the bound and its precision."""
    add_checkpoint(parser)
    text = parser.add_argument_group("the text")
    text.add_argument(
        "--data",
        nargs="+",
        required=True,
        metavar="NAME_OR_FILE",
        help="data sets by name (ptb, wikitext2, wikitext103, lambada, lm1b, ...), files, folders or globs",
    )
    LIKELIHOOD.add(text, "part", "data_dir")
    undone = "keep the tokenisation of named data sets that are distributed as tokenised text"
    LIKELIHOOD.add(text, "detokenize", flags=("--as-it-is",), help=undone)
    LIKELIHOOD.add(text, "limit", metavar="TOKENS")
    LIKELIHOOD.add(text, "length", "stride")
    LIKELIHOOD.add(text, "within_documents", flags=("--documents",))
    how = parser.add_argument_group("how to measure")
    LIKELIHOOD.add(how, "bound", "estimator")
    often = how.add_mutually_exclusive_group()
    LIKELIHOOD.add(often, "replicates")
    LIKELIHOOD.add(often, "target_error", flags=("--target-stderr",), metavar="BITS")
    LIKELIHOOD.add(how, "hyperschedule", "width", "steps")
    LOADING.add(how, "dtype", choices=("float32", "bfloat16", "float16", "float64"))
    LIKELIHOOD.add(how, "batch_size", type=count_or_auto, metavar="WINDOWS")
    LIKELIHOOD.add(how, "seed")
    add_device(parser)
    parser.add_argument("--output", type=FOLDER, help="folder for results.json, report.md and replicates.png")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Measure every data set; the status is 1 if the measurement of one failed."""
    from hdlm.cli._errors import explained
    from hdlm.distributed import Processes
    from hdlm.evaluation.likelihood.evaluate import FILES, likelihood_document
    from hdlm.view.likelihood import likelihood_table

    processes, own_device = Processes.launched(cpu=args.device == "cpu")
    device = chosen_device(args.device, args.threads) if own_device is None else own_device
    names = list(dict.fromkeys(args.data))
    folders = folders_of(args.output, names)
    for folder in folders.values():
        if folder is not None:
            check_folder(folder, *FILES)
    checkpoint = open_checkpoint(args.checkpoint, LOADING.values(args), device, args.dtype)
    documents: dict[str, dict[str, Any]] = {}
    for name in names:
        try:
            documents[name] = likelihood_document(
                checkpoint,
                name,
                LIKELIHOOD.read(args),
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
    if processes.is_main and args.json:
        print_json(documents)
    elif processes.is_main:
        print(likelihood_table(documents))
        if args.output is not None:
            print(f"\nresults: {args.output}")
    return int(any("failed" in document for document in documents.values()))


def folders_of(output: Path | None, names: Sequence[str]) -> dict[str, Path | None]:
    """The result folder of each data set: the folder itself for one data set, a subfolder for each of several.

    Raises:
        ValueError: If two data sets would share a folder.
    """
    if output is None:
        return dict.fromkeys(names)
    if len(names) == 1:
        return {names[0]: output}
    folders = {name: output / (Path(name).stem.replace(":", "-") or "data") for name in names}
    if len(set(folders.values())) < len(folders):
        raise ValueError(f"two of {', '.join(names)} have the same name: measure them one by one.")
    return dict(folders)
