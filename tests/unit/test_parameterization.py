"""Parameterizations: the meaning of raw outputs, and the inputs of the network."""

from __future__ import annotations

import inspect
import math

import pytest
import torch

import hdlm.parameterization as package
from hdlm.noise_schedule import total_noise
from hdlm.parameterization import AbstractParameterization, LeaveOneOut, LogScore, Mean, Shifted
from hdlm.process import GIDD, Absorbing, EpsilonHybrid, GammaHybrid, Uniform
from hdlm.verification import Trial, laws_of
from hdlm.verification.laws.parameterizations import inputs_depend_on_the_stated_noise

EXAMPLES: dict[type[AbstractParameterization], tuple[AbstractParameterization, ...]] = {
    Mean: tuple(Mean(told) for told in ("none", "sigma", "fraction", "zero")),
    LeaveOneOut: (
        *(LeaveOneOut(told) for told in ("none", "sigma", "fraction", "zero")),
        LeaveOneOut("sigma", shared=True),
    ),
    LogScore: (LogScore(), LogScore(shared=True), LogScore(scale_by_sigma=False), LogScore(blend_rate=0.1)),
    Shifted: (Shifted(Mean()), Shifted(LogScore(blend_rate=0.5))),
}
ALL = [pytest.param(reading, id=repr(reading)) for family in EXAMPLES.values() for reading in family]
LAWS = [pytest.param(law, id=law.__name__) for law in laws_of(Mean())]
PROCESSES = [Absorbing(4), Uniform(4), EpsilonHybrid(4, 0.2), GammaHybrid(4, 0.3), GIDD(4, 0.3)]


def test_examples_cover_every_public_parameterization():
    public = {getattr(package, name) for name in package.__all__}
    classes = {
        item
        for item in public
        if inspect.isclass(item)
        and issubclass(item, AbstractParameterization)
        and not inspect.isabstract(item)
    }
    assert classes == set(EXAMPLES)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("reading", ALL)
def test_parameterization_obeys_law(reading, law):
    finding = law(reading, Trial(seed=1))
    if finding is None:  # inputs that depend on all noise of a sequence leave nothing to compare
        assert (law, reading.noise_dependence) == (inputs_depend_on_the_stated_noise, "sequence")
        return
    assert finding.ok, f"{law.__doc__.splitlines()[0]} {finding}"


def rows(process, count=50):
    generator = torch.Generator().manual_seed(0)
    raw = torch.randn(count, process.num_words + 1, generator=generator, dtype=torch.float64)
    u = 0.05 + 0.9 * torch.rand(count, generator=generator, dtype=torch.float64)
    w = process.weights(u)
    x_t = torch.randint(process.num_words, (count,), generator=generator)
    return raw, torch.where(w.mask > torch.rand(count, generator=generator), process.mask_id, x_t), u


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_mean_log_clean_is_softmax_over_words(process):
    raw, x_t, u = rows(process)
    expected = raw[:, :-1].softmax(-1)
    torch.testing.assert_close(Mean().log_clean(process, raw, x_t, u)[:, :-1].exp(), expected)
    loud = raw.clone()
    loud[:, -1] = 1e6  # the output for the mask has no effect
    torch.testing.assert_close(Mean().log_clean(process, loud, x_t, u)[:, :-1].exp(), expected)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_leave_one_out_equals_posterior_of_bayes_rule(process):
    """`p(x_0 | x_t) ~ softmax(raw) q(x_t | x_0)`. The score is that of the noised softmax."""
    raw, x_t, u = rows(process)
    kernel = process.between(torch.zeros_like(u), u)
    prior = torch.nn.functional.pad(raw[:, :-1].softmax(-1), (0, 1))
    joint = prior * process.likelihood(x_t, kernel)
    clean = LeaveOneOut().log_clean(process, raw, x_t, u).exp()
    torch.testing.assert_close(clean, joint / joint.sum(-1, keepdim=True))
    noisy = process.spread(prior, kernel)
    score = LeaveOneOut().log_score(process, raw, x_t, u).exp()
    torch.testing.assert_close(score, noisy / noisy.gather(-1, x_t[:, None]))


def test_leave_one_out_keeps_visible_words_of_the_absorbing_process():
    """For absorbing noise a visible word has probability one for any output, except at `u = 1`."""
    process, x_t = Absorbing(4), torch.tensor([2, 2, 4])
    raw = torch.tensor([0.0, 0.0, -1e6, 1.0, 0.0]).expand(3, 5)
    found = LeaveOneOut().log_clean(process, raw, x_t, torch.tensor([0.3, 0.0, 1.0]))
    torch.testing.assert_close(found[:2], torch.tensor([0, 0, 1, 0, 0]).log().expand(2, 5))
    torch.testing.assert_close(found[2], Mean().log_clean(process, raw, x_t, torch.ones(3))[2])
    impossible = LeaveOneOut().log_clean(process, raw[:1], x_t[:1], torch.ones(1))
    torch.testing.assert_close(impossible[0], found[2])


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_leave_one_out_gradients_are_finite(process):
    """Finite values have finite gradients, although some logarithms are of zero."""
    raw, x_t, u = rows(process)
    raw.requires_grad_()
    for name in ("log_clean", "log_score"):
        found = getattr(LeaveOneOut(), name)(process, raw, x_t, u)
        (gradient,) = torch.autograd.grad(found[found.isfinite()].sum(), raw)
        assert gradient.isfinite().all()
        assert gradient.any()


@pytest.mark.parametrize("reading", [LeaveOneOut("sigma", shared=True), LogScore(shared=True)], ids=repr)
def test_shared_condition_is_greatest_noise_of_sequence(reading):
    """The greatest noise avoids conditions that training never showed, because a prompt has no noise."""
    u = torch.tensor([[0.0, 0.5, 0.5], [0.2, 0.2, 0.2]], dtype=torch.float64)
    expected = total_noise(torch.tensor([[0.5], [0.2]], dtype=torch.float64)).expand(2, 3)
    torch.testing.assert_close(reading.inputs(u).condition, expected)


def test_log_score_has_published_scaling():
    """`log s = logits - log(e^sigma - 1) - log N`."""
    process = GammaHybrid(4, 0.3)
    raw, x_t, u = rows(process)
    sigma = total_noise(u)
    expected = raw - torch.log(torch.exp(sigma) - 1)[:, None] - math.log(4)
    found = LogScore().log_score(process, raw, x_t, u)
    elsewhere = torch.ones_like(raw, dtype=torch.bool).scatter(1, x_t[:, None], False)
    torch.testing.assert_close(found[elsewhere], expected[elsewhere])
    assert (found.gather(1, x_t[:, None]) == 0).all()


def test_score_of_current_token_is_one_for_any_output():
    """FAULTS 3: the published sampler used the untrained output at the current token."""
    process = GammaHybrid(4, 0.3)
    raw, x_t, u = rows(process)
    shouted = raw.scatter_add(1, x_t[:, None], torch.full((len(raw), 1), 50.0, dtype=torch.float64))
    for name in ("log_score", "log_clean"):
        one, other = (getattr(LogScore(), name)(process, told, x_t, u) for told in (raw, shouted))
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("told", ["none", "sigma", "fraction", "zero"])
def test_mean_inputs_match_conditioning(told):
    u = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    inputs = Mean(told).inputs(u)
    assert inputs.blend is None
    expected = {
        "none": None,
        "sigma": total_noise(u.clamp(1e-4, 1 - 1e-4)),
        "fraction": u,
        "zero": torch.zeros(3),
    }
    if expected[told] is None:
        assert inputs.condition is None
    else:
        torch.testing.assert_close(inputs.condition, expected[told].double())


def test_log_score_inputs_are_sigma_and_blend():
    """Published gamma-hybrids get sigma and a share `1 - e^(-gamma sigma)` of the mask embedding."""
    u = torch.tensor([0.2, 0.9], dtype=torch.float64)
    inputs = LogScore(blend_rate=0.1).inputs(u)
    torch.testing.assert_close(inputs.condition, total_noise(u))
    torch.testing.assert_close(inputs.blend, 1 - torch.exp(-0.1 * total_noise(u)))
    assert LogScore().inputs(u).blend is None
    assert Shifted(LogScore(blend_rate=0.1)).inputs(u).blend is not None


def test_lookback_counts_nested_shifts():
    assert Mean().lookback == LogScore().lookback == 0
    assert Shifted(Mean()).lookback == 1
    assert Shifted(Shifted(Mean())).lookback == 2


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: LogScore(floor=0.0), "floor.*0.0"),
        (lambda: LogScore(floor=0.5), "floor.*0.5"),
        (lambda: LogScore(blend_rate=-1.0), "blend_rate.*-1.0"),
    ],
)
def test_log_score_rejects_bad_options(make, named):
    with pytest.raises(ValueError, match=named):
        make()
