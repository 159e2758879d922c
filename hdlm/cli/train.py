"""Train a model on text of yours.

Examples:
  hdlm train --text book.txt --output runs/book --minutes 5
  hdlm train --text kjv --output runs/kjv --recipe pretrained
  hdlm train --text sequel.txt --output runs/sequel --from runs/book --minutes 2
  hdlm train --text 'novels/*.txt' --output runs/novels --recipe my.toml --steps 2000 --seed 1

A recipe is a TOML file, or the name of one that comes with the program; options given here replace its own.
Ctrl-C stops after the current step and leaves a usable checkpoint.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hdlm.cli._measure import counted, measured
from hdlm.cli._models import ANY_MODEL, check_vacant, source_of
from hdlm.cli._options import add_device, add_json, device_of, print_json

if TYPE_CHECKING:
    from hdlm.training import Recipe, StepReport
    from hdlm.view.report import Measurement


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what to train on, how, and where to."""
    parser.add_argument(
        "--text",
        nargs="+",
        metavar="TEXT",
        help="files, folders, globs (text or .jsonl), or a corpus: kjv, pydoc_topics (default: the recipe's)",
    )
    parser.add_argument(
        "--output", type=Path, required=True, help="folder for the checkpoint and the metrics"
    )
    parser.add_argument("--recipe", default="demo", help="name or TOML file (default: %(default)s)")
    parser.add_argument(
        "--from", dest="start", metavar="CHECKPOINT", help=f"begin with the weights of {ANY_MODEL}"
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=float, help="how long to train (default: the recipe's)")
    length.add_argument("--steps", type=int, help="optimizer steps to train instead, repeatable to the bit")
    parser.add_argument("--seed", type=int, help="seed of all randomness (default: the recipe's)")
    add_device(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Train, and say what came of it."""
    from rich.console import Console

    from hdlm.hub import load
    from hdlm.training import listening, prepare, progress_bar
    from hdlm.view.report import table

    device = device_of(args)
    check_vacant(args.output)
    recipe = recipe_of(args)
    console = Console(stderr=args.json)
    start = None if args.start is None else load(source_of(args.start))
    prepared = prepare(
        recipe, device, lambda line: console.print(line, highlight=False, soft_wrap=True), start
    )
    with listening() as stop, progress_bar(console) as bar:
        report = prepared.execute(args.output, stop, (bar,))
    steps = report.step if report else 0
    if stop.signal:
        console.print(f"stopped by {stop.signal.name} after {steps} steps; what has been learnt is kept")
    rows = [*counted(prepared), measured(console, prepared, f"network, after {steps} steps", replicates=2)]
    if args.json:
        print_json(_result(args.output, report, rows))
    else:
        console.print(f"{table(rows)}\n\ncheckpoint: {args.output}", highlight=False, soft_wrap=True)
    return 0


def recipe_of(args: argparse.Namespace) -> Recipe:
    """The recipe that `--recipe` names, changed as the other options say.

    Raises:
        ValueError: If there is no such recipe, or an option does not suit it.
    """
    from hdlm.package_data import recipes
    from hdlm.training import Recipe

    path = Path(args.recipe)
    if path.suffix != ".toml":
        path = recipes() / f"{args.recipe}.toml"
        if not path.is_file():
            known = ", ".join(sorted(file.stem for file in recipes().glob("*.toml")))
            raise ValueError(f"there is no recipe {args.recipe!r}; known: {known}, or a TOML file of yours.")
    changes: dict[str, dict[str, Any]] = {"data": {}, "run": {}}
    if args.text is not None:
        changes["data"]["corpus"] = args.text
    if args.seed is not None:
        changes["run"]["seed"] = args.seed
    if args.minutes is not None:
        changes["run"].update(minutes=args.minutes, steps=None)
    if args.steps is not None:
        changes["run"].update(steps=args.steps, minutes=None)
    return Recipe.load(path, changes)


def _result(output: Path, report: StepReport | None, rows: list[Measurement]) -> dict[str, Any]:
    """What a program wants to know: where the model is, how long it took, and how good it is."""
    return {
        "checkpoint": str(output),
        "steps": report.step if report else 0,
        "tokens": report.tokens if report else 0,
        "seconds": round(report.seconds, 2) if report else 0.0,
        "validation": [asdict(row) for row in rows],
    }
