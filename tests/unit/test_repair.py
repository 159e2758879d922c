"""`hdlm eval repair`: planted errors, correction of a finished text, and controls."""

from __future__ import annotations

import json

import pytest
import torch

import hdlm
from hdlm.cli import main
from hdlm.evaluation.generation.corrections import correct_tokens
from hdlm.evaluation.generation.metrics import Estimate, share
from hdlm.evaluation.repair import RepairOptions, outcomes, plant
from hdlm.generation import Settings
from hdlm.generation.correction import matching_noise
from hdlm.hyperschedule import Block, flat
from hdlm.noise_schedule import LogLinear
from hdlm.process import GIDD, Absorbing, EpsilonHybrid, GammaHybrid, Uniform
from hdlm.regime import Regime
from hdlm.sampling import ALGORITHMS, RULES, Execution, Prompt, algorithm, sample
from hdlm.sampling.algorithms import corrects
from hdlm.sampling.loop import sample_plainly
from hdlm.verification.exact import ExactDenoiser
from hdlm.verification.statistics import FAILURE_RATE, chi_square
from hdlm.verification.world import agreeing_world
from tests.tiny import tiny_denoiser

WORLD = agreeing_world(3, 3, 1.5)
MODEL = "kjv-epsilon-4m"
BOOK = (
    "In the beginning God created the heaven and the earth. And the earth was without form, and void. " * 20
)


def noised(process, level, count):
    """Text of the world with the noise of a process."""
    generator = torch.Generator().manual_seed(3)
    text = WORLD.sequences[torch.multinomial(WORLD.law, count, replacement=True, generator=generator)]
    draw = torch.rand(text.shape, generator=generator, dtype=torch.float64)
    return process.corrupt(text, torch.full(text.shape, level).double(), draw)


def free(draft):
    return Prompt(draft, torch.zeros_like(draft, dtype=torch.bool), is_draft=True)


@pytest.mark.parametrize(
    "process", [Uniform(3), GIDD(3, 0.3), Absorbing(3)], ids=["uniform", "gidd", "masks"]
)
def test_an_exact_denoiser_that_begins_with_a_noised_text_ends_with_the_law_of_the_text(process) -> None:
    draft = noised(process, 0.4, 1500)
    regime = Regime(flat(3, 16), LogLinear(floor=0.6))
    step = algorithm("exact", process)
    done = sample(
        ExactDenoiser(WORLD, process), regime, step, num_sequences=len(draft), seed=1, prompt=free(draft)
    )
    before = WORLD.count(draft.clamp_max(2))
    assert chi_square(before, WORLD.law) < FAILURE_RATE
    assert chi_square(WORLD.count(done.tokens), WORLD.law) > FAILURE_RATE


@pytest.mark.parametrize("plan", [flat(3, 4), Block(3, 2, 3)], ids=["flat", "blocks"])
def test_engine_corrects_a_draft_as_the_plain_loop_does(plan) -> None:
    process = EpsilonHybrid(5, 0.2)
    denoiser, regime = tiny_denoiser(process), Regime(plan, LogLinear(floor=0.5))
    draft = torch.tensor([[0, 1, 5], [4, 3, 2], [1, 1, 1]])
    step = algorithm("acs", process, 0.8)
    options = {"num_sequences": 3, "seed": 4, "prompt": free(draft)}
    engine = sample(denoiser, regime, step, execution=Execution(2), **options).tokens
    assert torch.equal(engine, sample_plainly(denoiser, regime, step, **options))
    assert not torch.equal(engine, draft)


def test_a_draft_of_tokens_outside_the_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match="words or the mask"):
        sample(
            tiny_denoiser(Absorbing(5)),
            Regime(flat(3, 2)),
            algorithm("acs", Absorbing(5)),
            prompt=free(torch.tensor([[0, 1, 6]])),
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    "process",
    [
        Absorbing(5),
        EpsilonHybrid(5, 0.2),
        GammaHybrid(5, 0.5),
        Uniform(5),
    ],
    ids=lambda process: type(process).__name__,
)
def test_algorithms_that_correct_change_a_text_and_others_do_not(process) -> None:
    """With masks only, a redraw would change words at random, so it does not count as a correction."""
    denoiser, regime = tiny_denoiser(process), Regime(flat(6, 4), LogLinear(floor=0.5))
    draft = torch.arange(24).view(4, 6) % 5
    for name in (*ALGORITHMS, *RULES):
        step = algorithm(name, process, 0.9)
        try:
            end = sample(denoiser, regime, step, num_sequences=4, seed=1, prompt=free(draft)).tokens
        except ValueError:
            continue  # the algorithm needs masks, or words that stay
        if process.only_masks and name in ("acs", "remask_adhoc_shuffle"):
            assert not corrects(name, process)
        else:
            assert corrects(name, process) == (not torch.equal(end, draft)), name


def test_without_corrections_a_text_stays_as_it_is() -> None:
    checkpoint = hdlm.load(MODEL)
    text = torch.tensor([checkpoint.tokenizer.encode(BOOK)[:12]])
    for eta, changed in ((0.0, False), (1.0, True)):
        settings = Settings("acs", eta=eta, hyperschedule="flat", steps=4)
        end = correct_tokens(checkpoint, text, settings, noise=0.5).tokens
        assert torch.equal(end, text) != changed
        assert torch.equal(end[:, 0], text[:, 0])
    masked = correct_tokens(
        checkpoint, text, Settings("original", hyperschedule="flat", steps=4), noise=0.9, masks=True
    )
    assert not torch.equal(masked.tokens, text)
    with pytest.raises(ValueError, match="noise fraction in"):
        correct_tokens(checkpoint, text, Settings(), noise=0.0)


def test_planted_errors_are_other_words_at_the_wanted_share() -> None:
    text = torch.arange(20).repeat(200, 3)
    damaged, where = plant(text, 0.1, 20, seed=1)
    assert torch.equal(damaged != text, where)
    assert not where[:, 0].any()
    assert float(where[:, 1:].double().mean()) == pytest.approx(0.1, abs=0.01)
    assert torch.equal(damaged, plant(text, 0.1, 20, seed=1)[0])


def test_outcomes_of_a_small_example() -> None:
    text = torch.tensor([[0, 1, 2, 3], [0, 4, 5, 6]])
    where = torch.tensor([[False, True, True, False], [False, True, False, False]])
    damaged = torch.where(where, 9, text)
    end = torch.tensor([[0, 1, 8, 3], [0, 9, 5, 7]])
    found = {name: entry["value"] for name, entry in outcomes(text, damaged, where, end).items()}
    assert found["restored"] == pytest.approx(1 / 3)
    assert found["found"] == pytest.approx(2 / 3)
    assert found["damaged"] == pytest.approx(1 / 3)
    assert found["wrong before"] == pytest.approx(3 / 6)
    assert found["wrong after"] == pytest.approx(3 / 6)
    nothing = outcomes(text, text, torch.zeros_like(where), text)
    assert "share is undefined" in nothing["restored"]["failed"]


def test_a_share_has_the_jackknife_error_of_a_ratio() -> None:
    assert share([1.0, 1.0], [2.0, 2.0]) == Estimate(0.5, 0.0)
    assert share([3.0], [4.0]) == Estimate(0.75, None)
    assert share([0.0, 2.0], [2.0, 2.0]).error == pytest.approx(0.5)


def test_correction_begins_where_the_process_has_as_many_wrong_words() -> None:
    assert matching_noise(Uniform(10), 0.05) == pytest.approx(0.05)
    assert matching_noise(Absorbing(10), 0.05) == 0.5
    assert matching_noise(EpsilonHybrid(10, 0.1), 0.05) == 0.5
    level = torch.tensor(matching_noise(GIDD(10, 0.2), 0.05), dtype=torch.float64)
    w = GIDD(10, 0.2).weights(level)
    assert float(w.uniform / (w.uniform + w.clean)) == pytest.approx(0.05, rel=0.05)


def test_command_writes_document_report_and_picture(tmp_path, capsys) -> None:
    book = tmp_path / "book.txt"
    book.write_text(BOOK)
    command = ["eval", "repair", MODEL, "--data", str(book), "--num", "6", "--length", "16", "--share", "0.2"]
    command += ["--eta", "1", "--hyperschedule", "flat", "--steps", "3", "--device", "cpu", "--json"]
    assert main([*command, "--output", str(tmp_path / "out")]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document == json.loads((tmp_path / "out" / "results.json").read_text())
    result = document["result"]
    assert document["kind"] == "repair"
    assert result["noise"] == 0.5
    assert result["num_evaluations"] <= 3
    assert set(result["controls"]) == {"plain", "random"}
    assert result["metrics"]["wrong before"] == result["controls"]["random"]["wrong before"]
    assert result["metrics"]["damaged"]["value"] > 0
    assert "corrected: " in (tmp_path / "out" / "report.md").read_text()
    assert (tmp_path / "out" / "repair.png").stat().st_size > 8_000


@pytest.mark.parametrize("wrong", [{"share": 1.0}, {"noise": 0.0}, {"num": 1}])
def test_options_out_of_range_are_refused(wrong) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        RepairOptions(**wrong)


def test_a_number_of_new_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="`new_tokens` has no effect on a repair"):
        hdlm.evaluate.repair(hdlm.load(MODEL), [BOOK], new_tokens=8)
