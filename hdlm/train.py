"""Train a new model, as a published configuration says: `python hdlm/train.py --config-name epsilon_hdlm`."""

from __future__ import annotations

import sys
from pathlib import Path

# Run as a file, its own folder comes first on the path, where the modules of this package would pass for others.
if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])


def main() -> int:
    """Do it with the arguments of the process; the answer is the exit status."""
    from hdlm.cli._errors import guarded
    from hdlm.published.training import run_training

    return guarded("hdlm/train.py", run_training, sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
