"""Measure a model on tasks of `lm_eval`, in one call: what `hdlm eval harness` does."""

from __future__ import annotations

import fnmatch
import hashlib
import importlib
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from hdlm.atomic import keeping, replacing
from hdlm.checkpoint import Checkpoint
from hdlm.evaluation.likelihood.defaults import plan_of
from hdlm.evaluation.likelihood.result import BoundName
from hdlm.evaluation.records import protocol
from hdlm.evaluation.records.tasks import task_scores
from hdlm.generation import Settings
from hdlm.integrations import lm_eval as harness
from hdlm.progress import share_bar
from hdlm.view.report import markdown_table, number

__all__ = ["HarnessOptions", "harness_table", "measured_tasks"]

_KEPT = ("results", "groups", "versions", "n-shot", "n-samples", "higher_is_better")
"""Fields of the answer of `lm_eval` that a document keeps."""
_RESAMPLES = 1000
"""Bootstrap samples behind a standard error that has no formula."""


@final
@dataclass(frozen=True)
class HarnessOptions:
    """Which tasks are measured, and how the model answers.

    Attributes:
        tasks: YAML files, or names of tasks.
        include_path: Folder of YAML files that the names of tasks may mean.
        limit: Number of documents of each task, for a quick estimate; all by default.
        num_fewshot: Number of solved examples before each question; by default as the task says.
        replicates: Number of estimates of each bound.
        bound: `"absorbing"` or `"hybrid"`; by default as for `hdlm eval likelihood`.
        batch_size: Number of windows in a pass.
        seed: Seed of all randomness.
    """

    tasks: tuple[str, ...]
    include_path: Path | None = None
    limit: int | None = None
    num_fewshot: int | None = None
    replicates: int = 32
    bound: BoundName | None = None
    batch_size: int = 16
    seed: int = 0


def measured_tasks(
    checkpoint: Checkpoint,
    settings: Settings,
    options: HarnessOptions,
    *,
    model: str = "a checkpoint",
    weights: Any = "only",
    output: Path | None = None,
    progress: bool | None = None,
) -> dict[str, Any]:
    """The document of the scores of a model on tasks.

    Args:
        checkpoint: The model.
        settings: How text is written; the hyperschedule is also that of the bound.
        options: Which tasks, and how the model answers.
        model: What the document calls the model.
        weights: Which weights were loaded, `"averaged"` or `"raw"`, if that is known.
        output: Folder for `results.json` and `report.md`.
        progress: Whether a progress bar is shown; by default in a terminal and in a notebook.

    Raises:
        ValueError: If `lm_eval` is not installed, there is no such task, or an option does not fit the model.
    """
    begin = time.monotonic()
    with share_bar("reading tasks", shown=progress) as bar:
        answer, how = _evaluated(
            checkpoint, settings, options, lambda what, done, total: bar(done / max(total, 1), what)
        )
    kept = {name: _plain(answer.get(name)) for name in _KEPT}
    document = protocol.describe_protocol(
        checkpoint,
        model,
        kind="harness",
        result={"protocol": how, "limit": options.limit, **kept},
        seed=options.seed,
        weights=weights,
        wall_seconds=time.monotonic() - begin,
    )
    document["versions"]["lm_eval"] = importlib.import_module("lm_eval").__version__
    document["result"]["questions_sha256"] = _questions(answer["samples"])
    if output is not None:
        with keeping(lambda: json.dumps(document)):
            protocol.write_result(output / "results.json", document)
            lines = "\n".join(f"- {name}: {value}" for name, value in how.items())
            with replacing(output / "report.md") as aside:
                report = f"# {model} on tasks of lm_eval\n\n{harness_table(document)}\n\n{lines}\n"
                aside.write_text(report, encoding="utf-8")
    return document


def _evaluated(
    checkpoint: Checkpoint, settings: Settings, options: HarnessOptions, watch: harness.Watch
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The answer of `lm_eval`, and how the model answered."""
    plan = plan_of(
        checkpoint, hyperschedule=settings.hyperschedule, width=settings.width, steps=settings.steps
    )
    model = harness.HDLM(
        checkpoint,
        batch_size=options.batch_size,
        bound=options.bound,
        regime=checkpoint.regime(plan),
        replicates=options.replicates,
        settings=settings,
        seed=options.seed,
        watch=watch,
    )
    answer: dict[str, Any] = importlib.import_module("lm_eval").simple_evaluate(
        model=model,
        tasks=list(options.tasks),
        task_manager=_task_manager(options.tasks, options.include_path),
        num_fewshot=options.num_fewshot,
        limit=options.limit,
        bootstrap_iters=_RESAMPLES,
    )
    return answer, model.examinee.protocol()


def _task_manager(tasks: tuple[str, ...], folder: Path | None) -> Any:
    """The task manager: of files and a folder alone, with the tasks of `lm_eval` only if one of them is named.

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
    """Hash of the questions of each task: its documents, its prompts, and the expected answers."""
    parts = ("doc_hash", "prompt_hash", "target_hash")
    return {
        task: hashlib.sha256(" ".join(str(one[part]) for one in asked for part in parts).encode()).hexdigest()
        for task, asked in samples.items()
    }


def harness_table(document: dict[str, Any]) -> str:
    """The scores of every task, as Markdown."""
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
    """A value for JSON; a number that is not finite is a failure."""
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {"failed": f"not a finite number: {value}"}
    return value if isinstance(value, str | int | float | bool | None) else str(value)
