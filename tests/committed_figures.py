"""The part of the golden figures that is committed: where it is, and what it leaves out of the full set.

`tests/parity/data/README.md` describes the figures, `tests/parity/make_data.py` makes the archive.
"""

from __future__ import annotations

import json
import re
import tarfile
from pathlib import Path

__all__ = ["missing_figure", "unpack"]

_DATA = Path(__file__).parent / "parity" / "data"


def unpack(folder: Path) -> Path:
    """Unpack the committed figures in the layout of the full set.

    Args:
        folder: The folder to write `golden/` to.

    Returns:
        The folder, which takes the place of the folder of shared data.
    """
    with tarfile.open(_DATA / "golden.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


def missing_figure(error: BaseException) -> str | None:
    """Find the name of the figure that a test did not find because it is not committed.

    Args:
        error: A `KeyError` of an array, or an error whose message names the path of a file.

    Returns:
        The name, or None where the error has another cause: it names nothing from the list of what was left out.
    """
    left_out = json.loads((_DATA / "left_out.json").read_text())
    if isinstance(error, KeyError) and error.args:
        name = re.sub(r" is not a file in the archive$", "", str(error.args[0]))
        return name if any(name in names for names in left_out["arrays"].values()) else None
    named = re.search(r"(\S*/golden/)([\w./-]*\w)", str(error))
    if named is None or Path(named[1], named[2]).exists():
        return None
    return next((file for file in left_out["files"] if f"{file}/".startswith(f"{named[2]}/")), None)
