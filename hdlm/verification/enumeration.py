"""Transition matrices, and the probability of every state of a small canvas.

This is deliberately the direct computation. It uses only the kernels and weights of a process, so it can show whether
the closed forms are right.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hdlm.hyperschedule import AbstractHyperschedule
from hdlm.noise_schedule import AbstractNoiseSchedule
from hdlm.process import AbstractNoiseProcess, Kernel, Rates
from hdlm.verification.world import all_sequences

__all__ = [
    "bayes",
    "generator_matrix",
    "marginal_matrix",
    "noise_after",
    "state_law",
    "states",
    "transition_matrix",
]


def transition_matrix(process: AbstractNoiseProcess, kernel: Kernel) -> Float[Tensor, "*b v v"]:
    """`q(y | x)` in row `y`, column `x`, so columns are the origins."""
    n = process.num_words
    keep, uniform, mask, release = (
        part[..., None, None] for part in (kernel.keep, kernel.uniform, kernel.mask, kernel.release)
    )
    out = keep.new_zeros(*kernel.keep.shape, n + 1, n + 1)
    out[..., :n, :n] = keep * torch.eye(n, dtype=keep.dtype) + uniform / n
    out[..., n:, :n] = mask
    out[..., :n, n:] = release / n
    out[..., n:, n:] = 1 - release
    return out


def marginal_matrix(process: AbstractNoiseProcess, u: Float[Tensor, "*b"]) -> Float[Tensor, "*b v n"]:
    """`q(x_u | x_0)` in row `x_u`, column `x_0`, from the weights alone."""
    n, w = process.num_words, process.weights(u)
    eye = torch.eye(n, dtype=u.dtype)
    words = w.clean[..., None, None] * eye + w.uniform[..., None, None] / n
    return torch.cat([words, w.mask[..., None, None].expand(*u.shape, 1, n)], -2)


def generator_matrix(process: AbstractNoiseProcess, rates: Rates) -> Float[Tensor, "*b v v"]:
    """The generator `Q` of the rates; columns are the origins and sum to 0."""
    n = process.num_words
    jump = Kernel(torch.zeros_like(rates.mask), rates.uniform, rates.mask, rates.release)
    q = transition_matrix(process, jump)
    eye = torch.eye(n + 1, dtype=torch.bool)
    q = q.masked_fill(eye, 0)
    return q - torch.diag_embed(q.sum(-2))


def bayes(
    process: AbstractNoiseProcess,
    x_t: Int[Tensor, " b"],
    clean: Float[Tensor, "b v"],
    s: Float[Tensor, " b"],
    t: Float[Tensor, " b"],
) -> Float[Tensor, "b v"]:
    """`p(x_s | x_t)` as the sum over `x_0` of `q(x_t | x_s) q(x_s | x_0) / q(x_t | x_0) p(x_0 | x_t)`.

    Origins that cannot lead to `x_t` are left out, and the rest is normalised.
    """
    rows = torch.arange(len(x_t))
    step = transition_matrix(process, process.between(s, t))[rows, x_t]  # [b, x_s]
    at_s = marginal_matrix(process, s)  # [b, x_s, x_0]
    at_t = marginal_matrix(process, t)[rows, x_t]  # [b, x_0]
    possible = at_t > 0
    share = torch.where(possible, clean[:, :-1] / at_t.masked_fill(~possible, 1), 0.0)
    p = step * (at_s @ share[..., None])[..., 0]
    return p / p.sum(-1, keepdim=True)


def noise_after(
    hyperschedule: AbstractHyperschedule, n: int, noise_schedule: AbstractNoiseSchedule
) -> Float[Tensor, " l"]:
    """Noise fraction of each position after `n` steps; settled positions have 0, whatever the noise schedule."""
    share = hyperschedule.noise(n)
    return torch.where(share > 0, noise_schedule.fraction(share), 0.0)


def states(num_words: int, length: int) -> Int[Tensor, "z l"]:
    """Every canvas of words and masks."""
    return all_sequences(num_words + 1, length)


def state_law(
    process: AbstractNoiseProcess,
    x_0: Int[Tensor, "b l"],
    u: Float[Tensor, "b l"],
    states: Int[Tensor, "z l"],
) -> Float[Tensor, "b z"]:
    """`q(x_u | x_0)` of every canvas, for each clean sequence."""
    q = marginal_matrix(process, u)  # [b l v n]
    of_word = q.gather(-1, x_0[..., None, None].expand(*q.shape[:-1], 1))[..., 0]  # [b l v]
    places = states.expand(len(x_0), *states.shape)  # [b z l]
    return of_word.transpose(1, 2).gather(1, places).prod(-1)
