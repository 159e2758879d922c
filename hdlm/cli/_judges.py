"""The option `--judge`: who judges generated text."""

from __future__ import annotations

import argparse

USUAL, NOBODY = "gpt2-large", "none"
"""Who judges unless somebody else is named, as the field has it; and the word for no judge."""


def add_judge(parser: argparse._ActionsContainer) -> None:
    """Add `--judge`, which may be given several times; read it with `judges_asked`."""
    parser.add_argument(
        "--judge",
        action="append",
        metavar="MODEL",
        help=f"who judges perplexity: the folder or hub name of a causal language model, or a checkpoint of hdlm; may "
        f"be given again; {NOBODY} for nobody (default: {USUAL})",
    )


def judges_asked(args: argparse.Namespace) -> list[str]:
    """The words that `--judge` took down.

    Raises:
        ValueError: If nobody is asked, and somebody too.
    """
    words: list[str] = args.judge or [USUAL]
    if words == [NOBODY]:
        return []
    if NOBODY in words:
        raise ValueError(f"--judge {NOBODY} is for no judge at all; got {', '.join(words)}.")
    return words
