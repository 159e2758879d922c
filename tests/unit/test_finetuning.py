"""Finetuning: what changes is said, and a network of next-token prediction says at first what it said before."""

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


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "rhyme.txt"
    file.write_text("the cat sat on the mat and the dog sat on the log . " * 60)
    return file


def _recipe(text: Path, hyperschedule: dict[str, Any], **tables: dict[str, Any]) -> Recipe:
    table: dict[str, Any] = {
        "data": {"corpus": [str(text)], "vocabulary": 270, "context": 16, "validation": 0.1},
        "network": {"hidden_size": 16, "num_blocks": 1, "num_heads": 2, "shifted": True},
        "mixture": [{"hyperschedule": hyperschedule}],
        "run": {"steps": 20, "batch_size": 4, "precision": "no"},
    }
    return Recipe.from_table(table | {name: table.get(name, {}) | given for name, given in tables.items()})


@pytest.fixture(scope="module")
def autoregressor(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
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


def test_a_converted_autoregressor_says_at_first_what_it_said(text: Path, autoregressor: Checkpoint) -> None:
    hybrid = {"type": "Block", "width": 4, "num_levels": 4}
    run = build_setup(_recipe(text, hybrid, process={"epsilon": 0.1}), CPU, start=autoregressor)
    tokens = run.validation.tokens[:32].reshape(2, 16).long()
    before, after = _next_token_loss(autoregressor, tokens), _next_token_loss(run, tokens)
    assert after == before
    assert before < 5.3  # it had learnt something: a guess is 5.6
    plan = autoregressive(16)
    losses = [
        estimate_likelihood(
            _as(one.denoiser, autoregressor), tokens.flatten(), Regime(plan), replicates=1
        ).nats
        for one in (autoregressor, run)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    lines = " ".join(describe_changes(autoregressor, run.checkpoint()))
    assert "epsilon 0 -> 0.1: the network has never seen wrong words" in lines
    assert (
        "Block (width 1, num_levels 1) -> Block (width 4, num_levels 4): the network has only predicted next words"
        in lines
    )


def _as(denoiser: Denoiser, like: Checkpoint) -> Denoiser:
    """The network read under the process of another: the bound under another process is one of another thing."""
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
def test_what_changes_is_said(
    text: Path,
    autoregressor: Checkpoint,
    tables: dict[str, Any],
    hyperschedule: dict[str, Any],
    line: str,
) -> None:
    given = {"process": {"epsilon": 0.0}} | tables
    run = build_setup(_recipe(text, hyperschedule, **given), CPU, start=autoregressor)
    found = describe_changes(autoregressor, run.checkpoint())
    assert len(found) == (1 if line else 0)
    assert line in " ".join(found)


def test_words_that_are_noisy_one_at_a_time_have_been_masks(text: Path) -> None:
    several, wide = (
        build_setup(_recipe(text, {"type": "Block", "width": width, "num_levels": 4}), CPU).checkpoint()
        for width in (1, 2)
    )
    (line,) = describe_changes(several, wide)
    assert line.endswith("other positions are noisy together than so far")


def test_fewer_and_no_wrong_words_are_said_apart(text: Path) -> None:
    runs = {
        epsilon: build_setup(_recipe(text, NEXT_WORDS, process={"epsilon": epsilon}), CPU).checkpoint()
        for epsilon in (0.0, 0.1, 0.2)
    }
    assert "fewer" in describe_changes(runs[0.2], runs[0.1])[0]
    assert "more of the visible words" in describe_changes(runs[0.1], runs[0.2])[0]
    assert "forget how to correct" in describe_changes(runs[0.1], runs[0.0])[0]


def test_another_gamma_is_named(text: Path) -> None:
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
