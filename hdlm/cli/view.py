"""Play how text was generated: as a page, as a picture, or in the terminal.

TRACE is a file of `hdlm sample --trace`. Two traces are shown side by side, aligned by the evaluations of the network.
Without a TRACE, the text is generated first, with a model: --checkpoint, --prompt and the settings of `hdlm sample`.

Examples:
  hdlm view trace.json                                        in the terminal
  hdlm view trace.json -o replay.html                         one page without any other file
  hdlm view original.json acs.json -o replay.gif              two runs in an animation
  hdlm view trace.json -o replay.png --frames 6               some frames one below the other, for a paper
  hdlm view --checkpoint kjv-epsilon-4m --prompt "And the LORD said" --algorithm acs --eta 0.3 -o replay.html
  hdlm view --checkpoint kjv-epsilon-4m --prompt "And" --algorithm original --versus algorithm=acs eta=0.5 -o two.html

In a page every token shows its probability, its alternatives and its history. The page needs no network.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hdlm.cli._models import ANY_MODEL, LOADING, add_loading, open_checkpoint
from hdlm.cli._options import Options, add_device, at_least_one, chosen_device, whole_number
from hdlm.cli._outputs import FILE
from hdlm.cli._streams import warnings_as_lines

if TYPE_CHECKING:
    from hdlm.generation import Settings, TraceDocument

SETTINGS = Options("hdlm.generation.settings:Settings")
RECORDING = Options(
    "hdlm.generation.recording:record",
    only=("prompt", "seed", "alternatives", "transformed"),
    otherwise="it is an object, or other options describe it",
)
PICTURE = Options(
    "hdlm.view.animation:draw_replay",
    documents="they are the positional TRACE",
    output="it is the option --output",
    sequence="--passage names the sequence, and counts from 1",
)
_SUFFIXES = (".html", ".gif", ".png")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the traces, the output and the settings of a new run."""
    parser.add_argument(
        "traces", nargs="*", type=Path, metavar="TRACE", help="a file of `hdlm sample --trace`"
    )
    parser.add_argument(
        "-o",
        "--output",
        type=FILE,
        metavar="FILE",
        help="a page (.html), an animation (.gif) or a picture (.png)",
    )
    parser.add_argument("--title", help="title of the page (default: the titles of the traces)")
    parser.add_argument(
        "--passage",
        type=at_least_one,
        default=1,
        metavar="N",
        help="passage of each trace, counted from 1 (default: 1)",
    )
    PICTURE.add(parser.add_argument_group("pictures"))
    new = parser.add_argument_group("a new run, in place of TRACE")
    new.add_argument("--checkpoint", metavar="CHECKPOINT", help=ANY_MODEL)
    RECORDING.add(
        new, "prompt", help="text to begin with, or a text with gaps: [MASK] is one token, [MASK:5] five"
    )
    RECORDING.add(new, "seed")
    RECORDING.add(new, "alternatives", type=whole_number)
    RECORDING.add(new, "transformed")
    new.add_argument(
        "--versus",
        nargs="+",
        metavar="NAME=VALUE",
        help="settings in which a second run with the same seed differs",
    )
    SETTINGS.add(parser.add_argument_group("how to write, in a new run"))
    add_loading(parser)
    add_device(parser)


def run(args: argparse.Namespace) -> int:
    """Show the traces.

    Raises:
        ValueError: If there is nothing to show, or the output has another suffix.
    """
    if args.output is not None and args.output.suffix.lower() not in _SUFFIXES:
        raise ValueError(f"--output {args.output}: a replay ends in .html, .gif or .png.")
    if bool(args.traces) == bool(args.checkpoint):
        raise ValueError("give either the TRACEs to show, or a --checkpoint to make a new run with.")
    documents = _new(args) if args.checkpoint else _read(args)
    _show(args, documents)
    if args.output is not None:
        print(f"wrote {args.output}")
    return 0


def _read(args: argparse.Namespace) -> list[TraceDocument]:
    """The traces of the files."""
    from hdlm.generation import Settings, TraceDocument

    chosen, usual = SETTINGS.values(args), asdict(Settings())
    idle = [name for name in chosen if chosen[name] != usual[name]] + ["versus"] * bool(args.versus)
    if idle:
        raise ValueError(
            f"--{idle[0].replace('_', '-')} is for a new run: give --checkpoint in place of TRACE."
        )
    return [TraceDocument.load(path) for path in args.traces]


def _new(args: argparse.Namespace) -> list[TraceDocument]:
    """The traces of new runs."""
    from hdlm.generation import record
    from hdlm.generation.progress import steps_bar

    first: Settings = SETTINGS.read(args)
    runs = [first] if args.versus is None else [first, _changed(first, args.versus)]
    checkpoint = open_checkpoint(
        args.checkpoint, LOADING.values(args), chosen_device(args.device, args.threads)
    )
    documents = []
    for number, settings in enumerate(runs):
        title = f"{settings.algorithm}, seed {args.seed}"
        if number and settings.algorithm == first.algorithm:
            title = f"{title}, {' '.join(args.versus)}"
        with steps_bar("writing", shown=sys.stderr.isatty()) as tick:
            how = RECORDING.values(args)
            documents.append(record(checkpoint, settings=settings, title=title, watch=tick, **how)[1])
    return documents


def _changed(settings: Settings, changes: list[str]) -> Settings:
    """The settings with other values.

    Raises:
        ValueError: If a change is not `NAME=VALUE`, or a setting is unknown.
    """
    from hdlm.generation import Settings
    from hdlm.strict_config import read_table

    table: dict[str, Any] = {}
    for change in changes:
        name, sign, value = change.partition("=")
        if not sign:
            raise ValueError(f"--versus takes NAME=VALUE, such as algorithm=acs; got {change!r}.")
        try:
            table[name.replace("-", "_")] = json.loads(value)
        except json.JSONDecodeError:
            table[name.replace("-", "_")] = value
    return replace(settings, **{name: getattr(read_table(Settings, table), name) for name in table})


def _show(args: argparse.Namespace, documents: list[TraceDocument]) -> None:
    """Write the page or the picture, or play in the terminal."""
    place = args.passage - 1
    title = args.title or " against ".join(document.title for document in documents)
    if args.output is None:
        from hdlm.view.moments import TracedRun
        from hdlm.view.replay import play, replays_of

        runs = [TracedRun(document, place) for document in documents]
        names = [f"{number + 1}: {document.title}" for number, document in enumerate(documents)]
        play(
            dict(zip(names if len(names) > 1 else [title], replays_of(runs), strict=True)),
            seconds=args.seconds,
        )
    elif args.output.suffix.lower() == ".html":
        from hdlm.view.page import ReplayPage

        ReplayPage(tuple(documents), title, sequence=place).save(args.output)
    else:
        from hdlm.view.animation import draw_replay

        with warnings_as_lines("hdlm view"):
            draw_replay(documents, args.output, sequence=place, **PICTURE.values(args))
