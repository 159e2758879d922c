"""`hdlm eval calibration`: the exact denoiser is calibrated, an overconfident one is not."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from hdlm.cli import main
from hdlm.evaluation.calibration import CONDITIONS, CalibrationOptions, Doubts, doubts, reliability
from hdlm.hyperschedule import Block, flat
from hdlm.parameterization import LeaveOneOut
from hdlm.process import GIDD, Absorbing, EpsilonHybrid, GammaHybrid, Uniform
from hdlm.regime import Regime
from hdlm.verification.exact import ExactDenoiser
from hdlm.verification.world import agreeing_world
from tests.tiny import tiny_denoiser

WORLD = agreeing_world(4, 4, 2.5)
PIECES = 600
OWN, PLANTED = CONDITIONS


@pytest.fixture(scope="module")
def text():
    generator = torch.Generator().manual_seed(1)
    return WORLD.sequences[torch.multinomial(WORLD.law, PIECES, replacement=True, generator=generator)]


def measured(denoiser, text, plan):
    words = doubts(denoiser, text, Regime(plan), planted=0.1, batch_size=PIECES, seed=2)
    return {name: reliability(part, PIECES, 50) for name, part in words.items()}


CASES = {
    "epsilon, flat": (EpsilonHybrid(4, 0.2), "mean", flat(4, 4)),
    "epsilon, blocks": (EpsilonHybrid(4, 0.2), "mean", Block(4, 2, 3)),
    "gamma, score": (GammaHybrid(4, 0.3), "score", flat(4, 4)),
    "GIDD": (GIDD(4, 0.2), "mean", flat(4, 4)),
    "uniform, score, blocks": (Uniform(4), "score", Block(4, 2, 2)),
}


@pytest.mark.parametrize("case", CASES)
def test_an_exact_denoiser_is_calibrated_and_an_overconfident_one_is_not(text, case) -> None:
    process, reading, plan = CASES[case]
    exact = measured(ExactDenoiser(WORLD, process, reading), text, plan)[OWN]["metrics"]
    by_chance = exact["calibration error by chance"]["value"]
    assert abs(exact["bias"]["value"]) < 4 * exact["bias"]["error"]
    assert exact["calibration error"]["value"] < by_chance + 4 * exact["calibration error"]["error"]
    assert exact["area under the curve"]["value"] > 0.6
    too_sure = measured(ExactDenoiser(WORLD, process, reading, sharpness=3.0), text, plan)[OWN]["metrics"]
    excess = too_sure["calibration error"]["value"] - too_sure["calibration error by chance"]["value"]
    assert excess > 4 * too_sure["calibration error"]["error"]


def test_planted_errors_are_counted_and_found(text) -> None:
    exact = measured(ExactDenoiser(WORLD, EpsilonHybrid(4, 0.05)), text, flat(4, 4))
    planted = exact[PLANTED]["num_wrong"] - exact[OWN]["num_wrong"]
    assert planted / exact[OWN]["num_words"] == pytest.approx(0.1 * 3 / 4, rel=0.3)
    assert exact[PLANTED]["metrics"]["bias"]["value"] < -4 * exact[PLANTED]["metrics"]["bias"]["error"]


def test_masks_alone_have_no_wrong_word(text) -> None:
    found = measured(tiny_denoiser(Absorbing(4), LeaveOneOut()), text[:, :4], flat(4, 4))
    assert found[OWN]["num_wrong"] == 0
    assert "nothing to separate" in found[OWN]["metrics"]["area under the curve"]["failed"]
    assert found[PLANTED]["num_wrong"] > 0


def test_numbers_of_a_small_example() -> None:
    wrong = torch.tensor([0.05, 0.05, 0.95, 0.95], dtype=torch.float64)
    truth = torch.tensor([False, True, True, True])
    words = Doubts(torch.tensor([0, 0, 1, 1]), torch.full((4,), 0.5).double(), wrong, truth)
    found = reliability(words, 2, 20)
    metrics = found["metrics"]
    assert metrics["calibration error"]["value"] == pytest.approx((0.45 + 0.05) / 2)
    assert metrics["bias"]["value"] == pytest.approx(0.5 - 0.75)
    assert metrics["area under the curve"]["value"] == pytest.approx((2 + 0.5) / 3)
    assert [entry["wrong"] for entry in found["bins"]] == [0.5, 1.0]
    assert np.isfinite(metrics["area under the curve"]["error"])


def test_command_writes_document_report_and_picture(tmp_path, capsys) -> None:
    book = tmp_path / "book.txt"
    book.write_text("In the beginning God created the heaven and the earth. And the earth was void. " * 8)
    command = ["eval", "calibration", "kjv-epsilon-4m", "--data", str(book), "--num", "4", "--length", "16"]
    command += ["--replicates", "1", "--resamples", "5", "--device", "cpu", "--output", str(tmp_path / "out")]
    assert main([*command, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document == json.loads((tmp_path / "out" / "results.json").read_text())
    assert document["kind"] == "calibration"
    assert document["data"]["documents"] == 1
    assert set(document["result"]["conditions"]) == set(CONDITIONS)
    assert "## Definitions" in (tmp_path / "out" / "report.md").read_text()
    assert (tmp_path / "out" / "calibration.png").stat().st_size > 10_000
    assert main(["compare", str(tmp_path / "out"), str(tmp_path / "out" / "results.json")]) == 2
    other = tmp_path / "other"
    other.mkdir()
    (other / "results.json").write_text(json.dumps(document))
    assert main(["compare", str(tmp_path / "out"), str(other)]) == 0
    assert "bias, own noise" in capsys.readouterr().out


@pytest.mark.parametrize(
    "wrong", [{"levels": (0.5,)}, {"levels": (0.5, 0.2, 1.0)}, {"planted": 1.0}, {"num": 1}]
)
def test_options_out_of_range_are_refused(wrong) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        CalibrationOptions(**wrong)
