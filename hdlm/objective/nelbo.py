"""The exact negative evidence lower bound of a hyperschedule with finitely many steps.

Each step of generation costs `KL( q(x_s | x_t, x_0) || p(x_s | x_t) )` in every active position. The sum over the steps
is an upper bound on `-log p(x_0)` (plus the prior term, `prior_divergence`). The last step, to `s = 0`, is included:
its divergence is the reconstruction `-log p(x_0 | x_t)`. The bound holds for every process, through its exact
posterior.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hdlm.denoiser import Prediction
from hdlm.noise_schedule import LINEAR, AbstractNoiseSchedule
from hdlm.objective.base import AbstractCost, AbstractObjective, Term
from hdlm.objective.canvas import Canvas
from hdlm.process import AbstractNoiseProcess

__all__ = ["NELBO", "prior_divergence"]


@final
@dataclass(frozen=True)
class _StepDivergence(AbstractCost):
    """`KL(q(x_s | x_t, x_0) || p(x_s | x_t))`."""

    def __call__(self, prediction: Prediction, canvas: Canvas, at: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        x_0, x_t, s, t = (field.flatten()[at] for field in (canvas.x_0, canvas.x_t, canvas.s, canvas.t))
        guess = prediction.log_clean(at).to(t.dtype).exp()
        return _step_divergence(prediction.process, x_0, x_t, guess, s, t)


@final
@dataclass(frozen=True)
class NELBO(AbstractObjective):
    """`KL(q(x_s | x_t, x_0) || p(x_s | x_t))` of one step, weighted to be unbiased for the sum over all steps.

    Use it with `Corruption(continuous=False)`.
    """

    def terms(self, process: AbstractNoiseProcess, canvas: Canvas) -> tuple[Term, ...]:
        return (Term(torch.where(canvas.s < canvas.t, canvas.steps, 0.0), _StepDivergence()),)


def _step_divergence(
    process: AbstractNoiseProcess,
    x_0: Int[Tensor, " n"],
    x_t: Int[Tensor, " n"],
    guess: Float[Tensor, "n v"],
    s: Float[Tensor, " n"],
    t: Float[Tensor, " n"],
) -> Float[Tensor, " n"]:
    truth = torch.nn.functional.one_hot(x_0, process.num_words + 1).to(t.dtype)
    q = process.posterior(x_t, truth, s, t)
    p = process.posterior(x_t, guess, s, t)
    tiny = torch.finfo(t.dtype).tiny
    return torch.where(q > 0, q * (q.clamp_min(tiny).log() - p.clamp_min(tiny).log()), 0.0).sum(-1)


def prior_divergence(
    process: AbstractNoiseProcess,
    noise_schedule: AbstractNoiseSchedule = LINEAR,
) -> float:
    """The divergence of the prior, in nats per token: equal for all tokens, and 0 if noise ends at `u = 1`.

    It is `KL(q(x_1 | x_0) || p(x_1))`, where `p` has as many masks as `q`, and uniform words for the rest. Where noise
    replaces words, `p` is the process's own `prior`. Where words wait, generation begins with masks only, for which the
    divergence is infinite, and the network also writes the remaining share `1 - u(1)` of the words. The bound treats
    them as uniform words, which costs more, unless the network's prediction at pure noise is worse than a uniform one.
    """
    last = noise_schedule.fraction(torch.ones((), dtype=torch.float64))
    w = process.weights(last)
    n = process.num_words
    own, other = w.clean + w.uniform / n, w.uniform / n
    prior_word = (w.clean + w.uniform) / n
    if not prior_word > 0:
        return 0.0  # nothing but masks is left, on either side
    return float(torch.xlogy(own, own / prior_word) + (n - 1) * torch.xlogy(other, other / prior_word))
