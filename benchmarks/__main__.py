"""Run benchmarks and print a Markdown table."""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
from pathlib import Path

import torch

import hdlm
from benchmarks import attention, hyperschedule, network, process, randomness, sampling
from benchmarks.timing import Measurement, measure

TOPICS = {
    "hyperschedule": hyperschedule.benchmarks,
    "process": process.benchmarks,
    "attention": attention.benchmarks,
    "network": network.benchmarks,
    "randomness": randomness.benchmarks,
    "sampling": sampling.benchmarks,
}


def main() -> None:
    """Measure the topics that the arguments name."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "topics", nargs="*", metavar="TOPIC", help=f"one of {', '.join(TOPICS)}; default: all"
    )
    parser.add_argument(
        "--seconds", type=float, default=1.0, help="seconds that each benchmark takes at least"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers to FILE")
    options = parser.parse_args()
    unknown = sorted(set(options.topics) - set(TOPICS))
    if unknown:
        parser.error(f"unknown topic {', '.join(unknown)}; choose from {', '.join(TOPICS)}")

    machine = _machine()
    print("; ".join(f"{key} {value}" for key, value in machine.items()), end="\n\n")
    print("| benchmark | median ms | fastest | slowest | runs | per second |\n|---|---|---|---|---|---|")
    results: list[Measurement] = []
    for topic in options.topics or TOPICS:
        for benchmark in TOPICS[topic]():
            results.append(measure(benchmark, options.seconds))
            print(_row(results[-1]), flush=True)
    if options.json is not None:
        numbers = [dataclasses.asdict(result) for result in results]
        options.json.write_text(json.dumps({"machine": machine, "results": numbers}, indent=1) + "\n")


def _machine() -> dict[str, str]:
    return {
        "processor": platform.machine(),
        "threads": str(torch.get_num_threads()),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "hdlm": hdlm.__version__,
    }


def _row(result: Measurement) -> str:
    times = " | ".join(f"{1000 * t:.3g}" for t in (result.median, result.fastest, result.slowest))
    return f"| {result.name} | {times} | {result.num_runs} | {result.per_second:,.0f} {result.unit} |"


if __name__ == "__main__":
    main()
