"""A shifted network predicts a position only from the output at the previous position."""

from __future__ import annotations

from typing import final

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hdlm.denoiser import AbstractDenoiser, Denoiser, ForwardContext
from hdlm.hyperschedule import (
    AbstractHyperschedule,
    Block,
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
from hdlm.objective import Corruption
from hdlm.parameterization import Mean, Shifted
from hdlm.process import Absorbing
from hdlm.published.model import CallableDenoiser
from hdlm.regime import Regime
from hdlm.sampling import Ancestral, Engine, Execution, Move, Prompt, sample
from tests.tiny import tiny_denoiser

WORDS = 4
PROCESS = Absorbing(WORDS)
ALIGNED = tiny_denoiser(PROCESS)
SHIFTED = Denoiser(ALIGNED.backbone, PROCESS, Shifted(Mean()))
LEFTWARDS = Table(torch.tensor([[0, 1, 1, 1], [0, 1, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]]))
"""Position 3 is written first, when positions 1 and 2 are not on the canvas."""


@final
class RecordingShiftedDenoiser(AbstractDenoiser):
    """The shifted network. It records the outputs of the aligned network with equal weights."""

    process = PROCESS
    lookback = 1

    def __init__(self) -> None:
        self.aligned: dict[int, torch.Tensor] = {}

    def predict(self, tokens, noise, context):
        said = ALIGNED.predict(tokens, noise, context)
        raw = said.raw(said.everywhere())
        self.aligned = dict(zip(context.positions[0].tolist(), raw, strict=True))
        return SHIFTED.predict(tokens, noise, context)


def _count_reads_of_predecessors(plan: AbstractHyperschedule) -> int:
    """Compare each raw output with the aligned output of the previous position, and return their number."""
    both, count = RecordingShiftedDenoiser(), 0

    def step(x, move: Move):
        nonlocal count
        if not move.moving.any():
            return x
        answer = move.reading.answer(move.moving)
        for column in move.moving[0].nonzero()[:, 0].tolist():
            read = answer.prediction.raw(answer.place[0, [column]])[0]
            torch.testing.assert_close(read, both.aligned[column - 1], atol=1e-12, rtol=1e-12)
            count += 1
        return torch.where(move.moving & (move.s == 0), 2, x)

    known = (plan.levels(0) == 0)[None] | (torch.arange(plan.length) == 0)
    prompt = Prompt(torch.ones(1, plan.length, dtype=torch.long), known)
    sample(both, Regime(plan), step, prompt=prompt, execution=Execution(use_cache=False))
    return count


@pytest.mark.parametrize(
    "plan",
    [
        autoregressive(6),
        flat(6, 2),
        Block(6, 2, 2),
        Slide(6, 3, 4),
        Wave(6, 3, 2),
        PublishedSlide(6, 3, 5),
        PublishedWave(6, 3, 3),
        Table(torch.tensor([[2, 2, 2], [2, 1, 2], [1, 0, 1], [0, 0, 0]]).flip(1)[:, [1, 1, 1]]),
    ],
    ids=repr,
)
def test_shifted_network_reads_position_before_in_every_family(plan) -> None:
    assert opens_left_to_right(plan)
    assert _count_reads_of_predecessors(plan) >= plan.length - 1


@st.composite
def tables(draw):
    length, rows = draw(st.integers(2, 5)), 3  # levels fall by 0 or 1 a step, so some begin at less than 3
    drops = draw(st.lists(st.integers(0, 1), min_size=rows * length, max_size=rows * length))
    levels = torch.tensor(drops).view(rows, length).cumsum(0).flip(0)
    return Table(torch.cat([levels, torch.zeros(1, length, dtype=torch.long)]), num_levels=3)


@settings(max_examples=20, deadline=None)
@given(tables())
def test_shifted_network_reads_position_before_or_refuses_table(table) -> None:
    """A table is refused exactly if a position moves while the previous position is pure noise."""
    absent = False
    for n in range(table.num_steps):
        regions = table.regions(n)
        absent |= bool((regions.active[1:] & regions.worthless[:-1]).any())
    assert opens_left_to_right(table) == (not absent)
    if absent:
        with pytest.raises(ValueError, match=r"before it.*Table\(.*not on the canvas"):
            _count_reads_of_predecessors(table)
    else:
        _count_reads_of_predecessors(table)


def test_leftward_table_is_refused_with_shifted_network() -> None:
    """An aligned network can write with this table."""
    prompt = Prompt.prefix([1], 4)
    function = CallableDenoiser(
        lambda ids, positions: torch.zeros(*ids.shape, WORDS + 1), PROCESS, Shifted(Mean())
    )
    for denoiser in (SHIFTED, function):
        with pytest.raises(ValueError, match="Use an aligned network"):
            sample(denoiser, Regime(LEFTWARDS), Ancestral(), prompt=prompt)
        with pytest.raises(ValueError, match="Use an aligned network"):
            Engine(denoiser, Regime(LEFTWARDS), Ancestral())
    assert (sample(ALIGNED, Regime(LEFTWARDS), Ancestral(), prompt=prompt).tokens < WORDS).all()
    assert not packing(LEFTWARDS).left_to_right
    for two_stream, told in ((True, "Use two_stream=False"), (False, "another hyperschedule")):
        corruption = Corruption(PROCESS, Regime(LEFTWARDS), two_stream=two_stream, num_given=1)
        times = torch.full((2, corruption.num_times), 0.3, dtype=torch.float64)
        canvas = corruption(torch.ones(2, 4, dtype=torch.long), times, torch.rand(2, 4, dtype=torch.float64))
        canvas.predict(ALIGNED)
        with pytest.raises(ValueError, match=told):
            canvas.predict(SHIFTED)


def test_an_engine_wants_the_first_token_of_a_shifted_network() -> None:
    engine = Engine(SHIFTED, Regime(flat(4, 2)), Ancestral())
    with pytest.raises(ValueError, match="does not predict the first 1"):
        engine.add(torch.tensor([0]))
    engine.add(
        torch.tensor([0]),
        tokens=torch.tensor([[1, 0, 0, 0]]),
        fixed=torch.tensor([[True, False, False, False]]),
    )
    assert len(engine) == 1


def _positions_as_logits(ids, positions):
    """Raw outputs that equal their position."""
    return positions[..., None].expand(*ids.shape, WORDS + 1).double()


@pytest.mark.parametrize(
    "denoiser",
    [SHIFTED, CallableDenoiser(_positions_as_logits, PROCESS, Shifted(Mean()))],
    ids=["network", "function"],
)
def test_shifted_read_without_position_before_is_refused(denoiser) -> None:
    """Other positions can be read, and the first position of a sequence has no predecessor."""
    tokens, noise = torch.zeros(2, 4, dtype=torch.long), torch.full((2, 4), 0.5, dtype=torch.float64)
    said = denoiser.predict(tokens, noise, ForwardContext(positions=torch.tensor([[0, 3, 4, 6]])))
    with torch.no_grad():
        for at in (1, 3, 5, 7):
            with pytest.raises(ValueError, match="directly before the position that is read"):
                said.raw(torch.tensor([0, at]))
        found = said.raw(torch.tensor([0, 2, 6]))
        whole = denoiser.predict(tokens, noise, ForwardContext(positions=torch.tensor([[3, 4, 5, 6]])))
        assert whole.raw(torch.tensor([1, 2, 3])).shape == found.shape
        with pytest.raises(ValueError, match="directly before"):
            whole.raw(torch.tensor([0]))
    if isinstance(denoiser, CallableDenoiser):
        assert found[:, 0].tolist() == [0, 3, 3]
