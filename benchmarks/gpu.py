"""Measure on a GPU: `make bench-gpu`. Prints the machine, then the tables of the sampling and training benchmarks."""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys

import torch

import hdlm

NONE = (
    "There is no CUDA device that PyTorch {torch} can use here, so nothing was run. On a machine with a GPU, install a "
    "build of PyTorch for CUDA into .venv (`.venv/bin/pip install --force-reinstall torch --index-url "
    "https://download.pytorch.org/whl/cu128`, see docs/gpu.md), and run the same command again."
)
COMMANDS = (
    ("benchmarks.sampling", "--device", "cuda"),
    ("benchmarks.train", "--device", "cuda"),
)


def describe() -> str:
    """Describe the GPUs and the versions.

    Raises:
        ValueError: If there is no GPU; the message says what to do.
    """
    if not torch.cuda.is_available():
        raise ValueError(NONE.format(torch=torch.__version__))
    devices = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    lines = [
        f"hdlm {hdlm.__version__}, torch {torch.__version__}, CUDA {torch.version.cuda}, {platform.platform()}"
    ]
    for number, one in enumerate(devices):
        bf16 = "with" if torch.cuda.is_bf16_supported(including_emulation=False) else "without"
        memory = one.total_memory / 2**30
        lines.append(
            f"cuda:{number}: {one.name}, {one.major}.{one.minor}, {memory:.0f} GiB, {bf16} units for bfloat16"
        )
    return "\n".join(lines)


def main() -> int:
    """Describe the machine, then run all benchmarks, even if one of them fails."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--describe", action="store_true", help="only describe the machine")
    options = parser.parse_args()
    try:
        print(describe(), flush=True)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if options.describe:
        return 0
    statuses = [subprocess.run([sys.executable, "-m", *command]).returncode for command in COMMANDS]
    return max(map(abs, statuses))


if __name__ == "__main__":
    sys.exit(main())
