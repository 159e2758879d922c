"""What to write along: the checkpoint's hyperschedule, or the one that was asked for, never a silent other."""

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
def test_a_plan_is_what_was_asked_for(
    settings: Settings, length: int, expected: AbstractHyperschedule
) -> None:
    assert settings.plan(TRAINED, length) == expected


def test_other_families_and_tables_are_kept_as_they_are() -> None:
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
        (Settings(hyperschedule="spiral"), "Unknown hyperschedule 'spiral'"),
        (Settings(width=9), r"got 9"),
    ],
    ids=str,
)
def test_what_has_no_meaning_is_refused(settings: Settings, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings.plan(TRAINED, 8)


def test_a_checkpoint_without_hyperschedule_needs_to_be_told() -> None:
    with pytest.raises(ValueError, match="has no hyperschedule"):
        Settings().plan((), 8)
    assert Settings(hyperschedule="flat", steps=3).plan((), 8) == flat(8, 3)
