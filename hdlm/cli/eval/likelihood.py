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

from hdlm.atomic import NotKeptError, check_folder, keeping
from hdlm.cli._models import add_checkpoint, open_checkpoint
from hdlm.cli._options import add_device, add_json, add_seed, at_least_one, device_of, json_text, print_json
from hdlm.cli._outputs import FOLDER
from hdlm.cli._progress import share_bar

if TYPE_CHECKING:
    from hdlm.checkpoint import Checkpoint
    from hdlm.distributed import Processes
    from hdlm.evaluation.likelihood.resumable import Measuring

FILE = "results.json"
FILES = (FILE, "report.md", "replicates.png")


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
    from hdlm.view.likelihood import likelihood_table

    processes, own_device = Processes.launched(cpu=args.device == "cpu")
    device = device_of(args) if own_device is None else own_device
    names = list(dict.fromkeys(args.data))
    folders = folders_of(args.output, names)
    for folder in folders.values():
        if folder is not None:
            check_folder(folder, *FILES)
    checkpoint = open_checkpoint(args, device, getattr(torch, args.dtype))
    documents: dict[str, dict[str, Any]] = {}
    for name in names:
        try:
            documents[name] = _measured(args, checkpoint, name, folders[name], processes)
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


def measuring_of(args: argparse.Namespace, checkpoint: Checkpoint, name: str) -> Measuring:
    """What the options say is to be measured."""
    from hdlm.evaluation.likelihood.defaults import plan_of
    from hdlm.evaluation.likelihood.resumable import BatchSize, Measuring
    from hdlm.evaluation.text import find_text, read_text
    from hdlm.generation import tokenizer_of

    plan = plan_of(
        checkpoint, args.length, hyperschedule=args.hyperschedule, width=args.width, steps=args.steps
    )
    source = find_text(name, args.part, args.data_dir, detokenize=not args.as_it_is)
    text = read_text(tokenizer_of(checkpoint), source.corpus.documents(), args.limit)
    batch = None if args.batch_size is None else BatchSize(args.batch_size)
    return Measuring(
        checkpoint,
        args.checkpoint,
        text,
        source.describe(text),
        plan,
        args.bound,
        args.estimator,
        args.stride,
        args.documents,
        args.weights,
        seed=args.seed,
        batch_size=batch,
    )


def _measured(
    args: argparse.Namespace,
    checkpoint: Checkpoint,
    name: str,
    folder: Path | None,
    processes: Processes,
) -> dict[str, Any]:
    from hdlm.evaluation.records import protocol
    from hdlm.view.likelihood import write_likelihood

    measuring = measuring_of(args, checkpoint, name)
    measuring.processes = processes
    known = None
    if folder is not None and (folder / FILE).exists():
        try:
            known = measuring.known(protocol.read(folder / FILE))
        except ValueError as error:
            raise ValueError(f"{folder / FILE}: {error} Choose another --output.") from error

    now = f"measuring {name}"
    with share_bar(now, shown=processes.is_main and sys.stderr.isatty()) as bar:

        def keep(document: dict[str, Any]) -> None:
            nonlocal now
            bits, error = (document["result"][key] for key in ("bits_per_token", "bits_per_token_error"))
            now = f"{name}: {bits:.4f}" + (f" ± {error:.4f}" if error else "") + " bits per token"
            if folder is not None and processes.is_main:
                with keeping(lambda: json_text({name: document})):
                    protocol.write(folder / FILE, document)
                    write_likelihood(folder, name, document)

        measuring.watch = lambda progress: bar(progress.done / progress.total, now)
        return measuring.run(replicates=args.replicates, target=args.target_stderr, known=known, keep=keep)
