"""Finetuning: the description of changes, and a start that keeps the predictions of the checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hdlm import hub
from hdlm.checkpoint import Checkpoint
from hdlm.denoiser import Denoiser
from hdlm.evaluation import estimate_likelihood
from hdlm.hyperschedule import autoregressive
from hdlm.regime import Regime
from hdlm.training import NextToken, Recipe, Session, StopRequest, TrainingSetup, build_setup
from hdlm.training.finetuning import describe_changes

CPU = torch.device("cpu")
NEXT_WORDS = {"type": "Block", "width": 1, "num_levels": 1}


def _recipe(text: Path, hyperschedule: dict[str, Any], **tables: dict[str, Any]) -> Recipe:
    table: dict[str, Any] = {
        "data": {"corpus": [str(text)], "vocabulary": 270, "context": 16, "validation": 0.1},
        "network": {"hidden_size": 16, "num_blocks": 1, "num_heads": 2, "shifted": True},
        "mixture": [{"hyperschedule": hyperschedule}],
        "run": {"steps": 20, "batch_size": 4, "precision": "no"},
    }
    return Recipe.from_table(table | {name: table.get(name, {}) | given for name, given in tables.items()})


@pytest.fixture(scope="module")
def autoregressive_checkpoint(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("runs") / "next-words"
    run = build_setup(_recipe(text, NEXT_WORDS, process={"epsilon": 0.0}), CPU)
    session = Session(run, folder)
    session.execute(StopRequest())
    session.trainer.close()
    return hub.load(folder)


def _next_token_loss(run: TrainingSetup | Checkpoint, tokens: torch.Tensor) -> float:
    unused = torch.zeros(len(tokens), 1), torch.zeros(tokens.shape)
    with torch.no_grad():
        return float(NextToken(len(tokens)).loss(run.denoiser, tokens, *unused).mean())


def test_finetuning_start_keeps_next_token_predictions(
    text: Path, autoregressive_checkpoint: Checkpoint
) -> None:
    hybrid = {"type": "Block", "width": 4, "num_levels": 4}
    run = build_setup(_recipe(text, hybrid, process={"epsilon": 0.1}), CPU, start=autoregressive_checkpoint)
    tokens = run.validation.tokens[:32].reshape(2, 16).long()
    before, after = _next_token_loss(autoregressive_checkpoint, tokens), _next_token_loss(run, tokens)
    assert after == before
    assert before < 5.3  # it had learnt something: a guess is 5.6
    plan = autoregressive(16)
    losses = [
        estimate_likelihood(
            _with_process_of(one.denoiser, autoregressive_checkpoint),
            tokens.flatten(),
            Regime(plan),
            replicates=1,
        ).nats
        for one in (autoregressive_checkpoint, run)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    lines = " ".join(describe_changes(autoregressive_checkpoint, run.checkpoint()))
    assert "epsilon 0 -> 0.1: the network has never seen wrong words" in lines
    assert (
        "Block (width 1, num_levels 1) -> Block (width 4, num_levels 4): the network has only predicted next words"
        in lines
    )


def _with_process_of(denoiser: Denoiser, like: Checkpoint) -> Denoiser:
    """The network with the process of another checkpoint. Bounds of different processes cannot be compared."""
    return Denoiser(denoiser.backbone, like.denoiser.process, denoiser.parameterization).eval()


CASES = [
    ({}, NEXT_WORDS, ""),
    ({"process": {"epsilon": 0.01}}, NEXT_WORDS, "epsilon 0 -> 0.01"),
    ({"process": {"type": "GammaHybrid", "gamma": 0.1}}, NEXT_WORDS, "EpsilonHybrid -> GammaHybrid"),
    ({"network": {"shifted": False}}, NEXT_WORDS, "described the next position"),
    ({"network": {"context": "causal"}}, NEXT_WORDS, "attention block_causal/full -> causal/full"),
    ({"network": {"active": "causal"}}, NEXT_WORDS, "attention block_causal/full -> block_causal/causal"),
    ({"data": {"context": 32}}, NEXT_WORDS, "context 16 -> 32"),
    (
        {"process": {"epsilon": 0.0, "noise_schedule": {"type": "Cosine"}}},
        NEXT_WORDS,
        "another noise schedule",
    ),
    ({}, {"type": "Slide", "width": 2, "num_levels": 4}, "Slide (width 2, num_levels 4)"),
]


@pytest.mark.parametrize(("tables", "hyperschedule", "line"), CASES)
def test_describe_changes_names_the_changed_option(
    text: Path,
    autoregressive_checkpoint: Checkpoint,
    tables: dict[str, Any],
    hyperschedule: dict[str, Any],
    line: str,
) -> None:
    given = {"process": {"epsilon": 0.0}} | tables
    run = build_setup(_recipe(text, hyperschedule, **given), CPU, start=autoregressive_checkpoint)
    found = describe_changes(autoregressive_checkpoint, run.checkpoint())
    assert len(found) == (1 if line else 0)
    assert line in " ".join(found)


def test_describe_changes_names_wider_window(text: Path) -> None:
    several, wide = (
        build_setup(_recipe(text, {"type": "Block", "width": width, "num_levels": 4}), CPU).checkpoint()
        for width in (1, 2)
    )
    (line,) = describe_changes(several, wide)
    assert line.endswith("other positions are noisy together than so far")


def test_describe_changes_distinguishes_lower_higher_and_zero_epsilon(text: Path) -> None:
    runs = {
        epsilon: build_setup(_recipe(text, NEXT_WORDS, process={"epsilon": epsilon}), CPU).checkpoint()
        for epsilon in (0.0, 0.1, 0.2)
    }
    assert "fewer" in describe_changes(runs[0.2], runs[0.1])[0]
    assert "more of the visible words" in describe_changes(runs[0.1], runs[0.2])[0]
    assert "forget how to correct" in describe_changes(runs[0.1], runs[0.0])[0]


def test_describe_changes_names_other_gamma(text: Path) -> None:
    told = {"network": {"told_noise": True}, "objective": {"type": "ScoreEntropy"}}
    less, more = (
        build_setup(
            _recipe(text, NEXT_WORDS, process={"type": "GammaHybrid", "gamma": gamma}, **told), CPU
        ).checkpoint()
        for gamma in (0.01, 0.1)
    )
    assert describe_changes(less, more) == (
        "gamma 0.01 -> 0.1: more of the visible words are wrong than so far",
    )
    assert describe_changes(less, less) == ()
