"""Control samples: `repeat`, `unigram`, `shuffle` and `data`."""

from __future__ import annotations

import pytest
import torch

from hdlm.evaluation.generation.controls import CONTROLS, control
from hdlm.evaluation.generation.metrics import diversity

TEXT = torch.arange(50).repeat(4)


@pytest.mark.parametrize("name", CONTROLS)
def test_control_samples_depend_on_seed_only(name):
    first = control(name, TEXT, 6, 20, seed=3)
    assert first.shape == (6, 20)
    assert torch.equal(first, control(name, TEXT, 6, 20, seed=3))
    assert not torch.equal(first, control(name, TEXT, 6, 20, seed=4))
    assert set(first.flatten().tolist()) <= set(range(50))


def test_each_control_keeps_its_statistics_of_the_text():
    samples = {name: control(name, TEXT, 40, 20) for name in CONTROLS}
    assert (samples["repeat"].diff(dim=1) == 0).all()
    assert ((samples["data"].diff(dim=1) % 50) == 1).all()
    assert ((samples["shuffle"].sort(1).values.diff(dim=1) % 50) != 0).all()
    assert not ((samples["shuffle"].diff(dim=1) % 50) == 1).all(1).any()
    entropy = {name: diversity(rows.tolist())["entropy"].value for name, rows in samples.items()}
    assert entropy["repeat"] == 0 < entropy["unigram"] < entropy["shuffle"]
    assert entropy["shuffle"] == pytest.approx(entropy["data"])


def test_control_rejects_short_text_and_unknown_name():
    with pytest.raises(ValueError, match="length in"):
        control("data", TEXT, 1, 201)
    with pytest.raises(ValueError, match="no control 'x'"):
        control("x", TEXT, 1, 2)
