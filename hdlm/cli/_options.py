"""Options that several verbs share, so that they read and mean the same everywhere."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hdlm.cli._streams import can_print

if TYPE_CHECKING:
    import torch

    from hdlm.hyperschedule import AbstractHyperschedule

FAMILIES = ("autoregressive", "flat", "block", "slide", "wave", "published-slide", "published-wave")
"""Hyperschedules by the name that the command line gives them."""


def at_least_one(text: str) -> int:
    """The `type` of an argument that counts something.

    Raises:
        ArgumentTypeError: if it is not a whole number, or less than 1.
    """
    number = int(text) if text.strip().removeprefix("-").isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number, at least 1; got {text!r}")
    return number


def whole_number(text: str) -> int:
    """The `type` of an argument that counts something there may be none of.

    Raises:
        ArgumentTypeError: if it is not a whole number, or negative.
    """
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number, at least 0; got {text!r}")
    return int(text)


def add_seed(parser: argparse.ArgumentParser, default: int = 0) -> None:
    """Add `--seed`."""
    parser.add_argument(
        "--seed", type=int, default=default, help="seed of all randomness (default: %(default)s)"
    )


_WITHOUT_FLOAT64 = frozenset({"mps"})
"""Accelerators on which random numbers, draws and bounds cannot be computed."""


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add `--device` and `--threads`; read them with `device_option`."""
    parser.add_argument(
        "--device",
        default="auto",
        help="cpu, an accelerator such as cuda or cuda:1, or auto: an accelerator if there is one that "
        "computes in float64, else cpu (default)",
    )
    parser.add_argument(
        "--threads",
        type=at_least_one,
        metavar="N",
        help="threads to compute with on a CPU (default: $OMP_NUM_THREADS, else the fastest number, measured)",
    )


def device_option(args: argparse.Namespace, recorded_threads: int = 0) -> torch.device:
    """The device that `--device` names; on a CPU, the number of threads is set as well.

    Args:
        args: The options.
        recorded_threads: What the run to resume was computed with; 0 if there is none.

    Raises:
        ValueError: if there is no such device here, or it does not compute in float64.
    """
    from hdlm import threads

    device = _device(args)
    if device.type == "cpu" or args.threads is not None:
        threads.set_num_threads(args.threads, recorded_threads)
    return device


def _device(args: argparse.Namespace) -> torch.device:
    import torch

    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator is not None and accelerator.type in _WITHOUT_FLOAT64:
        if _type_of(args.device) == accelerator.type:
            raise ValueError(
                f"--device {args.device} computes nothing in float64, which random numbers, draws and bounds need: "
                "give --device cpu, or leave it out."
            )
        accelerator = None
    if args.device == "auto":
        return accelerator or torch.device("cpu")
    here = {"cpu"} | ({accelerator.type} if accelerator else set())
    if _type_of(args.device) not in here:
        raise ValueError(f"--device must be auto or one of {', '.join(sorted(here))}; got {args.device!r}.")
    device = torch.device(args.device)
    count = 1 if device.type == "cpu" else torch.accelerator.device_count()
    if device.index is not None and device.index >= count:
        raise ValueError(f"--device {args.device}: there are {count} of them here, counted from 0.")
    return device


def _type_of(device: str) -> str | None:
    """The kind of device of that name; None if there is no such kind."""
    import torch

    try:
        return torch.device(device).type
    except RuntimeError:
        return None


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add `--json`; answer it with `print_json`."""
    parser.add_argument("--json", action="store_true", help="print the result as JSON, for other programs")


def print_json(result: Any) -> None:
    """Print one JSON document on standard output."""
    print(json_text(result))


def json_text(result: Any) -> str:
    """One JSON document on a line, in ASCII if standard output does not have all of its characters."""
    text = json.dumps(result, ensure_ascii=False)
    return text if can_print(text) else json.dumps(result)


def add_hyperschedule(parser: argparse.ArgumentParser) -> None:
    """Add the family, `--length`, `--width` and `--levels`; read them with `hyperschedule_of`."""
    parser.add_argument("family", choices=FAMILIES, metavar="FAMILY", help=", ".join(FAMILIES))
    parser.add_argument("--length", type=int, default=64, help="positions (default: %(default)s)")
    parser.add_argument("--width", type=int, help="positions that are active together (default: 16)")
    parser.add_argument("--levels", type=int, help="noise levels, steps that a position takes (default: 8)")


def hyperschedule_of(args: argparse.Namespace) -> AbstractHyperschedule:
    """The hyperschedule that the options describe.

    Raises:
        ValueError: if an option is out of range, or means nothing to the family.
    """
    from hdlm import hyperschedule

    given = {"--width": args.width, "--levels": args.levels}
    unused = {"autoregressive": ("--width", "--levels"), "flat": ("--width",)}.get(args.family, ())
    for option in unused:
        if given[option] is not None:
            raise ValueError(
                f"{option} means nothing to {args.family}; leave it out, or choose another family."
            )
    width = min(16, args.length) if args.width is None else args.width
    levels = 8 if args.levels is None else args.levels
    windows: dict[str, Callable[[int, int, int], AbstractHyperschedule]] = {
        "block": hyperschedule.Block,
        "slide": hyperschedule.Slide,
        "wave": hyperschedule.Wave,
        "published-slide": hyperschedule.PublishedSlide,
        "published-wave": hyperschedule.PublishedWave,
    }
    if args.family == "autoregressive":
        return hyperschedule.autoregressive(args.length)
    if args.family == "flat":
        return hyperschedule.flat(args.length, levels)
    return windows[args.family](args.length, width, levels)
