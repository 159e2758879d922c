"""Test the pieces of the package, or one of your own, against the laws that they must satisfy.

A noise process must be a Markov chain with correct closed forms, a hyperschedule must end without noise, an objective
must be least for the true distribution, a sampler must reproduce the distribution that it is given. Each law is tested
in a world that is small enough for exact sums. The table shows what was measured.

Examples:
  hdlm verify                                     everything built in
  hdlm verify process sampling                    some kinds of it
  hdlm verify mypkg.MyProcess --kwargs num_words=3,rate=0.5
  hdlm verify mypkg.my_hyperschedule              an instance, or a function that makes one
  hdlm verify mypkg.MyStep                        a way to sample, tried on masks
  hdlm verify mypkg.my_denoiser                   a denoiser: does it depend on no more noise than it states?
  hdlm verify --thorough --seed 7 --json
  hdlm verify samplers --output results/samplers  every sampler against the truth: half an hour
  hdlm verify samplers --quick                    a smoke test of it, in seconds

Exit status: 0 if every law held, 1 if one was violated, 2 if the target cannot be tested.
"""

from __future__ import annotations

import argparse
import ast
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Any

from hdlm.cli._options import add_json, add_seed, print_json
from hdlm.cli._outputs import Output
from hdlm.progress import share_bar

if TYPE_CHECKING:
    from hdlm.verification import Verdict

QUICK, THOROUGH = 4_000, 400_000
"""Number of samples for a statistical law."""
SAMPLERS = "samplers"
"""The target that compares samplers in place of testing laws."""
RESULTS = ("samplers.json", "samplers.png", "report.md")
"""Files of the comparison of samplers."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "targets",
        nargs="*",
        metavar="TARGET",
        help="dotted path of a class, an instance or a function that makes one; or a kind of built-in pieces",
    )
    parser.add_argument(
        "--kwargs", default="", metavar="NAME=VALUE,...", help="arguments of the target, Python literals"
    )
    parser.add_argument(
        "--thorough", action="store_true", help=f"{THOROUGH:,} samples for each law instead of {QUICK:,}"
    )
    parser.add_argument(
        "--quick", action="store_true", help="for `samplers`: a few short samples, in seconds"
    )
    parser.add_argument(
        "--output",
        type=Output("folder", RESULTS),
        metavar="FOLDER",
        help=f"for `{SAMPLERS}`: the folder for {', '.join(RESULTS)}; the command resumes a run that was stopped",
    )
    add_seed(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Check the laws and report."""
    if args.targets == [SAMPLERS]:
        return _compare_samplers(args)
    if args.quick or args.output is not None:
        raise ValueError(f"--quick and --output are for `hdlm verify {SAMPLERS}`.")
    from hdlm.verification import Trial, verify

    trial = Trial(seed=args.seed, samples=THOROUGH if args.thorough else QUICK)
    subjects = _subjects(args.targets, _keywords(args.kwargs))
    verdicts: list[Verdict] = []
    for done, (name, subject) in enumerate(subjects.items()):
        if sys.stderr.isatty():
            print(f"\r\x1b[2K{done + 1}/{len(subjects)} {name}", end="", file=sys.stderr, flush=True)
        verdicts += verify(subject, trial, name)
    if sys.stderr.isatty():
        print("\r\x1b[2K", end="", file=sys.stderr)
    if args.json:
        print_json([_plain(verdict) for verdict in verdicts])
    else:
        _print_table(verdicts)
    return 0 if all(verdict.finding.ok for verdict in verdicts) else 1


def _compare_samplers(args: argparse.Namespace) -> int:
    """Measure every sampler with an exact denoiser, write the files and print the tables."""
    from hdlm.verification.oracle import QUICK_EFFORT, Effort, oracle_document

    effort = replace(QUICK_EFFORT if args.quick else Effort(), seed=args.seed)
    output: Path | None = args.output
    with share_bar("samplers") as bar:
        document = oracle_document(effort, output and output / RESULTS[0], bar)
    if output is not None:
        from hdlm.view.samplers import write_samplers

        write_samplers(output, document)
    if args.json:
        print_json(document)
    else:
        from hdlm.view.samplers import samplers_table, strengths_table

        for world in dict.fromkeys(point["arm"]["world"] for point in document["points"]):
            print(f"{world}\n\n{samplers_table(document, world)}\n")
        print(strengths_table(document))
    return 0


def _keywords(text: str) -> dict[str, Any]:
    """Parse `a=1,b='x'` as the arguments of a Python call; a bare word is a string."""
    try:
        call = ast.parse(f"f({text})", mode="eval").body
        assert isinstance(call, ast.Call)
        if call.args or any(keyword.arg is None for keyword in call.keywords):
            raise SyntaxError
        return {
            str(keyword.arg): keyword.value.id
            if isinstance(keyword.value, ast.Name)
            else ast.literal_eval(keyword.value)
            for keyword in call.keywords
        }
    except (SyntaxError, ValueError):
        raise ValueError(f"--kwargs must look like num_words=4,rate=0.5; got {text!r}.") from None


def _subjects(targets: list[str], keywords: dict[str, Any]) -> dict[str, Any]:
    """The objects to verify, by name."""
    from hdlm.verification import GROUPS, built_in, laws_of, subject_of

    groups = [target for target in targets if target in GROUPS] if targets else list(GROUPS)
    own = [target for target in targets if target not in GROUPS]
    if keywords and not own:
        raise ValueError("--kwargs are for a target of your own, and none is given.")
    subjects = {name: thing for name, thing in built_in().items() if name.split(":")[0] in groups}
    for target in own:
        subject = subject_of(_made(target, keywords))
        laws_of(subject)
        subjects[target] = subject
    return subjects


def _made(target: str, keywords: dict[str, Any]) -> Any:
    """The object at a dotted path; classes and functions are called."""
    from hdlm.verification import GROUPS

    module, _, name = target.rpartition(".")
    if "" not in sys.path:
        sys.path.insert(0, "")  # `hdlm verify mine.Process` finds mine.py beside the user
    if not module:
        raise ValueError(
            f"{target!r} is neither a dotted path like mypkg.MyProcess nor one of {', '.join(GROUPS)}."
        )
    try:
        target_object = getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        if not f"{module}.".startswith(f"{error.name}."):
            raise
        raise ValueError(
            f"There is no module {error.name!r}: install it, or run the command in the folder that has it."
        ) from error
    except AttributeError as error:
        raise ValueError(f"The module {module} does not define {name!r}.") from error
    if not isinstance(target_object, type | FunctionType):
        return target_object
    try:
        return target_object(**keywords)
    except TypeError as error:
        raise ValueError(
            f"{target} cannot be made: {error}. Give its arguments by --kwargs NAME=VALUE,..."
        ) from error


def _plain(verdict: Verdict) -> dict[str, Any]:
    finding = verdict.finding
    return {
        "subject": verdict.subject,
        "law": verdict.law,
        "statement": verdict.statement,
        "measure": finding.measure,
        "value": finding.value,
        "threshold": finding.threshold,
        "ok": finding.ok,
    }


def _print_table(verdicts: list[Verdict]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("law", "measured", "bound", "ok", title_justify="left")
    subject = None
    for verdict in verdicts:
        if verdict.subject != subject:
            subject = verdict.subject
            table.add_section()
            table.add_row(f"[bold]{subject}[/bold]")
        finding = verdict.finding
        compared = "<=" if finding.measure == "error" else ">="
        mark = "[green]yes[/green]" if finding.ok else "[bold red]NO[/bold red]"
        table.add_row(
            f"  {verdict.law}",
            f"{finding.measure} {finding.value:.2g}",
            f"{compared} {finding.threshold:.2g}",
            mark,
        )
    console = Console()
    console.print(table)
    broken = [verdict for verdict in verdicts if not verdict.finding.ok]
    for verdict in broken:
        console.print(f"[bold red]violated[/bold red] by {verdict.subject}: {verdict.statement}")
    console.print(f"{len(verdicts) - len(broken)} of {len(verdicts)} laws hold.")
