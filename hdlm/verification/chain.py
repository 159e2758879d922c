"""The exact law of a sampler's canvas after every step, by a sum over all canvases.

Given the canvas, these samplers choose each position independently, so a step is described by the law of each position.
Drawn samples can then be compared with it at any number of steps, not only in the limit of many.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hdlm.denoiser import ForwardContext
from hdlm.process import AbstractNoiseProcess
from hdlm.regime import Regime
from hdlm.verification.enumeration import noise_after, states
from hdlm.verification.exact import ExactDenoiser

__all__ = ["Board", "PositionLaw", "ancestral_law", "chain", "corrected_law", "text_law"]


@final
@dataclass(frozen=True)
class Board:
    """All canvases at once, as the input of a step.

    Attributes:
        process: The noise process.
        x: Tokens of all canvases.
        clean: Prediction of the exact denoiser for each, `p(x_0 | x)`; zero at the mask.
        t: Current noise fraction of each position.
        s: Noise fraction after the step.
    """

    process: AbstractNoiseProcess
    x: Int[Tensor, "z l"]
    clean: Float[Tensor, "z l v"]
    t: Float[Tensor, "z l"]
    s: Float[Tensor, "z l"]


PositionLaw = Callable[[Board], Float[Tensor, "z l v"]]
"""A step: the law of each position of every canvas after it."""


def ancestral_law(board: Board) -> Float[Tensor, "z l v"]:
    """The exact posterior of each position."""
    return board.process.posterior(board.x, board.clean, board.s, board.t)


def corrected_law(eta: float, step: PositionLaw = ancestral_law) -> PositionLaw:
    """ACS after a step: a word that the step left unchanged is redrawn with probability `eta mask(s) / mask(t)`."""

    def law(board: Board) -> Tensor:
        process, plain = board.process, step(board)
        at_s, at_t = process.weights(board.s).mask, process.weights(board.t).mask
        redraw = torch.where(board.x == process.mask_id, 0.0, eta * at_s / at_t.clamp_min(1e-300))[..., None]
        stays = plain.gather(-1, board.x[..., None])
        return plain.scatter_add(-1, board.x[..., None], -redraw * stays) + redraw * stays * board.clean

    return law


def chain(
    denoiser: ExactDenoiser,
    regime: Regime,
    step: PositionLaw = ancestral_law,
) -> Iterator[Float[Tensor, " z"]]:
    """The law of the canvas (over `states`) before the first step and after each."""
    process, length, hyperschedule = denoiser.process, regime.length, regime.hyperschedule
    x = states(process.num_words, length)
    prior = process.prior(torch.tensor(regime.final_noise, dtype=torch.float64))
    single = torch.cat([(prior.uniform / process.num_words).expand(process.num_words), prior.mask[None]])
    law = single[x].prod(-1)
    yield law
    for n in range(hyperschedule.num_steps):
        t, s = (noise_after(hyperschedule, k, regime.noise_schedule).expand(x.shape) for k in (n, n + 1))
        moving = (s < t)[0]
        reached = law > 0
        visible = regime.generation_attention(n).dense()[None]
        prediction = denoiser.predict(x[reached], t[reached], ForwardContext(attention=visible))
        clean = prediction.log_clean(prediction.everywhere()).exp().view(int(reached.sum()), length, -1)
        board = Board(process, x[reached], clean, t[reached], s[reached])
        law = law[reached] @ _products(_still(step, board, moving))
        yield law


def text_law(law: Float[Tensor, " z"], num_words: int, length: int) -> Float[Tensor, " s"]:
    """The part of a law over canvases that has no masks, over a world's `sequences`."""
    return law.view([num_words + 1] * length)[(slice(num_words),) * length].flatten()


def _still(step: PositionLaw, board: Board, moving: Bool[Tensor, " l"]) -> Float[Tensor, "z l v"]:
    """The law of each position if only the `moving` ones change."""
    stay = torch.nn.functional.one_hot(board.x, board.process.num_words + 1).double()
    moved = Board(board.process, *(field[:, moving] for field in (board.x, board.clean, board.t, board.s)))
    stay[:, moving] = step(moved) if bool(moving.any()) else stay[:, moving]
    return stay


def _products(laws: Float[Tensor, "z l v"]) -> Float[Tensor, "z y"]:
    """Law of the whole canvas for independent positions."""
    joint = laws[:, 0]
    for law in laws.unbind(1)[1:]:
        joint = (joint[..., None] * law[:, None]).flatten(1)
    return joint
