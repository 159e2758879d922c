"""How a model does on the tasks of others: those of lm_eval, the language model evaluation harness.

Examples:
  hdlm eval harness runs/first --tasks tasks/mine.yaml --limit 50
  hdlm eval harness runs/first --tasks mine yours --include-path tasks --output results/tasks
  hdlm eval harness runs/first --tasks lambada_openai --replicates 128     lm_eval's own task; its data are fetched

A task is a YAML file, or a name: of a file below --include-path, or of one that lm_eval has. Choices are made by a
bound on -log p, the mean of --replicates estimates (exact along the hyperschedule `autoregressive`), so the number of
replicates is part of the protocol. With --output, results.json and report.md are written.
It needs `pip install "hdlm[harness]"`.
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import importlib
import math
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hdlm.atomic import keeping
from hdlm.cli._models import add_checkpoint, open_checkpoint
from hdlm.cli._options import (
    add_device,
    add_json,
    add_seed,
    at_least_one,
    device_option,
    json_text,
    print_json,
)
from hdlm.cli._outputs import Output
from hdlm.progress import share_bar

if TYPE_CHECKING:
    from hdlm.checkpoint import Checkpoint
    from hdlm.integrations.lm_eval import Watch

_KEPT = ("results", "groups", "versions", "n-shot", "n-samples", "higher_is_better")
"""What is kept of what `lm_eval` says."""
FOLDER = Output("folder", ("results.json", "report.md"))
_RESAMPLES = 1000
"""Bootstrap samples behind a standard error that has no formula."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare which tasks, and how the model answers."""
    add_checkpoint(parser)
    tasks = parser.add_argument_group("the tasks")
    tasks.add_argument(
        "--tasks", nargs="+", required=True, metavar="FILE_OR_NAME", help="YAML files, or names of tasks"
    )
    tasks.add_argument("--include-path", type=Path, help="folder of YAML files that --tasks names")
    tasks.add_argument(
        "--limit", type=at_least_one, help="take this many documents of each, for a quick look"
    )
    tasks.add_argument("--num-fewshot", type=int, help="solved examples before each question")
    how = parser.add_argument_group("how to answer")
    how.add_argument(
        "--replicates", type=at_least_one, default=32, help="estimates of each number (default: %(default)s)"
    )
    how.add_argument(
        "--bound", choices=("absorbing", "hybrid"), help="default: as for `hdlm eval likelihood`"
    )
    how.add_argument("--algorithm", default="acs", help="the sampler, where text is asked for (default: acs)")
    how.add_argument(
        "--hyperschedule",
        metavar="FAMILY",
        help="autoregressive, flat, block, slide or wave (default: as the checkpoint says)",
    )
    how.add_argument("--width", type=at_least_one, help="positions that are noisy together")
    how.add_argument("--steps", type=at_least_one, help="steps that a position takes from noise to word")
    how.add_argument(
        "--batch-size", type=at_least_one, default=16, help="windows in a pass (default: %(default)s)"
    )
    add_seed(parser)
    add_device(parser)
    parser.add_argument(
        "--output",
        type=FOLDER,
        help="folder for results.json and report.md",
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Take the tests and print the marks."""
    from hdlm.evaluation.records import protocol
    from hdlm.evaluation.records.tasks import task_scores
    from hdlm.integrations import lm_eval as harness

    _ = harness.HDLM  # says at once if `lm_eval` is not here
    device = device_option(args)
    checkpoint = open_checkpoint(args, device)
    start = time.monotonic()
    with share_bar("reading tasks", shown=sys.stderr.isatty()) as bar:
        found, how = _examined(args, checkpoint, lambda what, done, total: bar(done / max(total, 1), what))
    document = protocol.describe_protocol(
        checkpoint,
        args.checkpoint,
        kind="harness",
        result={"protocol": how, "limit": args.limit, **{name: _plain(found.get(name)) for name in _KEPT}},
        seed=args.seed,
        weights=args.weights,
        wall_seconds=time.monotonic() - start,
    )
    document["versions"]["lm_eval"] = importlib.import_module("lm_eval").__version__
    document["result"]["questions_sha256"] = _questions(found["samples"])
    table = _table(document)
    if args.output is not None:
        with keeping(lambda: json_text(document)):
            _write(args.output, document, table)
    if args.json:
        print_json(document)
    else:
        print(table)
        print(", ".join(f"{name}: {value}" for name, value in how.items()))
    return int(any(mark.value is None for mark in task_scores(document, args.checkpoint).values()))


def _examined(
    args: argparse.Namespace, checkpoint: Checkpoint, watch: Watch
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `lm_eval` finds, and how the model answered."""
    from hdlm.evaluation.likelihood.defaults import plan_of
    from hdlm.generation import Settings
    from hdlm.integrations import lm_eval as harness

    choice = {"hyperschedule": args.hyperschedule, "width": args.width, "steps": args.steps}
    model = harness.HDLM(
        checkpoint,
        batch_size=args.batch_size,
        bound=args.bound,
        regime=checkpoint.regime(plan_of(checkpoint, **choice)),
        replicates=args.replicates,
        settings=Settings(algorithm=args.algorithm, **choice),
        seed=args.seed,
        watch=watch,
    )
    lm_eval: Any = importlib.import_module("lm_eval")
    found: dict[str, Any] = lm_eval.simple_evaluate(
        model=model,
        tasks=args.tasks,
        task_manager=_task_manager(args.tasks, args.include_path),
        num_fewshot=args.num_fewshot,
        limit=args.limit,
        bootstrap_iters=_RESAMPLES,
    )
    return found, model.examinee.protocol()


def _task_manager(tasks: list[str], folder: Path | None) -> Any:
    """What knows the tasks: files and a folder by themselves, with those of `lm_eval` only where they are named.

    Raises:
        ValueError: If there is no such folder or no such task.
    """
    if folder is not None and not folder.is_dir():
        raise ValueError(f"--include-path {folder} is no folder.")
    manager: Any = importlib.import_module("lm_eval.tasks").TaskManager
    include = None if folder is None else str(folder)

    def unknown(known: Any) -> list[str]:
        return [
            task for task in tasks if not Path(task).is_file() and not fnmatch.filter(known.all_tasks, task)
        ]

    own = manager(include_path=include, include_defaults=False)
    if not unknown(own):
        return own
    every = manager(include_path=include)
    if strange := unknown(every):
        raise ValueError(
            f"there is no task {', '.join(strange)}: neither a YAML file, nor a name below --include-path, nor one "
            "that lm_eval has (`lm-eval ls tasks` lists them)."
        )
    return every


def _questions(samples: dict[str, list[dict[str, Any]]]) -> dict[str, str]:
    """Hash of what each task asked: its documents, as they were put, with their answers."""
    parts = ("doc_hash", "prompt_hash", "target_hash")
    return {
        task: hashlib.sha256(" ".join(str(one[part]) for one in asked for part in parts).encode()).hexdigest()
        for task, asked in samples.items()
    }


def _table(document: dict[str, Any]) -> str:
    """Marks of every task, as Markdown."""
    from hdlm.evaluation.records.tasks import task_scores
    from hdlm.view.report import markdown_table, number

    result = document["result"]
    rows = [("task", "metric", "value ± standard error", "better", "shots", "questions")]
    for label, cell in task_scores(document, document["model"]).items():
        task, _, metric = label.partition(": ")
        value = f"failed: {cell.failed}" if cell.value is None else number(cell.value, cell.error)
        higher = (result["higher_is_better"] or {}).get(task, {}).get(metric.partition(" ")[0])
        better = {True: "higher", False: "lower"}.get(higher, "")
        asked = (result["n-samples"] or {}).get(task, {}).get("effective", "")
        rows.append((task, metric, value, better, str((result["n-shot"] or {}).get(task, "")), str(asked)))
    return markdown_table(rows)


def _plain(value: Any) -> Any:
    """A value for JSON; a number that is none is a failure."""
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {"failed": f"not a finite number: {value}"}
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _write(folder: Path, document: dict[str, Any], table: str) -> None:
    from hdlm.atomic import replacing
    from hdlm.evaluation.records import protocol

    protocol.write_result(folder / "results.json", document)
    how = "\n".join(f"- {name}: {value}" for name, value in document["result"]["protocol"].items())
    with replacing(folder / "report.md") as aside:
        aside.write_text(f"# {document['model']} on tasks of lm_eval\n\n{table}\n\n{how}\n", encoding="utf-8")
