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
from hdlm.sampling import (
    AdaptiveCorrection,
    Ancestral,
    Cap,
    Chain,
    DoubtCorrection,
    Remask,
    ReMDM,
    Rescale,
    Step,
)
from hdlm.verification.enumeration import noise_after, states
from hdlm.verification.exact import ExactDenoiser

__all__ = [
    "Board",
    "PositionLaw",
    "ancestral_law",
    "chain",
    "corrected_law",
    "doubted_law",
    "position_law",
    "remasked_law",
    "text_law",
]


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


def doubted_law(doubt: float, rate: float, step: PositionLaw = ancestral_law) -> PositionLaw:
    """`DoubtCorrection` after a step, by Bayes' rule: the word is noise, or doubted, or the clean word itself."""

    def law(board: Board) -> Tensor:
        process, plain, n = board.process, step(board), board.process.num_words
        size, at_s, at_t = board.t - board.s, process.weights(board.s), process.weights(board.t)
        share = torch.where(board.x == process.mask_id, 0.0, (rate * size).clamp_max(1) * board.s / board.t)
        wrong = at_t.uniform / (at_t.clean + at_t.uniform).clamp_min(1e-300)
        doubted = 1 - (1 - wrong) * (1 - (doubt * size).clamp_max(1))
        itself = torch.nn.functional.one_hot(board.x, n + 1).double()
        before, after = ((1 - w)[..., None] * itself + w[..., None] / n for w in (wrong, doubted))
        clean = torch.where(before > 0, board.clean / before.clamp_min(1e-300), 0.0) * after
        clean = clean / clean.sum(-1, keepdim=True).clamp_min(1e-300)
        kept = (at_s.clean / (at_s.clean + at_s.uniform).clamp_min(1e-300))[..., None]
        words = torch.nn.functional.pad(torch.full_like(clean[..., :-1], 1 / n), (0, 1))
        redraw, stays = share[..., None], plain.gather(-1, board.x[..., None])
        new = redraw * stays * (kept * clean + (1 - kept) * words)
        return plain.scatter_add(-1, board.x[..., None], -redraw * stays) + new

    return law


def remasked_law(strength: Callable[[Tensor, Tensor], Tensor]) -> PositionLaw:
    """ReMDM: mask each word with probability `sigma`, and replace masks so that their share follows the schedule.

    Args:
        strength: `sigma` as a function of its largest value and of the share of masks after the step.
    """

    def law(board: Board) -> Tensor:
        mask_s, mask_t = board.process.weights(board.s).mask, board.process.weights(board.t).mask
        sigma = strength((mask_s / (1 - mask_t).clamp_min(1e-300)).clamp_max(1), mask_s)[..., None]
        lift = 1 - (mask_s[..., None] - sigma * (1 - mask_t)[..., None]) / mask_t[..., None]
        itself = torch.nn.functional.one_hot(board.x, board.process.num_words + 1).double()
        mask = torch.nn.functional.one_hot(torch.tensor(board.process.mask_id)).double()
        of_word = sigma * mask + (1 - sigma) * itself
        return torch.where(itself[..., -1:] > 0, lift * board.clean + (1 - lift) * mask, of_word)

    return law


def position_law(step: Step) -> PositionLaw | None:
    """The law of a sampling step, if it chooses each position independently and is written down here; else None."""
    match step:
        case Ancestral(process):
            return ancestral_law if process is None else lambda board: ancestral_law(_along(board, process))
        case Chain((Ancestral() as first, AdaptiveCorrection(eta))):
            return corrected_law(eta, position_law(first) or ancestral_law)
        case Chain((Ancestral() as first, DoubtCorrection(doubt, rate))):
            return doubted_law(doubt, rate, position_law(first) or ancestral_law)
        case ReMDM(Cap(eta)):
            return remasked_law(lambda largest, mask_s: largest.clamp_max(eta))
        case ReMDM(Rescale(eta)):
            return remasked_law(lambda largest, mask_s: eta * largest)
        case Remask(strength):
            return remasked_law(lambda largest, mask_s: strength * torch.minimum(mask_s, largest))
    return None


def _along(board: Board, process: AbstractNoiseProcess) -> Board:
    """A board whose steps follow another process."""
    return Board(process, board.x, board.clean, board.t, board.s)


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
