"""Measure a model on the tasks of lm_eval, the language model evaluation harness.

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
import sys

from hdlm.cli._models import LOADING, add_checkpoint, open_checkpoint
from hdlm.cli._options import Options, add_device, add_json, chosen_device, print_json, whole_number
from hdlm.cli._outputs import Output

HARNESS = Options("hdlm.integrations.harness:HarnessOptions")
SETTINGS = Options(
    "hdlm.generation.settings:Settings",
    only=("algorithm", "eta", "hyperschedule", "width", "steps"),
    otherwise="tasks say how words are drawn, and contexts fill the canvas of the model",
)
FOLDER = Output("folder", ("results.json", "report.md"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the tasks and the settings of the model."""
    add_checkpoint(parser)
    tasks = parser.add_argument_group("the tasks")
    HARNESS.add(tasks, "tasks", metavar="FILE_OR_NAME")
    HARNESS.add(tasks, "include_path", "limit")
    HARNESS.add(tasks, "num_fewshot", type=whole_number)
    how = parser.add_argument_group("how to answer")
    HARNESS.add(how, "replicates", "bound", "batch_size")
    SETTINGS.add(how)
    HARNESS.add(parser, "seed")
    add_device(parser)
    parser.add_argument("--output", type=FOLDER, help="folder for results.json and report.md")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Measure, and print the scores."""
    from hdlm.evaluation.records.tasks import task_scores
    from hdlm.integrations import lm_eval as harness
    from hdlm.integrations.harness import harness_table, measured_tasks

    _ = harness.HDLM  # an error at once if `lm_eval` is not here
    device = chosen_device(args.device, args.threads)
    document = measured_tasks(
        open_checkpoint(args.checkpoint, LOADING.values(args), device),
        SETTINGS.read(args),
        HARNESS.read(args),
        model=args.checkpoint,
        weights=args.weights,
        output=args.output,
        progress=sys.stderr.isatty(),
    )
    if args.json:
        print_json(document)
    else:
        print(harness_table(document))
        how = document["result"]["protocol"]
        print(", ".join(f"{name}: {value}" for name, value in how.items()))
    return int(any(mark.value is None for mark in task_scores(document, args.checkpoint).values()))
