"""Train a model on your own text.

Examples:
  hdlm train --text book.txt --output runs/book --minutes 5
  hdlm train --text kjv --output runs/kjv --recipe pretrained
  hdlm train --text sequel.txt --output runs/sequel --from runs/book --minutes 2
  hdlm train --text 'novels/*.txt' --output runs/novels --recipe my.toml --steps 2000 --seed 1
  hdlm train --text sequel.txt --output runs/same --from runs/book --keep-optimizer --steps 500
  hdlm train --output runs/novels --resume
  hdlm train --text kjv --output runs/kjv --steps 5000 --validate-every 500 --sample-every 1000 --tracker tensorboard
  accelerate launch --config-file configs/accelerate/multi2.yaml -m hdlm train --text kjv --output runs/kjv
  hdlm train --config epsilon_tiny data.train=book.txt data.valid=other.txt

A recipe is a TOML file, or the name of one that ships with hdlm. Options of the command line replace those of the
recipe. --config takes a published configuration, as `hdlm/train.py --config-name` does, or hdlm/finetune.py with
`hf_model_id`. Ctrl-C, SIGTERM and SIGUSR1 stop after the current step and leave a usable checkpoint; --resume continues
from there, and on a CPU gives the same model to the bit if the run is limited by steps. Exit status: 0 if the run
ended, by itself or by Ctrl-C; 75 if SIGTERM or SIGUSR1 ended it early (start it again with --resume); 2 if it failed,
with a line that gives the reason.
"""

from __future__ import annotations

import argparse
import os
import tomllib
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hdlm.cli._models import ANY_MODEL, source_of
from hdlm.cli._options import Options, add_device, add_json, choices, chosen_device, print_json
from hdlm.cli._outputs import FOLDER

if TYPE_CHECKING:
    from rich.console import Console

    from hdlm.checkpoint import Checkpoint
    from hdlm.training import Recipe, ResumePoint, Trainer
    from hdlm.training.conversion import Target
    from hdlm.view.report import Measurement

_RECIPE = "demo"
_IN_RECIPE = "a recipe or --set has it"
RUN = Options(
    "hdlm.training.recipe:RunSettings",
    "the recipe's",
    only=("minutes", "steps", "seed"),
    otherwise=_IN_RECIPE,
)
WATCH = Options(
    "hdlm.training.recipe:WatchSettings",
    "the recipe's",
    only=("validate_every", "sample_every", "judge", "trackers"),
    otherwise=_IN_RECIPE,
)
_PUBLISHED = {
    "text": "data.train=TEXT",
    "output": "experiment.name=NAME or hydra.run.dir=FOLDER",
    "recipe": "recipe.TABLE.OPTION=VALUE",
    "set": "recipe.TABLE.OPTION=VALUE",
    "resume": "training.resume=true",
    "start": "hf_model_id=CHECKPOINT of a finetuning configuration",
    "keep_optimizer": "reset_step_for_finetuning=false of a finetuning configuration",
    "threads": "the environment variable OMP_NUM_THREADS",
    "json": "metrics.jsonl in the run's folder",
}
"""Names of options with `--config`, if no table of a recipe has them."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the text, the recipe and the output."""
    add_run(parser)
    parser.add_argument(
        "--from", dest="start", metavar="CHECKPOINT", help=f"begin with the weights of {ANY_MODEL}"
    )
    _add_configuration(parser)


def add_run(parser: argparse.ArgumentParser) -> None:
    """Declare the options of a run that begins with a recipe, with or without a checkpoint."""
    parser.add_argument(
        "--text",
        nargs="+",
        metavar="TEXT",
        help="files, folders, globs (text, .jsonl, .parquet), a folder of `hdlm tokenize`, or a corpus: kjv, "
        "pydoc_topics (default: the recipe's)",
    )
    parser.add_argument("--output", type=FOLDER, help="folder for the checkpoint and the metrics")
    parser.add_argument("--recipe", help=f"name or TOML file (default: {_RECIPE})")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="resume the run in the folder; if there is none, begin one with --text or --recipe",
    )
    parser.add_argument(
        "--keep-optimizer",
        action="store_true",
        help="begin with the state of its optimizers as well, if the checkpoint is a run; steps begin at 0",
    )
    length = parser.add_mutually_exclusive_group()
    RUN.add(length, "minutes")
    RUN.add(length, "steps")
    RUN.add(parser, "seed", type=int)
    WATCH.add(parser, "validate_every", "sample_every", metavar="N")
    WATCH.add(parser, "judge")
    WATCH.add(parser, "trackers", flags=("--tracker",), choices=choices("hdlm.training.recipe:TrackerName"))
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="TABLE.OPTION=VALUE",
        help="other options of the recipe, such as network.hidden_size=512",
    )
    add_device(parser)
    add_json(parser)


def _add_configuration(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the published way: a configuration instead of all other options."""
    parser.add_argument(
        "--config",
        metavar="NAME",
        help="published configuration in place of a recipe; key=value options may follow",
    )
    parser.add_argument(
        "--config-dir",
        metavar="DIR",
        help="with --config: folder of configurations (default: that of the package)",
    )
    parser.add_argument(
        "--cfg", action="store_true", help="with --config: show the configuration and do nothing"
    )
    parser.add_argument(
        "--multirun",
        "-m",
        action="store_true",
        help="with --config: one run for each combination of key=value,value",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="with --config: options to change")


def _configured(args: argparse.Namespace) -> int:
    """Run `hdlm/train.py` with these arguments.

    Raises:
        ValueError: If an option of recipes is given as well.
    """
    from hdlm.published.config import GOVERNED
    from hdlm.published.training import configured

    instead = dict(_PUBLISHED)
    for table, options in (("run", RUN), ("watch", WATCH)):
        for name in options.names:
            instead[name] = f"{GOVERNED.get(f'{table}.{name}', f'recipe.{table}.{name}')}={name.upper()}"
    for name, option in instead.items():
        if getattr(args, name) not in (None, False, []):
            flag = {"start": "from", "trackers": "tracker"}.get(name, name.replace("_", "-"))
            raise ValueError(f"--{flag} is for recipes; with --config use {option}")
    words = ["--config-name", args.config, *args.overrides]
    words += [] if args.config_dir is None else ["--config-dir", args.config_dir]
    return configured([*words, *(["--cfg"] * args.cfg), *(["--multirun"] * args.multirun)])


def run(args: argparse.Namespace) -> int:
    """Train, and print a summary.

    Raises:
        ValueError: If the options are inconsistent.
    """
    if args.config is not None:
        return _configured(args)
    if args.overrides or args.cfg or args.multirun or args.config_dir is not None:
        raise ValueError(f"{' '.join(args.overrides) or 'this'} needs --config NAME; recipes are TOML files.")
    if args.keep_optimizer and args.start is None:
        raise ValueError(
            "--keep-optimizer needs --from, the folder of the run whose optimizer state is used."
        )
    return train_by_recipe(args)


def train_by_recipe(args: argparse.Namespace, to: Target | None = None, *, continues: bool = False) -> int:
    """Train by a recipe.

    Args:
        args: The parsed options.
        to: What the checkpoint to begin with is converted to, if it is.
        continues: Whether the pieces of that checkpoint are kept unless the recipe sets others, recorded or not.

    Raises:
        ValueError: If there is no output.
    """
    if args.output is None:
        raise ValueError("--output is missing: give a folder for the checkpoint and the metrics.")
    from rich.console import Console

    from hdlm.checkpoint import load_checkpoint
    from hdlm.evaluation.during_training import Observer
    from hdlm.evaluation.held_out import counted, measured
    from hdlm.hub import load
    from hdlm.threads import is_fixed
    from hdlm.training import PREEMPTED
    from hdlm.training.conversion import CONVERSION, prepared
    from hdlm.training.launch import begin, carry_out
    from hdlm.view.report import table

    is_main = os.environ.get("RANK", "0") == "0"
    console = Console(stderr=args.json, quiet=not is_main, highlight=False, soft_wrap=True)
    resume_point = _run_to_resume(args, console)
    device = chosen_device(
        args.device, args.threads, 0 if resume_point is None else resume_point.state.threads
    )
    start = None if resume_point is not None or args.start is None else load(source_of(args.start))
    if to is not None and start is not None:
        start = prepared(start, args.start)
        args.recipe = args.recipe or CONVERSION
    session = begin(
        build_recipe(args, resume_point, start, continues=continues),
        args.output,
        device,
        console.print,
        resume_point=resume_point,
        start=start,
        memory=args.start if args.keep_optimizer else None,
    )
    trainer, run = session.trainer, session.run

    def report() -> None:
        learnt = replace(run, denoiser=load_checkpoint(args.output, device).denoiser)
        last = measured(console, learnt, f"network, after {trainer.step} steps", replicates=2)
        rows = [*counted(run), last]
        if args.json:
            print_json(_result(args.output, trainer, rows))
        else:
            console.print(f"{table(rows)}\n\ncheckpoint: {args.output}")

    observer = Observer(run, session, args.output, console.print)
    carry_out(session, console, (observer,), last=report, adapts=not is_fixed(args.threads))
    if not trainer.preempted:
        return 0
    console.print(f"checkpoint: {args.output}; go on with --resume")
    return PREEMPTED


def build_recipe(
    args: argparse.Namespace,
    resume_point: ResumePoint | None = None,
    start: Checkpoint | None = None,
    *,
    continues: bool = False,
) -> Recipe:
    """The recipe that `--recipe` names, with the changes of the other options.

    Args:
        args: The parsed options.
        resume_point: The run to resume; its recipe is used if `--recipe` is left out.
        start: The checkpoint to begin with. If it records no recipe, its network and its pieces are kept unless
            `--recipe` sets others.
        continues: Whether they are kept even if it records a recipe.

    Raises:
        ValueError: If there is no such recipe, or an option does not fit it.
    """
    from hdlm.training import Recipe
    from hdlm.training.finetuning import recipe_of
    from hdlm.training.launch import recipe_file
    from hdlm.training.recipe import with_options

    changes = _changes(args)
    if args.recipe is None and resume_point is not None:
        table = resume_point.recipe.to_table()
        return Recipe.from_table(
            table | {name: table.get(name, {}) | given for name, given in changes.items()}
        )
    if resume_point is not None and continues:
        base = resume_point.recipe.to_table()
    elif start is None or ("recipe" in start.training and not continues):
        return Recipe.load(recipe_file(args.recipe or _RECIPE), changes)
    else:
        base = recipe_of(start)
    if args.recipe is None:
        return Recipe.from_table(with_options(base, changes))
    return Recipe.load(recipe_file(args.recipe), changes, base)


def _changes(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Options of a recipe that were given on the command line, by table.

    Raises:
        ValueError: If a word of `--set` does not name an option.
    """
    changes: dict[str, dict[str, Any]] = {"data": {}, "run": {}, "watch": {}}
    for word in args.set:
        option, _, value = word.partition("=")
        table, _, name = option.partition(".")
        if table == "mixture":
            raise ValueError("--set cannot change the mixture, a list of tables: write a recipe file.")
        if not (name and value):
            raise ValueError(
                f"--set takes TABLE.OPTION=VALUE, such as network.hidden_size=512; got {word!r}."
            )
        changes.setdefault(table, {})[name] = _toml(value)
    if args.text is not None:
        changes["data"]["corpus"] = args.text
    for table, options in (("run", RUN), ("watch", WATCH)):
        changes[table] |= {name: value for name, value in options.values(args).items() if value is not None}
    for limit, other in (("minutes", "steps"), ("steps", "minutes")):
        if getattr(args, limit) is not None:
            changes["run"][other] = None
    return changes


def _toml(text: str) -> Any:
    """A value in the syntax of a TOML file; a word without quotes is a string."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _run_to_resume(args: argparse.Namespace, console: Console) -> ResumePoint | None:
    """The run to resume; None to start a new run.

    Raises:
        ValueError: If the folder cannot hold the run.
    """
    from hdlm.training.launch import run_to_resume

    resume_point = run_to_resume(args.output, console.print, resume=args.resume, option="--resume")
    if not args.resume:
        return None
    if resume_point is None:
        _check_meant(args)
        console.print(f"there is no run in {args.output} to resume: a new one begins")
    else:
        console.print(f"going on with {args.output} after {resume_point.state.step} steps")
    return resume_point


def _check_meant(args: argparse.Namespace) -> None:
    """Check that `--resume` may start a new run: the text or the recipe must be given.

    Raises:
        ValueError: If neither is given, as after a mistyped --output.
    """
    if args.text is not None or args.recipe is not None:
        return
    folder: Path = args.output
    if not folder.is_dir():
        there = "it does not exist"
    elif names := sorted(path.name for path in folder.iterdir()):
        there = f"it holds {', '.join(names[:5])}" + (f" and {len(names) - 5} more" if names[5:] else "")
    else:
        there = "it is empty"
    raise ValueError(
        f"--resume: there is no run in --output {folder}: {there}. Give the folder of the run; or add --text or "
        "--recipe to begin a new run there."
    )


def _result(output: Path, trainer: Trainer, rows: list[Measurement]) -> dict[str, Any]:
    """The result for programs: the folder of the model, the duration, and the measurements."""
    return {
        "checkpoint": str(output),
        "steps": trainer.step,
        "tokens": trainer.tokens,
        "seconds": round(trainer.seconds, 2),
        "validation": [asdict(row) for row in rows],
    }
