"""Expected losses without sampling, by a sum over every clean sequence, every noisy canvas and every step."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from hdlm.denoiser import AbstractDenoiser
from hdlm.hyperschedule import AbstractHyperschedule
from hdlm.noise_schedule import LINEAR, AbstractNoiseSchedule
from hdlm.objective import AbstractObjective, Canvas, Corruption
from hdlm.process import AbstractNoiseProcess
from hdlm.verification.enumeration import bayes, noise_after, state_law, states
from hdlm.verification.world import World

__all__ = ["every_canvas", "expected_loss", "nelbo_by_hand", "quadrature"]


_ROWS = 2**15
"""Number of canvases that are evaluated at a time."""


def quadrature(count: int) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Nodes in (0, 1) and weights with sum 1, for integrands that may be infinite at both ends.

    One node is the midpoint. Several are Gauss-Legendre nodes `v` under the change of variables
    `v^4 (35 - 84 v + 70 v^2 - 20 v^3)`, whose derivative `140 v^3 (1 - v)^3` removes logarithms and roots.
    """
    if count == 1:
        return torch.full((1,), 0.5, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    off_diagonal = torch.arange(1, count, dtype=torch.float64)
    off_diagonal = off_diagonal / (4 * off_diagonal**2 - 1).sqrt()
    places, vectors = torch.linalg.eigh(torch.diag(off_diagonal, 1) + torch.diag(off_diagonal, -1))
    v = (places + 1) / 2
    return v**4 * (35 - 84 * v + 70 * v**2 - 20 * v**3), vectors[0] ** 2 * 140 * (v * (1 - v)) ** 3


def every_canvas(
    corruption: Corruption, world: World, times: Float[Tensor, "c e"], weights: Float[Tensor, " c"]
) -> tuple[Canvas, Float[Tensor, " b"]]:
    """All canvases that a corruption can make in a world, one per row, and the probability of each.

    Args:
        corruption: Corruption that makes canvases.
        world: The distribution of clean sequences.
        times: The times of the canvases.
        weights: Weight of each time, a factor of the probabilities.
    """
    clean, noisy = world.sequences, states(world.num_words, world.length)
    x_0, row_times = clean.repeat(len(times), 1), times.repeat_interleave(len(clean), 0)
    example = corruption(x_0, row_times, torch.zeros(x_0.shape, dtype=torch.float64))
    prior = (weights[:, None] * world.law).flatten()
    probability = (prior[:, None] * state_law(corruption.process, x_0, example.t, noisy)).flatten()
    able = probability.nonzero()[:, 0]
    row, state = able // len(noisy), able % len(noisy)
    attention = example.attention
    canvas = replace(
        example,
        x_0=x_0[row],
        x_t=noisy[state],
        t=example.t[row],
        s=example.s[row],
        measure=example.measure[row],
        steps=example.steps[row],
        window=None if example.window is None else example.window[row],
        attention=attention if attention is None or len(attention) == 1 else attention[row],
    )
    return canvas, probability[able]


def expected_loss(
    objective: AbstractObjective,
    denoiser: AbstractDenoiser,
    corruption: Corruption,
    world: World,
    nodes: int = 1,
) -> Float[Tensor, " l"]:
    """Expectation over data, noise and times of the loss of each position, in nats.

    Args:
        objective: Loss that is minimised.
        denoiser: The denoiser that is evaluated.
        corruption: Corruption that makes canvases.
        world: The distribution of clean sequences.
        nodes: Quadrature nodes between two steps, in continuous time; 1 is exact in discrete time.
    """
    place, weight = quadrature(nodes)
    grids, shares = [], []
    for cells in corruption.num_cells:
        grids.append((torch.arange(cells, dtype=torch.float64)[:, None] + place).flatten() / cells)
        shares.append(weight.repeat(cells) / cells)
    times = torch.cartesian_prod(*grids).view(-1, len(grids))
    weights = torch.cartesian_prod(*shares).view(-1, len(grids)).prod(-1)
    total = torch.zeros(world.length, dtype=torch.float64)
    size = max(1, _ROWS // (len(world.law) * (world.num_words + 1) ** world.length))
    for part, part_weights in zip(times.split(size), weights.split(size), strict=True):
        canvas, probability = every_canvas(corruption, world, part, part_weights)
        total = total + probability @ objective(denoiser, canvas)
    return total


def nelbo_by_hand(
    process: AbstractNoiseProcess,
    hyperschedule: AbstractHyperschedule,
    world: World,
    noise_schedule: AbstractNoiseSchedule = LINEAR,
) -> float:
    """The bound of a hyperschedule on the entropy of the world: `sum over steps, positions of E KL(q || p)`.

    Computed only from the joint law of clean and noisy sequences: without denoiser, attention or canvas.
    """
    noisy = states(world.num_words, world.length)
    total = 0.0
    for n in range(hyperschedule.num_steps):
        t, s = (noise_after(hyperschedule, k, noise_schedule) for k in (n, n + 1))
        joint = world.law[:, None] * state_law(process, world.sequences, t.expand_as(world.sequences), noisy)
        for i in (s < t).nonzero()[:, 0].tolist():
            total += _step_cost(process, world, joint, noisy, i, float(s[i]), float(t[i]))
    return total


def _step_cost(
    process: AbstractNoiseProcess,
    world: World,
    joint: Float[Tensor, "s z"],
    noisy: Tensor,
    i: int,
    s: float,
    t: float,
) -> float:
    """`E KL(q(x_s | x_t, x_0) || p(x_s | x_t))` of position `i`; `joint` is the law of `x_0` and `x_t`."""
    words = world.num_words
    by_word = torch.zeros(words, len(noisy), dtype=torch.float64).index_add(0, world.sequences[:, i], joint)
    marginal = by_word.sum(0)
    able = marginal > 0
    by_word, marginal, x_t = by_word[:, able], marginal[able], noisy[able, i]
    at = torch.full(x_t.shape, 1.0, dtype=torch.float64)
    guess = torch.nn.functional.pad((by_word / marginal).T, (0, 1))
    p = bayes(process, x_t, guess, s * at, t * at)
    total = 0.0
    for word in range(words):
        truth = torch.zeros_like(guess).index_fill(1, torch.tensor([word]), 1.0)
        weight = by_word[word]
        q = bayes(process, x_t, truth, s * at, t * at).where(weight[:, None] > 0, torch.zeros(()).double())
        ratio = torch.where(q > 0, q, 1.0).log() - torch.where(q > 0, p, 1.0).log()
        total += float(weight @ (q * ratio).sum(-1))
    if not math.isfinite(total):
        raise ValueError(f"The divergence of position {i} from {t} to {s} is {total}: p is 0 where q is not.")
    return total
