"""Time grids for few steps: the optimal grid of a profile, the law of the text, and files of grids."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hdlm import EpsilonHybrid, Settings, flat, load, sample
from hdlm.cli import main
from hdlm.denoiser import Denoiser, ForwardContext
from hdlm.evaluation.likelihood import grids
from hdlm.evaluation.likelihood.grids import Profile, grid_text
from hdlm.noise_schedule import LINEAR, Composed, Cosine, Interpolated, LogLinear, Power, time_grid
from hdlm.package_data import pretrained
from hdlm.process import GIDD, Absorbing
from hdlm.regime import Regime
from hdlm.sampling import Ancestral, FirstHitting
from hdlm.verification import ExactDenoiser, agreeing_world, chain, text_law

MODEL = "kjv-epsilon-4m"
WORLD = agreeing_world(3, 3)
EVEN = torch.arange(1, 5, dtype=torch.float64) / 4


SMALL = agreeing_world(2, 2)


def law(world, steps, grid, process):
    """The law of the written text, computed by a sum over all canvases."""
    schedule = Composed(LINEAR, grid)
    plan = flat(world.length, steps)
    (*_, last) = chain(ExactDenoiser(world, process), Regime(plan, noise_schedule=schedule))
    return text_law(last, world.num_words, world.length)


@pytest.mark.parametrize("process", [Absorbing(2), EpsilonHybrid(2, 0.2)], ids=repr)
@pytest.mark.parametrize("grid", [Cosine(), Power(0.5), Power(2.0), Interpolated((0.3, 0.4, 1.0))], ids=repr)
def test_time_grid_keeps_text_law_in_many_steps(grid, process):
    """A grid sets the times of the steps and does not change the limit law of the text."""
    even, few, many = (
        law(SMALL, steps, one, process) for steps, one in ((30, LINEAR), (2, grid), (30, grid))
    )
    few_off, off = (few - even).abs().sum(), (many - even).abs().sum()
    assert off < 0.05
    assert off < few_off / 3


@pytest.mark.parametrize("step", [Ancestral(), FirstHitting()], ids=repr)
def test_uniform_grid_gives_same_tokens_as_no_grid(step):
    """Token for token, named or listed."""
    denoiser = ExactDenoiser(WORLD, Absorbing(3))
    plain = sample(
        denoiser, Regime(flat(3, 4), noise_schedule=LogLinear(1e-3)), step, num_sequences=50
    ).tokens
    for grid in (time_grid("uniform"), Interpolated(tuple(EVEN.tolist()))):
        noise = Composed(LogLinear(1e-3), grid)
        found = sample(denoiser, Regime(flat(3, 4), noise_schedule=noise), step, num_sequences=50).tokens
        assert torch.equal(found, plain)


def test_settings_grid_sets_steps_and_noise():
    settings = Settings(hyperschedule="flat", grid="0.2,0.6,1")
    assert settings.plan((), 8) == flat(8, 3)
    assert settings.noise(LogLinear(1e-3)) == Composed(LogLinear(1e-3), Interpolated((0.2, 0.6, 1.0)))
    assert Settings().noise(LINEAR) is LINEAR
    with pytest.raises(ValueError, match="`grid` has no effect"):
        Settings(hyperschedule="autoregressive", grid="cosine").plan((), 8)


@pytest.fixture
def coarse(monkeypatch):
    """Few enough candidates to try all grids."""
    monkeypatch.setattr(grids, "_CANDIDATES", 12)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 12])
def test_profile_best_grid_has_least_gap(coarse, steps):
    generator = torch.Generator().manual_seed(steps)
    curve = torch.rand(1, 9, generator=generator, dtype=torch.float64).cumsum(1)
    profile = Profile(curve)
    inner = itertools.combinations(range(1, 12), steps - 1)
    least = min(profile.gap([*(place / 12 for place in places), 1.0]).value for places in inner)
    best = profile.best(steps)
    assert len(best) == steps
    assert best[-1] == 1
    assert profile.gap(best).value == pytest.approx(least, abs=1e-12)


def test_profile_gap_equals_cost_of_steps():
    """One step costs the last value minus the mean. A constant profile costs nothing with any grid."""
    curve = torch.tensor([[1.0, 2.0, 4.0, 5.0]])
    assert Profile(curve).gap([1.0]).value == pytest.approx(5 - 3)
    assert Profile(torch.full((2, 6), 3.0)).gap([0.25, 0.5, 1.0]).value == pytest.approx(0, abs=1e-12)
    many = [k / 256 for k in range(1, 257)]
    assert 0 < Profile(curve).gap(many).value < 0.01


def test_profile_gap_error_is_standard_error_over_windows():
    """Windows can differ in difficulty, so the error compares the cost of the steps within each window."""
    curve = torch.tensor([1.0, 2.0, 4.0, 5.0])
    alike, apart = (Profile(torch.stack([curve, how])) for how in (curve + 9, 2 * curve))
    assert alike.gap([0.5, 1.0]).error == pytest.approx(0, abs=1e-12)
    one = Profile(curve[None]).gap([0.5, 1.0]).value
    assert apart.gap([0.5, 1.0]).value == pytest.approx(1.5 * one)
    assert apart.gap([0.5, 1.0]).error == pytest.approx(one / 2)


def test_measured_profile_equals_network_nats_of_masked_tokens():
    """With all positions masked the value is exact. With one mask it is the value of a random position."""
    checkpoint = load(pretrained() / MODEL)
    window = torch.tensor(
        checkpoint.tokenizer.encode("In the beginning God created the heaven and the earth.")
    )
    window, length = window[:7], 7
    found = grids.measured_profile(checkpoint, flat(length, 4), window.expand(40, length), batch_size=7).nats
    assert found.shape == (40, length - 1)

    def nats(masked):
        """The nats of each position except the first, which a shifted network is given."""
        x = torch.where(masked, checkpoint.vocabulary.mask_id, window)[None]
        with torch.no_grad():
            prediction = checkpoint.denoiser.predict(
                x, torch.zeros(x.shape, dtype=torch.float64), ForwardContext()
            )
            log_p = prediction.log_clean(prediction.everywhere())
        return -log_p.gather(1, window[:, None])[1:, 0].double()

    position = torch.arange(length)
    torch.testing.assert_close(found[:, -1], nats(position > 0).mean().expand(40), atol=1e-4, rtol=0)
    single = torch.stack([nats(position == one)[one - 1] for one in range(1, length)])
    apart = (found[:, :1] - single).abs()
    assert float(apart.amin(1).max()) < 1e-4
    assert set(apart.argmin(1).tolist()) == set(range(length - 1))


def test_profile_interpolates_unmeasured_mask_counts():
    torch.testing.assert_close(
        grids._between([1, 3, 4, 7], torch.tensor([[1.0, 3.0, 7.0, 1.0]]), 7),
        torch.tensor([[1.0, 2.0, 3.0, 7.0, 5.0, 3.0, 1.0]]),
    )
    counts = grids._spread(200)
    assert (counts[0], counts[-1]) == (1, 200)
    assert len(counts) <= 32
    assert counts[1] - counts[0] < counts[16] - counts[15]


def test_profile_halves_split_windows_alternately():
    learned, measured = Profile(torch.arange(5.0)[:, None]).halves()
    assert (learned.nats[:, 0].tolist(), measured.nats[:, 0].tolist()) == ([0, 2, 4], [1, 3])
    with pytest.raises(ValueError, match="give text for two"):
        learned.halves()[1].halves()


@pytest.mark.parametrize("noise", [LINEAR, LogLinear(1e-3), Cosine()], ids=repr)
def test_as_times_inverts_masking_fraction_of_process(noise):
    """For GIDD the masking fraction, the noise fraction and the time all differ."""
    checkpoint = load(pretrained() / MODEL)
    checkpoint = replace(
        checkpoint,
        noise_schedule=noise,
        denoiser=Denoiser(checkpoint.network, GIDD(4096, 0.2), checkpoint.denoiser.parameterization),
    )
    wanted = (0.2, 0.5, 0.9, 1.0)
    times = grids.as_times(wanted, checkpoint)
    assert grids.as_masks(Interpolated(times), 4, checkpoint) == pytest.approx(wanted, abs=1e-6)
    assert times != pytest.approx(wanted, abs=1e-3)


@pytest.mark.parametrize("grid", [(1.0,), (0.5, 1.0), (0.25, 0.5, 0.75, 1.0)], ids=str)
def test_profile_gap_bounds_kl_divergence_of_sampled_text(grid):
    """On a world whose profile is known exactly, for its ancestral sampler."""
    process = Absorbing(3)
    denoiser = ExactDenoiser(WORLD, process)
    nats = 3 * Profile(exact_profile(denoiser)).gap(grid).value
    drawn = law(WORLD, len(grid), Interpolated(grid), process)
    data = WORLD.law
    off = torch.xlogy(data, data / drawn).nan_to_num().sum()
    assert 0 < float(off) <= nats + 1e-9


def exact_profile(denoiser):
    """Nats a token by the number of masks: an expectation over all texts and all ways to mask."""
    texts = torch.cartesian_prod(*[torch.arange(3)] * 3)
    data = WORLD.law
    found = []
    for count in (1, 2, 3):
        costs = []
        for masked in itertools.combinations(range(3), count):
            x = texts.clone()
            x[:, masked] = 3
            noise = torch.where(x == 3, 0.5, 0.0).double()
            prediction = denoiser.predict(x, noise, ForwardContext())
            log_p = prediction.log_clean(prediction.everywhere()).view(27, 3, -1)
            own = log_p.gather(2, texts[..., None])[..., 0][:, masked].mean(1)
            costs.append(-(data * own.nan_to_num(neginf=0.0)).sum())
        found.append(torch.stack(costs).mean())
    return torch.stack(found)[None]


def test_rising_makes_profile_monotone():
    values = torch.tensor([5.0, 1.0, 2.0, 4.0, 3.0]).double()
    found = grids._rising(values)
    torch.testing.assert_close(found, torch.tensor([13 / 6, 13 / 6, 13 / 6, 31 / 9, 31 / 9]).double())


def test_grid_text_reads_file_of_grids(tmp_path):
    path = tmp_path / "grids.json"
    path.write_text("[0.2, 0.6, 1]")
    assert grid_text(str(path), None) == grid_text(str(path), 3) == "0.2,0.6,1.0"
    path.write_text('{"grids": {"2": [0.5, 1], "3": [0.2, 0.6, 1]}}')
    assert grid_text(str(path), 2) == "0.5,1.0"
    for steps in (None, 4):
        with pytest.raises(ValueError, match=r"grids of 2, 3 steps: choose one by --steps"):
            grid_text(str(path), steps)
    for wrong in ("{}", "7", "[]", '{"grids": {}}', '{"grids": {"2": 1}}', "not JSON"):
        path.write_text(wrong)
        with pytest.raises(ValueError, match="has no grids"):
            grid_text(str(path), 2)
    assert grid_text("cosine", 4) == "cosine"
    assert main(["sample", MODEL, "--grid", str(tmp_path / "none.json")]) == 2


@pytest.fixture(scope="module")
def tune(tmp_path_factory) -> list[str]:
    """The words of a command that learns grids; the last one is the file that it has written."""
    folder = tmp_path_factory.mktemp("grids")
    text, file = folder / "text.txt", folder / "grids.json"
    text.write_text(
        "And the LORD said unto Moses, Speak unto the children of Israel, and say unto them. " * 9
    )
    words = ["tune", MODEL, "--data", str(text), "--length", "16", "--steps", "2", "4", "-o", str(file)]
    assert main(words) == 0
    return words


def sample_with_grid(steps: int, file: str) -> int:
    plan = ["--hyperschedule", "flat", "--length", "16", "--steps", str(steps), "--grid", file]
    return main(["sample", MODEL, *plan, "--json", "--algorithm", "original"])


def test_tune_writes_grid_of_each_number_of_steps(tune):
    document = json.loads(Path(tune[-1]).read_text())
    assert [len(document["grids"][steps]) for steps in ("2", "4")] == [2, 4]
    assert len(document["profile"]) == 15
    assert set(document["gaps"]["4"]) == {"uniform", "cosine", "learned"}


def test_sample_uses_learned_grid(tune, capsys):
    assert sample_with_grid(4, tune[-1]) == 0
    settings = json.loads(capsys.readouterr().out)["settings"]
    assert settings["grid"] == ",".join(map(str, json.loads(Path(tune[-1]).read_text())["grids"]["4"]))


def test_sample_refuses_number_of_steps_without_learned_grid(tune, capsys):
    assert sample_with_grid(3, tune[-1]) == 2
    assert "grids of 2, 4 steps" in capsys.readouterr().err


def test_tune_refuses_more_positions_or_steps_than_it_can_learn(tune, capsys):
    assert main([*tune, "--length", "400"]) == 2
    assert main([*tune, "--steps", "4", "300"]) == 2
    assert "between 1 and 256 steps; got 300" in capsys.readouterr().err


def test_tune_of_width_says_how_to_sample(tune, tmp_path, capsys):
    file = str(tmp_path / "blocks.json")
    assert main([*tune, "--steps", "2", "--width", "4", "-o", file]) == 0
    out = capsys.readouterr().out
    assert "learned" in out
    assert "--hyperschedule block --width 4 --steps N" in out
