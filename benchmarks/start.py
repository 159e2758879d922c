"""How long a command takes before and while it works: `hdlm sample` of 64 tokens beside `import torch` alone.

    python -m benchmarks.start [--runs 5] [--json FILE]

Each program runs in a new interpreter, all of them in turn, so that a busy machine slows all of them alike. The table
gives seconds of processor time and of wall-clock time, and how much each program takes beyond `import torch`. The byte
code of the modules is there already, as after the first start of an installed package. Run it on a quiet machine:
processor time grows too when other programs share the cores.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

LOAD = "import hdlm; hdlm.load('kjv-epsilon-4m')"
SAMPLE = "from hdlm.cli import main; raise SystemExit(main(['sample', 'kjv-epsilon-4m', '--length', '64']))"
PROGRAMS = {
    "import torch": "import torch",
    "import hdlm": "import hdlm",
    "load the shipped model": LOAD,
    "hdlm sample, 64 tokens": SAMPLE,
}


def seconds_of(code: str) -> tuple[float, float]:
    """Processor time and wall-clock time of a new interpreter that runs the given code."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    before, begin = os.times(), time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, env=environment)
    wall, after = time.perf_counter() - begin, os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return used, wall


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.start", description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="runs of each program")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the seconds of every run to FILE")
    options = parser.parse_args()
    if options.runs < 1:
        parser.error(f"--runs must be at least 1; got {options.runs}")
    for code in PROGRAMS.values():
        seconds_of(code)  # byte code and the cache of the file system
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in PROGRAMS}
    for _ in range(options.runs):
        for name, code in PROGRAMS.items():
            measured[name].append(seconds_of(code))
    torch_alone = statistics.median(used for used, _ in measured["import torch"])
    print(
        "| program | processor s | fastest | slowest | wall s | beyond `import torch` |\n|---|---|---|---|---|---|"
    )
    for name, runs in measured.items():
        used = [one for one, _ in runs]
        wall = statistics.median(one for _, one in runs)
        middle = statistics.median(used)
        print(
            f"| {name} | {middle:.2f} | {min(used):.2f} | {max(used):.2f} | {wall:.2f} | {middle - torch_alone:+.2f} |"
        )
    if options.json:
        options.json.write_text(json.dumps(measured, indent=1))


if __name__ == "__main__":
    main()
