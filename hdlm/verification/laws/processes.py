"""Laws of a noise process: it is a Markov chain that loses its data, and its closed forms are right."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from hdlm.noise_schedule import total_noise
from hdlm.process import AbstractNoiseProcess, Reverse, Weights
from hdlm.verification.enumeration import bayes, generator_matrix, marginal_matrix, transition_matrix
from hdlm.verification.finding import Finding, Law, Trial, error, p_value
from hdlm.verification.statistics import chi_square

__all__ = ["PROCESS_LAWS"]

EXACT = 1e-10
"""Float64 tolerance of identities with a few dozen operations."""
MANY_WORDS = 50_000
"""A large vocabulary, for which closed forms are needed."""


def weights_are_a_distribution(process: AbstractNoiseProcess, trial: Trial) -> Finding:
    """`clean + uniform + mask = 1` and no weight is negative, at every noise fraction."""
    w = process.weights(torch.linspace(0, 1, 101, dtype=torch.float64))
    parts = torch.stack([w.clean, w.uniform, w.mask])
    return error(torch.cat([parts.sum(0) - 1, parts.clamp_max(0).flatten()]), 0.0, EXACT)


def noise_starts_from_clean_data(process: AbstractNoiseProcess, trial: Trial) -> Finding:
    """`weights(0) = (1, 0, 0)`."""
    w = process.weights(torch.zeros(1, dtype=torch.float64))
    return error(torch.cat([w.clean - 1, w.uniform, w.mask]), 0.0, EXACT)


def pure_noise_knows_nothing(process: AbstractNoiseProcess, trial: Trial) -> Finding:
    """`clean(1) = 0`, and the prior is the marginal at 1."""
    one = torch.ones(1, dtype=torch.float64)
    w, prior = process.weights(one), process.prior(one)
    return error(torch.cat([w.clean, prior.uniform - w.uniform, prior.mask - w.mask]), 0.0, EXACT)


def data_are_only_ever_lost(process: AbstractNoiseProcess, trial: Trial) -> Finding:
    """`clean(u)` never rises with `u`."""
    clean = process.weights(torch.linspace(0, 1, 201, dtype=torch.float64)).clean
    return error(clean.diff().clamp_min(0), 0.0, EXACT)


def kernels_are_stochastic(process: AbstractNoiseProcess, trial: Trial) -> Finding:
    """Columns of `q(x_t | x_s)` are distributions."""
    s, t = _pairs(trial)
    matrix = transition_matrix(process, process.between(s, t))
    return error(torch.cat([(matrix.sum(-2) - 1).flatten(), matrix.clamp_max(0).flatten()]), 0.0, EXACT)


def kernels_lead_to_the_marginals(process: AbstractNoiseProcess, trial: Trial) -> Finding:
    """`q(x_t | x_s)` after `q(x_s | x_0)` is `q(x_t | x_0)` of the weights."""
    s, t = _pairs(trial)
    step = transition_matrix(process, process.between(s, t))
    return error(step @ marginal_matrix(process, s), marginal_matrix(process, t), EXACT)


def kernels_compose(process: AbstractNoiseProcess, trial: Trial) -> Finding:
    """Chapman-Kolmogorov: `q(x_t | x_r) = sum over x_s of q(x_t | x_s) q(x_s | x_r)`."""
    r, s, t = trial.numbers(64, 3).sort(-1).values.unbind(-1)
    direct, first, second = (
        transition_matrix(process, process.between(*pair)) for pair in ((r, t), (r, s), (s, t))
    )
    return error(second @ first, direct, EXACT)


def rates_are_the_derivative_of_kernels(process: AbstractNoiseProcess, trial: Trial) -> Finding:
    """`q(x_(u+h) | x_u) = 1 + h Q(u) + O(h^2)`."""
    u, h = 0.05 + 0.9 * trial.numbers(32), 1e-4

    def slope(step: float) -> Tensor:
        matrix = transition_matrix(process, process.between(u, u + step))
        return (matrix - torch.eye(process.num_words + 1, dtype=torch.float64)) / step

    extrapolated = (slope(h) - 6 * slope(h / 2) + 8 * slope(h / 4)) / 3  # leaves O(h^3)
    return error(extrapolated, generator_matrix(process, process.rates(u)), 1e-6)


def rates_integrate_to_kernels(process: AbstractNoiseProcess, trial: Trial) -> Finding:
    """The kernel is the time-ordered exponential of the rates."""
    begin, end = 0.1, 0.9

    def product(count: int) -> Tensor:
        width = (end - begin) / count
        middles = begin + width * (torch.arange(count, dtype=torch.float64) + 0.5)
        factors = torch.linalg.matrix_exp(width * generator_matrix(process, process.rates(middles)))
        total = torch.eye(process.num_words + 1, dtype=torch.float64)
        for factor in factors:
            total = factor @ total
        return total

    extrapolated = (4 * product(256) - product(128)) / 3
    ends = torch.tensor([begin, end], dtype=torch.float64)
    return error(extrapolated, transition_matrix(process, process.between(ends[0], ends[1])), 1e-6)


def constant_rates_have_an_exponential(process: AbstractNoiseProcess, trial: Trial) -> Finding | None:
    """If rates are constant in total noise, `q(x_t | x_s) = exp((sigma_t - sigma_s) Q)`."""
    u = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    per_noise = generator_matrix(process, process.rates(u)) * (1 - u)[:, None, None]
    if float((per_noise - per_noise[0]).abs().max()) > EXACT:
        return None
    s, t = (0.01 + 0.98 * trial.numbers(32, 2)).sort(-1).values.unbind(-1)
    exponent = (total_noise(t) - total_noise(s))[:, None, None] * per_noise[0]
    kernel = process.between(s, t)
    return error(torch.linalg.matrix_exp(exponent), transition_matrix(process, kernel), EXACT)


def spread_is_the_kernel(process: AbstractNoiseProcess, trial: Trial) -> Finding:
    """`spread` multiplies by the transition matrix."""
    kernel, p = process.between(*_pairs(trial)), _vectors(process, trial)
    expected = (transition_matrix(process, kernel) @ p[..., None])[..., 0]
    return error(process.spread(p, kernel), expected, EXACT)


def unspread_inverts_spread(process: AbstractNoiseProcess, trial: Trial) -> Finding:
    """`unspread(spread(p)) = p` if some tokens are kept."""
    s, t = (0.9 * trial.numbers(64, 2)).sort(-1).values.unbind(-1)
    kernel, p = process.between(s, t), _vectors(process, trial)
    return error(process.unspread(process.spread(p, kernel), kernel), p, 1e-8)


def likelihood_reads_rows_of_the_kernel(process: AbstractNoiseProcess, trial: Trial) -> Finding:
    """`likelihood(x)` is row `x` of the transition matrix."""
    kernel = process.between(*_pairs(trial))
    x = torch.randint(process.num_words + 1, kernel.keep.shape, generator=trial.generator())
    expected = transition_matrix(process, kernel)[torch.arange(len(x)), x]
    return error(process.likelihood(x, kernel), expected, EXACT)


def corruption_follows_the_weights(process: AbstractNoiseProcess, trial: Trial) -> Finding:
    """`corrupt` draws from `q(x_u | x_0)` (chi-square)."""
    levels = torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0], dtype=torch.float64)
    u, x_0 = _grid(levels, torch.arange(process.num_words))
    draw = trial.numbers(len(u), max(trial.samples // len(u), 200))
    x_u = process.corrupt(x_0[:, None].expand(draw.shape), u[:, None].expand(draw.shape), draw)
    law = marginal_matrix(process, u)[torch.arange(len(u)), :, x_0]
    return p_value(chi_square(_histogram(x_u, process), law))


def the_prior_is_drawn_as_it_says(process: AbstractNoiseProcess, trial: Trial) -> Finding:
    """`draw_prior` draws from `prior(u)` (chi-square)."""
    u = torch.tensor([0.3, 0.9, 1.0], dtype=torch.float64)
    draw = trial.numbers(len(u), max(trial.samples // len(u), 200))
    x = process.draw_prior(u[:, None].expand(draw.shape), draw)
    return p_value(chi_square(_histogram(x, process), _dense(process.prior(u), process)))


def the_posterior_is_bayes(process: AbstractNoiseProcess, trial: Trial) -> Finding:
    """`posterior` is Bayes' rule, summed over every `x_0`."""
    case = _cases(process, trial)
    return error(process.posterior(*case), bayes(process, *case), EXACT)


def reverse_is_the_posterior(process: AbstractNoiseProcess, trial: Trial) -> Finding:
    """The closed form of one step back is the posterior."""
    case = _cases(process, trial)
    return error(_reverse(process, case), process.posterior(*case), EXACT)


def reverse_is_the_posterior_of_many_words(process: AbstractNoiseProcess, trial: Trial) -> Finding | None:
    """The closed form of one step back is the posterior, with a vocabulary of tens of thousands of words."""
    large = _with_many_words(process)
    if large is None:
        return None
    x_t = torch.tensor([0, MANY_WORDS // 2, MANY_WORDS - 1, MANY_WORDS])
    clean = torch.softmax(
        3 * torch.randn(4, MANY_WORDS, generator=trial.generator(), dtype=torch.float64), -1
    )
    clean = torch.nn.functional.pad(clean, (0, 1))
    s, t = (torch.full((4,), u, dtype=torch.float64) for u in (0.4, 0.5))
    case = _possible(large, _Case(x_t, clean, s, t))
    return error(_reverse(large, case), large.posterior(*case), EXACT)


def scores_are_ratios(process: AbstractNoiseProcess, trial: Trial) -> Finding | None:
    """`score_from_clean` gives `p_u(y) / p_u(x)`, if every `x_0` can lead to `x`."""
    case = _known_cases(process, trial)
    if case is None:
        return None
    x, cavity, u = case
    return error(process.score_from_clean(x, _clean(process, *case), u), _score(process, x, cavity, u), 1e-8)


def scores_and_clean_predictions_are_one(process: AbstractNoiseProcess, trial: Trial) -> Finding:
    """`clean_from_score` undoes the score: from the true ratios it gives the true `p(x_0 | x_u)`."""
    x, cavity, u = _cavities(process, trial)
    read = process.clean_from_score(x, _score(process, x, cavity, u), u)
    return error(read, _clean(process, x, cavity, u), 1e-8)


def tweedie_is_the_posterior(process: AbstractNoiseProcess, trial: Trial) -> Finding:
    """The analytic step with the true score is the posterior with the true `p(x_0 | x_t)`."""
    x, cavity, t = _cavities(process, trial)
    s = t * trial.numbers(len(t))
    score, clean = _score(process, x, cavity, t), _clean(process, x, cavity, t)
    return error(process.tweedie(x, score, s, t), process.posterior(x, clean, s, t), 1e-8)


PROCESS_LAWS: tuple[Law, ...] = (
    weights_are_a_distribution,
    noise_starts_from_clean_data,
    pure_noise_knows_nothing,
    data_are_only_ever_lost,
    kernels_are_stochastic,
    kernels_lead_to_the_marginals,
    kernels_compose,
    rates_are_the_derivative_of_kernels,
    rates_integrate_to_kernels,
    constant_rates_have_an_exponential,
    spread_is_the_kernel,
    unspread_inverts_spread,
    likelihood_reads_rows_of_the_kernel,
    corruption_follows_the_weights,
    the_prior_is_drawn_as_it_says,
    the_posterior_is_bayes,
    reverse_is_the_posterior,
    reverse_is_the_posterior_of_many_words,
    scores_are_ratios,
    scores_and_clean_predictions_are_one,
    tweedie_is_the_posterior,
)


def _with_many_words(process: Any) -> AbstractNoiseProcess | None:
    """A copy of a process with another vocabulary, if it can be made from its fields."""
    if not dataclasses.is_dataclass(process) or isinstance(process, type):
        return None
    large: Any = dataclasses.replace(process, num_words=MANY_WORDS)
    return cast("AbstractNoiseProcess", large)


class _Case(NamedTuple):
    """Arguments of a posterior."""

    x_t: Tensor
    clean: Tensor
    s: Tensor
    t: Tensor


class _Known(NamedTuple):
    """A noisy token, and the distribution of its clean one given everything else."""

    x: Tensor
    cavity: Tensor
    u: Tensor


def _pairs(trial: Trial) -> tuple[Tensor, Tensor]:
    """Noise fractions `s < t`, both ends included."""
    s, t = trial.numbers(61, 2).sort(-1).values.unbind(-1)
    ends = torch.tensor([[0.0, 0.5], [0.5, 1.0], [0.0, 1.0]], dtype=torch.float64)
    return torch.cat([s, ends[:, 0]]), torch.cat([t, ends[:, 1]])


def _vectors(process: AbstractNoiseProcess, trial: Trial) -> Tensor:
    return torch.softmax(trial.numbers(64, process.num_words + 1), -1)


def _grid(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """All pairs, as two flat tensors."""
    return a.repeat_interleave(len(b)), b.repeat(len(a))


def _words(process: AbstractNoiseProcess, trial: Trial, count: int) -> Tensor:
    """Random distributions over the words, zero at the mask."""
    p = torch.softmax(3 * trial.numbers(count, process.num_words), -1)
    return torch.nn.functional.pad(p, (0, 1))


def _possible(process: AbstractNoiseProcess, case: _Case) -> _Case:
    """The cases whose noisy token is possible for some `x_0`."""
    w, masked = process.weights(case.t), case.x_t == process.mask_id
    possible = torch.where(masked, w.mask, w.clean + w.uniform) > 0
    return _Case(*(field[possible] for field in case))


def _cases(process: AbstractNoiseProcess, trial: Trial) -> _Case:
    """Every noisy token at many pairs of noise fractions, with random `p(x_0 | x_t)`."""
    s, t = _pairs(trial)
    which, x_t = _grid(torch.arange(len(s)), torch.arange(process.num_words + 1))
    return _possible(process, _Case(x_t, _words(process, trial, len(x_t)), s[which], t[which]))


def _cavities(process: AbstractNoiseProcess, trial: Trial) -> _Known:
    """Every noisy token at noise fractions inside (0, 1), with random distributions of its origin."""
    u, x = _grid(0.02 + 0.95 * trial.numbers(32), torch.arange(process.num_words + 1))
    none = torch.zeros_like(u)
    case = _possible(process, _Case(x, _words(process, trial, len(x)), none, u))
    return _Known(case.x_t, case.clean, case.t)


def _known_cases(process: AbstractNoiseProcess, trial: Trial) -> _Known | None:
    """Those of `_cavities` whose token every origin can lead to, so that the score is defined everywhere."""
    case = _cavities(process, trial)
    open_to_all = (_rows(process, case) > 0).all(-1)
    return _Known(*(field[open_to_all] for field in case)) if bool(open_to_all.any()) else None


def _rows(process: AbstractNoiseProcess, case: _Known) -> Tensor:
    return marginal_matrix(process, case.u)[torch.arange(len(case.x)), case.x]


def _clean(process: AbstractNoiseProcess, x: Tensor, cavity: Tensor, u: Tensor) -> Tensor:
    """`p(x_0 | x_u)`, by Bayes' rule."""
    p = torch.nn.functional.pad(_rows(process, _Known(x, cavity, u)), (0, 1)) * cavity
    return p / p.sum(-1, keepdim=True)


def _score(process: AbstractNoiseProcess, x: Tensor, cavity: Tensor, u: Tensor) -> Tensor:
    """`p_u(y) / p_u(x)`, by a sum over origins."""
    p = (marginal_matrix(process, u) @ cavity[:, :-1, None])[..., 0]
    return p / p.gather(-1, x[:, None])


def _reverse(process: AbstractNoiseProcess, case: _Case) -> Tensor:
    """The mixture that `reverse` describes, over the whole vocabulary."""
    x_t, clean, s, t = case
    own = clean.gather(-1, x_t[:, None])[:, 0]
    return _mixture(process.reverse(x_t, own, s, t), process, x_t, clean)


def _mixture(parts: Reverse, process: AbstractNoiseProcess, x_t: Tensor, clean: Tensor) -> Tensor:
    p = parts.model[:, None] * clean
    p[:, :-1] += parts.uniform[:, None] / process.num_words
    p[:, -1] += parts.mask
    return p.scatter_add(-1, x_t[:, None], parts.stay[:, None])


def _dense(w: Weights, process: AbstractNoiseProcess) -> Tensor:
    """The law of a token for weights without a clean part."""
    words = (w.uniform / process.num_words)[:, None].expand(-1, process.num_words)
    return torch.cat([words, w.mask[:, None]], -1)


def _histogram(x: Tensor, process: AbstractNoiseProcess) -> Tensor:
    """The number of times that each token occurs in each row."""
    size = process.num_words + 1
    row = torch.arange(len(x))[:, None] * size
    return (x + row).flatten().bincount(minlength=len(x) * size).view(len(x), size)
