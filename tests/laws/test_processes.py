"""Laws of every noise process. Each process in `__all__` must be in `EXAMPLES`."""

from __future__ import annotations

import inspect

import pytest
import torch

import hdlm.process as package
from hdlm.noise_schedule import total_noise
from hdlm.process import GIDD, Absorbing, AbstractNoiseProcess, EpsilonHybrid, GammaHybrid, Uniform
from hdlm.verification import Trial, laws_of
from hdlm.verification.enumeration import transition_matrix

EXAMPLES: dict[type[AbstractNoiseProcess], tuple[AbstractNoiseProcess, ...]] = {
    Absorbing: (Absorbing(2),),
    Uniform: (Uniform(3),),
    EpsilonHybrid: (EpsilonHybrid(2, 0.01), EpsilonHybrid(3, 0.3)),
    GammaHybrid: (GammaHybrid(2, 0.0), GammaHybrid(3, 0.1), GammaHybrid(2, 1.0)),
    GIDD: (GIDD(2, 0.2), GIDD(3, 0.5, exponent=2.0)),
}
ALL = [pytest.param(process, id=repr(process)) for family in EXAMPLES.values() for process in family]
LAWS = [pytest.param(law, id=law.__name__) for law in laws_of(Absorbing(3))]


def test_examples_cover_every_public_process():
    public = {getattr(package, name) for name in package.__all__}
    concrete = {
        item for item in public if issubclass(item, AbstractNoiseProcess) and not inspect.isabstract(item)
    }
    assert concrete == set(EXAMPLES)


# Laws that do not apply to some processes. All other laws must apply to every process.
SILENT = {
    "constant_rates_have_an_exponential": lambda process: isinstance(process, GIDD) and process.p_uniform > 0,
    "score_entropy_is_the_entropy": lambda process: (
        isinstance(process, EpsilonHybrid) and process.epsilon > 0
    ),
}


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("process", ALL)
def test_process_obeys_law(process, law):
    finding = law(process, Trial(seed=1, samples=4000))
    if finding is None:
        assert SILENT[law.__name__](process)
    else:
        assert finding.ok, f"{law.__doc__.splitlines()[0]} {finding}"


@pytest.mark.parametrize("gamma", [0.0, 0.01, 0.3, 1.0])
def test_gamma_is_the_exponential_of_the_mixed_generators(gamma):
    """MATH 3, generators written down by hand: `exp(sigma Q)`, `Q = (1 - gamma) Q_absorb + gamma Q_uniform`."""
    n, process = 4, GammaHybrid(4, gamma)
    absorb = torch.zeros(n + 1, n + 1, dtype=torch.float64)
    absorb[n, :n] = 1
    absorb[:n, :n] = -torch.eye(n)
    uniform = torch.zeros(n + 1, n + 1, dtype=torch.float64)
    uniform[:n, :n] = torch.full((n, n), 1 / n) - torch.eye(n)
    s, t = torch.tensor([[0.0, 0.3], [0.2, 0.9], [0.4, 0.999]], dtype=torch.float64).unbind(-1)
    sigma = (total_noise(t) - total_noise(s))[:, None, None]
    expected = torch.linalg.matrix_exp(sigma * ((1 - gamma) * absorb + gamma * uniform))
    torch.testing.assert_close(
        transition_matrix(process, process.between(s, t)), expected, atol=1e-13, rtol=0
    )


def test_special_cases_of_weights():
    """At the ends of its range each hybrid equals a plain process."""
    u = torch.linspace(0, 1, 21, dtype=torch.float64)
    for hybrid, plain in [
        (EpsilonHybrid(5, 0.0), Absorbing(5)),
        (GammaHybrid(5, 0.0), Absorbing(5)),
        (GIDD(5, 0.0), Absorbing(5)),
        (GammaHybrid(5, 1.0), Uniform(5)),
    ]:
        one, other = hybrid.weights(u), plain.weights(u)
        for part in ("clean", "uniform", "mask"):
            torch.testing.assert_close(getattr(one, part), getattr(other, part), atol=1e-15, rtol=0)


def test_gidd_uniform_weight_has_maximum_in_the_middle():
    u = torch.linspace(0, 1, 101, dtype=torch.float64)
    for exponent in (0.5, 1.0, 2.0):
        uniform = GIDD(7, 0.2, exponent).weights(u).uniform
        assert int(uniform.argmax()) == 50
        assert float(uniform[50]) == pytest.approx(0.2)


def test_corrupt_keeps_replaces_and_masks_in_order_of_draw():
    """Sorted by their draws, tokens are first kept, then replaced by words in order, then masked."""
    process = EpsilonHybrid(4, 0.5)
    draw = torch.linspace(0, 1, 1001, dtype=torch.float64)[:-1]
    x = process.corrupt(torch.full(draw.shape, 3), torch.full_like(draw, 0.4), draw)
    kept, masked = x[draw < 0.3], x[draw >= 0.6]
    assert (kept == 3).all()
    assert (masked == process.mask_id).all()
    middle = x[(draw >= 0.3) & (draw < 0.6)]
    assert torch.equal(middle, middle.sort().values)
    assert middle.unique().tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: EpsilonHybrid(4, 1.0), "epsilon.*1.0"),
        (lambda: GammaHybrid(4, -0.1), "gamma.*-0.1"),
        (lambda: GIDD(4, 1.0), "p_uniform.*1.0"),
        (lambda: GIDD(4, 0.1, exponent=0.0), "exponent.*0"),
    ],
)
def test_processes_reject_bad_parameters(make, named):
    with pytest.raises(ValueError, match=named):
        make()


@pytest.mark.parametrize("process", ALL)
def test_makes_masks_and_ends_in_masks_match_corruption(process: AbstractNoiseProcess) -> None:
    words = torch.arange(process.num_words).repeat(400)
    draw = torch.rand(words.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    noised = [
        process.corrupt(words, torch.full(words.shape, u, dtype=torch.float64), draw) == process.mask_id
        for u in (0.3, 0.6, 1.0)
    ]
    assert process.makes_masks == any(bool(masks.any()) for masks in noised)
    assert process.ends_in_masks == bool(noised[-1].all())
