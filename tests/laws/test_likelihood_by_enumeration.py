"""The bound of a network is checked against the likelihood of its reverse process, summed over every path.

The sums are exact. The network has random weights and is a poor model of the data.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from hdlm.denoiser import Denoiser, ForwardContext
from hdlm.evaluation import estimate_likelihood
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
)
from hdlm.noise_schedule import LINEAR, AbstractNoiseSchedule, Geometric, LogLinear
from hdlm.objective import NELBO, Corruption, prior_divergence
from hdlm.parameterization import LeaveOneOut, Mean, Shifted
from hdlm.process import GIDD, Absorbing, AbstractNoiseProcess, EpsilonHybrid, GammaHybrid
from hdlm.regime import Regime
from hdlm.verification.enumeration import bayes, state_law, states
from hdlm.verification.expectation import every_canvas
from hdlm.verification.statistics import FAILURE_RATE
from hdlm.verification.world import World, all_sequences
from tests.tiny import tiny_denoiser

LENGTH = 3
PLANS: list[AbstractHyperschedule] = [
    flat(LENGTH, 3),
    Block(LENGTH, 2, 2),
    Slide(LENGTH, 2, 3),
    Wave(LENGTH, 2, 2),
    PublishedSlide(LENGTH, 3, 2),
    PublishedWave(LENGTH, 2, 3),
    Table(torch.tensor([[3, 3, 3], [2, 3, 3], [2, 1, 3], [0, 1, 2], [0, 0, 0]])),
    autoregressive(LENGTH),
]
SHIFTED = pytest.mark.parametrize("shifted", [False, True], ids=["aligned", "shifted"])


def processes(words: int) -> list[AbstractNoiseProcess]:
    return [Absorbing(words), EpsilonHybrid(words, 0.2), GammaHybrid(words, 0.3)]


def random_denoiser(process: AbstractNoiseProcess, *, shifted: bool = False) -> Denoiser:
    """For absorbing noise and epsilon-hybrids the reading is `Mean`, for other processes `LeaveOneOut`.

    Otherwise the bound would be infinite, because the network would doubt words without noise.
    """
    reading = Mean() if isinstance(process, (Absorbing, EpsilonHybrid)) else LeaveOneOut()
    return tiny_denoiser(process, Shifted(reading) if shifted else reading, seed=4).eval()


def sees(plan: AbstractHyperschedule, n: int) -> Tensor:
    """Who sees whom at step `n`: settled see what has settled before them, active all that is not waiting."""
    now, then, settles = plan.levels(n), plan.levels(n + 1), plan.settles
    settled, waits = now == 0, (now == plan.num_levels) & (then == plan.num_levels)
    past = settled[:, None] & settled[None, :] & (settles[None, :] <= settles[:, None])
    return past | (~(settled | waits)[:, None] & ~waits[None, :])


class EnumeratedReverseProcess:
    """Every path of a model's own reverse process.

    Attributes:
        surprise: `-log p` of every sequence; along a plan that begins below pure noise, `E[-log p(x_0 | x_start)]`.
        cost: What the steps cost every sequence, in nats: the sum of `KL(q(x_s | x_t, x_0) || p(x_s | x_t))`.
    """

    def __init__(
        self, denoiser: Denoiser, plan: AbstractHyperschedule, noise_schedule: AbstractNoiseSchedule = LINEAR
    ) -> None:
        self._denoiser, self._plan, self._pace = denoiser, plan, noise_schedule
        self._process, self._words = denoiser.process, denoiser.process.num_words
        self._states, self._texts = states(self._words, LENGTH), all_sequences(self._words, LENGTH)
        self.cost = torch.zeros(len(self._texts), dtype=torch.float64)
        law = torch.eye(len(self._states), dtype=torch.float64)
        for n in range(plan.num_steps):
            law = law @ self._step(n)
        self.surprise = self._surprise(law)

    def _noise(self, n: int) -> Tensor:
        level, given = self._plan.levels(n), torch.arange(LENGTH) < self._denoiser.lookback
        u = self._pace.fraction(level.double() / self._plan.num_levels)
        return u.masked_fill(given | (level == 0), 0)

    def _step(self, n: int) -> Tensor:
        """`p(x_s | x_t)` for all canvases, `[z z]`; adds what the step costs."""
        t, s = self._noise(n), self._noise(n + 1)
        context = ForwardContext(attention=sees(self._plan, n)[None])
        asked = self._denoiser.predict(self._states, t.expand(self._states.shape), context)
        guess = asked.log_clean(asked.everywhere()).exp().view(*self._states.shape, -1)
        q = state_law(self._process, self._texts, t.expand(self._texts.shape), self._states)
        step = torch.ones(len(self._states), len(self._states), dtype=torch.float64)
        for i in range(LENGTH):
            stays = torch.nn.functional.one_hot(self._states[:, i], self._words + 1).double()
            p = self._back(i, guess[:, i], s, t) if s[i] < t[i] else stays
            step = step * p[:, self._states[:, i]]
            for word in range(self._words) if s[i] < t[i] else ():
                sure = torch.zeros_like(p).index_fill(1, torch.tensor(word), 1.0)
                r = self._back(i, sure, s, t)
                divergence = (torch.xlogy(r, r) - torch.xlogy(r, p)).nan_to_num(posinf=0.0).sum(-1)
                self.cost += (self._texts[:, i] == word) * (q @ divergence)
        return step

    def _back(self, i: int, guess: Tensor, s: Tensor, t: Tensor) -> Tensor:
        """Bayes' rule for position `i`; zero where noise cannot have made what stands there."""
        at = torch.ones(len(guess), dtype=torch.float64)
        return bayes(self._process, self._states[:, i], guess, s[i] * at, t[i] * at).nan_to_num()

    def _surprise(self, law: Tensor) -> Tensor:
        begin = self._noise(0)
        if bool((self._plan.levels(0) == self._plan.num_levels).all()):
            masks = self._process.weights(begin[-1]).mask  # the bound charges uniform words for the rest
            single = torch.cat([((1 - masks) / self._words).expand(self._words), masks[None]])
            free = torch.arange(LENGTH) >= self._denoiser.lookback
            same = (self._texts[:, None] == self._states) | free
            start = same.all(-1) * single[self._states[:, free]].prod(-1)
        else:
            start = state_law(self._process, self._texts, begin.expand(self._texts.shape), self._states)
        torch.testing.assert_close((start @ law).sum(-1), torch.ones(len(start), dtype=torch.float64))
        place = (self._states[None] == self._texts[:, None]).all(-1).nonzero()[:, 1]
        if bool((self._plan.levels(0) == self._plan.num_levels).all()):
            return -torch.einsum("sz,zs->s", start, law[:, place]).log()
        return -torch.xlogy(start, law[:, place].T).sum(-1)


def own_bound(
    denoiser: Denoiser,
    plan: AbstractHyperschedule,
    noise_schedule: AbstractNoiseSchedule = LINEAR,
    *,
    two_stream: bool,
) -> Tensor:
    """The mean of `NELBO` for every sequence, over all its times and all its noise."""
    words = denoiser.process.num_words
    world = World(torch.full([words] * LENGTH, words**-LENGTH, dtype=torch.float64))
    corruption = Corruption(
        denoiser.process,
        Regime(plan, noise_schedule),
        two_stream=two_stream,
        continuous=False,
        num_given=denoiser.lookback,
    )
    cells = [(torch.arange(count, dtype=torch.float64) + 0.5) / count for count in corruption.num_cells]
    times = torch.tensor(list(itertools.product(*cells)), dtype=torch.float64)
    share = torch.full((len(times),), 1 / len(times), dtype=torch.float64)
    canvas, probability = every_canvas(corruption, world, times, share)
    nats = probability * NELBO()(denoiser, canvas).sum(-1)
    found = torch.zeros(len(world.law), dtype=torch.float64)
    return found.index_add(0, world.index(canvas.x_0), nats) / world.law


def assert_bound_equals_cost(
    denoiser: Denoiser,
    plan: AbstractHyperschedule,
    noise_schedule: AbstractNoiseSchedule = LINEAR,
    prior: float = 0.0,
) -> EnumeratedReverseProcess:
    """Assert that `NELBO` equals the cost of the steps in both layouts and, with the prior, bounds the likelihood."""
    own = EnumeratedReverseProcess(denoiser, plan, noise_schedule)
    for two_stream in (False, True):
        bound = own_bound(denoiser, plan, noise_schedule, two_stream=two_stream)
        torch.testing.assert_close(bound, own.cost, rtol=1e-6, atol=1e-9)
    assert (own.cost + prior - own.surprise).min() > -1e-9
    return own


@SHIFTED
@pytest.mark.parametrize("process", processes(2), ids=repr)
@pytest.mark.parametrize("plan", PLANS, ids=repr)
@torch.no_grad()
def test_nelbo_equals_enumerated_cost_and_bounds_likelihood(
    plan: AbstractHyperschedule, process: AbstractNoiseProcess, shifted: bool
) -> None:
    """Compares each sequence in both layouts. For one position per step, bound and likelihood are equal."""
    own = assert_bound_equals_cost(random_denoiser(process, shifted=shifted), plan)
    if plan == autoregressive(LENGTH):
        torch.testing.assert_close(own.cost, own.surprise)
    elif plan.num_steps <= 3:
        assert (own.cost - own.surprise).max() > 1e-3  # words that are noisy together are drawn apart


@pytest.mark.slow
@SHIFTED
@pytest.mark.parametrize("process", [*processes(3), GIDD(3, 0.2)], ids=repr)
@pytest.mark.parametrize("plan", PLANS, ids=repr)
@torch.no_grad()
def test_nelbo_equals_enumerated_cost_with_three_words(
    plan: AbstractHyperschedule, process: AbstractNoiseProcess, shifted: bool
) -> None:
    assert_bound_equals_cost(random_denoiser(process, shifted=shifted), plan)


@pytest.mark.parametrize("pace", [Geometric(0.2, 2.5), LogLinear(0.1)], ids=repr)
@pytest.mark.parametrize("process", [EpsilonHybrid(2, 0.2), GammaHybrid(2, 0.3)], ids=repr)
@pytest.mark.parametrize("plan", [Slide(LENGTH, 2, 3), Block(LENGTH, 2, 2)], ids=repr)
@torch.no_grad()
def test_nelbo_equals_enumerated_cost_with_noise_floor(
    plan: AbstractHyperschedule, process: AbstractNoiseProcess, pace: AbstractNoiseSchedule
) -> None:
    """The last step ends at the data from any noise level, and the first step pays the prior."""
    assert_bound_equals_cost(
        random_denoiser(process), plan, pace, LENGTH * float(prior_divergence(process, pace))
    )


CONTINUOUS = [
    (EpsilonHybrid(2, 0.3), "slide", False),
    (EpsilonHybrid(2, 1e-6), "block", True),
    (EpsilonHybrid(2, 1e-12), "flat", True),
    (GammaHybrid(2, 0.3), "block", False),
]


def many_steps(name: str, steps: int) -> AbstractHyperschedule:
    named = {"flat": flat(LENGTH, steps), "block": Block(LENGTH, 2, steps), "slide": Slide(LENGTH, 2, steps)}
    return named[name]


def cost_in_the_limit(denoiser: Denoiser, name: str) -> Tensor:
    """What ever more steps cost, extrapolated: half the step, half the error."""
    coarse, fine = (EnumeratedReverseProcess(denoiser, many_steps(name, steps)).cost for steps in (16, 32))
    return 2 * fine - coarse


@pytest.mark.parametrize(("process", "name", "shifted"), CONTINUOUS, ids=str)
@torch.no_grad()
def test_hybrid_bound_equals_cost_in_the_limit_of_many_steps(
    process: AbstractNoiseProcess, name: str, shifted: bool
) -> None:
    """A model that does not keep visible words pays for each of them in the last step, even if few are wrong."""
    denoiser = random_denoiser(process, shifted=shifted)
    text = all_sequences(2, LENGTH).flatten()
    found = estimate_likelihood(
        denoiser, text, Regime(many_steps(name, 4)), bound="hybrid", replicates=120, batch_size=4096
    )
    silent = 8 * denoiser.lookback * math.log(2)
    expected = float(cost_in_the_limit(denoiser, name).sum()) + silent
    z = (found.nats - expected) / found.standard_error
    assert math.erfc(abs(z) / math.sqrt(2)) > FAILURE_RATE


@torch.no_grad()
def test_absorbing_bound_equals_cost_in_the_limit_of_many_steps() -> None:
    """For any process the absorbing bound treats visible words as certain."""
    denoiser, text = random_denoiser(EpsilonHybrid(2, 0.3)), all_sequences(2, LENGTH).flatten()
    masks = Denoiser(denoiser.backbone, Absorbing(2), Mean())
    expected = float(cost_in_the_limit(masks, "block").sum())
    for estimator in ("random", "stratified", "count"):
        found = estimate_likelihood(
            denoiser, text, Regime(Block(LENGTH, 2, 4)), estimator=estimator, replicates=120, batch_size=4096
        )
        z = (found.nats - expected) / found.standard_error
        assert math.erfc(abs(z) / math.sqrt(2)) > FAILURE_RATE


@SHIFTED
@torch.no_grad()
def test_autoregressive_likelihood_equals_enumeration(shifted: bool) -> None:
    denoiser = random_denoiser(EpsilonHybrid(2, 0.3), shifted=shifted)
    text = all_sequences(2, LENGTH).flatten()
    found = estimate_likelihood(denoiser, text, Regime(autoregressive(LENGTH)))
    silent = 8 * denoiser.lookback * math.log(2)
    assert found.estimator == "exact"
    assert found.nats == pytest.approx(
        float(EnumeratedReverseProcess(denoiser, autoregressive(LENGTH)).surprise.sum()) + silent
    )


@torch.no_grad()
def test_absorbing_bound_with_full_context_equals_enumeration() -> None:
    """Settled words attend to later words only after those have settled."""
    denoiser, texts = random_denoiser(Absorbing(2)), all_sequences(2, LENGTH)
    expected = 0.0
    for n in range(LENGTH):
        shown = torch.cat([texts[:, :n], torch.full((len(texts), 1), 2)], 1)
        log_p = denoiser(shown, (shown == 2).double(), ForwardContext())[:, n]
        expected -= float(log_p.gather(1, texts[:, n : n + 1]).sum())
    found = estimate_likelihood(
        denoiser, texts.flatten(), Regime(autoregressive(LENGTH), context="full"), replicates=200
    )
    assert found.estimator == "stratified"
    z = (found.nats - expected) / found.standard_error
    assert math.erfc(abs(z) / math.sqrt(2)) > FAILURE_RATE
    for estimator in ("exact", "count"):
        with pytest.raises(ValueError, match="attend to later ones"):
            estimate_likelihood(
                denoiser, texts.flatten(), Regime(autoregressive(LENGTH), context="full"), estimator=estimator
            )
