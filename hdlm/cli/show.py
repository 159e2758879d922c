"""Draw hyperschedules, attention, noise and loss curves, in the terminal or to a file.

Examples:
  hdlm show hyperschedule block --width 16 --levels 8 --length 64
  hdlm show hyperschedule slide --width 32 --levels 64 --length 1024 --output slide.png
  hdlm show hyperschedules --output families.png            all families side by side
  hdlm show attention block --width 8 --levels 4 --length 32 --step 6
  hdlm show attention wave --width 8 --levels 4 --length 24 --two-stream
  hdlm show process --text "In the beginning God created the heaven"       a sentence at each noise level
  hdlm show process absorbing epsilon-hybrid --levels 4 --output noise.png
  hdlm show loss runs/first/metrics.jsonl --output loss.png

Without --output a picture is drawn in the terminal.  The suffix of --output names the format: .png, .svg or .pdf.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hdlm.cli._models import open_checkpoint, shipped
from hdlm.cli._options import Options, add_json, add_seed, at_least_one, choices, print_json
from hdlm.cli._outputs import PICTURE
from hdlm.cli._streams import warnings_as_lines

WIDTH, LEVELS = 16, 8
"""Default sizes of a hyperschedule that is drawn."""
NAMES = ("absorbing", "uniform", "epsilon-hybrid", "gamma-hybrid", "gidd")
"""The processes of `hdlm.view.process.PROCESSES`."""
NOISE = Options(
    "hdlm.view.process:noisy_sentences",
    only=("num_levels", "seed"),
    otherwise="the text and the tokenizer give it",
)
ATTENTION = Options(
    "hdlm.attention:two_stream", hyperschedule="it is the positional FAMILY", n="--step or --seed gives it"
)
if TYPE_CHECKING:
    from torch import Tensor

    from hdlm.attention import Visibility
    from hdlm.hyperschedule import AbstractHyperschedule


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the kinds of pictures, each with its options."""
    things = parser.add_subparsers(dest="thing", metavar="WHAT", required=True, title="what to show")
    hyperschedule_parser = things.add_parser(
        "hyperschedule",
        help="noise levels of one hyperschedule",
        description="Noise levels of a hyperschedule: positions from left to right, steps from top to bottom.",
    )
    _add_hyperschedule(hyperschedule_parser)
    _add_output(hyperschedule_parser)
    add_json(hyperschedule_parser)
    hyperschedule_parser.set_defaults(show=_show_hyperschedule)

    gallery = things.add_parser("hyperschedules", help="every family, side by side")
    gallery.add_argument("--output", type=PICTURE, required=True, help="the file to write")
    gallery.set_defaults(show=_show_gallery)

    attention = things.add_parser(
        "attention",
        help="which positions attend to which",
        description="Which positions attend to which at one step of generation, or in a two-stream training pass.",
    )
    _add_hyperschedule(attention)
    _add_attention(attention)
    _add_output(attention)
    add_json(attention)
    attention.set_defaults(show=_show_attention)

    process = things.add_parser(
        "process",
        help="a sentence at each noise level, for each noise process",
        description="A sentence at each noise level, for each noise process: masks, and wrong words.",
    )
    _add_process(process)
    process.set_defaults(show=_show_process)

    loss = things.add_parser("loss", help="loss curves of a run, from its metrics (JSON lines)")
    loss.add_argument("metrics", type=Path, help="file with one JSON object per line")
    loss.add_argument(
        "--output", type=PICTURE, default=Path("loss.png"), help="the file (default: %(default)s)"
    )
    loss.set_defaults(show=_show_loss)


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output", type=PICTURE, help="write a picture here instead of drawing in the terminal"
    )


def _add_attention(parser: argparse.ArgumentParser) -> None:
    when = parser.add_mutually_exclusive_group()
    when.add_argument("--step", type=int, help="step of generation (default: the middle)")
    when.add_argument("--two-stream", action="store_true", help="a packed training pass: [clean | noisy]")
    ATTENTION.add(parser)
    add_seed(parser)


def _add_process(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("processes", nargs="*", metavar="PROCESS", help=f"{', '.join(NAMES)} (default: all)")
    parser.add_argument(
        "--text",
        default="In the beginning God created the heaven and the earth.",
        help="the sentence (default: %(default)s)",
    )
    parser.add_argument(
        "--checkpoint",
        metavar="CHECKPOINT",
        help="model whose tokenizer reads the sentence (default: a shipped one)",
    )
    NOISE.add(parser, "num_levels", flags=("--levels",))
    NOISE.add(parser, "seed")
    parser.add_argument("--output", type=PICTURE, help="write a picture (.png) instead of printing")
    add_json(parser)


def _show_process(args: argparse.Namespace) -> None:
    from hdlm.view.process import draw_processes, noisy_sentences, print_processes

    unknown = [name for name in args.processes if name not in NAMES]
    if unknown:
        raise ValueError(f"PROCESS must be one of {', '.join(NAMES)}; got {unknown[0]!r}.")
    tokenizer = open_checkpoint(args.checkpoint or shipped()[0], {}).tokenizer
    ids = tokenizer.encode(args.text)
    if not ids:
        raise ValueError("--text must hold at least one word.")
    sentences = noisy_sentences(
        ids, tokenizer.vocabulary.num_words, args.processes or NAMES, **NOISE.values(args)
    )
    if args.json:
        words = {
            token for one in sentences for row in one.tokens for token in row if token < one.process.num_words
        }
        pieces = {str(token): tokenizer.piece(token) for token in sorted(words)}
        print_json({"pieces": pieces, "processes": {one.name: one.to_dict() for one in sentences}})
    elif args.output is not None:
        with warnings_as_lines("hdlm show"):
            draw_processes(sentences, tokenizer.piece, args.output)
        _wrote(args.output)
    else:
        from rich.console import Console

        print_processes(sentences, tokenizer.piece, Console(highlight=False))


def _add_hyperschedule(parser: argparse.ArgumentParser) -> None:
    """Declare the family, `--length`, `--width` and `--levels`."""
    families = choices("hdlm.generation.settings:FamilyName")
    parser.add_argument("family", choices=families, metavar="FAMILY", help=", ".join(families))
    parser.add_argument(
        "--length", type=at_least_one, default=64, help="number of positions (default: %(default)s)"
    )
    parser.add_argument(
        "--width", type=at_least_one, help=f"number of positions that are active together (default: {WIDTH})"
    )
    parser.add_argument(
        "--levels",
        type=at_least_one,
        help=f"number of noise levels, and of steps of a position (default: {LEVELS})",
    )


def _hyperschedule(args: argparse.Namespace) -> AbstractHyperschedule:
    """The hyperschedule that the options describe.

    Raises:
        ValueError: If an option is out of range, or has no effect in the family.
    """
    from hdlm.generation.settings import UNUSED, Settings

    unused = UNUSED.get(args.family, ())
    for flag, name, value in (("--width", "width", args.width), ("--levels", "steps", args.levels)):
        if value is not None and name in unused:
            raise ValueError(
                f"{flag} has no effect on {args.family}; leave it out, or choose another family."
            )
    width = min(WIDTH, args.length) if args.width is None else args.width
    levels = LEVELS if args.levels is None else args.levels
    sizes = {name: size for name, size in {"width": width, "steps": levels}.items() if name not in unused}
    return Settings(hyperschedule=args.family, **sizes).plan((), args.length)


def run(args: argparse.Namespace) -> int:
    """Show the picture."""
    args.show(args)
    return 0


def _title(args: argparse.Namespace, hyperschedule: AbstractHyperschedule) -> str:
    return f"{args.family.capitalize().replace('-', ' ')}: {hyperschedule.num_steps} steps"


def _wrote(output: Path) -> None:
    print(f"wrote {output}")


def _show_hyperschedule(args: argparse.Namespace) -> None:
    hyperschedule = _hyperschedule(args)
    if args.json:
        print_json(_described(args.family, hyperschedule))
    elif args.output is not None:
        from hdlm.view.hyperschedule import draw_hyperschedule

        draw_hyperschedule(hyperschedule, args.output, _title(args, hyperschedule))
        _wrote(args.output)
    else:
        from rich.console import Console

        from hdlm.view.hyperschedule import print_hyperschedule

        print_hyperschedule(hyperschedule, Console(), _title(args, hyperschedule))


def _described(family: str, hyperschedule: AbstractHyperschedule) -> dict[str, Any]:
    import torch

    return {
        "family": family,
        "length": hyperschedule.length,
        "num_levels": hyperschedule.num_levels,
        "num_steps": hyperschedule.num_steps,
        "settles": hyperschedule.settles.tolist(),
        "levels": hyperschedule.levels(torch.arange(hyperschedule.num_steps + 1)).tolist(),
    }


def _show_gallery(args: argparse.Namespace) -> None:
    from hdlm.hyperschedule import Block, Slide, Wave, autoregressive, flat
    from hdlm.view.hyperschedule import draw_gallery

    length, width = 48, 12
    families = {
        "Autoregressive\nGPT": autoregressive(length),
        "Flat\nMDLM, SEDD": flat(length, length),
        "Block\nBD3-LM": Block(length, width, width),
        "Slide\nHDLM (simple)": Slide(length, width, width),
        "Wave\nHDLM (hybrid)": Wave(length, 16, 6),
    }
    draw_gallery(families, args.output)
    _wrote(args.output)


def _show_attention(args: argparse.Namespace) -> None:
    from hdlm.view.attention import AttentionPicture, draw_attention, print_attention

    hyperschedule = _hyperschedule(args)
    visibility, noisy, names, when = _seen(args, hyperschedule)
    visible = visibility.dense()
    if args.json:
        print_json({"family": args.family, "noisy": noisy.tolist(), "visible": visible.int().tolist()})
        return
    title = f"{args.family.capitalize()}: {when}"
    picture = AttentionPicture(visible.numpy(), noisy.numpy(), names, title)
    if args.output is not None:
        draw_attention(picture, args.output)
        _wrote(args.output)
    else:
        from rich.console import Console

        print_attention(picture, Console())


def _seen(
    args: argparse.Namespace, hyperschedule: AbstractHyperschedule
) -> tuple[Visibility, Tensor, tuple[str, str], str]:
    """The visibility, which positions are noisy, the names of the two kinds of positions, and the step."""
    import torch

    from hdlm.attention import generation_attention, two_stream
    from hdlm.hyperschedule import AbstractCountdown

    if args.two_stream:
        if not isinstance(hyperschedule, AbstractCountdown):
            raise ValueError(
                f"--two-stream needs a countdown: autoregressive, flat, block, slide or wave; "
                f"got {args.family}."
            )
        generator = torch.Generator().manual_seed(args.seed)
        offsets = torch.randint(hyperschedule.num_levels, (hyperschedule.num_epochs,), generator=generator)
        steps = hyperschedule.packed_steps(offsets)
        noisy = torch.arange(2 * hyperschedule.length) >= hyperschedule.length
        packed = two_stream(hyperschedule, steps, args.context, args.active)
        return packed, noisy, ("clean", "noisy"), "clean and noisy stream"
    step = hyperschedule.num_steps // 2 if args.step is None else args.step
    if not 0 <= step <= hyperschedule.num_steps:
        raise ValueError(
            f"--step must lie in 0..{hyperschedule.num_steps}, the steps of this one; got {step}."
        )
    noisy = hyperschedule.regions(step).active
    canvas = generation_attention(hyperschedule, step, args.context, args.active)
    return canvas, noisy, ("settled", "active"), f"step {step} of {hyperschedule.num_steps}"


def _show_loss(args: argparse.Namespace) -> None:
    from hdlm.view.curves import RunMetrics, draw_curves

    draw_curves([RunMetrics.read(args.metrics)], args.output, title="Loss", panels=())
    _wrote(args.output)
