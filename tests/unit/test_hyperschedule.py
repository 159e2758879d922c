"""What a user of a hyperschedule is told when an argument is wrong, and on which device it answers."""

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
def test_windows_out_of_range(family, arguments, message):
    with pytest.raises(ValueError, match=message):
        family(*arguments)


def test_a_published_ramp_needs_two_positions():
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
def test_tables_that_are_no_hyperschedule(levels, message):
    with pytest.raises(ValueError, match=message):
        Table(torch.tensor(levels))


def test_a_table_may_name_its_level_of_noise():
    partly_noised = torch.tensor([[3, 0], [0, 0]])
    assert Table(partly_noised).num_levels == 3
    assert Table(partly_noised, num_levels=10).noise(0).tolist() == [0.3, 0.0]
    with pytest.raises(ValueError, match=r"num_levels=2\]; got 0 to 3"):
        Table(partly_noised, num_levels=2)


def test_a_table_keeps_its_own_copy():
    levels = torch.tensor([[1], [0]])
    hyperschedule = Table(levels)
    levels += 5
    assert hyperschedule.levels(0).tolist() == [1]


@pytest.mark.parametrize("eps", [0.0, 0.05, -1e-4, float("nan")])
def test_eps_that_leaves_no_room(eps):
    with pytest.raises(ValueError, match="must lie in"):
        flat(4, num_levels=4).time_grid(eps)


def test_offsets_of_the_wrong_number():
    with pytest.raises(ValueError, match=r"num_epochs=2; got shape \(3,\)"):
        Block(8, width=4, num_levels=2).packed_steps(torch.zeros(3, dtype=torch.long))


def test_autoregressive_is_one_position_a_step():
    assert autoregressive(3).levels(torch.arange(4)).tolist() == [[1, 1, 1], [0, 1, 1], [0, 0, 1], [0, 0, 0]]


def test_answers_come_on_the_device_of_the_question():
    """The meta device stands for any other: a tensor left on the CPU would fail to combine with it."""
    steps = torch.zeros(2, dtype=torch.long, device="meta")
    for hyperschedule in (Block(8, 4, 3), PublishedSlide(8, 4, 3), Table(torch.tensor([[1] * 8, [0] * 8]))):
        assert hyperschedule.regions(steps).active.device.type == "meta"
        assert hyperschedule.times(steps, 1e-4).device.type == "meta"


def test_when_positions_settle_is_worked_out_once_and_is_no_part_of_what_a_schedule_is() -> None:
    schedule, fresh = Block(8, 2, 3), Block(8, 2, 3)
    before = schedule.levels(torch.tensor([0, 5]))
    assert schedule.settles is schedule.settles
    assert torch.equal(schedule.levels(torch.tensor([0, 5])), before)
    assert schedule == fresh
    assert hash(schedule) == hash(fresh)
    assert repr(schedule) == repr(fresh)
