"""Conditional likelihood: windows, the sum over all continuations, and greedy continuations."""

from __future__ import annotations

import itertools
import math
from typing import Literal

import pytest
import torch

from hdlm.evaluation.likelihood.estimator import Likelihood
from hdlm.evaluation.likelihood.windows import Window, WindowedText, split_text
from hdlm.hyperschedule import AbstractHyperschedule, Block, Slide, Table, autoregressive, flat
from hdlm.parameterization import Mean, Shifted
from hdlm.process import Absorbing, AbstractNoiseProcess, EpsilonHybrid, GammaHybrid, Uniform
from hdlm.regime import Regime
from hdlm.verification.exact import ExactDenoiser
from hdlm.verification.world import random_world
from tests.covering import cases
from tests.tiny import tiny_denoiser

WORLD = random_world(3, 4, seed=2, temperature=0.7)
SCHEDULES = [flat(4, 3), Block(4, 2, 2), Slide(4, 2, 2), Table(flat(4, 3).levels(torch.arange(4)))]
CONTINUATIONS = list(itertools.product(range(3), repeat=2))


def truth(tokens: tuple[int, ...]) -> float:
    """`-log p` of the last two tokens behind the first two."""
    laws = {tuple(row): float(p) for row, p in zip(WORLD.sequences.tolist(), WORLD.law, strict=True)}
    return -math.log(laws[tokens] / sum(p for row, p in laws.items() if row[:2] == tokens[:2]))


@pytest.mark.parametrize("given", [0, 1, 3, 9])
@pytest.mark.parametrize("length", [2, 4, 10, 12])
def test_split_text_measures_every_token_once_with_longest_context(given: int, length: int) -> None:
    text = list(range(10))
    windows = split_text(text, given, length)
    assert [token for window in windows for token in window.tokens[window.given :]] == text[given:]
    assert all(len(window.tokens) == min(length, 10) for window in windows[min(given, 1) - 1 :])
    assert all(window.given for window in windows[1:])
    assert not split_text(text, 10, length)


def test_split_text_truncates_long_context_on_the_left() -> None:
    (window,) = split_text(range(10), 8, 4)
    assert (window.tokens, window.given) == ((6, 7, 8, 9), 2)


def test_split_text_alike_gives_equal_keys_to_equal_contexts() -> None:
    one, other = split_text([1, 2, 3], 2, 9, alike=True), split_text([1, 2, 0], 2, 9, alike=True)
    assert one[0].key == other[0].key
    assert split_text([1, 2, 3], 2, 9)[0].key != split_text([1, 2, 0], 2, 9)[0].key


@pytest.mark.parametrize("shifted", [False, True])
def test_autoregressive_continuation_probabilities_sum_to_one(shifted: bool) -> None:
    model = tiny_denoiser(Absorbing(3), Shifted(Mean()) if shifted else Mean())
    measure = Likelihood(model, Regime(autoregressive(4)))
    windows = [Window((2, 0, *ending), 2) for ending in CONTINUATIONS]
    assert float((-measure.nats(windows)).exp().sum()) == pytest.approx(1, abs=1e-9)
    for window in windows:
        assert measure.greedy([window])[0] == _is_greedy_continuation(measure, window)


def _is_greedy_continuation(measure: Likelihood, window: Window) -> bool:
    for at in range(window.given, len(window.tokens)):
        rivals = [Window((*window.tokens[:at], word), at) for word in range(3)]
        if int(measure.nats(rivals).argmin()) != window.tokens[at]:
            return False
    return True


@pytest.mark.parametrize("schedule", SCHEDULES[:2], ids=repr)
@pytest.mark.parametrize("process", [Absorbing(3), EpsilonHybrid(3, 0.2)], ids=repr)
def test_bounded_continuation_probabilities_sum_to_at_most_one(
    schedule: AbstractHyperschedule, process: AbstractNoiseProcess
) -> None:
    measure = Likelihood(tiny_denoiser(process), Regime(schedule))
    windows = [Window((2, 0, *ending), 2, key) for key, ending in enumerate(CONTINUATIONS)]
    assert float((-measure.nats(windows, 400, batch_size=4096)).exp().sum()) < 1.05


BOUNDS = [
    (Absorbing(3), "absorbing"),
    (Absorbing(3), "hybrid"),
    (GammaHybrid(3, 0.3), "hybrid"),
    (Uniform(3), "hybrid"),
]


@pytest.mark.parametrize(("schedule", "case"), cases(SCHEDULES, BOUNDS), ids=repr)
def test_conditional_bound_of_exact_model_is_at_least_exact_nats(
    schedule: AbstractHyperschedule, case: tuple[AbstractNoiseProcess, str]
) -> None:
    """The bound of the exact model is at least the exact value. For absorbing noise it equals the exact value.

    Single tokens under a stratified bound are weighed by up to 1/u: one window's mean is off by 0.15 after 2000.
    """
    process, bound = case
    measure = Likelihood(ExactDenoiser(WORLD, process), Regime(schedule), bound=bound)
    windows = [Window((2, 0, *ending), 2, key) for key, ending in enumerate(CONTINUATIONS)]
    true = torch.tensor([truth(window.tokens) for window in windows])
    gap = float((measure.nats(windows, 2000, batch_size=4096) - true).mean())
    assert gap > -0.25
    if isinstance(process, Absorbing):
        assert gap < (0.03 if measure.measured_by == "count" else 0.25)


BLOCKS = Table(Block(4, 2, 2).levels(torch.arange(5)))


@pytest.mark.parametrize("context", ["block_causal", "full"])
@pytest.mark.parametrize("schedule", [*SCHEDULES, BLOCKS, autoregressive(4)], ids=repr)
@pytest.mark.parametrize("process", [Absorbing(3), EpsilonHybrid(3, 0.2), GammaHybrid(3, 0.3)], ids=repr)
def test_greedy_holds_for_most_probable_continuation_only(
    schedule: AbstractHyperschedule, process: AbstractNoiseProcess, context: Literal["block_causal", "full"]
) -> None:
    measure = Likelihood(ExactDenoiser(WORLD, process), Regime(schedule, context=context))
    for first in range(3):
        windows = [Window((first, *ending), 1) for ending in CONTINUATIONS]
        found = measure.greedy(windows, batch_size=5)
        assert sum(found) == 1
        assert windows[found.index(True)].tokens == (first, *_greedy_continuation((first,), 2))


def _greedy_continuation(prefix: tuple[int, ...], more: int) -> tuple[int, ...]:
    laws = {tuple(row): float(p) for row, p in zip(WORLD.sequences.tolist(), WORLD.law, strict=True)}
    row = prefix
    for _ in range(more):
        masses = [
            sum(p for other, p in laws.items() if other[: len(row) + 1] == (*row, word)) for word in range(3)
        ]
        row = (*row, masses.index(max(masses)))
    return row[len(prefix) :]


def test_conditional_nats_do_not_depend_on_batch() -> None:
    model = tiny_denoiser(EpsilonHybrid(3, 0.2))
    windows = [Window((2, 0, *ending), 2, key) for key, ending in enumerate(CONTINUATIONS)]
    measure = Likelihood(model, Regime(Block(4, 2, 2)))
    together = measure.nats(windows)
    alone = torch.cat([measure.nats([window], batch_size=3) for window in windows])
    assert torch.allclose(together, alone)


def test_conditional_rejects_arguments_out_of_range() -> None:
    with pytest.raises(ValueError, match="`replicates` must be at least 1; got 0"):
        Likelihood(tiny_denoiser(Absorbing(3)), Regime(flat(4, 2))).nats([Window((1, 2), 1)], 0)
    with pytest.raises(ValueError, match=r"less than 2.*got 2"):
        Window((1, 2), 2)
    with pytest.raises(ValueError, match=r"`length` is 1"):
        split_text([1], 0, 1)


def test_the_random_numbers_of_windows_and_of_texts_stay_what_they_are() -> None:
    """Pinned values: another random stream, or another order of numbers, makes another estimate of one seed."""
    measure = Likelihood(ExactDenoiser(WORLD, Absorbing(3)), Regime(flat(4, 3)), estimator="random", seed=3)
    nats = measure.nats([Window((2, 0, 1, 1), 2, 5), Window((2, 0, 1), 1, 7)], 3)
    text = measure.of_text(WindowedText(torch.tensor([2, 0, 1, 1, 0, 2]), 4), 2)
    assert nats.tolist() == pytest.approx([0.8824371727830226, 1.733504657335148])
    assert text.estimates == pytest.approx((21.24629006519112, 0.0))
