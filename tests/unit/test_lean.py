"""Recomputation, autocast and compilation keep the loss and the gradients of training."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hdlm.denoiser import Denoiser
from hdlm.hyperschedule import PublishedWave, Wave
from hdlm.objective import Combination, Corruption, CrossEntropy, ScoreEntropy, WeightedCrossEntropy
from hdlm.parameterization import LogScore
from hdlm.process import EpsilonHybrid, GammaHybrid
from hdlm.regime import Regime
from hdlm.training import Noisy
from tests.tiny import tiny_denoiser

WORDS, LENGTH, BATCH = 12, 16, 4


def _epsilon() -> tuple[Denoiser, Noisy]:
    process = EpsilonHybrid(WORDS, 0.1)
    corruption = Corruption(process, Regime(Wave(LENGTH, 4, 4)))
    return tiny_denoiser(process), Noisy(corruption, WeightedCrossEntropy(0.3), BATCH, 1.0)


def _gamma() -> tuple[Denoiser, Noisy]:
    process = GammaHybrid(WORDS, 0.2)
    corruption = Corruption(process, Regime(PublishedWave(LENGTH, 4, 4)))
    objective = Combination(((0.7, ScoreEntropy(1e-2)), (0.5, CrossEntropy())))
    return tiny_denoiser(process, LogScore(), conditioned=True), Noisy(corruption, objective, BATCH, 1.0)


BOTH = pytest.mark.parametrize("made", [_epsilon, _gamma], ids=["epsilon", "gamma"])


def _loss_and_gradients(denoiser: Denoiser, part: Noisy) -> tuple[Tensor, list[Tensor]]:
    """Loss and gradients of one fixed batch."""
    numbers = torch.Generator().manual_seed(3)
    x_0 = torch.randint(WORDS, (BATCH, LENGTH), generator=numbers)
    times, draw = (
        torch.rand(BATCH, size, generator=numbers, dtype=torch.float64) for size in (part.num_times, LENGTH)
    )
    loss = part.loss(denoiser, x_0, times, draw)
    return loss.detach(), list(torch.autograd.grad(loss, list(denoiser.parameters())))


@BOTH
@pytest.mark.parametrize("recomputation", ["selective", "full"])
def test_recomputation_keeps_loss_and_gradients(recomputation, made, monkeypatch) -> None:
    denoiser, part = made()
    kept = _loss_and_gradients(denoiser, part)
    calls = []
    denoiser.backbone.blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
    monkeypatch.setattr(denoiser.backbone, "checkpoint_activations", recomputation)
    again = _loss_and_gradients(denoiser, part)
    assert len(calls) == 2
    torch.testing.assert_close(again, kept, atol=1e-12, rtol=1e-12)


@BOTH
def test_bf16_autocast_loss_and_gradients_are_near_float32(made) -> None:
    """With weights of usual size, the loss and the direction of the gradient agree."""
    denoiser, part = made()
    for weight in denoiser.backbone.float().parameters():
        weight.data *= 0.5 if weight.ndim > 1 else 1.0
    exact, slopes = _loss_and_gradients(denoiser, part)
    with torch.autocast("cpu", torch.bfloat16):
        loss, rough = _loss_and_gradients(denoiser, part)
    assert loss != exact
    torch.testing.assert_close(loss.to(exact.dtype), exact, atol=0, rtol=2e-3)
    flat, rough_flat = (torch.cat([slope.flatten() for slope in found]) for found in (slopes, rough))
    assert torch.cosine_similarity(flat, rough_flat, dim=0) > 0.999


@pytest.mark.slow
@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="there is no C++ compiler")
def test_compiled_training_has_same_losses(tmp_path: Path) -> None:
    """Runs in a subprocess without the shape checks of the tests, because Dynamo would trace them."""
    text = tmp_path / "rhyme.txt"
    text.write_text("the cat sat on the mat and the dog sat on the log . " * 60)
    table = {
        "data": {"corpus": [str(text)], "vocabulary": 270, "context": 16, "validation": 0.1},
        "network": {"hidden_size": 16, "num_blocks": 1, "num_heads": 2},
        "mixture": [{"hyperschedule": {"type": "Block", "width": 4, "num_levels": 4}}],
        "run": {"steps": 3, "batch_size": 4, "precision": "no"},
    }
    script = """
        import json, sys
        from pathlib import Path
        import torch
        from hdlm.training import Recipe, Session, StopRequest, build_setup
        table, losses = json.loads(sys.argv[1]), []
        for table["run"]["compile"] in (False, True):
            run, reports = build_setup(Recipe.from_table(table), torch.device("cpu")), []
            Session(run, Path(sys.argv[2]) / str(len(losses))).execute(StopRequest(), (reports.append,))
            losses.append([report.loss for report in reports])
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
        torch.testing.assert_close(losses[1], losses[0], atol=0, rtol=1e-4)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), json.dumps(table), str(tmp_path)]
    subprocess.run(command, check=True, timeout=900)
