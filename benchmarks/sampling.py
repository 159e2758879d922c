"""Time generation with each optimisation of the sampler, and compare it with the published loop and the roofline.

    python -m benchmarks.sampling                                  the base size of the published networks
    python -m benchmarks.sampling --quick                          a smoke test of a small size
    python -m benchmarks.sampling --decoder                        the decoder network, beside the loop of transformers
    python -m benchmarks.sampling --overhead                       the time of the sampler without the network

One run uses one network with random weights, in float32. There is a row in bfloat16 if that is faster on the machine.
`plain` is the published loop: at every step all positions are computed, projected onto the vocabulary, and drawn with
float64 Gumbel noise. Each further row adds one optimisation.

Similar calls are timed once or twice, not a thousand times. Seconds are the time of the timed calls, times the number
of calls of the whole run, which is counted exactly (it does not depend on the network). All rows except those that are
called approximate have the distribution of the plain loop. The rows from the cache on also use its random numbers.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from benchmarks import decoder, overhead
from benchmarks.timing import Benchmark
from hdlm import Absorbing, Block, DDiT, DDiTConfig, Denoiser, EpsilonHybrid, Mean, algorithm, flat, sample
from hdlm.denoiser import AbstractDenoiser, Prediction
from hdlm.denoiser import ForwardContext as Asked
from hdlm.hyperschedule import AbstractHyperschedule
from hdlm.regime import Regime
from hdlm.sampling import (
    Ancestral,
    ApproximateCache,
    Engine,
    Execution,
    Finished,
    FirstHitting,
    Move,
    Prompt,
    Step,
)

_PACKED = "+ weights packed for few rows"
_BFLOAT16 = "+ weights in bfloat16"
_STATIC = "+ static buffers, recorded as CUDA graphs"
_REFRESH = 8
NUM_WORDS, LENGTH, WIDTH, NUM_LEVELS, BATCH = 4096, 128, 16, 8, 2


def benchmarks() -> Iterator[Benchmark]:
    """Two sequences from a small untrained network."""
    config = DDiTConfig(vocab_size=NUM_WORDS + 1, hidden_size=128, num_blocks=4, num_heads=4)
    denoiser = _Network(config).made_for(_PLAIN)
    for name, use_cache in (("original", False), ("original", True), ("acs", True), ("first_hitting", True)):
        yield _generation(denoiser, name, use_cache)


def _generation(denoiser: Denoiser, name: str, use_cache: bool) -> Benchmark:
    schedule, step = Block(LENGTH, WIDTH, NUM_LEVELS), algorithm(name, denoiser.process)
    return Benchmark(
        f"{name}, {BATCH} x {LENGTH}, {schedule.num_steps} steps{', cache' if use_cache else ''}",
        lambda: sample(
            denoiser, Regime(schedule), step, num_sequences=BATCH, execution=Execution(use_cache=use_cache)
        ),
        BATCH * LENGTH,
        "tokens",
    )


@final
@dataclass(frozen=True)
class Way:
    """A method of sampling.

    Attributes:
        name: What the row adds to the row before it.
        asks_always: Whether steps that change nothing call the network.
        use_cache: Whether settled positions are computed once.
        together: Whether sequences wait for one another.
        first_hitting: Whether masks are replaced one at a time.
        approximate: The approximate cache, if one is used.
        packed: Whether `DDiT.speed_up` has packed the weights.
        dtype: Precision of the weights.
        slots: Sequences that static buffers are reserved for, on accelerators.
    """

    name: str
    asks_always: bool = False
    use_cache: bool = False
    together: bool = True
    first_hitting: bool = False
    approximate: ApproximateCache | None = None
    packed: bool = False
    dtype: torch.dtype = torch.float32
    slots: int = 0

    def step(self, num_words: int) -> Step:
        """The step that the engine calls."""
        walk = Absorbing(num_words)
        if self.first_hitting:
            return FirstHitting(walk)
        return _AskAlways(Ancestral(walk)) if self.asks_always else Ancestral(walk)


@final
@dataclass(frozen=True)
class _AskAlways:
    """Calls the network even if no output will be read."""

    inner: Step

    def __call__(self, x: Tensor, move: Move) -> Tensor:
        move.reading.answer(move.moving)
        return self.inner(x, move)


@final
@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        task: Kind of generation.
        batch: Number of sequences at a time.
        way: Name of the method.
        calls: Calls of the network for the batch (NFE).
        calls_of_a_sequence: Calls that a sequence takes part in, on average.
        timed: Number of calls that were timed.
        seconds: Extrapolated time for a sequence: time of a call, times calls, over the batch.
        tokens_per_second: Tokens per second of the batch.
        limit: Time that the roofline model allows for a call, over its measured time.
        ratio: Time of the plain loop over the time of this row.
    """

    task: str
    batch: int
    way: str
    calls: int
    calls_of_a_sequence: float
    timed: int
    seconds: float
    tokens_per_second: float
    limit: float
    ratio: float


@final
@dataclass(frozen=True)
class Machine:
    """Measured limits of the machine.

    Attributes:
        device: The device that was measured.
        operations: Operations per second in products of float32 matrices.
        in_bfloat16: Operations per second in products of bfloat16 matrices.
        bandwidth: Bytes per second that are read.
    """

    device: str
    operations: float
    in_bfloat16: float
    bandwidth: float

    @property
    def low_precision_pays(self) -> bool:
        """Whether the machine has units for bfloat16."""
        return self.in_bfloat16 > 1.5 * self.operations

    def seconds(self, config: DDiTConfig, tokens: int, keys: int, rows: int, way: Way) -> float:
        """The least time of a call: each of `tokens` attends to `keys`, `rows` are projected, weights are read once."""
        width = config.hidden_size
        body = config.num_blocks * (4 + 2 * config.mlp_ratio) * width**2
        head = config.vocab_size * width if rows else 0
        operations = (
            2 * body * tokens + 4 * tokens * keys * width * config.num_blocks + 2 * head * max(rows, 1)
        )
        speed = self.operations if way.dtype == torch.float32 else self.in_bfloat16
        return max(operations / speed, way.dtype.itemsize * (body + head) / self.bandwidth)


_PLAIN = Way("plain")


@final
class _Free(AbstractDenoiser):
    """A denoiser that does not compute, to count calls."""

    process = Absorbing(2)

    @property
    def packs(self) -> bool:
        return True

    def predict(self, tokens: Tensor, noise: Tensor, context: Asked) -> Prediction:
        return Prediction(self.process, Mean(), tokens, noise, lambda at: torch.zeros(len(at), 3))


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sampling",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for name, default in (("hidden", 768), ("blocks", 12), ("heads", 12), ("words", 50_257), ("width", 16)):
        parser.add_argument(f"--{name}", type=int, default=default, help="default: %(default)s")
    parser.add_argument("--length", type=int, default=1024, help="number of positions (default: %(default)s)")
    parser.add_argument(
        "--steps",
        type=int,
        nargs="+",
        default=[128, 512, 1024],
        help="numbers of steps of full diffusion (default: 128 512 1024)",
    )
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8], help="batch sizes (default: 1 8)")
    parser.add_argument("--device", default="cpu", help="cpu, or an accelerator (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers to FILE")
    parser.add_argument(
        "--budget",
        type=float,
        default=480,
        help="seconds after which no further row is measured (default: %(default)s)",
    )
    parser.add_argument(
        "--quick", action="store_true", help="a small network and few steps, to check that the program works"
    )
    parser.add_argument(
        "--overhead", action="store_true", help="count the operations of the sampler with the shipped model"
    )
    parser.add_argument(
        "--decoder", action="store_true", help="the decoder network, beside the loop of transformers"
    )
    parser.add_argument(
        "--model", metavar="FOLDER", help="with --decoder: the errors of approximate caches for this model"
    )
    parser.add_argument("--mask-id", type=int, metavar="N", help="with --model: row of the mask")
    args = parser.parse_args()
    if args.decoder:
        decoder.report(quick=args.quick, model=args.model, mask_id=args.mask_id)
        return
    if args.overhead:
        overhead.main()
        return
    if args.quick:
        args.hidden, args.blocks, args.heads, args.words = 64, 2, 2, 500
        args.length, args.steps, args.batch = 64, [16, 64], [1, 3]
    config = DDiTConfig(args.words + 1, args.hidden, args.blocks, args.heads, max_length=args.length)
    machine, network = _machine(args.device), _Network(config, args.device)
    print(
        f"{args.device}, {torch.get_num_threads()} threads, torch {torch.__version__}; measured "
        f"{machine.operations / 1e9:.0f} GFLOP/s ({machine.in_bfloat16 / 1e9:.0f} in bfloat16) and "
        f"{machine.bandwidth / 1e9:.1f} GB/s\n\n| task | batch | method | NFE of the batch | NFE of a "
        "sequence | calls timed | s per sequence | tokens/s | limit / time | speed / plain |\n"
        + "|---" * 10
        + "|"
    )
    rows: list[Row] = []
    begin = time.perf_counter()
    for row in _rows(args, network, machine):
        rows.append(row)
        if time.perf_counter() - begin > args.budget:
            print(f"Stopped: --budget {args.budget:g} s are over, and rows may be missing.", flush=True)
            break
    if args.json is not None:
        numbers = {"machine": dataclasses.asdict(machine), "rows": [dataclasses.asdict(row) for row in rows]}
        args.json.write_text(json.dumps(numbers, indent=1) + "\n")


def _rows(args: argparse.Namespace, network: _Network, machine: Machine) -> Iterator[Row]:
    """All lines; each is measured when the iterator reaches it."""
    for batch in args.batch:
        denoiser = network.made_for(_PLAIN)
        plain = _seconds(lambda: _plain_step(denoiser, batch, args.length), 2 if batch == 1 else 1)  # noqa: B023
        yield from _blocks(network, machine, args.length, args.width, batch, plain)
        for steps in args.steps:
            yield from _full(network, machine, args.length, steps, batch, plain)


def _full(
    network: _Network, machine: Machine, length: int, steps: int, batch: int, plain: float
) -> Iterator[Row]:
    """Full diffusion: every call of the network computes all positions."""
    schedule = flat(length, steps)
    task = f"full diffusion, {steps} steps"
    ways = [
        Way("logits only where a word may change", asks_always=True),
        Way("+ steps that change nothing are skipped"),
    ]
    ways += [Way("+ each sequence at its own pace", together=False)] if batch > 1 else []
    ways += _prepared(ways[-1], machine)
    remembers = {"use_cache": True, "approximate": ApproximateCache(_REFRESH, active=True)}
    ways += [
        dataclasses.replace(
            ways[-1], name=f"approximate cache, refreshed every {_REFRESH} calls", **remembers
        )
    ]
    if steps > length // 2:
        hitting = {"name": "first-hitting instead, exact", "first_hitting": True, "together": False}
        ways += [dataclasses.replace(ways[-2], **hitting)]
    lift = max(1, length * batch // steps)
    at_best = machine.seconds(network.config, length * batch, length, length * batch, _PLAIN)
    yield _row(
        task, batch, "plain", (steps, steps), 2 if batch == 1 else 1, plain, at_best, plain * steps, length
    )
    for way in ways:
        timed = (2 if batch == 1 else 1) if way.approximate is None else 2 * _REFRESH
        *calls, asked = _count(schedule, way, batch)
        seconds = _time(network, schedule, way, batch, None, batch == 1, timed)
        at_best = machine.seconds(network.config, asked, length, lift, way)
        yield _row(task, batch, way.name, calls, timed, seconds, at_best, plain * steps, length)


def _blocks(
    network: _Network, machine: Machine, length: int, width: int, batch: int, plain: float
) -> Iterator[Row]:
    """Blocks of `width` with as many steps each. Calls after 1/4, 1/2 and 3/4 of the text are timed."""
    schedule = Block(length, width, width)
    steps, task = schedule.num_steps, f"blocks of {width}, {width} steps each"
    ways = [
        Way("logits only where a word may change", asks_always=True),
        Way("+ exact cache", asks_always=True, use_cache=True),
        Way("+ steps that change nothing are skipped", use_cache=True),
    ]
    ways += [Way("+ each sequence at its own pace", use_cache=True, together=False)] if batch > 1 else []
    ways += _prepared(ways[-1], machine)
    if machine.device != "cpu":
        ways += [dataclasses.replace(ways[-1], name=_STATIC, slots=batch)]
    at_best = machine.seconds(network.config, length * batch, length, length * batch, _PLAIN)
    yield _row(task, batch, "plain", (steps, steps), 1, plain, at_best, plain * steps, length)
    for way in ways:
        places = (length // 4, length // 2, 3 * length // 4) if way.use_cache else (length // 2,)
        timed = min(width, _count(Block(2 * width, width, width), way, batch)[0] // 2) if way.use_cache else 1
        seconds = statistics.mean(
            _time(network, schedule, way, batch, Prompt.prefix([1] * place, length), True, timed)
            for place in places
        )
        *calls, asked = _count(schedule, way, batch)
        at_best = machine.seconds(network.config, asked, length // 2, batch, way)
        yield _row(task, batch, way.name, calls, timed * len(places), seconds, at_best, plain * steps, length)


def _prepared(way: Way, machine: Machine) -> list[Way]:
    """Add rows with packed weights, and with bfloat16 weights if the machine is faster with them."""
    ready = dataclasses.replace(way, name=_PACKED, packed=True)
    lower = dataclasses.replace(ready, name=_BFLOAT16, dtype=torch.bfloat16)
    return ([ready] if machine.device == "cpu" else []) + ([lower] if machine.low_precision_pays else [])


def _row(
    task: str,
    batch: int,
    way: str,
    calls: Sequence[float],
    timed: int,
    of_a_call: float,
    at_best: float,
    plain: float,
    length: int,
) -> Row:
    """Measure one line, and print it."""
    total = of_a_call * calls[0]
    row = Row(
        task,
        batch,
        way,
        *calls,
        timed,
        total / batch,
        batch * length / total,
        at_best / of_a_call,
        plain / total,
    )
    cells = [row.task, row.batch, row.way, row.calls, f"{row.calls_of_a_sequence:.0f}", row.timed]
    cells += [f"{row.seconds:.3g}", f"{row.tokens_per_second:.3g}", f"{row.limit:.2f}", f"{row.ratio:.1f}"]
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)
    return row


@torch.no_grad()
def _time(
    network: _Network,
    schedule: AbstractHyperschedule,
    way: Way,
    batch: int,
    prompt: Prompt | None,
    warm: bool,
    calls: int,
) -> float:
    """Seconds from call to call, including the sampler. The first call, which reads the prompt, is left out."""
    denoiser = network.made_for(way)
    engine = _engine(denoiser, schedule, way, batch, prompt, network.device)
    while engine.num_evaluations < warm:
        engine.advance()
    _wait(network.device)
    begin, before = time.perf_counter(), engine.num_evaluations
    while engine.num_evaluations < before + calls and len(engine):
        engine.advance()
    _wait(network.device)
    return (time.perf_counter() - begin) / (engine.num_evaluations - before)


@torch.no_grad()
def _count(schedule: AbstractHyperschedule, way: Way, batch: int) -> tuple[int, float, int]:
    """Calls of the network for a batch, calls of a sequence, and the number of positions that a call computes."""
    engine = _engine(_Free(), schedule, way, batch, None)
    done: list[Finished] = []
    while len(engine):
        done += engine.advance()
    positions = sum(one.num_computed for one in done) / engine.num_evaluations
    return engine.num_evaluations, statistics.mean(one.num_evaluations for one in done), round(positions)


def _engine(
    denoiser: AbstractDenoiser,
    schedule: AbstractHyperschedule,
    way: Way,
    batch: int,
    prompt: Prompt | None,
    device: str = "cpu",
) -> Engine:
    step = way.step(denoiser.process.num_words)
    execution = Execution(use_cache=way.use_cache, approximate=way.approximate, device=device)
    engine = Engine(denoiser, Regime(schedule), step, execution=execution)
    given = {} if prompt is None else {"tokens": prompt.tokens.to(device), "fixed": prompt.fixed.to(device)}
    engine.add(torch.arange(batch, device=device), **given, together=way.together)
    return engine


@torch.no_grad()
def _plain_step(denoiser: Denoiser, batch: int, length: int) -> Tensor:
    """One step of the published loop: everything computed, projected, and drawn by float64 Gumbel noise, row by row."""
    words, device = denoiser.process.num_words, denoiser.device
    x = torch.full((batch, length), words, device=device)
    hidden = denoiser.backbone.features(x)
    lifted = torch.rand(batch, length, device=device) < 0.01
    drawn = []
    for row in hidden:
        p = denoiser.backbone.head(row)[:, :words].double().softmax(-1)
        noise = 1e-10 - (torch.rand_like(p) + 1e-10).log()
        drawn.append((p / noise).argmax(-1))
    return torch.where(lifted, torch.stack(drawn), x)


@final
class _Network:
    """One network with random weights, prepared once for each method.

    The output layer of a new network is zero, so random weights are drawn for it too.
    """

    def __init__(self, config: DDiTConfig, device: str = "cpu") -> None:
        torch.manual_seed(0)
        self.config, self.device = config, device
        self._first = DDiT(config).eval().requires_grad_(False)
        torch.nn.init.normal_(self._first.output_layer.linear.weight, std=0.02)
        self._first = self._first.to(device)
        self._made: dict[tuple[object, ...], Denoiser] = {}

    def made_for(self, way: Way) -> Denoiser:
        """The network as the method needs it; all float32 networks share their weights."""
        kind = way.packed, way.dtype, way.slots
        if kind not in self._made:
            with torch.device("meta"):
                network = DDiT(self.config).eval()
            network.load_state_dict(self._first.state_dict(), assign=True)
            network.rotary_emb = self._first.rotary_emb
            network = network.requires_grad_(False).to(way.dtype)
            if way.packed or way.slots:
                network.speed_up(slots=way.slots)
            process = EpsilonHybrid(self.config.vocab_size - 1, epsilon=0.01)
            self._made[kind] = Denoiser(network, process, Mean())
        return self._made[kind]


def _wait(device: str) -> None:
    """Wait until an accelerator has finished its work."""
    if device != "cpu":
        torch.accelerator.synchronize()


def _seconds(work: Callable[[], object], runs: int) -> float:
    """The shortest time of several runs."""
    times = []
    for _ in range(runs):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return min(times)


def _machine(device: str) -> Machine:
    """Measure large matrix products, and a large sum."""
    rows = 512 if device == "cpu" else 8192
    large = torch.ones(2**26, device=device)

    def operations(dtype: torch.dtype) -> float:
        a = torch.randn(rows, 768, device=device, dtype=dtype)
        b = torch.randn(768, 3072, device=device, dtype=dtype)
        return 2 * rows * 768 * 3072 / _seconds(lambda: (a @ b, _wait(device)), 8)

    bandwidth = 4 * len(large) / _seconds(lambda: (large.sum(), _wait(device)), 5)
    return Machine(device, operations(torch.float32), operations(torch.bfloat16), bandwidth)


if __name__ == "__main__":
    main()
