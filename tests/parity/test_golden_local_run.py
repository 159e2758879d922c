"""Run folders that the published trainer wrote: raw and averaged weights, by folder and by file."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from hdlm.denoiser import ForwardContext
from hdlm.hub import inspect, load
from hdlm.parameterization import LogScore

CLOSE = {"atol": 1e-4, "rtol": 0}
KINDS = {"raw": "raw", "averaged": "ema"}


@pytest.fixture(scope="module", params=["epsilon", "gamma"])
def run(request, shared) -> Path:
    return shared / "golden" / "local_run" / request.param


@pytest.mark.parametrize("weights", KINDS)
@pytest.mark.parametrize("case", ["none", "mask"])
def test_run_folder_outputs_equal_published(run, weights, case):
    with np.load(run / "io.npz") as file:
        arrays = {name: torch.from_numpy(file[name]) for name in file.files}
    checkpoint = load(run, weights=weights)
    tokens, expected = arrays["input_ids"], arrays[f"logits_{KINDS[weights]}__{case}"]
    noise = -torch.expm1(-arrays["sigma"].double()) if "sigma" in arrays else torch.zeros(tokens.shape)
    attention = ~arrays["mask"] if case == "mask" else None
    with torch.no_grad():
        prediction = checkpoint.denoiser.predict(
            tokens, noise, ForwardContext(arrays["positions"], attention)
        )
        if isinstance(checkpoint.denoiser.parameterization, LogScore):
            ours = prediction.log_score(prediction.everywhere()).view(expected.shape)
            own = tokens[..., None]  # the published score of the token that stands there is none
            ours, expected = ours.scatter(-1, own, 0.0), expected.scatter(-1, own, 0.0)
        else:
            ours = prediction.raw(prediction.everywhere()).view(expected.shape)
    torch.testing.assert_close(ours, expected, **CLOSE)


def test_run_folder_loads_averaged_weights_by_default(run):
    default, averaged, raw = (
        dict(load(run, **options).network.named_parameters())
        for options in ({}, {"weights": "averaged"}, {"weights": "raw"})
    )
    assert all(torch.equal(default[name], averaged[name]) for name in default)
    assert not all(torch.equal(default[name], raw[name]) for name in default)


def test_checkpoint_file_with_config_equals_run_folder(run, tmp_path):
    """`--checkpoint_path RUN/checkpoints/checkpoint_N.pth --config_path RUN`, as published."""
    file = run / "checkpoints" / "checkpoint_10.pth"
    moved = tmp_path / file.name
    shutil.copy(file, moved)
    here = dict(load(run).network.named_parameters())
    for options in ({"config": run}, {"config": str(run / ".hydra" / "config.yaml")}):
        there = dict(load(moved, **options).network.named_parameters())
        assert all(torch.equal(here[name], there[name]) for name in here)
    beside = dict(load(file).network.named_parameters())
    assert all(torch.equal(here[name], beside[name]) for name in here)
    with pytest.raises(ValueError, match=r"no config.*`config`"):
        load(moved)


def test_newest_checkpoint_is_found_by_number(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "checkpoints" / "checkpoint_9.pth").write_bytes(b"older")
    (copy / "checkpoints" / "checkpoint_x.pth").write_bytes(b"other")
    found = inspect(copy)
    assert [file.name for file in found.files] == ["config.yaml", "checkpoint_10.pth"]
    assert found.step == 11
    assert found.blueprint.unknown == ()


def test_rolling_checkpoint_is_used_without_numbered_ones(run, tmp_path):
    """FAULTS 14: gamma runs number theirs at multiples of 20000 only."""
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "checkpoints-meta").mkdir(exist_ok=True)
    rolling = copy / "checkpoints-meta" / "checkpoint.pth"
    (copy / "checkpoints" / "checkpoint_10.pth").rename(rolling)
    assert rolling in inspect(copy).files
    rolling.unlink()
    with pytest.raises(ValueError, match=r"has no checkpoint: neither checkpoints/checkpoint_N\.pth"):
        load(copy)
