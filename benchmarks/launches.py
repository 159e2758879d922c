"""Count what generation asks of an accelerator: `python -m benchmarks.launches`.

The shipped model writes on a logical device (`hdlm.verification.logical_device`), so no accelerator is needed. For each
call of the network, on the average over a run:

    operators     what would launch kernels; views of memory are among them, so kernels are a little fewer
    waits         how often the program waits for the device before it can continue
    copies        between main memory and the device, in both directions

each inside of the network and outside of it. `benchmarks/launches.json` has the numbers of the last time, and a test
refuses larger ones: `python -m benchmarks.launches --renew` writes new ones, which belong into the same change as what
explains them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from hdlm.checkpoint import load_checkpoint
from hdlm.hyperschedule import AbstractHyperschedule, Block, Table, flat
from hdlm.package_data import pretrained
from hdlm.regime import Regime
from hdlm.sampling import ApproximateCache, Execution, Prompt, algorithm, sample
from hdlm.verification.logical_device import LogicalDevice

RECORD = Path(__file__).with_name("launches.json")
NAMES = ("operators", "waits", "copies")
SEQUENCES, LENGTH = 4, 16
BLOCK = Block(LENGTH, 8, 2)
FIRST = torch.arange(LENGTH)[None] == 0
GIVEN = Prompt(torch.zeros_like(FIRST, dtype=torch.long), FIRST)
"""The shipped model speaks of a position from the one before, so the first one is given."""
SETTINGS: dict[str, tuple[AbstractHyperschedule, str, dict[str, Any]]] = {
    "blocks": (BLOCK, "original", {}),
    "blocks, acs": (BLOCK, "acs", {}),
    "blocks, static buffers": (BLOCK, "original", {"slots": SEQUENCES}),
    "blocks, rows in step": (BLOCK, "original", {"together": True}),
    "blocks, approximate cache": (BLOCK, "original", {"approximate": ApproximateCache(4, active=True)}),
    "flat": (flat(LENGTH, 4), "original", {}),
    "table": (Table(torch.tensor([[2] * LENGTH, [1] * LENGTH, [0] * LENGTH])), "original", {}),
}


def count(setting: str) -> dict[str, float]:
    """The numbers of a setting, for a call of the network."""
    plan, name, options = SETTINGS[setting]
    options = dict(options)
    slots = options.pop("slots", 0)
    with LogicalDevice() as logical, torch.no_grad():
        checkpoint = load_checkpoint(pretrained() / "kjv-epsilon-4m", device=logical.device)
        denoiser = checkpoint.denoiser.eval()
        denoiser.backbone.speed_up(slots=slots)
        step = algorithm(name, denoiser.process, 0.1)
        inside: dict[str, int] = dict.fromkeys(NAMES, 0)
        with _counted(denoiser.backbone, logical, inside):
            logical.clear()
            execution = Execution(device=logical.device, **options)
            done = sample(
                denoiser,
                Regime(plan),
                step,
                num_sequences=SEQUENCES,
                prompt=GIVEN,
                execution=execution,
            )
        both = _now(logical)
    outside = {name: both[name] - inside[name] for name in NAMES}
    return {
        f"{name} {where}": round(numbers[name] / done.num_evaluations, 2)
        for name in NAMES
        for where, numbers in (("in the network", inside), ("around it", outside))
    }


def _now(logical: LogicalDevice) -> dict[str, int]:
    copies = len(logical.of_kind("to device", "to host"))
    return {"operators": logical.operators.total(), "waits": len(logical.of_kind("wait")), "copies": copies}


@contextlib.contextmanager
def _counted(backbone: Any, logical: LogicalDevice, inside: dict[str, int]) -> Iterator[None]:
    """Add what happens in a network to `inside`."""
    depth = 0

    def counting(function: Any) -> Any:
        def counted(*arguments: Any, **options: Any) -> Any:
            nonlocal depth
            before = _now(logical)
            depth += 1
            try:
                return function(*arguments, **options)
            finally:
                depth -= 1
                if not depth:
                    now = _now(logical)
                    inside.update({name: inside[name] + now[name] - before[name] for name in NAMES})

        return counted

    names = ("features", "features_of_many", "head")
    for name in names:
        setattr(backbone, name, counting(getattr(backbone, name)))
    try:
        yield
    finally:
        for name in names:
            delattr(backbone, name)


def main() -> int:
    """Print the numbers; with `--check`, 1 if one of them has grown."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.launches", description=__doc__)
    parser.add_argument("--check", action="store_true", help=f"compare with {RECORD.name}")
    parser.add_argument("--renew", action="store_true", help=f"write {RECORD.name}")
    options = parser.parse_args()
    found = {setting: count(setting) for setting in SETTINGS}
    columns = list(next(iter(found.values())))
    print(f"| for a call of the network | {' | '.join(columns)} |\n|---{'|---' * len(columns)}|")
    for setting, numbers in found.items():
        print(f"| {setting} | {' | '.join(f'{numbers[name]:g}' for name in columns)} |")
    if options.renew:
        RECORD.write_text(json.dumps(found, indent=1) + "\n")
    if not options.check:
        return 0
    grown = compare(found, json.loads(RECORD.read_text()))
    print(*grown, sep="\n", file=sys.stderr)
    return 1 if grown else 0


def compare(found: dict[str, dict[str, float]], recorded: dict[str, dict[str, float]]) -> list[str]:
    """What has grown, or is recorded and not counted any more, or the reverse."""
    grown = [f"{one}: counted or recorded, but not both" for one in sorted(found.keys() ^ recorded.keys())]
    for setting in found.keys() & recorded.keys():
        for name, number in found[setting].items():
            before = recorded[setting].get(name, -1.0)
            if number > before:
                grown.append(f"{setting}: {name} grew from {before:g} to {number:g}")
    return grown


if __name__ == "__main__":
    sys.exit(main())
