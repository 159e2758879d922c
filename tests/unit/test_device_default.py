"""Functions take the device from the denoiser and reject a different `device`."""

from __future__ import annotations

import pytest
import torch

from hdlm import load
from hdlm.denoiser import AbstractDenoiser, Denoiser, Guided, resolve_device
from hdlm.evaluation import estimate_likelihood
from hdlm.evaluation.generation.corrections import fill_in
from hdlm.evaluation.generation.judge import CheckpointJudge
from hdlm.evaluation.generation.samples import draw_samples
from hdlm.evaluation.likelihood.estimator import Likelihood
from hdlm.generation import Settings, complete
from hdlm.hyperschedule import autoregressive, flat
from hdlm.integrations.lm_eval import HarnessModel
from hdlm.package_data import pretrained
from hdlm.parameterization import Mean
from hdlm.process import Absorbing
from hdlm.published.model import CallableDenoiser
from hdlm.regime import Regime
from hdlm.sampling import Ancestral, Engine, Execution, Prompt, sample
from hdlm.verification import ExactDenoiser, agreeing_world
from tests.tiny import tiny_denoiser

WORDS = 4


class MetaDenoiser(AbstractDenoiser):
    """A denoiser whose weights are on a device that needs no hardware."""

    process = Absorbing(WORDS)
    device = torch.device("meta")

    def predict(self, tokens, noise, context):
        raise NotImplementedError


def test_resolve_device_defaults_to_device_of_weights() -> None:
    network = tiny_denoiser(Absorbing(WORDS))
    assert resolve_device(network, None) == resolve_device(network, "cpu") == torch.device("cpu")
    assert (
        resolve_device(Denoiser(torch.nn.Linear(2, 2, device="meta"), Absorbing(WORDS), Mean()), None).type
        == "meta"
    )
    assert resolve_device(MetaDenoiser(), None) == MetaDenoiser.device
    assert resolve_device(Guided(MetaDenoiser(), torch.tensor([[True]]), 1.0), None) == MetaDenoiser.device
    module = torch.nn.Linear(2, 2, device="meta")
    assert resolve_device(CallableDenoiser(module, Absorbing(WORDS), Mean()), None).type == "meta"
    assert Engine(MetaDenoiser(), Regime(flat(4, 2)), Ancestral())._x.device == MetaDenoiser.device


def test_resolve_device_of_denoiser_without_weights_is_the_given_one() -> None:
    """Without a `device` it computes on the CPU."""
    exact = ExactDenoiser(agreeing_world(2, 3), Absorbing(2))
    function = CallableDenoiser(lambda ids, positions: ids, Absorbing(WORDS), Mean())
    for denoiser in (exact, function):
        assert denoiser.device is None
        assert resolve_device(denoiser, None) == torch.device("cpu")
        assert resolve_device(denoiser, "meta") == torch.device("meta")


def test_resolve_device_compares_type_and_index() -> None:
    second = type("Second", (MetaDenoiser,), {"device": torch.device("cuda", 1)})()
    assert resolve_device(second, "cuda") == resolve_device(second, "cuda:1") == resolve_device(second, None)
    for other in ("cuda:0", "cpu", torch.device("meta")):
        with pytest.raises(ValueError, match=r"`device` is .* and the denoiser is on 'cuda:1'"):
            resolve_device(second, other)


@pytest.fixture(scope="module")
def checkpoint():
    return load(pretrained() / "kjv-epsilon-4m")


def test_public_functions_reject_device_other_than_that_of_model(checkpoint) -> None:
    """Before any work: nothing is written, and the message says what to do."""
    denoiser, text = checkpoint.denoiser, torch.ones(2, 8, dtype=torch.long)
    given = Prompt.prefix([1], 8)
    calls = {
        "sample": lambda device: sample(
            denoiser, Regime(flat(8, 2)), Ancestral(), prompt=given, execution=Execution(device=device)
        ),
        "Engine": lambda device: Engine(
            denoiser, Regime(flat(8, 2)), Ancestral(), execution=Execution(device=device)
        ),
        "complete": lambda device: complete(
            checkpoint, given, Regime(flat(8, 2)), Settings(), execution=Execution(device=device)
        ),
        "evaluate": lambda device: estimate_likelihood(
            denoiser, text[0], Regime(autoregressive(8)), device=device
        ),
        "Likelihood": lambda device: Likelihood(denoiser, Regime(autoregressive(8)), device=device),
        "HarnessModel": lambda device: HarnessModel(checkpoint, device=device),
        "draw_samples": lambda device: draw_samples(checkpoint, Settings(length=8), device=device),
        "fill_in": lambda device: fill_in(checkpoint, text, Settings(length=8), device=device),
        "CheckpointJudge": lambda device: CheckpointJudge(checkpoint, checkpoint.tokenizer, "judge", device),
    }
    for call in calls.values():
        with pytest.raises(ValueError, match="leave `device` out, or move the denoiser"):
            call("meta")
    assert calls["sample"](None).tokens.device.type == "cpu"
