"""Train and measure the arms of a study: arms x seeds x budgets, one table, pictures.

Examples:
  hdlm study study/tiny --output studies/tiny
  hdlm study mine.toml --output studies/mine --dry-run            jobs, states and estimated costs
  hdlm study mine.toml --output studies/mine --part 1/4           a quarter of the models, in a shared folder
  accelerate launch --num-processes 8 -m hdlm study mine.toml --output studies/mine
  hdlm study study/noise --output studies/noise --jobs studies/jobs    judges are trained once for several studies
  hdlm study mine.toml --output studies/mine --report             the table of what is there, without further work

FILE is a TOML file, or the name of a study that ships with hdlm (study/conversion, study/noise, study/objective,
study/order, study/samplers, study/tiny). A finished job is not repeated, so the same command resumes after a kill. A
job that fails is in the table with its reason. The folder gets results.json, report.md, likelihood.png if an arm has
several budgets, and quality.png and frontier.png if there are samplers.
Exit status: 0 if all jobs of this part are done; 1 if some failed or wait for other parts; 75 if a signal stopped it.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from hdlm.cli._options import add_device, add_json, chosen_device, print_json
from hdlm.cli._outputs import FOLDER as PLAIN_FOLDER
from hdlm.cli._outputs import Output

if TYPE_CHECKING:
    from hdlm.study import StudyRun

FOLDER = Output("folder", ("results.json", "report.md", "likelihood.png", "quality.png", "frontier.png"))


def _part(text: str) -> tuple[int, int]:
    """`K/N`: the part, from 1, and the number of parts."""
    part, slash, parts = text.partition("/")
    if not (slash and part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise argparse.ArgumentTypeError(f"must be K/N with K in 1 .. N; got {text!r}")
    return int(part), int(parts)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the file, the folder and the part."""
    parser.add_argument("file", metavar="FILE", help="TOML file of the study, or the name of one that ships")
    parser.add_argument(
        "--output", type=FOLDER, metavar="FOLDER", required=True, help="folder for jobs and results"
    )
    parser.add_argument(
        "--part", type=_part, metavar="K/N", help="do part K of N, divided by model (default: all jobs)"
    )
    parser.add_argument(
        "--jobs",
        type=PLAIN_FOLDER,
        metavar="FOLDER",
        help="folder for the jobs, if several studies share some, such as judges (default: --output)",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--dry-run", action="store_true", help="list the jobs with estimates of their cost")
    what.add_argument("--report", action="store_true", help="write the results of the jobs that are done")
    add_device(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Do the jobs, and print the tables."""
    from hdlm.distributed import Processes
    from hdlm.study import Study, StudyRun, StudyStoppedError
    from hdlm.study.run import launched_part
    from hdlm.training import PREEMPTED
    from hdlm.training.launch import recipe_file

    part, local = launched_part()
    if args.part is not None:
        part = Processes(args.part[1], args.part[0] - 1)
    device = chosen_device(args.device, args.threads)
    if local is not None and device.type != "cpu" and str(device) == device.type:
        device = chosen_device(f"{device.type}:{local}", args.threads)
    planned = StudyRun(
        Study.load(recipe_file(args.file, "study")),
        args.output if args.jobs is None else args.jobs,
        device,
        part,
        folder=args.output,
        waits=local is not None,
        progress=False if args.json or local is not None else None,
        report=lambda line: print(line, file=sys.stderr, flush=True),
    )
    if args.dry_run:
        return _listed(planned, as_json=args.json)
    try:
        document = planned.results() if args.report else planned.perform()
    except StudyStoppedError as stopped:
        print(f"{stopped} The same command resumes the study.", file=sys.stderr)
        return PREEMPTED
    _show(args, document)
    return int(bool(document["failed"] or document["missing"]))


def _listed(planned: StudyRun, *, as_json: bool) -> int:
    """Print the jobs with their costs."""
    from hdlm.view.report import markdown_table

    jobs = planned.estimates()
    if as_json:
        print_json(jobs)
        return 0
    rows = [["job", "kind", "state", "tokens", "FLOPs", "minutes"]]
    for job in jobs:
        tokens = f"{job['tokens']:,}" if job["tokens"] else ""
        rows.append([job["job"], job["kind"], job["state"], tokens, f"{job['flops']:.2g}", _minutes([job])])
    print(markdown_table(rows))
    left = [job for job in jobs if job["state"] != "done"]
    print(
        f"\n{len(jobs)} jobs, {len(left)} to do: about {_minutes(left)} minutes on {planned.device} (an estimate)"
    )
    return 0


def _minutes(jobs: list[Any]) -> str:
    seconds = [job["seconds"] for job in jobs]
    return "unknown" if None in seconds else f"{sum(seconds) / 60:.1f}"


def _show(args: argparse.Namespace, document: dict[str, Any]) -> None:
    """Print the document, or its tables."""
    from hdlm.view.study import study_sections

    if args.json:
        print_json(document)
        return
    for title, text in study_sections(document).items():
        print(f"{title}\n\n{text}\n")
    print(f"results: {args.output}")
