"""Options that name an output path: the path is checked before a verb begins its work."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hdlm.atomic import check_file, check_folder

PICTURES = frozenset(
    {
        ".avif",
        ".eps",
        ".gif",
        ".jpeg",
        ".jpg",
        ".pdf",
        ".pgf",
        ".png",
        ".ps",
        ".raw",
        ".rgba",
        ".svg",
        ".svgz",
    }
    | {".tif", ".tiff", ".webp"}
)
"""Suffixes of pictures that matplotlib can draw; it still refuses those that need a missing package."""


@dataclass(frozen=True)
class Output:
    """The `type` of an option that names an output path.

    Attributes:
        kind: A file; a picture; a file that is extended during the work and read again on resuming; a folder.
        names: Files in the folder that are replaced.
    """

    kind: Literal["file", "picture", "kept", "folder"]
    names: tuple[str, ...] = ()

    def __call__(self, text: str) -> Path:
        """Convert the argument on the command line to a path.

        Raises:
            ArgumentTypeError: If the argument is empty, as `"$UNSET"` is.
        """
        if not text:
            raise argparse.ArgumentTypeError("must name a place to write to; got an empty word")
        return Path(text)

    def check(self, path: Path) -> None:
        """Check that the place can be written to.

        Raises:
            ValueError: If the place cannot be written to.
        """
        if self.kind == "folder":
            check_folder(path, *self.names)
            return
        if self.kind == "picture" and path.suffix.lower() not in PICTURES:
            raise ValueError(f"{path}: a picture ends in .png, .svg or .pdf.")
        check_file(path, resumed=self.kind == "kept")


FILE, PICTURE, KEPT_FILE, FOLDER = Output("file"), Output("picture"), Output("kept"), Output("folder")


def check_outputs(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Check every output path of the options.

    Args:
        parser: The parser of the options.
        args: The parsed options.

    Raises:
        ValueError: If a place cannot be written to.
    """
    for option, output, path in _outputs(parser, args):
        try:
            output.check(path)
        except ValueError as error:
            raise ValueError(f"{option} {error}") from error


def _outputs(parser: argparse.ArgumentParser, args: argparse.Namespace) -> Iterator[tuple[str, Output, Path]]:
    """Flag, type and path of the options that name output paths, including those of the chosen subcommand."""
    for action in parser._actions:
        value = getattr(args, action.dest, None)
        if isinstance(action, argparse._SubParsersAction):
            if value is not None:
                yield from _outputs(action.choices[value], args)
        elif isinstance(action.type, Output) and isinstance(value, Path):
            yield action.option_strings[-1], action.type, value
