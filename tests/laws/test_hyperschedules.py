"""Laws of every hyperschedule. Each hyperschedule in `__all__` must be in `EXAMPLES`."""

from __future__ import annotations

import inspect
import math
import time

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import hdlm.hyperschedule as package
from hdlm.hyperschedule import (
    AbstractCountdown,
    AbstractHyperschedule,
    Block,
    Packed,
    PromptedBlock,
    PublishedSlide,
    PublishedWave,
    Slide,
    Table,
    Wave,
    autoregressive,
    flat,
    opens_left_to_right,
    packing,
)
from hdlm.hyperschedule.packing import ABSENT
from tests.unit.test_network import LargestTensor

LENGTHS, LEVELS = st.integers(1, 24), st.integers(1, 9)


@st.composite
def windowed(draw, family, widths_from=1, levels_from=1):
    length = draw(st.integers(widths_from, 24))
    return family(
        length, width=draw(st.integers(widths_from, length)), num_levels=draw(st.integers(levels_from, 9))
    )


@st.composite
def tables(draw):
    rows, length = draw(st.integers(1, 10)), draw(LENGTHS)
    drops = torch.tensor(draw(st.lists(st.integers(0, 3), min_size=rows * length, max_size=rows * length)))
    levels = drops.reshape(rows, length).flip(0).cumsum(0).flip(0)
    return Table(torch.cat([levels, torch.zeros(1, length, dtype=torch.long)]))


@st.composite
def prompted(draw):
    blocks = draw(windowed(PromptedBlock))
    return blocks.behind(draw(st.integers(0, blocks.length)))


EXAMPLES = {
    Block: windowed(Block),
    Slide: windowed(Slide),
    Wave: windowed(Wave),
    PublishedSlide: windowed(PublishedSlide, widths_from=2),
    PublishedWave: windowed(PublishedWave, levels_from=2),
    PromptedBlock: prompted(),
    Table: tables(),
    autoregressive: st.builds(autoregressive, LENGTHS),
    flat: st.builds(flat, LENGTHS, LEVELS),
}
ANY = st.one_of(*EXAMPLES.values())
COUNTDOWNS = st.one_of(*(EXAMPLES[family] for family in (Block, Slide, Wave, autoregressive, flat)))


def every_level(hyperschedule: AbstractHyperschedule) -> torch.Tensor:
    """The whole table [num_steps + 3, l], beyond the last step too."""
    return hyperschedule.levels(torch.arange(hyperschedule.num_steps + 3))


def test_examples_cover_every_public_hyperschedule():
    public = {getattr(package, name) for name in package.__all__}
    concrete = {
        item
        for item in public
        if inspect.isfunction(item)
        or (issubclass(item, AbstractHyperschedule) and not inspect.isabstract(item))
    }
    assert concrete - {packing, opens_left_to_right} == set(EXAMPLES)


@given(ANY)
def test_levels_never_rise_and_end_settled(hyperschedule):
    levels = every_level(hyperschedule)
    assert levels.shape == (hyperschedule.num_steps + 3, hyperschedule.length)
    assert (levels[1:] <= levels[:-1]).all()
    assert levels.min() >= 0
    assert levels.max() <= hyperschedule.num_levels
    assert (levels[hyperschedule.num_steps :] == 0).all()


@given(ANY)
def test_settles_is_the_first_step_at_level_zero(hyperschedule):
    levels = every_level(hyperschedule)
    assert torch.equal(hyperschedule.settles, (levels > 0).sum(0))
    assert hyperschedule.num_steps == int((levels > 0).any(1).sum())


@given(ANY)
def test_regions_are_a_partition_that_only_moves_forward(hyperschedule):
    regions = hyperschedule.regions(torch.arange(hyperschedule.num_steps + 2))
    settled, active, worthless = (part.int() for part in (regions.settled, regions.active, regions.worthless))
    assert (settled + active + worthless == 1).all()
    order = active + 2 * settled
    assert (order[1:] >= order[:-1]).all()


@given(ANY)
def test_only_active_positions_change(hyperschedule):
    steps = torch.arange(hyperschedule.num_steps + 2)
    changes = hyperschedule.levels(steps) != hyperschedule.levels(steps + 1)
    assert not (changes & ~hyperschedule.regions(steps).active).any()


@given(ANY, st.floats(1e-6, 0.049))
def test_times_are_ordered_like_levels_and_invert(hyperschedule, eps):
    steps = torch.arange(hyperschedule.num_steps + 1)
    levels, times = hyperschedule.levels(steps), hyperschedule.times(steps, eps)
    assert torch.equal(hyperschedule.level_at(times, eps), levels)
    assert (times[levels == 0] == eps).all()
    assert (times[levels == hyperschedule.num_levels] == 1 - eps).all()
    assert (hyperschedule.time_grid(eps).diff() > 0).all()


def test_times_follow_the_definition():
    """Level k of 1..T-1 sits at e + k (1 - 2e) / (T - 1), e = 10 eps."""
    grid = flat(1, num_levels=5).time_grid(1e-3)
    expected = [0.001, *(0.01 + k * 0.98 / 4 for k in (1, 2, 3, 4)), 0.999]
    assert grid.tolist() == pytest.approx(expected, abs=1e-15)


@given(ANY)
def test_levels_of_step_batch_equal_single_steps(hyperschedule):
    steps = torch.arange(6).reshape(2, 3)
    batch = hyperschedule.levels(steps)
    assert batch.shape == (2, 3, hyperschedule.length)
    for row in range(2):
        for column in range(3):
            assert torch.equal(batch[row, column], hyperschedule.levels(int(steps[row, column])))
    assert torch.equal(hyperschedule.noise(steps), batch.double() / hyperschedule.num_levels)


@given(COUNTDOWNS)
def test_countdown_has_each_level_once(hyperschedule):
    levels = every_level(hyperschedule)
    for level in range(1, hyperschedule.num_levels):
        assert ((levels == level).sum(0) == 1).all()


@given(COUNTDOWNS, st.data())
def test_packed_windows_equal_active_regions(hyperschedule, data):
    steps = hyperschedule.packed_steps(draw_offsets(hyperschedule, data))
    for step in steps.unique().tolist():
        assert torch.equal(steps == step, hyperschedule.regions(step).active)


@given(COUNTDOWNS)
def test_offsets_visit_every_level_of_every_position(hyperschedule):
    num_levels, num_epochs = hyperschedule.num_levels, hyperschedule.num_epochs
    offsets = torch.arange(num_levels)[:, None].expand(num_levels, num_epochs)
    steps = hyperschedule.packed_steps(offsets)
    levels = hyperschedule.settles - steps
    assert torch.equal(levels.sort(0).values, torch.arange(1, num_levels + 1)[:, None].expand_as(levels))


@given(COUNTDOWNS, st.data())
def test_epochs_are_independent(hyperschedule, data):
    """Two epochs are never active together, and a changed offset moves only its own epoch."""
    active = hyperschedule.regions(torch.arange(hyperschedule.num_steps)).active
    epochs = hyperschedule.epochs
    for step in active:
        assert len(epochs[step].unique()) == 1
    assert torch.equal(epochs.unique(), torch.arange(hyperschedule.num_epochs))
    offsets = draw_offsets(hyperschedule, data)
    chosen = data.draw(st.integers(0, hyperschedule.num_epochs - 1))
    moved = offsets.clone()
    moved[chosen] = (moved[chosen] + 1) % hyperschedule.num_levels
    changed = hyperschedule.packed_steps(moved) != hyperschedule.packed_steps(offsets)
    assert torch.equal(changed, (epochs == chosen) & (hyperschedule.num_levels > 1))


def test_epochs_of_the_families():
    assert flat(5, num_levels=3).epochs.tolist() == [0] * 5
    assert Block(5, width=2, num_levels=3).epochs.tolist() == [0, 0, 1, 1, 2]
    assert Slide(5, width=2, num_levels=3).epochs.tolist() == [0] * 5
    assert Wave(5, width=2, num_levels=3).epochs.tolist() == [0, 0, 1, 1, 2]
    assert autoregressive(4).epochs.tolist() == [0, 1, 2, 3]


def test_countdown_accepts_starts_from_right_to_left():
    """`starts` need not increase: right to left is a valid hyperschedule."""

    class Reversed(AbstractCountdown):
        length, num_levels = 4, 2

        @property
        def starts(self):
            return torch.tensor([4, 3, 1, 0])

    hyperschedule = Reversed()
    assert hyperschedule.epochs.tolist() == [1, 1, 0, 0]
    assert hyperschedule.packed_steps(torch.tensor([1, 0])).tolist() == [5, 3, 1, 1]
    assert hyperschedule.num_steps == 6


def test_hyperschedules_support_8192_positions_and_4096_levels():
    """A table of 8192 positions and 4096 levels would have 10^10 entries. One step needs only one row."""
    for family in (Block, Slide, Wave, PublishedSlide, PublishedWave):
        with LargestTensor() as largest:
            hyperschedule = family(8192, width=512, num_levels=4096)
            middle = hyperschedule.num_steps // 2
            assert hyperschedule.levels(torch.tensor([0, middle, hyperschedule.num_steps])).shape == (3, 8192)
            assert hyperschedule.regions(middle).active.any()
        assert largest.numel < 100 * 8192


def draw_offsets(hyperschedule: AbstractCountdown, data: st.DataObject) -> torch.Tensor:
    one = st.integers(0, hyperschedule.num_levels - 1)
    size = hyperschedule.num_epochs
    return torch.tensor(data.draw(st.lists(one, min_size=size, max_size=size)))


# --- two streams ---------------------------------------------------------------------------------------------


def cells_of(hyperschedule: AbstractHyperschedule) -> int:
    return math.lcm(*packing(hyperschedule).num_cells)


FEW_PASSES = ANY.filter(lambda hyperschedule: cells_of(hyperschedule) <= 60)


MERGING = Table(torch.tensor([[3, 2, 1], [2, 2, 1], [1, 2, 1], [0, 1, 1], [0, 0, 0]]))
"""Step 3 follows both step 0 and step 1, so two of three passes contain it."""


def every_pass(hyperschedule: AbstractHyperschedule) -> Packed:
    """The passes that cells of times mean, one cell a row, the same in every epoch."""
    passes = packing(hyperschedule)
    cells = cells_of(hyperschedule)
    times = (torch.arange(cells, dtype=torch.float64) + 0.5) / cells
    return passes(times[:, None].expand(-1, passes.num_epochs))


@settings(max_examples=25, deadline=None)
@given(FEW_PASSES)
def test_packed_pass_consists_of_whole_generation_windows(hyperschedule):
    packed = every_pass(hyperschedule)
    present = packed.steps != ABSENT
    steps = packed.steps.clamp_min(0)
    together = packed.steps[:, :, None] == packed.steps[:, None, :]
    assert torch.equal(together[present], hyperschedule.regions(steps).active[present])
    place = torch.arange(hyperschedule.length)
    for level, later in ((packed.now, 0), (packed.then, 1)):
        own = hyperschedule.levels(steps + later)[:, place, place]
        assert torch.equal(level[present], own[present])


@settings(max_examples=25, deadline=None)
@given(FEW_PASSES)
@example(MERGING)
@example(PublishedSlide(20, width=8, num_levels=3))
def test_packed_weights_make_each_active_step_count_once(hyperschedule):
    """Every active step of every position is in some pass, and is expected once: the marginal of levels is right."""
    packed = every_pass(hyperschedule)
    row, position = (packed.steps != ABSENT).nonzero().unbind(1)
    assert not packed.weight[packed.steps == ABSENT].any()
    expected = torch.zeros(hyperschedule.num_steps, hyperschedule.length, dtype=torch.float64)
    cells = packed.steps[row, position], position
    expected.index_put_(cells, packed.weight[row, position] / len(packed.steps), accumulate=True)
    active = hyperschedule.regions(torch.arange(hyperschedule.num_steps)).active
    torch.testing.assert_close(expected, active.double())


@pytest.mark.parametrize(("width", "num_levels"), [(8, 8), (8, 2), (8, 4), (8, 3), (6, 2), (6, 3), (12, 6)])
def test_published_slide_tiles_if_stride_divides_width(width, num_levels):
    hyperschedule = PublishedSlide(40, width, num_levels)
    present = every_pass(hyperschedule).steps != ABSENT
    assert bool(present[:, 2 * width :].all()) == (width % hyperschedule.stride == 0)
    assert present.double().mean() > 1 - (hyperschedule.stride - 1) / width - 0.1


def test_published_wave_does_not_tile_and_trains_every_block():
    """All windows of a block end at the block end, so no window covers the settled positions of a smaller one."""
    present = every_pass(PublishedWave(12, width=4, num_levels=3)).steps != ABSENT
    blocks = present.view(-1, 3, 4)
    assert not present.all()
    assert blocks.any(-1).all()
    assert torch.equal(blocks, blocks.cummax(-1).values)


def test_packing_of_large_canvases_takes_less_than_20_seconds():
    begin = time.perf_counter()
    for hyperschedule in (PublishedSlide(1024, 512, 256), PublishedWave(1024, 16, 64)):
        passes = packing(hyperschedule)
        packed = passes(torch.rand(4, passes.num_epochs, dtype=torch.float64))
        assert (packed.steps != ABSENT).double().mean() > 0.8
    assert time.perf_counter() - begin < 20


def test_packing_makes_no_tensor_of_steps_times_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Levels are computed for a few steps at a time, and the tables do not change."""
    hyperschedule = PublishedSlide(300, 8, 4)
    times = torch.rand(3, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    wanted = packing(hyperschedule)(times)
    monkeypatch.setattr(inspect.getmodule(Packed), "_ENTRIES", 1000)
    with LargestTensor() as largest:
        found = packing(hyperschedule)(times)
    assert largest.numel < hyperschedule.num_steps * hyperschedule.length / 4
    for name in ("steps", "now", "then", "weight"):
        assert torch.equal(getattr(found, name), getattr(wanted, name))
