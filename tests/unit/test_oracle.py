"""The oracle table: its points, resuming, its tables and its picture."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from hdlm.cli import main
from hdlm.hyperschedule import autoregressive
from hdlm.process import Absorbing
from hdlm.regime import Regime
from hdlm.sampling import Ancestral, sample
from hdlm.verification import ExactDenoiser, oracle
from hdlm.verification.oracle import (
    QUICK_EFFORT,
    SamplerArm,
    measure_arm,
    oracle_arms,
    oracle_document,
    oracle_worlds,
)
from hdlm.view.samplers import samplers_table, strengths_table, write_samplers

SHORT = replace(QUICK_EFFORT, steps=(2, 3), draws=1000, long_draws=100)
PLAIN = SamplerArm("chain", "absorbing", "flat", "original", 0.0, 3)
DOUBT = SamplerArm("chain", "epsilon 0.01", "flat", "doubt", 0.5, 3)


@pytest.mark.parametrize(
    "arm", [PLAIN, DOUBT, replace(PLAIN, sampler="remdm", eta=0.3)], ids=lambda arm: arm.sampler
)
def test_computed_and_drawn_points_agree(arm, monkeypatch):
    computed = measure_arm(arm, SHORT)
    monkeypatch.setattr(oracle, "position_law", lambda step: None)
    drawn = measure_arm(arm, SHORT)
    assert computed.floor == computed.distance_error == 0 < drawn.floor
    assert computed.evaluations == drawn.evaluations == arm.steps
    assert abs(drawn.excess - computed.excess) < 4 * drawn.excess_error
    assert abs(drawn.entropy - computed.entropy) < 4 * drawn.entropy_error
    assert computed.distance - 4 * drawn.distance_error < drawn.distance
    assert drawn.distance < computed.distance + drawn.floor + 4 * drawn.distance_error


@pytest.mark.parametrize("world", ["phrases", "mirrored"])
def test_text_of_the_truth_is_at_the_floor(world, monkeypatch):
    """One position at a time every sampler is exact: no distance, no excess and no entropy is left."""
    truth = oracle_worlds(SHORT)[world]
    plan = autoregressive(truth.length)
    process = Absorbing(truth.num_words)
    tokens = sample(
        ExactDenoiser(truth, process), Regime(plan), Ancestral(), num_sequences=500, seed=3
    ).tokens
    distance, error, floor, excess, excess_error, entropy, entropy_error = oracle._drawn(truth, tokens, 0)
    assert distance < floor + 4 * error
    assert abs(excess) < 4 * excess_error
    assert abs(entropy) < 5 * entropy_error


def test_every_sampler_and_hyperschedule_is_measured():
    arms = oracle_arms(QUICK_EFFORT)
    assert {arm.sampler for arm in arms} == set(oracle.STRENGTHS)
    assert {arm.plan for arm in arms} == {"flat", "block", "slide", "wave"}
    assert {arm.process for arm in arms} == set(oracle.oracle_processes(3))


@pytest.mark.slow
def test_every_sampler_has_a_finite_distance_with_every_process():
    arms = oracle_arms(QUICK_EFFORT)
    one_of_each = {(arm.sampler, arm.process): arm for arm in arms if arm.world == "random"}
    points = [measure_arm(arm, replace(SHORT, draws=50)) for arm in one_of_each.values()]
    assert all(point.distance >= 0 and torch.tensor(point.excess).isfinite() for point in points)


@pytest.mark.parametrize("family", ["flat", "block", "slide", "wave"])
def test_hyperschedules_take_no_more_steps_than_given(family):
    for steps in (2, 8, 16):
        plan = oracle.oracle_plan(family, 8, steps)
        assert plan is None or plan.num_steps <= steps
    assert oracle.oracle_plan(family, 8, 16).num_steps > 8


def test_run_resumes_and_refuses_another_effort(tmp_path, monkeypatch):
    file = tmp_path / "samplers.json"
    first = oracle_document(SHORT, file, arms=[PLAIN])
    monkeypatch.setattr(oracle, "measure_arm", lambda arm, effort: pytest.fail("measured again"))
    assert oracle_document(SHORT, file, arms=[PLAIN]) == first == json.loads(file.read_text())
    with pytest.raises(ValueError, match="another effort"):
        oracle_document(replace(SHORT, seed=1), file)


def test_tables_and_picture(tmp_path):
    arms = [replace(arm, eta=eta, steps=n) for arm in (PLAIN, DOUBT) for eta in (0.25, 0.5) for n in (2, 3)]
    arms = [arm for arm in arms if arm.sampler == "doubt" or arm.eta == 0.25]
    document = oracle_document(SHORT, arms=arms)
    write_samplers(tmp_path, document)
    assert (tmp_path / "samplers.png").stat().st_size > 10_000
    best = min((0.25, 0.5), key=lambda eta: _score(document, eta))
    assert f"| epsilon 0.01 | doubt    | {best:g}" in strengths_table(document)
    shown = next(p for p in document["points"] if p["arm"] == {**vars(DOUBT), "eta": best})
    assert f"{shown['distance']:.4f}" in samplers_table(document, "chain")


def _score(document, eta):
    """Product of the distances of a strength."""
    distances = [
        p["distance"] for p in document["points"] if p["arm"]["sampler"] == "doubt" and p["arm"]["eta"] == eta
    ]
    return torch.tensor(distances).prod()


@pytest.mark.slow
def test_command_writes_its_files(tmp_path, capsys):
    assert main(["verify", "samplers", "--quick", "--output", str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"samplers.json", "samplers.png", "report.md"}
    assert "first_hitting" in capsys.readouterr().out


def test_options_of_the_comparison_are_refused_elsewhere(capsys):
    assert main(["verify", "process", "--quick"]) == 2
    assert "hdlm verify samplers" in capsys.readouterr().err
