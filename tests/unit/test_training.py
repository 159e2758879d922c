"""Training: the loop, optimizers, averages, recipes and interrupted runs."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from hdlm.checkpoint import load_checkpoint
from hdlm.data.packing import Samples
from hdlm.denoiser import ForwardContext
from hdlm.hyperschedule import Block
from hdlm.objective import CleanStream, Combination, Corruption, MaskedCrossEntropy
from hdlm.package_data import recipes
from hdlm.process import Absorbing
from hdlm.regime import Regime
from hdlm.training import (
    ExponentialMovingAverage,
    Mixture,
    NextToken,
    Noisy,
    Recipe,
    Session,
    StepReport,
    StopRequest,
    TrainingSetup,
    build_setup,
    choose_precision,
    find_resume_point,
    listening,
    precision,
)
from hdlm.training.distributed import accelerator as engine
from hdlm.training.loop import Trainer
from hdlm.training.recipe import OptimizerSettings, RunSettings
from tests.tiny import tiny_denoiser

CPU = torch.device("cpu")


def _table(text: Path, **changes: dict[str, Any]) -> dict[str, Any]:
    table: dict[str, Any] = {
        "data": {"corpus": [str(text)], "vocabulary": 270, "context": 16, "validation": 0.1},
        "network": {"hidden_size": 16, "num_blocks": 1, "num_heads": 2},
        "mixture": [
            {"share": 3, "hyperschedule": {"type": "Block", "width": 4, "num_levels": 4}},
            {
                "share": 1,
                "hyperschedule": {"type": "Block", "width": 16, "num_levels": 8},
                "two_stream": False,
                "batch_scale": 2,
            },
        ],
        "run": {"steps": 30, "batch_size": 4, "precision": "no"},
    }
    for name, options in changes.items():
        table[name] = {**table.get(name, {}), **options}
    return table


def _run(text: Path, **changes: dict[str, Any]) -> TrainingSetup:
    return build_setup(Recipe.from_table(_table(text, **changes)), CPU)


def _reports_of_run(run: TrainingSetup, folder: Path) -> list[StepReport]:
    reports: list[StepReport] = []
    Session(run, folder).execute(StopRequest(), (reports.append,))
    return reports


# -- the loop -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("warm_share", [0.0, 0.4])
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_training_lowers_loss(text: Path, tmp_path: Path, optimizer: str, warm_share: float) -> None:
    run = _run(text, optimizer={"name": optimizer}, warm_start={"share": warm_share}, run={"steps": 60})
    losses = [report.loss for report in _reports_of_run(run, tmp_path)]
    assert losses[0] == pytest.approx(math.log(270), rel=0.2)
    assert sum(losses[-10:]) / 10 < 0.6 * losses[0]


def test_training_is_bit_identical_for_equal_seed(text: Path, tmp_path: Path) -> None:
    first, second, other = (
        _reports_of_run(_run(text, run={"seed": seed, "steps": 6}), tmp_path / str(number))
        for number, seed in enumerate((1, 1, 2))
    )
    assert [report.loss for report in first] == [report.loss for report in second]
    assert [report.loss for report in first] != [report.loss for report in other]
    weights = [load_checkpoint(tmp_path / name).network.state_dict() for name in "01"]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_accumulation_keeps_losses(text: Path, tmp_path: Path) -> None:
    whole = _reports_of_run(_run(text, run={"steps": 8}), tmp_path / "whole")
    pieces = _reports_of_run(_run(text, run={"steps": 8, "accumulation": 4}), tmp_path / "pieces")
    assert [report.tokens for report in whole] == [report.tokens for report in pieces]
    assert [report.loss for report in pieces] == pytest.approx([report.loss for report in whole], rel=1e-4)


COUNTED: dict[str, Any] = {
    "type": "Combination",
    "parts": [
        [1.0, {"type": "MaskedCrossEntropy", "weight": "inverse", "divisor": "masked"}],
        [0.5, {"type": "CleanStream", "divisor": "tokens"}],
        [0.1, {"type": "CrossEntropy"}],
    ],
}
"""A loss of sums that are divided by numbers of tokens, which differ between passes, and of one that is not."""


def test_accumulation_keeps_losses_that_are_divided_by_numbers_of_tokens(text: Path, tmp_path: Path) -> None:
    mixture = [{"hyperschedule": {"type": "Block", "width": 4, "num_levels": 4}}]
    table = _table(text, network={"context": "causal"}) | {
        "objective": COUNTED,
        "process": {"type": "Absorbing"},
        "mixture": mixture,
    }
    table["run"] |= {"steps": 6, "batch_size": 8}
    reports = []
    for accumulation in (1, 8):
        table["run"] |= {"accumulation": accumulation}
        run = build_setup(Recipe.from_table(table), CPU)
        reports.append(_reports_of_run(run, tmp_path / str(accumulation)))
    whole, pieces = ([(report.loss, report.gradient_norm) for report in own] for own in reports)
    for one, other in zip(whole, pieces, strict=True):
        assert other == pytest.approx(one, rel=1e-4)


@pytest.mark.parametrize("divisor", ["positions", "tokens", "masked", "sequences"])
def test_gradients_of_unequal_passes_are_those_of_one_batch(divisor: Any) -> None:
    """Prompts of very different lengths have no loss."""
    objective = Combination(
        ((1.0, MaskedCrossEntropy(divisor=divisor)), (0.3, CleanStream(divisor=divisor, every_row=True)))
    )
    regime = Regime(Block(16, 4, 4), context="causal")
    part = Noisy(Corruption(Absorbing(9), regime), objective, 4, 1.0)
    denoiser = tiny_denoiser(Absorbing(9))
    generator = torch.Generator().manual_seed(0)
    x_0 = torch.randint(9, (4, 16), generator=generator)
    times, draw = torch.rand(4, 4, generator=generator), torch.rand(4, 16, generator=generator)
    given = torch.arange(16) < torch.tensor([0, 15, 9, 16])[:, None]
    samples = Samples(given, torch.zeros(4, 16, dtype=torch.long))

    def batch(rows: slice) -> tuple[Tensor, Tensor, Tensor, Samples]:
        own = Samples(samples.given[rows], samples.documents[rows])
        return x_0[rows], times[rows], draw[rows], own

    def gradients(parts: list[slice]) -> list[Tensor]:
        denoiser.zero_grad()
        counts = torch.stack([part.counts(denoiser, *batch(rows)) for rows in parts]).mean(0)
        for rows in parts:
            (part.loss(denoiser, *batch(rows), counts=counts.tolist()) / len(parts)).backward()
        return [p.grad.clone() for p in denoiser.parameters() if p.grad is not None]

    whole, pieces = gradients([slice(0, 4)]), gradients([slice(row, row + 1) for row in range(4)])
    assert part.divides_by_tokens == (divisor in ("tokens", "masked"))
    assert any(bool(gradient.any()) for gradient in whole)
    for one, other in zip(whole, pieces, strict=True):
        torch.testing.assert_close(other, one)


def test_step_report_counts_steps_and_tokens(text: Path, tmp_path: Path) -> None:
    run = _run(text)
    last = _reports_of_run(run, tmp_path)[-1]
    sizes = [run.mixture.at(step, step / 30).batch_size for step in range(30)]
    assert last.step == 30
    assert last.tokens == 16 * sum(sizes)
    assert last.progress == 1.0


def test_nan_loss_names_step(text: Path, tmp_path: Path) -> None:
    run = _run(text)
    with torch.no_grad():
        run.denoiser.backbone.vocab_embed.embedding.fill_(math.nan)
    with pytest.raises(ValueError, match="step 1: loss nan"):
        Session(run, tmp_path).execute(StopRequest())


def test_accumulation_must_divide_batch_size(text: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"run\.accumulation"):
        _run(text, run={"accumulation": 3})


def test_training_and_validation_text_are_disjoint(text: Path) -> None:
    run = _run(text)
    documents = text.read_text().strip()
    train, validation = (run.tokenizer.decode(part.tokens.tolist()) for part in (run.train, run.validation))
    assert f"{train} {validation}" == documents


# -- what a run leaves behind ---------------------------------------------------------------------------------


def test_run_folder_holds_metrics_and_trained_checkpoint(text: Path, tmp_path: Path) -> None:
    run = _run(text, run={"steps": 80})
    _reports_of_run(run, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(10, 81, 10))
    assert lines[-1]["loss"] < lines[0]["loss"]
    checkpoint = load_checkpoint(tmp_path)
    assert checkpoint.training["steps"] == 80
    assert checkpoint.hyperschedules == run.mixture.hyperschedules
    assert checkpoint.length == 16
    x_0 = run.validation.tokens[:16][None]
    masked = torch.where(torch.arange(16) % 4 == 1, checkpoint.vocabulary.mask_id, x_0)
    with torch.no_grad():
        log_p = checkpoint.denoiser(masked, torch.full(masked.shape, 0.25), ForwardContext())
    assert float(-log_p.gather(-1, x_0[..., None])[masked != x_0].mean()) < 3.0


def test_session_saves_and_restores_averaged_weights(text: Path, tmp_path: Path) -> None:
    run = _run(text, optimizer={"ema": 0.9})
    _reports_of_run(run, tmp_path)
    averaged, raw = (
        load_checkpoint(tmp_path, weights=kind).network.state_dict() for kind in ("averaged", "raw")
    )
    now = run.denoiser.backbone.state_dict()
    assert all(torch.equal(averaged[name], now[name]) for name in now)
    assert not torch.equal(raw["vocab_embed.embedding"], averaged["vocab_embed.embedding"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_interrupted_run_saves_checkpoint(text: Path, tmp_path: Path, number: int) -> None:
    run = _run(text, run={"steps": 10_000})

    def interrupt(report: StepReport) -> None:
        if report.step == 12:
            os.kill(os.getpid(), number)

    with listening() as stop:
        report = Session(run, tmp_path).execute(stop, (interrupt,))
    assert report is not None
    assert report.step == 12
    assert stop.signal == number
    assert load_checkpoint(tmp_path).training["steps"] == 12


def test_second_signal_raises_unless_it_follows_at_once() -> None:
    before = signal.getsignal(signal.SIGINT)
    with listening() as stop:
        echo = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.signal == signal.SIGINT
        echo.start()
    assert not echo.is_alive()
    assert signal.getsignal(signal.SIGINT) is before
    now = [0.0]
    for number, way in ((signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)):
        request = StopRequest(lambda: now[0])
        request(signal.SIGUSR1, None)
        request(number, None)
        now[0] += 1.5
        with pytest.raises(way):
            request(number, None)
        assert request.signal == signal.SIGUSR1


def test_killed_run_leaves_loadable_checkpoint(text: Path, tmp_path: Path) -> None:
    table = _table(text, run={"steps": 10**6, "save_every": 0.001})
    program = (
        "import sys, json, torch; from pathlib import Path; from hdlm.training import *\n"
        "run = build_setup(Recipe.from_table(json.loads(sys.argv[1])), torch.device('cpu'))\n"
        "Session(run, Path(sys.argv[2])).execute(StopRequest())"
    )
    run = subprocess.Popen([sys.executable, "-c", program, json.dumps(table), str(tmp_path)])
    deadline = time.monotonic() + 120
    metrics = tmp_path / "metrics.jsonl"
    while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.05)
    run.kill()
    run.wait()
    assert metrics.stat().st_size
    assert load_checkpoint(tmp_path).training["recipe"]["run"]["steps"] == 10**6


# -- mixtures -------------------------------------------------------------------------------------------------


def test_mixture_shares_hold_over_any_40_steps(text: Path) -> None:
    mixture = _run(text).mixture
    for start in (0, 17, 1000):
        chosen = Counter(mixture.at(step, 0.5) for step in range(start, start + 40))
        assert chosen[mixture.parts[0]] == pytest.approx(30, abs=2)


def test_next_token_warm_start_of_conditioned_network(text: Path) -> None:
    """Next-token prediction has no noise, so the condition is that of settled words. All words are equally likely."""
    run = _run(
        text,
        network={"told_noise": True, "blend": True},
        process={"type": "GammaHybrid", "gamma": 0.1, "noise_schedule": {"type": "LogLinear"}},
        objective={"type": "ScoreEntropy", "max_weight": 1e4},
        warm_start={"share": 0.9},
    )
    windows = run.text.windows(run.recipe.data.context, 0).batch(0, 4)
    unused = torch.zeros(windows.shape)
    loss = NextToken(4).loss(run.denoiser, windows, unused[:, :1], unused)
    assert loss.item() == pytest.approx(math.log(run.tokenizer.vocabulary.num_words), abs=0.01)


def test_the_warm_start_comes_first(text: Path) -> None:
    mixture = _run(text, warm_start={"share": 0.3, "batch_scale": 3}).mixture
    assert mixture.at(0, 0.0) == mixture.at(9, 0.29) == NextToken(12)
    assert mixture.at(10, 0.3) in mixture.parts


def test_recipe_names_unknown_hyperschedule(text: Path) -> None:
    table = _table(text)
    table["mixture"] = [{"hyperschedule": {"type": "Blok", "width": 4, "num_levels": 4}}]
    with pytest.raises(ValueError, match="no hyperschedule 'Blok'"):
        Recipe.from_table(table)


# -- optimizers and averages ----------------------------------------------------------------------------------


def test_exponential_moving_average_formula() -> None:
    module = nn.Linear(1, 1, bias=False)
    average, expected = ExponentialMovingAverage(module, 0.5), module.weight.item()
    for tick in range(20):
        with torch.no_grad():
            module.weight.fill_(tick)
        average.update()
        decay = min(0.5, (1 + tick) / (10 + tick))
        expected = decay * expected + (1 - decay) * tick
    assert average.state_dict()["weight"].item() == pytest.approx(expected)
    assert module.weight.item() == 19
    average.copy_to(module)
    assert module.weight.item() == pytest.approx(expected)


def test_optimizer_rate_warms_up_and_decays() -> None:
    settings = OptimizerSettings(schedule="linear", warmup=0.1, floor=0.2)
    assert settings.rate(0.0) == 0.0
    assert settings.rate(0.05) == pytest.approx(0.5)
    assert settings.rate(0.1) == 1.0
    assert settings.rate(0.55) == pytest.approx(0.6)
    assert settings.rate(1.0) == pytest.approx(0.2)
    assert OptimizerSettings(schedule="cosine", warmup=0.0).rate(0.5) == pytest.approx(0.5)
    assert OptimizerSettings(schedule="constant").rate(1.0) == 1.0


def test_run_progress_is_that_of_nearer_limit() -> None:
    both = RunSettings(steps=100, minutes=1.0)
    assert both.progress(50, 0.0) == both.progress(0, 30.0) == 0.5
    assert both.progress(100, 0.0) == both.progress(0, 61.0) == 1.0


@pytest.mark.parametrize(("of_bf16", "expected"), [(1.0, "bf16"), (3.0, "no")])
def test_choose_precision_on_cpu_measures_only_for_auto(
    of_bf16: float, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = {torch.bfloat16: of_bf16, torch.float32: 2.0}
    monkeypatch.setattr("hdlm.training.precision._seconds", lambda dtype: seconds[dtype])
    precision._is_faster_on_cpu.cache_clear()
    assert choose_precision("auto", CPU) == expected
    assert choose_precision("bf16", CPU) == "bf16"
    assert choose_precision("no", CPU) == "no"
    precision._is_faster_on_cpu.cache_clear()


@pytest.mark.parametrize(("units", "expected"), [(True, "bf16"), (False, "no"), (None, "no")])
def test_choose_precision_on_accelerator_needs_bf16_hardware(
    units: bool | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The choice needs no timing, ignores emulation and queries the selected device."""
    monkeypatch.setattr(precision, "_seconds", lambda dtype: pytest.fail("timed a product"))
    used = []

    class Backend:
        @contextlib.contextmanager
        def device(self, device: torch.device) -> Iterator[None]:
            used.append(device)
            yield

    class WithUnits(Backend):
        def is_bf16_supported(self, including_emulation: bool = True) -> bool:
            return including_emulation or bool(units)

    backend = Backend() if units is None else WithUnits()
    monkeypatch.setattr(torch, "get_device_module", lambda device: backend)
    second = torch.device("cuda", 1)
    assert choose_precision("auto", second) == expected
    assert used == ([] if units is None else [second])


def test_gauge_peak_uses_precision_of_run(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decisions = iter(["bf16", "no"])
    asked = []
    monkeypatch.setattr("hdlm.training.distributed.accelerator.choose_precision", lambda *_: next(decisions))
    monkeypatch.setattr(
        "hdlm.training.monitor.throughput.peak_flops", lambda device, *, bf16: asked.append(bf16)
    )
    Session(_run(text, run={"precision": "auto"}), tmp_path)
    assert asked == [True]


def _accelerator(state: SimpleNamespace) -> Accelerator:
    """An accelerator in a given state, on a machine without any."""
    made = Accelerator.__new__(Accelerator)
    made.state = state
    return made


def test_a_single_process_trains_on_the_device_that_it_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without this, `accelerate` would use the first device."""
    current: list[int] = []
    monkeypatch.setattr(torch.accelerator, "set_device_index", current.append)
    second = torch.device("cuda", 1)
    state = SimpleNamespace(num_processes=1, device=torch.device("cuda"))
    found = SimpleNamespace(device=state.device)
    monkeypatch.setattr(engine, "PartialState", lambda: found)
    engine._place(_accelerator(state), second)
    assert state.device == found.device == second
    assert current == [1]


def test_several_processes_reject_one_device() -> None:
    several = _accelerator(SimpleNamespace(num_processes=2, device=torch.device("cuda", 0)))
    with pytest.raises(ValueError, match=r"--device cuda:1 names one device, and 2 processes use one each"):
        engine._place(several, torch.device("cuda", 1))
    engine._place(several, torch.device("cuda"))


def test_choose_precision_does_not_use_wall_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine the wall clock also measures other programs."""
    precision._is_faster_on_cpu.cache_clear()
    threads = torch.get_num_threads()
    monkeypatch.setattr(time, "perf_counter", lambda: pytest.fail("asked the clock on the wall"))
    choose_precision("auto", CPU)
    assert torch.get_num_threads() == threads


def test_training_in_bf16_keeps_float32_weights(text: Path, tmp_path: Path) -> None:
    run = _run(text, run={"steps": 3, "precision": "bf16"})
    assert all(math.isfinite(report.loss) for report in _reports_of_run(run, tmp_path))
    assert load_checkpoint(tmp_path).network.vocab_embed.embedding.dtype == torch.float32


def test_compile_without_compiler_warns_and_trains(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.warns(UserWarning, match=r"`run\.compile` has no effect: there is no compiler here"):
        losses = _reports_of_run(_run(text, run={"steps": 2, "compile": True}), tmp_path)
    assert len(losses) == 2


def test_trainer_continues_after_stop(text: Path) -> None:
    run = _run(text, run={"steps": 20})
    recipe = run.recipe
    from hdlm.data import Windows

    windows = Windows(run.train.tokens, 16, 0)
    trainer = Trainer(run.denoiser, run.mixture, windows, recipe.optimizer, recipe.run, CPU)
    stop = StopRequest()
    reports: list[StepReport] = []

    def halt(report: StepReport) -> None:
        reports.append(report)
        if report.step == 7:
            stop(signal.SIGTERM, None)

    trainer.train(stop, (halt,))
    trainer.train(StopRequest(), (halt,))
    assert [report.step for report in reports] == list(range(1, 21))


# -- recipes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", sorted(recipes().glob("*.toml")), ids=lambda file: file.stem)
def test_shipped_recipes_build_mixtures(file: Path) -> None:
    recipe = Recipe.load(file)
    assert recipe.description
    assert Recipe.from_table(recipe.to_table()) == recipe
    process = recipe.build_process(recipe.data.vocabulary)
    assert all(
        schedule.length == recipe.data.context for schedule in Mixture.of(recipe, process).hyperschedules
    )


IDLE = [
    ({"network": {"cond_dim": 64}}, {"network": {"told_noise": True}}),
    ({"optimizer": {"name": "adamw", "muon_scale": "match_rms_adamw"}}, {"optimizer": {"name": "muon"}}),
    ({"optimizer": {"decay": "all"}}, {"optimizer": {"weight_decay": 0.1}}),
    ({"optimizer": {"schedule": "constant", "floor": 0.1}}, {"optimizer": {"schedule": "cosine"}}),
    ({"warm_start": {"batch_scale": 3}}, {"warm_start": {"share": 0.1}}),
    ({"data": {"streaming": True, "cache": "folder"}}, {"data": {"streaming": False}}),
    ({"data": {"validation_corpus": ["other.txt"]}}, {"data": {"validation_corpus": []}}),
    ({"watch": {"validation_windows": 8}}, {"watch": {"validate_every": 5}}),
    ({"watch": {"replicates": 3}}, {"watch": {"validate_every": 5}}),
    ({"watch": {"samples": 3}}, {"watch": {"sample_every": 5}}),
    ({"watch": {"batch_size": 3}}, {"watch": {"sample_every": 5}}),
    ({"watch": {"judge": "gpt2"}}, {"watch": {"sample_every": 5}}),
    ({"watch": {"judge_batch_size": 3}}, {"watch": {"judge": "gpt2", "sample_every": 5}}),
    ({"watch": {"project": "mine"}}, {"watch": {"trackers": ["wandb"]}}),
    (
        {
            "network": {"told_noise": True},
            "objective": {"type": "ScoreEntropy", "diffusion": 0, "cross_entropy": 1, "max_weight": 9},
        },
        {"objective": {"diffusion": 1}},
    ),
    (
        {
            "network": {"told_noise": True},
            "objective": {
                "type": "ScoreEntropy",
                "diffusion": 0,
                "cross_entropy": 1,
                "score_entropy": "published_code",
            },
        },
        {"objective": {"diffusion": 1}},
    ),
]
"""Options without effect, and the changes that give them an effect."""


@pytest.mark.parametrize(("changes", "cure"), IDLE, ids=lambda changes: json.dumps(changes)[:50])
def test_recipe_refuses_option_without_effect(
    text: Path, changes: dict[str, Any], cure: dict[str, Any]
) -> None:
    table = _table(text, **changes)
    with pytest.raises(ValueError, match=r"^`[a-z_.]+` has no effect here: .*; got"):
        Recipe.from_table(table)
    cured = {name: changes.get(name, {}) | cure.get(name, {}) for name in {**changes, **cure}}
    Recipe.from_table(_table(text, **cured))


def test_resume_run_with_recorded_options_without_effect(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Earlier versions accepted these options, and published configurations set some of them in every run."""
    with monkeypatch.context() as earlier:
        earlier.setattr(Recipe, "_conditional", lambda self: iter(()))
        begun = _run(
            text,
            network={"cond_dim": 32},
            optimizer={"name": "adamw", "muon_scale": "match_rms_adamw"},
            warm_start={"batch_scale": 3},
        )
    assert begun.recipe.network.cond_dim == begun.denoiser.backbone.config.cond_dim == 32

    def interrupt(report: StepReport) -> None:
        if report.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with listening() as stop:
        Session(begun, tmp_path).execute(stop, (interrupt,))
    found = find_resume_point(tmp_path)
    assert found is not None
    assert found.state.step == 3
    assert found.recipe == Recipe.from_table(_table(text, optimizer={"name": "adamw"}))
    again = build_setup(found.recipe, CPU, start=found.checkpoint)
    report = Session(again, tmp_path, found).execute(StopRequest())
    assert report is not None
    assert report.step == 30


RECIPE_FAULTS = [
    ({"network": {"hidden_size": -3}}, "hidden_size"),
    ({"network": {"dropout": math.nan}}, "dropout"),
    ({"objective": {"type": "ScoreEntropy"}}, r"network\.told_noise.*depend on the noise"),
    ({"process": {"noise_schedule": {"type": "Linaer"}}}, "no noise schedule 'Linaer'"),
    ({"process": {"gamma": 0.1}}, r"process\.gamma.*left out.*0\.1"),
    ({"optimizer": {"matrix_rate": math.inf}}, r"optimizer\.matrix_rate.*finite"),
    ({"optimizer": {"weight_decay": math.inf}}, r"optimizer\.weight_decay.*finite"),
    ({"run": {"batch_size": 0}}, r"run\.batch_size.*positive"),
    ({"data": {"corpus": [""]}}, r"data\.corpus.*not empty"),
    ({"data": {"cache": ""}}, r"data\.cache.*not empty"),
    ({"optimiser": {}}, "did you mean `optimizer`"),
    ({"data": {"vocabluary": 3}}, "did you mean `data.vocabulary`"),
    ({"data": {"validation": 0.9}}, r"data\.validation.*0\.9"),
    ({"run": {"steps": 0}}, r"run\.steps"),
    ({"run": {"steps": None}}, r"run\.steps or run\.minutes"),
    ({"run": {"precision": "fp8"}}, r"run\.precision.*fp8"),
    ({"optimizer": {"name": "sgd"}}, r"optimizer\.name.*sgd"),
    ({"optimizer": {"matrix_rate": -1}}, r"optimizer\.matrix_rate"),
    ({"process": {"epsilon": 1}}, r"process\.epsilon"),
    ({"warm_start": {"share": 1}}, r"warm_start\.share"),
    ({"objective": {"type": "NELBO", "score_entropy": "published_code"}}, r"score_entropy.*ScoreEntropy has"),
    (
        {"objective": {"type": "ScoreEntropy", "unmasked_weight": "published_code"}},
        r"unmasked_weight.*WeightedCrossEntropy has",
    ),
    ({"objective": {"cross_entropy": 0.5}}, r"objective\.cross_entropy"),
    ({"objective": {"type": "NELBO", "unmasked": 0.5}}, r"objective\.unmasked.*WeightedCrossEntropy has"),
    ({"objective": {"type": "NELBO", "max_weight": 9}}, r"objective\.max_weight"),
    ({"network": {"blend": True}}, r"network\.blend.*ScoreEntropy"),
    ({"network": {"scale_by_sigma": False}}, r"network\.scale_by_sigma.*ScoreEntropy"),
    ({"watch": {"judge": "gpt2"}}, r"watch\.judge.*watch\.sample_every"),
    ({"run": {"steps": "many"}}, r"run\.steps.*int.*many"),
    ({"run": {"compile": 1}}, r"run\.compile.*bool.*1"),
    ({"data": {"corpus": [1]}}, r"data\.corpus.*names"),
    ({"network": {"hidden_size": True}}, r"network\.hidden_size.*int.*True"),
]


@pytest.mark.parametrize(("changes", "complaint"), RECIPE_FAULTS)
def test_recipe_names_bad_option(text: Path, changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Recipe.from_table(_table(text, **changes))


@pytest.mark.parametrize(
    "mixture",
    [
        [],
        {},
        [{}],
        [{"share": 1}],
        [{"hyperschedule": {"type": "Block"}, "share": 0}],
        [{"hyperschedule": {"type": "Block", "width": 4, "num_levels": 4}, "share": math.inf}],
        [3],
    ],
)
def test_recipe_rejects_bad_mixture(text: Path, mixture: object) -> None:
    with pytest.raises(ValueError, match="mixture"):
        Recipe.from_table({**_table(text), "mixture": mixture})


def test_recipe_load_names_unreadable_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no recipe"):
        Recipe.load(tmp_path / "none.toml")
    for content in (b"[data", b"\xff\xfe["):
        (tmp_path / "bad.toml").write_bytes(content)
        with pytest.raises(ValueError, match=r"bad\.toml is not TOML"):
            Recipe.load(tmp_path / "bad.toml")


def test_recipe_load_accepts_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "marked.toml").write_bytes(b"\xef\xbb\xbf" + (recipes() / "demo.toml").read_bytes())
    assert Recipe.load(tmp_path / "marked.toml") == Recipe.load(recipes() / "demo.toml")
