"""Hyperschedules: errors for wrong arguments, and the device of the results."""

from __future__ import annotations

import pytest
import torch

from hdlm.hyperschedule import Block, PublishedSlide, Slide, Table, Wave, autoregressive, flat


@pytest.mark.parametrize("family", [Block, Slide, Wave])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 1, 1), "`length` must be at least 1 position; got 0"),
        ((8, 0, 1), r"`width` must lie in \[1, length=8\]; got 0"),
        ((8, 9, 1), r"`width` must lie in \[1, length=8\]; got 9"),
        ((8, 4, 0), "`num_levels` must be at least 1; got 0"),
    ],
)
def test_hyperschedule_rejects_arguments_out_of_range(family, arguments, message):
    with pytest.raises(ValueError, match=message):
        family(*arguments)


def test_published_slide_of_width_1_rejects_several_levels():
    with pytest.raises(ValueError, match=r"width=1 has one level, num_levels=1; got num_levels=3"):
        PublishedSlide(6, width=1, num_levels=3)


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ([[2, 1], [1, 2], [0, 0]], "position 1 goes from 1 at step 0 to 2"),
        ([[2, 2], [1, 1]], "position 0 ends at level 1"),
        ([[-1, 0], [0, 0]], r"\[0, num_levels=1\]; got -1 to 0"),
    ],
)
def test_table_rejects_levels_that_rise_or_do_not_settle(levels, message):
    with pytest.raises(ValueError, match=message):
        Table(torch.tensor(levels))


def test_table_num_levels_scales_noise():
    partly_noised = torch.tensor([[3, 0], [0, 0]])
    assert Table(partly_noised).num_levels == 3
    assert Table(partly_noised, num_levels=10).noise(0).tolist() == [0.3, 0.0]
    with pytest.raises(ValueError, match=r"num_levels=2\]; got 0 to 3"):
        Table(partly_noised, num_levels=2)


def test_table_copies_its_levels():
    levels = torch.tensor([[1], [0]])
    hyperschedule = Table(levels)
    levels += 5
    assert hyperschedule.levels(0).tolist() == [1]


@pytest.mark.parametrize("eps", [0.0, 0.05, -1e-4, float("nan")])
def test_time_grid_rejects_eps_out_of_range(eps):
    with pytest.raises(ValueError, match="must lie in"):
        flat(4, num_levels=4).time_grid(eps)


def test_packed_steps_rejects_wrong_number_of_offsets():
    with pytest.raises(ValueError, match=r"num_epochs=2; got shape \(3,\)"):
        Block(8, width=4, num_levels=2).packed_steps(torch.zeros(3, dtype=torch.long))


def test_autoregressive_settles_one_position_per_step():
    assert autoregressive(3).levels(torch.arange(4)).tolist() == [[1, 1, 1], [0, 1, 1], [0, 0, 1], [0, 0, 0]]


def test_hyperschedule_returns_tensors_on_device_of_steps():
    """The meta device represents any device: an operation with a CPU tensor would fail."""
    steps = torch.zeros(2, dtype=torch.long, device="meta")
    for hyperschedule in (Block(8, 4, 3), PublishedSlide(8, 4, 3), Table(torch.tensor([[1] * 8, [0] * 8]))):
        assert hyperschedule.regions(steps).active.device.type == "meta"
        assert hyperschedule.times(steps, 1e-4).device.type == "meta"


def test_settles_is_cached_and_excluded_from_equality() -> None:
    schedule, fresh = Block(8, 2, 3), Block(8, 2, 3)
    before = schedule.levels(torch.tensor([0, 5]))
    assert schedule.settles is schedule.settles
    assert torch.equal(schedule.levels(torch.tensor([0, 5])), before)
    assert schedule == fresh
    assert hash(schedule) == hash(fresh)
    assert repr(schedule) == repr(fresh)
