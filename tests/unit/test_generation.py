"""`Settings.plan` returns the hyperschedule of the checkpoint or the requested one, or raises an error."""

from __future__ import annotations

import pytest
import torch

from hdlm.generation import Settings
from hdlm.hyperschedule import (
    AbstractHyperschedule,
    Block,
    PublishedWave,
    Slide,
    Table,
    Wave,
    autoregressive,
    flat,
)

TRAINED = (Wave(32, 8, 2), flat(32, 16))


@pytest.mark.parametrize(
    ("settings", "length", "expected"),
    [
        (Settings(), 32, Wave(32, 8, 2)),
        (Settings(), 4, Wave(4, 4, 2)),
        (Settings(steps=5, width=3), 16, Wave(16, 3, 5)),
        (Settings(hyperschedule="autoregressive"), 16, autoregressive(16)),
        (Settings(hyperschedule="flat"), 16, flat(16, 2)),
        (Settings(hyperschedule="flat", steps=9), 16, flat(16, 9)),
        (Settings(hyperschedule="block"), 16, Block(16, 8, 2)),
        (Settings(hyperschedule="slide", width=4, steps=4), 16, Slide(16, 4, 4)),
    ],
    ids=str,
)
def test_settings_plan_gives_requested_hyperschedule(
    settings: Settings, length: int, expected: AbstractHyperschedule
) -> None:
    assert settings.plan(TRAINED, length) == expected


def test_settings_plan_keeps_published_wave_and_table() -> None:
    assert Settings().plan((PublishedWave(8, 4, 4),), 8) == PublishedWave(8, 4, 4)
    table = Table(torch.tensor([[1, 1], [0, 1], [0, 0]]))
    assert Settings().plan((table,), 2) is table
    with pytest.raises(ValueError, match=r"Table\(length=2.*has no other steps: leave that out"):
        Settings(steps=3).plan((table,), 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Settings(hyperschedule="flat", width=2), "`width` has no effect"),
        (Settings(hyperschedule="autoregressive", steps=2), "`steps` has no effect"),
        (Settings(hyperschedule="spiral"), r"Unknown hyperschedule 'spiral'; known are [^?]*$"),
        (Settings(hyperschedule="blok"), r"Unknown hyperschedule 'blok'; .*\. Did you mean 'block'\?$"),
        (Settings(width=9), r"got 9"),
    ],
    ids=str,
)
def test_settings_plan_rejects_meaningless_options(settings: Settings, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings.plan(TRAINED, 8)


def test_settings_plan_without_trained_hyperschedule_needs_a_name() -> None:
    with pytest.raises(ValueError, match="has no hyperschedule"):
        Settings().plan((), 8)
    assert Settings(hyperschedule="flat", steps=3).plan((), 8) == flat(8, 3)
