"""`--device`: which device a command uses."""

from __future__ import annotations

import pytest
import torch

from hdlm.cli._options import chosen_device


def given(device: str) -> torch.device:
    return chosen_device(device)


@pytest.fixture
def accelerator(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Two devices of a kind."""
    kind = torch.device(request.param)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: kind)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)


@pytest.mark.parametrize("accelerator", ["cuda", "xpu"], indirect=True)
@pytest.mark.usefixtures("accelerator")
def test_device_option_selects_accelerator_and_index(request: pytest.FixtureRequest) -> None:
    kind = request.node.callspec.params["accelerator"]
    assert given("auto") == given(kind) == torch.device(kind)
    assert given(f"{kind}:1") == torch.device(kind, 1)
    assert given("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match=rf"--device {kind}:2: there are 2 of them here"):
        given(f"{kind}:2")
    with pytest.raises(ValueError, match=rf"must be auto or one of cpu, {kind}; got 'mps'"):
        given("mps")


@pytest.mark.parametrize("accelerator", ["mps"], indirect=True)
@pytest.mark.usefixtures("accelerator")
def test_device_option_rejects_device_without_float64() -> None:
    assert given("auto") == torch.device("cpu")
    for name in ("mps", "mps:0"):
        with pytest.raises(
            ValueError, match=rf"--device {name} computes nothing in float64.*give --device cpu"
        ):
            given(name)
    with pytest.raises(ValueError, match="one of cpu; got 'cuda': torch finds no cuda device here"):
        given("cuda")
    with pytest.raises(ValueError, match=r"one of cpu; got 'nonsense'\.$"):
        given("nonsense")
