"""`hdlm sample --output FILE`: many passages, kept as they come, by one process or more."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from hdlm.cli._models import open_fast
from hdlm.cli._options import device_option
from hdlm.progress import share_bar

if TYPE_CHECKING:
    from hdlm.generation import Settings

SINGLE = ("infill", "json", "trace", "replay", "stream", "explain")
"""Options that are for passages that are printed."""


def write_many(args: argparse.Namespace, settings: Settings) -> int:
    """Write passages into the file, or go on where another run stopped.

    Raises:
        ValueError: If an option is for passages that are printed, or the file has samples that were made otherwise.
    """
    from hdlm.distributed import Processes
    from hdlm.evaluation.generation.samples import draw_samples, num_evaluations, tokens_per_second
    from hdlm.generation import Ending
    from hdlm.sampling import ApproximateCache

    for name in SINGLE:
        if getattr(args, name):
            raise ValueError(
                f"--{name.replace('_', '-')} is for passages that are printed: leave --output out."
            )
    processes, own_device = Processes.launched(cpu=args.device == "cpu")
    device = device_option(args) if own_device is None else own_device
    checkpoint = open_fast(args, device)
    with share_bar("writing", shown=processes.is_main and sys.stderr.isatty()) as bar:
        samples = draw_samples(
            checkpoint,
            settings,
            prompt=args.prompt,
            num=args.num,
            batch_size=args.batch_size,
            seed=args.seed,
            ending=Ending(args.stop_at_end, tuple(args.stop)),
            approximate=args.approximate_cache and ApproximateCache(*args.approximate_cache),
            device=device,
            keep=args.output,
            processes=processes,
            watch=lambda done, share: bar(share, f"writing passage {done + 1} of {args.num}"),
        )
    if processes.is_main:
        print(
            f"{args.output}: {len(samples)} passages; {num_evaluations(samples):.1f} calls of the network a batch, "
            f"{tokens_per_second(samples):.0f} tokens a second in each process"
        )
    return 0
