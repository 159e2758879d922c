"""What the toolkit does on a logical device, as a program: `python tests/on_a_logical_device.py REPORT`.

`--renew` writes what it found into `allowed_waits.json`; places that are new there have no reason yet. `--device cuda`
runs the scenarios on a real accelerator instead, where only the results are compared.

PyTorch starts the threads of autograd for the devices that it knows at the first backward pass of a process, so the
logical device must be there before: hence a process of its own. Each scenario runs on the CPU and on the device; the
report says whether both found the same, how many calls of the network there were, and which events. Then the same with
a fault of each kind, which must show in the report.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from along import sample_along  # a script finds the modules beside it, not the package `tests`
from tiny import tiny_algorithm, tiny_denoiser
from torch import Tensor

from hdlm.checkpoint import load_checkpoint
from hdlm.denoiser import AbstractDenoiser, Denoiser, Guided
from hdlm.evaluation import estimate_likelihood
from hdlm.hub import load
from hdlm.hyperschedule import (
    AbstractHyperschedule,
    Block,
    PublishedSlide,
    PublishedWave,
    Slide,
    Table,
    Wave,
    autoregressive,
    flat,
)
from hdlm.network import DDiT, DDiTConfig, static
from hdlm.objective import NELBO, AbstractObjective, Corruption, ScoreEntropy, WeightedCrossEntropy
from hdlm.parameterization import LogScore, Mean, Shifted
from hdlm.process import Absorbing, EpsilonHybrid, GammaHybrid
from hdlm.randomness import Randomness
from hdlm.regime import Regime
from hdlm.sampling import (
    ALGORITHMS,
    Ancestral,
    ApproximateCache,
    Engine,
    Execution,
    MinP,
    Prompt,
    RepetitionPenalty,
    Step,
    Temperature,
    TopK,
    TopP,
    Trace,
    algorithm,
)
from hdlm.training import Recipe, Session, StopRequest, build_setup
from hdlm.verification.logical_device import Event, LogicalDevice

CPU = torch.device("cpu")
WORDS = 7
EPSILON, GAMMA = EpsilonHybrid(WORDS, 0.2), GammaHybrid(WORDS, 0.1)
LENGTH = 6
GIVEN = Prompt(torch.tensor([[1, 2, 0, 0, 0, 0]]), torch.tensor([[True, True, False, False, False, False]]))
TABLE = Table(torch.tensor([[2] * 6, [1, 1, 1, 2, 2, 2], [0, 0, 1, 1, 2, 2], [0, 0, 0, 0, 1, 1], [0] * 6]))


@dataclass(frozen=True)
class Found:
    """What a scenario found.

    Attributes:
        value: Tensors or numbers, which must not depend on the device.
        calls: Calls of the network, or steps of training.
    """

    value: Any
    calls: int


Scenario = Callable[[torch.device, Path], Found]
SCENARIOS: dict[str, Scenario] = {}


def samples(
    denoiser: Callable[[], AbstractDenoiser],
    step: Step,
    plan: AbstractHyperschedule,
    guidance: float = 0.0,
    **options: Any,
) -> Scenario:
    """Two sequences."""

    def scenario(device: torch.device, folder: Path) -> Found:
        own: Any = denoiser()
        own = own.to(device)
        if guidance:
            own = Guided(own, GIVEN.fixed.to(device), guidance)
        frames: list[Tensor] = []
        if options.get("watch"):
            options["watch"] = lambda frame: frames.append(frame.after.cpu())
        settings = {"prompt": GIVEN, **options}
        trace = Trace(own.process.mask_id, alternatives=2) if settings.pop("trace", False) else None
        if trace is not None:
            settings["watch"] = trace
        done = sample_along(own, plan, step, num_sequences=2, device=device, **settings)
        recorded = [] if trace is None else [numbers_of_changes(trace)]
        return Found([done.tokens, done.lengths, *frames, *recorded], done.num_evaluations)

    return scenario


def numbers_of_changes(trace: Trace) -> Tensor:
    """The entropy at each change, and the probability of the likeliest word; -1 without a reading."""
    rows = [(change.entropy, change.alternatives) for change in trace.changes]
    return torch.tensor([[-1.0, -1.0] if h is None or not best else [h, best[0][1]] for h, best in rows])


def plain(process: Any = EPSILON, parameterization: Any = None, **options: Any) -> Callable[[], Denoiser]:
    return lambda: tiny_denoiser(process, parameterization, num_blocks=1, **options)


def list_samplers(quick: bool) -> None:
    plan = Block(LENGTH, 3, 2)
    for number, name in enumerate(ALGORITHMS):
        both = (GAMMA, EPSILON)
        for process in (both[number % 2],) if quick else both:
            if name != "first_hitting" or process is EPSILON:
                SCENARIOS[f"sampling: {name}, {type(process).__name__}"] = samples(
                    plain(process), tiny_algorithm(name, process, 0.1), plan
                )
    absorbing, scores = Absorbing(WORDS), plain(Absorbing(WORDS), LogScore(), conditioned=True)
    for name in ("analytic", "euler"):
        SCENARIOS[f"sampling: {name}, scores"] = samples(scores, algorithm(name, absorbing), plan)
    for other in (
        Slide(LENGTH, 3, 2),
        Wave(LENGTH, 3, 4),
        PublishedSlide(LENGTH, 3, 2),
        PublishedWave(LENGTH, 3, 2),
        flat(LENGTH, 3),
        autoregressive(LENGTH),
        TABLE,
    ):
        SCENARIOS[f"sampling along {other}"] = samples(plain(), Ancestral(), other)
    changes = (Temperature(0.7), TopK(4), TopP(0.9), MinP(0.01), RepetitionPenalty(1.2))
    variants: dict[str, dict[str, Any]] = {
        "transforms": {"transforms": changes},
        "guidance": {"guidance": 1.5},
        "rows in step": {"together": True},
        "no cache": {"use_cache": False},
        "approximate cache": {"approximate": ApproximateCache(2, active=True)},
        "approximate cache, full context": {"approximate": ApproximateCache(2), "context": "full"},
        "causal context": {"context": "causal"},
        "one after the other": {"batch_size": 1},
        "a stop": {"stop": lambda sequence, tokens: 4 if len(tokens) > 3 else None},
        "a watcher": {"watch": True},
        "a trace": {"trace": True},
        "no prompt": {"prompt": None},
    }
    for name, options in variants.items():
        SCENARIOS[f"sampling with {name}"] = samples(plain(), Ancestral(), plan, **options)
    SCENARIOS["sampling with a shifted network"] = samples(
        plain(Absorbing(WORDS), Shifted(Mean())), Ancestral(), plan
    )


def objective_of(
    objective: AbstractObjective, process: Any, parameterization: Any, two_stream: bool
) -> Scenario:
    """The loss of a batch that is noised on the host, and of one that is on the device, and their gradients."""

    def scenario(device: torch.device, folder: Path) -> Found:
        told = isinstance(parameterization, LogScore)
        denoiser = tiny_denoiser(process, parameterization, conditioned=told, num_blocks=1).to(device)
        corruption = Corruption(process, Regime(Block(LENGTH, 3, 2)), two_stream=two_stream)
        numbers, rows = Randomness(3), torch.arange(2)[:, None]
        x_0 = torch.tensor([[1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1]])
        times = numbers.uniform(rows, 0, torch.arange(corruption.num_times)[None])
        draw = numbers.uniform(rows, 1, torch.arange(LENGTH)[None])
        mean = objective.mean(denoiser, corruption(x_0, times, draw, device), device)
        mean.backward()
        gradients = [one.grad for one in denoiser.parameters() if one.grad is not None]
        there = corruption(x_0.to(device), times.to(device), draw.to(device))
        return Found([mean, objective(denoiser, there), *gradients], 2)

    return scenario


def list_objectives() -> None:
    for two_stream in (False, True):
        layout = "two streams" if two_stream else "one canvas"
        for name, objective, process, parameterization in (
            ("weighted cross-entropy, epsilon", WeightedCrossEntropy(), EPSILON, Mean()),
            ("score entropy, gamma", ScoreEntropy(), GAMMA, Mean()),
            ("score entropy, absorbing scores", ScoreEntropy(), Absorbing(WORDS), LogScore()),
            ("bound, gamma", NELBO(), GAMMA, Mean()),
        ):
            SCENARIOS[f"objective: {name}, {layout}"] = objective_of(
                objective, process, parameterization, two_stream
            )


def training(optimizer: str, **changes: dict[str, Any]) -> Scenario:
    """Steps of a run with its warm start and two layouts; then a checkpoint, and one step more from it."""

    def scenario(device: torch.device, folder: Path) -> Found:
        text = folder / "rhyme.txt"
        text.write_text("the cat sat on the mat and the dog sat on the log . " * 30)
        block = {"type": "Block", "width": 4, "num_levels": 4}
        table: dict[str, Any] = {
            "data": {"corpus": [str(text)], "vocabulary": 265, "context": 8, "validation": 0.1},
            "network": {"hidden_size": 16, "num_blocks": 1, "num_heads": 2},
            "mixture": [{"hyperschedule": block}, {"hyperschedule": block, "two_stream": False}],
            "optimizer": {"name": optimizer},
            "run": {"steps": 6, "batch_size": 2, "precision": "no", "accumulation": 1},
        }
        for name, options in changes.items():
            table[name] = {**table.get(name, {}), **options}
        run = build_setup(Recipe.from_table(table), device)
        trainer, reports = run.trainer(), []
        with NOTED.only("training"):
            trainer.train(StopRequest(), (reports.append,))
        state = trainer.state()
        again = build_setup(Recipe.from_table(table), device).trainer()
        again.restore(state)
        places = {one.device for one in run.denoiser.parameters()}
        assert {one.type for one in places} == {device.type}, f"trained on {places}, not on {device}"
        assert device.index is None or places == {device}, f"trained on {places}, not on {device}"
        weights = [value for _, value in sorted(again.state().weights.items())]
        losses = torch.tensor([one.loss for one in reports])
        if optimizer == "muon":  # accelerators have torch's Muon, which rounds to bfloat16
            return Found((10 * losses).round(), len(reports))
        return Found([losses, *weights], len(reports))

    return scenario


def list_training() -> None:
    SCENARIOS["training: Muon"] = training("muon")
    SCENARIOS["training: AdamW"] = training("adamw")
    SCENARIOS["training: Muon, accumulated"] = training("muon", run={"accumulation": 2})
    for much in ("selective", "full"):
        SCENARIOS[f"training: AdamW, {much} recomputation"] = training(
            "adamw", network={"checkpoint_activations": much}
        )


def likelihood(bound: str, estimator: str | None, plan: AbstractHyperschedule, process: Any) -> Scenario:
    def scenario(device: torch.device, folder: Path) -> Found:
        denoiser = tiny_denoiser(process, num_blocks=1).to(device).eval()
        tokens = torch.arange(14) % WORDS
        options: Any = {"bound": bound, "estimator": estimator}
        result = estimate_likelihood(
            denoiser, tokens, Regime(plan), device=device, replicates=2, batch_size=2, **options
        )
        return Found(torch.tensor(result.estimates), 3)

    return scenario


def list_evaluation() -> None:
    for name, plan in (("block", Block(LENGTH, 3, 2)), ("flat", flat(LENGTH, 2))):
        SCENARIOS[f"likelihood: absorbing, {name}"] = likelihood("absorbing", None, plan, EPSILON)
        SCENARIOS[f"likelihood: hybrid, {name}"] = likelihood("hybrid", None, plan, GAMMA)
    SCENARIOS["likelihood: exact"] = likelihood("absorbing", "exact", autoregressive(LENGTH), EPSILON)


def slots(device: torch.device, folder: Path) -> Found:
    """The engine with static buffers; every use of a shape is a region that a CUDA graph would capture."""
    torch.manual_seed(0)
    network = DDiT(DDiTConfig(WORDS + 1, 16, 2, 2, cond_dim=8, max_length=24)).double().eval().to(device)
    for parameter in network.parameters():
        parameter.data.copy_(
            torch.linspace(-0.4, 0.4, parameter.numel(), dtype=torch.float64).sin().view(parameter.shape)
        )
    network.speed_up(slots=2)
    own = network.static
    assert own is not None
    run = own._run

    def captured(width: int, reach: int) -> Tensor:
        with NOTED.capturing():
            return run(width, reach)

    own._run = captured
    engine = Engine(
        Denoiser(network, EPSILON, Mean()),
        Regime(Block(12, 4, 2)),
        Ancestral(),
        execution=Execution(device=device),
    )
    engine.add(torch.arange(2, device=device))
    done = []
    with torch.no_grad():
        while len(engine):
            done += engine.advance()
    assert own.num_calls == engine.num_evaluations > 0
    return Found([one.tokens for one in sorted(done, key=lambda one: one.sequence)], engine.num_evaluations)


def storage(device: torch.device, folder: Path) -> Found:
    """A run that writes its folder, and the model that two readers find in it."""
    SCENARIOS["training: AdamW"](CPU, folder)
    text = folder / "rhyme.txt"
    table = {
        "data": {"corpus": [str(text)], "vocabulary": 265, "context": 8, "validation": 0.1},
        "network": {"hidden_size": 16, "num_blocks": 1, "num_heads": 2},
        "mixture": [{"hyperschedule": {"type": "Block", "width": 4, "num_levels": 4}}],
        "run": {"steps": 2, "batch_size": 2, "precision": "no"},
    }
    Session(build_setup(Recipe.from_table(table), device), folder / "model").execute(StopRequest())
    own, hub = load_checkpoint(folder / "model", device=device), load(folder / "model", device=device)
    tokens = torch.tensor([[1, 2, 3, 4]], device=device)
    answers = [one.network.eval()(tokens) for one in (own, hub)]
    return Found([*answers, *own.network.state_dict().values()], 2)


def list_scenarios(quick: bool) -> None:
    list_samplers(quick)
    list_objectives()
    list_training()
    list_evaluation()
    SCENARIOS["engine with slots"] = slots
    SCENARIOS["storage"] = storage


# -- violations -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Another attribute for the length of a block."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def forget_the_device() -> contextlib.AbstractContextManager[None]:
    """Keys of random numbers stay on the host."""
    return replaced(
        Randomness, "_key", lambda self, device: (torch.ones(2, 1).long(), torch.ones(2, 1).long())
    )


def forget_the_index() -> contextlib.AbstractContextManager[None]:
    """Positions are made on the current device of the kind."""
    arange = torch.arange
    return replaced(
        torch,
        "arange",
        lambda *ends, device=None, **more: arange(
            *ends, device=None if device is None else torch.device(device).type, **more
        ),
    )


def read_a_number() -> contextlib.AbstractContextManager[None]:
    """A loss is read in every step."""
    mean = AbstractObjective.mean

    def waiting(self: Any, *arguments: Any) -> Tensor:
        loss = mean(self, *arguments)
        assert loss.item() > 0
        return loss

    return replaced(AbstractObjective, "mean", waiting)


def copy_without_pinning() -> contextlib.AbstractContextManager[None]:
    return replaced(Tensor, "pin_memory", lambda self: self)


def copy_in_a_graph() -> contextlib.AbstractContextManager[None]:
    """What a graph would capture makes a tensor from a list."""
    run = static.StaticBatch._run

    def copying(self: Any, width: int, reach: int) -> Tensor:
        assert torch.tensor([width], device=self._memory.device).shape == (1,)
        return run(self, width, reach)

    return replaced(static.StaticBatch, "_run", copying)


def count_marks_in_a_graph() -> contextlib.AbstractContextManager[None]:
    """What a graph would capture asks where marks are."""
    run = static.StaticBatch._run

    def counting(self: Any, width: int, reach: int) -> Tensor:
        assert self._seen.nonzero().ndim == 2
        return run(self, width, reach)

    return replaced(static.StaticBatch, "_run", counting)


def copy_the_table() -> contextlib.AbstractContextManager[None]:
    """A table of levels is copied in every step."""
    return replaced(AbstractHyperschedule, "_held", lambda self, name, device: getattr(self, name).to(device))


VIOLATIONS: dict[str, tuple[Callable[[], contextlib.AbstractContextManager[None]], str]] = {
    "forget the device": (forget_the_device, "sampling: exact, EpsilonHybrid"),
    "forget the index": (forget_the_index, "sampling: exact, EpsilonHybrid"),
    "read a number": (read_a_number, "training: AdamW"),
    "copy without pinning": (copy_without_pinning, "training: AdamW"),
    "copy in a graph": (copy_in_a_graph, "engine with slots"),
    "count marks in a graph": (count_marks_in_a_graph, "engine with slots"),
    "copy the table": (copy_the_table, f"sampling along {TABLE}"),
}
"""Faults of each kind, and the scenario that shows them."""


# -- running them -----------------------------------------------------------------------------------------------


class Noted:
    """The logical device in use, for scenarios that say which part of them counts."""

    def __init__(self) -> None:
        self.device: LogicalDevice | None = None

    @contextlib.contextmanager
    def only(self, name: str) -> Iterator[None]:
        """What happens outside of the block is not noted."""
        if self.device is not None:
            self.device.clear()
        yield
        if self.device is not None:
            self.device.pause()

    @contextlib.contextmanager
    def capturing(self) -> Iterator[None]:
        with contextlib.nullcontext() if self.device is None else self.device.capturing():
            yield


NOTED = Noted()


def forget_accelerate() -> None:
    """Reset the state of `accelerate`, which supports one device per process."""
    AcceleratorState._reset_state(reset_partial_state=True)


def flatten(value: Any) -> list[Tensor]:
    return (
        [value.detach().cpu()]
        if isinstance(value, Tensor)
        else [one for part in value for one in flatten(part)]
    )


def report(scenario: Scenario, device: torch.device | None = None) -> dict[str, Any]:
    """Run a scenario on the CPU and on the logical device, or on a real one."""
    events: list[Event] = []
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        forget_accelerate()
        expected = scenario(CPU, Path(one))
        forget_accelerate()
        if device is not None:
            return compared(scenario(device, Path(other)), expected, events)
        with LogicalDevice() as logical:
            NOTED.device = logical
            try:
                found = scenario(logical.device, Path(other))
            finally:
                NOTED.device = None
            events = list(logical.events)
    return compared(found, expected, events)


def compared(found: Found, expected: Found, events: list[Event]) -> dict[str, Any]:
    ours, theirs = flatten(found.value), flatten(expected.value)
    same = len(ours) == len(theirs) and all(
        a.shape == b.shape and torch.allclose(a.double(), b.double(), rtol=1e-4, atol=1e-6)
        for a, b in zip(ours, theirs, strict=True)
    )
    return {"same": same, "calls": found.calls, "events": counted(events)}


def counted(events: list[Event]) -> list[list[Any]]:
    """Events of one line together: kind, place, line, whether captured, how many."""
    times = Counter((one.kind, one.place, one.line, one.captured) for one in events)
    return [[*event, count] for event, count in sorted(times.items())]


def outcome(scenario: Scenario, device: torch.device | None = None) -> dict[str, Any]:
    """The report of a scenario or its error, so that one failure does not hide the other scenarios."""
    try:
        return report(scenario, device)
    except (RuntimeError, ValueError, AssertionError, NotImplementedError, TypeError) as error:
        return {"error": f"{type(error).__name__}: {error}"}


def renew(scenarios: dict[str, dict[str, Any]]) -> None:
    """Write the largest numbers of waits for a call into the list, and keep its reasons."""
    path = Path(__file__).with_name("allowed_waits.json")
    known, most = json.loads(path.read_text()), dict[str, float]()
    for one in scenarios.values():
        waits: Counter[str] = Counter()
        for kind, place, _, _, count in one.get("events", ()):
            if kind == "wait" and place.startswith("hdlm/"):
                waits[place] += count
        for place, count in waits.items():
            most[place] = max(most.get(place, 0.0), math.ceil(100 * count / one["calls"]) / 100)
    renewed = {
        place: {"most": most[place], "reason": known.get(place, {}).get("reason", "")}
        for place in sorted(most)
    }
    path.write_text(json.dumps(renewed, indent=1) + "\n")


def main(target: Path, *, device: torch.device | None, renewing: bool, quick: bool) -> None:
    list_scenarios(quick)
    found = {name: outcome(scenario, device) for name, scenario in SCENARIOS.items()}
    if renewing:
        renew(found)
    faults: dict[str, Any] = {}
    if device is not None:
        VIOLATIONS.clear()
    for name, (fault, scenario) in VIOLATIONS.items():
        expected = SCENARIOS[scenario]

        def faulty(device: torch.device, folder: Path, run: Scenario = expected, fault: Any = fault) -> Found:
            with contextlib.nullcontext() if device == CPU else fault():
                return run(device, folder)

        faults[name] = outcome(faulty)
    target.write_text(json.dumps({"scenarios": found, "violations": faults}, indent=1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("report", type=Path)
    parser.add_argument("--device", type=torch.device)
    parser.add_argument("--renew", action="store_true")
    parser.add_argument("--quick", action="store_true", help="each algorithm with one process")
    options = parser.parse_args()
    if options.device is None:
        with LogicalDevice():
            pass  # known to PyTorch before the first backward pass
    main(options.report, device=options.device, renewing=options.renew, quick=options.quick)
