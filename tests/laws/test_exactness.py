"""Each exactness claim of an algorithm is compared with the enumerated limit of small steps."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hdlm.denoiser import ForwardContext
from hdlm.hyperschedule import flat
from hdlm.noise_schedule import Power
from hdlm.process import GIDD, Absorbing, AbstractNoiseProcess, EpsilonHybrid, GammaHybrid, Uniform
from hdlm.regime import Regime
from hdlm.sampling import ALGORITHMS, algorithm, exactness, sample
from hdlm.sampling.algorithms import ANY_STEPS, SMALL_STEPS
from hdlm.verification import (
    FAILURE_RATE,
    ExactDenoiser,
    agreeing_world,
    ancestral_law,
    chain,
    chi_square,
    text_law,
)
from hdlm.verification.chain import Board, PositionLaw, _products
from hdlm.verification.enumeration import states
from tests.statistics.test_samplers import euler_law

WORDS, LENGTH = 2, 3
WORLD = agreeing_world(WORDS, LENGTH)
CANVASES = states(WORDS, LENGTH)
PROCESSES: tuple[AbstractNoiseProcess, ...] = (
    Absorbing(WORDS),
    Uniform(WORDS),
    EpsilonHybrid(WORDS, 0.0),
    EpsilonHybrid(WORDS, 0.3),
    GammaHybrid(WORDS, 0.0),
    GammaHybrid(WORDS, 0.4),
    GIDD(WORDS, 0.3),
)
PACE = Power(2.0)
"""Small steps near the data, where the noise of GIDD begins as the root of `u`."""
CLOSE = 4e-3
"""A law closer than this in total variation counts as exact. Every inexact law is at least three times as far."""


def masks_only(board: Board) -> Tensor:
    """`original`: back along masks alone, where words wait."""
    process = Absorbing(WORDS) if board.process.words_stay else board.process
    return process.posterior(board.x, board.clean, board.s, board.t)


def analytic(board: Board) -> Tensor:
    t = torch.maximum(board.t.clamp_max(1 - 1e-4), board.s)
    score = board.process.score_from_clean(board.x, board.clean, t)
    return board.process.tweedie(board.x, score, board.s, t)


LAWS: dict[str, PositionLaw] = {
    "original": masks_only,
    "exact": ancestral_law,
    "analytic": analytic,
    "euler": euler_law,
}


def clean_predictions(process: AbstractNoiseProcess, u: float) -> Tensor:
    """`p(x_0 | x)` of every canvas at one noise."""
    noise = torch.full(CANVASES.shape, u, dtype=torch.float64)
    found = ExactDenoiser(WORLD, process).predict(CANVASES, noise, ForwardContext())
    return found.log_clean(found.everywhere()).exp().view(*CANVASES.shape, -1)


def board(process: AbstractNoiseProcess, t: float, s: float) -> Board:
    now, then = (torch.full(CANVASES.shape, u, dtype=torch.float64) for u in (t, s))
    return Board(process, CANVASES, clean_predictions(process, t), now, then)


def one_hot() -> Tensor:
    return torch.nn.functional.one_hot(CANVASES, WORDS + 1).double()


def gibbs_matrix(process: AbstractNoiseProcess, u: float, eta: float) -> Tensor:
    """A Gibbs correction of all canvases: of a share `eta` of the words at once, or of one if it is 0."""
    here = torch.full(CANVASES.shape, u, dtype=torch.float64)
    w = process.weights(here)
    able = (process.mask_id != CANVASES) & (w.uniform > 0)
    rest = process.origin(CANVASES, clean_predictions(process, u), here)
    rest = rest / rest.sum(-1, keepdim=True).clamp_min(1e-300)
    keep = (w.clean / (w.clean + w.uniform).clamp_min(1e-300))[..., None]
    anywhere = torch.tensor([1.0 / WORDS] * WORDS + [0.0], dtype=torch.float64)
    redrawn = torch.where(able[..., None], keep * rest + (1 - keep) * anywhere, one_hot())
    if eta:
        return _products(torch.where(able[..., None], eta * redrawn + (1 - eta) * one_hot(), one_hot()))
    total = torch.diag((~able.any(-1)).double())
    for i in range(LENGTH):
        alone = one_hot()
        alone[:, i] = redrawn[:, i]
        share = able[:, i].double() / able.sum(-1).clamp_min(1)
        total = total + share[:, None] * _products(alone)
    return total


def gibbs_law(process: AbstractNoiseProcess, steps: int, eta: float) -> Tensor:
    law = next(chain(ExactDenoiser(WORLD, process), Regime(flat(LENGTH, steps))))
    for n in range(steps, 0, -1):
        law = law @ _products(
            ancestral_law(board(process, (n / steps) ** 2, ((n - 1) / steps) ** 2)).nan_to_num()
        )
        law = law @ gibbs_matrix(process, ((n - 1) / steps) ** 2, eta) if n > 1 else law
    return text_law(law, WORDS, LENGTH)


def one_mask_at_a_time(process: AbstractNoiseProcess) -> Tensor:
    """`first_hitting`: any mask may be the next, and its word is drawn with all others in view."""
    clean, law = clean_predictions(process, 0.5), (process.mask_id == CANVASES).all(-1).double()
    masked = process.mask_id == CANVASES
    for _ in range(LENGTH):
        after = torch.zeros_like(law)
        for i in range(LENGTH):
            alone = one_hot()
            alone[:, i] = clean[:, i]
            share = torch.where(masked[:, i], law / masked.sum(-1).clamp_min(1), 0.0)
            after = after + share @ _products(alone)
        law = after
    return text_law(law, WORDS, LENGTH)


def law_of(name: str, process: AbstractNoiseProcess, eta: float) -> Callable[[int], Tensor]:
    """The law of the text as a function of the number of steps."""
    if name == "first_hitting":
        return lambda steps: one_mask_at_a_time(process)
    if name == "gibbs":
        return lambda steps: gibbs_law(process, steps, eta)

    def law(steps: int) -> Tensor:
        *_, last = chain(
            ExactDenoiser(WORLD, process), Regime(flat(LENGTH, steps), noise_schedule=PACE), LAWS[name]
        )
        return text_law(last, WORDS, LENGTH)

    return law


def distance(law: Tensor, other: Tensor) -> float:
    return float((law - other).abs().sum() / 2)


def limit(law: Callable[[int], Tensor]) -> Tensor:
    """The limit of many steps, extrapolated from the change when the number of steps doubles."""
    coarse, middle, fine = (law(steps) for steps in (12, 24, 48))
    pace = distance(fine, middle) / max(distance(middle, coarse), 1e-300)
    pace = min(pace, 0.8)  # a law that is near its limit changes by little at any pace
    return fine + (fine - middle) * pace / (1 - pace)


CLAIMS = [
    (name, process, eta)
    for name in (*LAWS, "first_hitting", "gibbs")
    for process in PROCESSES
    for eta in ((0.0, 0.6) if name == "gibbs" else (0.05,))
    if name != "first_hitting" or process.words_stay
]


FEW = (
    ("original", EpsilonHybrid(WORDS, 0.3), 0.05),
    ("exact", EpsilonHybrid(WORDS, 0.3), 0.05),
    ("analytic", GIDD(WORDS, 0.3), 0.05),
    ("gibbs", Uniform(WORDS), 0.6),
    ("first_hitting", Absorbing(WORDS), 0.05),
    ("first_hitting", EpsilonHybrid(WORDS, 0.3), 0.05),
)


@pytest.mark.parametrize(
    ("name", "process", "eta"),
    [pytest.param(*claim, marks=() if claim in FEW else pytest.mark.slow) for claim in CLAIMS],
    ids=str,
)
def test_exactness_claim_equals_enumerated_limit(
    name: str, process: AbstractNoiseProcess, eta: float
) -> None:
    law, claim = law_of(name, process, eta), exactness(name, process, eta)
    off = distance(limit(law), WORLD.law)
    assert (off < CLOSE) == (claim in (ANY_STEPS, SMALL_STEPS)), (claim, off)
    assert off < CLOSE or off > 3 * CLOSE, "too near to tell: choose a world in which claims differ"
    if claim == ANY_STEPS:
        assert distance(law(1), WORLD.law) < 1e-9
    elif claim == SMALL_STEPS:
        assert distance(law(4), WORLD.law) > CLOSE


@pytest.mark.parametrize("epsilon", [0.02, 0.3])
def test_original_and_first_hitting_have_one_limit(epsilon: float) -> None:
    """`original` and `first_hitting` have one limit, which is not the world for an epsilon-hybrid."""
    process = EpsilonHybrid(WORDS, epsilon)
    assert distance(limit(law_of("original", process, 0.05)), one_mask_at_a_time(process)) < CLOSE / 4
    assert distance(one_mask_at_a_time(process), WORLD.law) > 1e-3


@pytest.mark.parametrize(
    ("name", "process", "eta"),
    [
        ("original", EpsilonHybrid(WORDS, 0.3), 0.05),
        ("first_hitting", EpsilonHybrid(WORDS, 0.3), 0.05),
        ("analytic", GIDD(WORDS, 0.3), 0.05),
        ("gibbs", GammaHybrid(WORDS, 0.4), 0.6),
    ],
    ids=str,
)
def test_enumerated_laws_equal_those_of_samplers(
    name: str, process: AbstractNoiseProcess, eta: float
) -> None:
    denoiser = ExactDenoiser(WORLD, process)
    tokens = sample(
        denoiser,
        Regime(flat(LENGTH, 4), noise_schedule=PACE),
        algorithm(name, process, eta),
        num_sequences=4000,
        seed=1,
    ).tokens
    law = law_of(name, process, eta)(4)
    assert chi_square(WORLD.count(tokens), law / law.sum()) > FAILURE_RATE


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_has_an_exactness_claim(name: str) -> None:
    claims = {exactness(name, process, 0.05) for process in PROCESSES}
    assert (claims == {"a heuristic"}) == (name not in (*LAWS, "first_hitting", "gibbs"))
