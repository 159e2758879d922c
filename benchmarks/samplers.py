"""Compare every sampler with an exact denoiser: the command of the figures in docs/samplers.md.

    python -m benchmarks.samplers --output results/samplers            minutes on one core
    python -m benchmarks.samplers --output results/quick --quick       a smoke test

It is `hdlm verify samplers`, which has the same options. Writes samplers.json, samplers.png and report.md.
"""

from __future__ import annotations

import sys

from hdlm.cli import main

if __name__ == "__main__":
    sys.exit(main(["verify", "samplers", *sys.argv[1:]]))
