r"""A step of training: the plain published one beside ours, with one optimisation after another.

    python -m benchmarks.train                              base size: 12 blocks of 768, 50257 words, 1024 tokens
    python -m benchmarks.train --scaling --lengths 256 1024 --batches 1 4 --processes 1 2

Each line is a process of its own, so that its peak memory is its own. *Plain* is the published step written anew: all
pairs of positions and heads in one tensor, all logits in float32 and their log-softmax, AdamW tensor by tensor. Its
network, noise and loss are those of the other lines, so that they differ in nothing else; of a packed pass it projects
only the noisy half.

A position is *taught* if its loss has a weight. On one canvas these are those of one block, in two streams all of them:
compare tokens with lines of the same layout, taught tokens with any. MFU is the arithmetic that the model needs
(`hdlm.training.monitor.flops`) over what a product of matrices achieves on this machine in float32, measured in the
same run; its inverse bounds what any optimisation could still gain here.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hdlm.denoiser import Denoiser
from hdlm.hyperschedule import Block
from hdlm.network import DDiT, DDiTConfig, attention, layers
from hdlm.network.recomputation import Recomputation
from hdlm.objective import Corruption, WeightedCrossEntropy
from hdlm.parameterization import Mean
from hdlm.process import EpsilonHybrid
from hdlm.regime import Regime
from hdlm.training.monitor.flops import peak_flops, training_flops
from hdlm.vocabulary import GPT2

NUM_LEVELS = 16


@final
@dataclass(frozen=True)
class Variant:
    """One way to take a step; each field is an optimisation."""

    name: str
    two_stream: bool = True
    kernel: bool = True
    pieces: bool = True
    rows: bool = True
    fused: bool = True
    bf16: bool = False
    compile: bool = False
    recomputation: Recomputation = "none"


PLAIN = {"kernel": False, "pieces": False, "rows": False, "fused": False}
VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("plain, one canvas", two_stream=False, **PLAIN),
        Variant("plain, two streams", **PLAIN),
        Variant("+ attention kernel", pieces=False, rows=False, fused=False),
        Variant("+ nothing where the mask is empty", rows=False, fused=False),
        Variant("+ loss in pieces", fused=False),
        Variant("+ fused AdamW"),
        Variant("+ torch.compile", compile=True),
        Variant("+ bf16", bf16=True),
        Variant("+ selective recomputation", recomputation="selective"),
        Variant("+ full recomputation", recomputation="full"),
        Variant("all, one canvas", two_stream=False),
    )
}
OURS = "+ fused AdamW"
OPTIONAL = ("+ torch.compile", "+ bf16")
"""Only where there is a compiler, or units for bf16; or if they are asked for."""


def explicit(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Attention by its formula: `[b heads q k]` scores, and as many probabilities."""
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(-1) @ value


@final
class Step(nn.Module):
    """The loss of a batch, as a variant computes it."""

    def __init__(self, options: argparse.Namespace, variant: Variant, device: torch.device) -> None:
        super().__init__()
        config = config_of(options)
        process = EpsilonHybrid(config.vocab_size - 1, 0.01)
        self.denoiser = Denoiser(DDiT(config).to(device), process, Mean())
        self.corruption = Corruption(
            process, Regime(Block(options.length, options.width, NUM_LEVELS)), two_stream=variant.two_stream
        )
        self.objective, self.variant = WeightedCrossEntropy(1.0), variant
        network = self.denoiser.backbone
        network.checkpoint_activations = variant.recomputation
        if variant.compile:
            network.features = torch.compile(network.features)
        if not variant.kernel:
            layers.attend = explicit  # type: ignore[assignment]
        if not variant.pieces:
            attention.cut = lambda mask: mask  # type: ignore[assignment]

    def forward(self, x_0: Tensor, times: Tensor, draw: Tensor) -> Tensor:
        """Mean loss of a position."""
        device = self.denoiser.device
        canvas = self.corruption(x_0, times, draw, device)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.variant.bf16):
            if self.variant.rows:
                return self.objective.mean(self.denoiser, canvas, device)
            canvas = canvas.to(device)
            prediction = canvas.predict(self.denoiser)
            words = self.denoiser.process.num_words
            logits = prediction.raw(prediction.everywhere()).float()[:, :words]
        nats = -F.log_softmax(logits, -1).gather(-1, canvas.x_0.flatten()[:, None])[:, 0]
        weight = (canvas.measure * self.objective.weights(self.denoiser.process, canvas)).flatten()
        return (weight.to(nats.dtype) * nats).mean()

    def taught(self, x_0: Tensor, times: Tensor, draw: Tensor) -> int:
        """Positions whose loss has a weight."""
        canvas = self.corruption(x_0, times, draw)
        return int((canvas.measure * self.objective.weights(self.denoiser.process, canvas) > 0).sum())


def config_of(options: argparse.Namespace) -> DDiTConfig:
    """The network's shape."""
    return DDiTConfig(
        vocab_size=options.vocabulary + 1,
        hidden_size=options.hidden,
        num_blocks=options.blocks,
        num_heads=options.heads,
        max_length=options.length,
    )


def measure(options: argparse.Namespace, variant: Variant) -> dict[str, Any]:
    """Take some steps in this process, the first of which only warms up."""
    device = torch.device(options.device)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes > 1:
        torch.distributed.init_process_group("gloo" if device.type == "cpu" else "nccl")
    torch.manual_seed(0)
    step = Step(options, variant, device).train()
    wrapped = nn.parallel.DistributedDataParallel(step) if processes > 1 else step
    optimizer = torch.optim.AdamW(step.parameters(), 3e-4, fused=variant.fused or None, foreach=False)
    seconds: list[float] = []
    numbers = torch.Generator().manual_seed(1)
    shape = options.batch, options.length
    for _ in range(options.steps + 1):
        x_0 = torch.randint(options.vocabulary, shape, generator=numbers)
        times = torch.rand(options.batch, step.corruption.num_times, generator=numbers, dtype=torch.float64)
        batch = x_0, times, torch.rand(shape, generator=numbers, dtype=torch.float64)
        began = time.perf_counter()
        loss = wrapped(*batch)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(step.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        found = float(loss.detach()), float(norm)
        seconds.append(time.perf_counter() - began)
    return {
        "name": variant.name,
        "seconds": statistics.median(seconds[1:]),
        "bytes": _peak_memory(device),
        "loss": found[0],
        "taught": step.taught(*batch) * processes,
        "tokens": x_0.numel() * processes,
        "flops": training_flops(config_of(options), options.length, two_stream=variant.two_stream)
        * options.batch
        * processes,
    }


def _peak_memory(device: torch.device) -> int:
    if device.type == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return torch.cuda.max_memory_allocated(device)


def in_a_process(
    options: argparse.Namespace, name: str, processes: int = 1, **changes: int
) -> dict[str, Any]:
    """The same in processes of their own; the numbers of the first.

    Raises:
        RuntimeError: If one of them fails; its last words are quoted.
    """
    given = {**vars(options), **changes}
    shape = ("length", "batch", "blocks", "hidden", "heads", "vocabulary", "width", "steps", "device")
    command = [sys.executable, "-m", "benchmarks.train", "--one", name]
    command += [word for option in shape for word in (f"--{option}", str(given[option]))]
    environment = os.environ | {"MASTER_ADDR": "localhost", "MASTER_PORT": str(_free_port())}
    environment |= {"OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // processes))}
    running = [
        subprocess.Popen(
            command,
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]
    outputs = [process.communicate() for process in running]
    for process, (_, error) in zip(running, outputs, strict=True):
        if process.returncode:
            raise RuntimeError(f"{name!r} failed ({process.returncode}): {error.strip()[-500:]}")
    found: dict[str, Any] = json.loads(outputs[0][0].splitlines()[-1])
    return found


def _free_port() -> int:
    with socket.socket() as open_socket:
        open_socket.bind(("localhost", 0))
        return int(open_socket.getsockname()[1])


def ablation(options: argparse.Namespace, peak: float, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Every variant in turn; ratios are to the plain step of the same layout, and of taught tokens to the first."""
    names = options.only or [n for n in VARIANTS if n not in OPTIONAL or n in options.also]
    say("| step | s | tokens/s | ratio | taught/s | ratio | peak memory | ratio | MFU | loss |")
    say("|---|---|---|---|---|---|---|---|---|---|")
    results: list[dict[str, Any]] = []
    for name in names:
        found = in_a_process(options, name)
        results.append(found)
        same = VARIANTS[name].two_stream
        plain = next((r for r in results if VARIANTS[r["name"]].two_stream == same), found)
        rate, taught = plain["seconds"] / found["seconds"], found["taught"] / found["seconds"]
        first = results[0]["taught"] / results[0]["seconds"]
        say(
            f"| {name} | {found['seconds']:.3g} | {found['tokens'] / found['seconds']:,.0f} | {rate:.2f} | "
            f"{taught:,.0f} | {taught / first:.2f} | {found['bytes'] / 2**30:.2f} GiB | "
            f"{found['bytes'] / plain['bytes']:.2f} | {found['flops'] / found['seconds'] / peak:.1%} | "
            f"{found['loss']:.4f} |"
        )
    return results


def scaling(options: argparse.Namespace, peak: float, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Our step over lengths, batches and processes; a batch is one process's."""
    say("\n| processes | length | batch | s | tokens/s | peak memory of a process | MFU |")
    say("|---|---|---|---|---|---|---|")
    results = []
    for processes in options.processes or [1]:
        for length in options.lengths or [options.length]:
            for batch in options.batches or [options.batch]:
                found = in_a_process(options, OURS, processes, length=length, batch=batch)
                results.append({**found, "processes": processes, "length": length, "batch": batch})
                say(
                    f"| {processes} | {length} | {batch} | {found['seconds']:.3g} | "
                    f"{found['tokens'] / found['seconds']:,.0f} | {found['bytes'] / 2**30:.2f} GiB | "
                    f"{found['flops'] / found['seconds'] / peak:.1%} |"
                )
    return results


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sizes = {"length": 1024, "batch": 1, "blocks": 12, "hidden": 768, "heads": 12, "width": 16, "steps": 2}
    for option, default in (sizes | {"vocabulary": GPT2.num_words}).items():
        parser.add_argument(f"--{option}", type=int, default=default, metavar="N", help=f"default {default}")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--also", nargs="*", default=[], choices=OPTIONAL, help="measure these too")
    parser.add_argument("--only", nargs="*", choices=list(VARIANTS), help="measure these, in this order")
    parser.add_argument("--scaling", action="store_true", help="a table over sizes instead")
    for option, default in {"lengths": "--length", "batches": "--batch", "processes": "1"}.items():
        parser.add_argument(
            f"--{option}", type=int, nargs="+", metavar="N", help=f"of --scaling; default {default}"
        )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers to FILE too")
    parser.add_argument("--one", choices=list(VARIANTS), help=argparse.SUPPRESS)
    return parser


def main() -> None:
    """Measure the variants, or the sizes."""
    options = _parser().parse_args()
    if options.one is not None:
        print(json.dumps(measure(options, VARIANTS[options.one])))
        return
    device = torch.device(options.device)
    peak = peak_flops(device, bf16=device.type != "cpu")
    if peak is None:
        raise SystemExit(
            f"the peak of {device} is not known to hdlm.training.monitor.flops: MFU means nothing."
        )
    config = config_of(options)
    print(
        f"{config.num_blocks} blocks of {config.hidden_size}, {config.vocab_size} rows; "
        f"length {options.length}, batch {options.batch}; {device}, "
        f"{torch.get_num_threads()} threads, {peak / 1e9:,.0f} GFLOP/s in products of matrices; "
        f"a sequence needs {training_flops(config, options.length, two_stream=False) / 1e9:,.0f} GFLOP on one canvas, "
        f"{training_flops(config, options.length, two_stream=True) / 1e9:,.0f} in two streams\n"
    )
    table = scaling if options.scaling else ablation
    results = table(options, peak, lambda line: print(line, flush=True))
    if options.json is not None:
        options.json.write_text(json.dumps({"peak": peak, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
