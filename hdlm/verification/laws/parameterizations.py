"""Laws of a parameterization: its predictions and its scores describe one distribution, row by row."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hdlm.parameterization import AbstractParameterization
from hdlm.process import AbstractNoiseProcess, GammaHybrid
from hdlm.verification.finding import Finding, Law, Trial, error

__all__ = ["PARAMETERIZATION_LAWS"]

ROWS = 64


def clean_predictions_are_distributions(reading: AbstractParameterization, trial: Trial) -> Finding:
    """`p(x_0 | x_t)` sums to 1 over the words and gives the mask nothing."""
    p = reading.log_clean(*_case(trial)).exp()
    return error(torch.stack([p[:, :-1].sum(-1) - 1, p[:, -1]]), 0.0, 1e-9)


def a_token_has_the_score_one(reading: AbstractParameterization, trial: Trial) -> Finding:
    """`log score = 0` at the current token (the published sampler does not have this)."""
    case = _case(trial)
    return error(reading.log_score(*case).gather(-1, case.x_t[:, None]), 0.0, 1e-9)


def both_readings_agree(reading: AbstractParameterization, trial: Trial) -> Finding:
    """Computing `p(x_0 | x_t)` from the scores gives `p(x_0 | x_t)`."""
    case = _case(trial)
    from_score = case.process.clean_from_score(case.x_t, reading.log_score(*case).exp(), case.u)
    return error(from_score, reading.log_clean(*case).exp(), 1e-8)


def rows_are_independent(reading: AbstractParameterization, trial: Trial) -> Finding:
    """Predictions and scores of selected rows are those rows of all predictions and scores."""
    case, chosen = _case(trial), torch.arange(0, ROWS, 3)
    few = case._replace(raw=case.raw[chosen], x_t=case.x_t[chosen], u=case.u[chosen])
    clean = reading.log_clean(*few).exp() - reading.log_clean(*case)[chosen].exp()
    score = reading.log_score(*few) - reading.log_score(*case)[chosen]
    return error(torch.stack([clean, score]), 0.0, 1e-12)


def inputs_are_finite(reading: AbstractParameterization, trial: Trial) -> Finding:
    """The network's condition is finite at every noise fraction, 0 and 1 included, and blends lie in [0, 1]."""
    inputs = reading.inputs(torch.linspace(0, 1, 101, dtype=torch.float64))
    condition = torch.zeros(1) if inputs.condition is None else inputs.condition
    blend = torch.zeros(1) if inputs.blend is None else inputs.blend
    outside = blend.clamp_max(0).abs() + (blend - 1).clamp_min(0)
    return error(torch.cat([(~condition.isfinite()).double(), outside.double()]), 0.0, 0.0)


def inputs_depend_on_the_stated_noise(reading: AbstractParameterization, trial: Trial) -> Finding | None:
    """The network's inputs at a position depend on no noise that `noise_dependence` excludes."""
    dependence = reading.noise_dependence
    if dependence == "sequence":
        return None
    noise, other = trial.numbers(2, ROWS, 5)
    whole = reading.inputs(noise)
    gaps = [torch.zeros(1)]
    for place in range(noise.shape[1]):
        column = slice(place, place + 1)
        separate = reading.inputs((noise if dependence == "position" else other)[:, column])
        for joint, alone in ((whole.condition, separate.condition), (whole.blend, separate.blend)):
            if joint is None or alone is None:
                gaps.append(torch.full((1,), float(joint is not alone)))
            else:
                gaps.append((joint[:, column] - alone).abs().flatten())
    return error(torch.cat(gaps), 0.0, 0.0)


PARAMETERIZATION_LAWS: tuple[Law, ...] = (
    clean_predictions_are_distributions,
    a_token_has_the_score_one,
    both_readings_agree,
    rows_are_independent,
    inputs_are_finite,
    inputs_depend_on_the_stated_noise,
)


class _Case(NamedTuple):
    """Arguments of a parameterization's methods."""

    process: AbstractNoiseProcess
    raw: Tensor
    x_t: Tensor
    u: Tensor


def _case(trial: Trial) -> _Case:
    """Random outputs of a network, for a process with both kinds of noise."""
    process, generator = GammaHybrid(num_words=5, gamma=0.4), trial.generator()
    raw = torch.randn(ROWS, process.num_words + 1, generator=generator, dtype=torch.float64)
    x_t = torch.randint(process.num_words + 1, (ROWS,), generator=generator)
    u = 0.05 + 0.9 * torch.rand(ROWS, generator=generator, dtype=torch.float64)
    return _Case(process, raw, x_t, u)
