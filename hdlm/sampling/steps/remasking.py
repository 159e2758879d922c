"""Samplers that take words back: ReMDM and the published `remask` algorithms, with the right marginals.

With `a = 1 - mask` the share of visible tokens, ReMDM (arXiv 2503.00307) masks a visible token again with probability
`sigma` and lifts a mask with probability `(a_s - (1 - sigma) a_t) / (1 - a_t)`. Whatever `sigma` in
`[0, min(1, (1 - a_s) / a_t)]`, the share of masks follows the schedule; `sigma = 0` is ancestral sampling.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hdlm.sampling.base import Chain, Move, require_masks
from hdlm.sampling.steps.correction import AdaptiveCorrection

__all__ = [
    "AbstractRemaskSchedule",
    "Cap",
    "Confidence",
    "Loop",
    "ReMDM",
    "Remask",
    "RemaskShuffle",
    "Rescale",
]

_KIND, _MODEL = 0, 1


def _largest(move: Move) -> Float[Tensor, "b l"]:
    """The largest `sigma` for which probabilities stay probabilities."""
    mask_s, mask_t = move.process.weights(move.s).mask, move.process.weights(move.t).mask
    return (mask_s / (1 - mask_t).clamp_min(torch.finfo(mask_t.dtype).tiny)).clamp_max(1.0)


def _in_unit(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"`{name}` of the remasking must lie in [0, 1]; got {value}.")


class AbstractRemaskSchedule(abc.ABC):
    """How likely a visible token is masked again.

    Attributes:
        planned: Whether `sigma` depends on the noise fractions of the move alone, and on no token and no network.
    """

    planned: ClassVar[bool] = False

    @abc.abstractmethod
    def sigma(self, move: Move) -> Float[Tensor, "b l"]:
        """Probability at each position, at most the largest that keeps the marginals."""


@final
@dataclass(frozen=True)
class Cap(AbstractRemaskSchedule):
    """`sigma = min(eta, sigma_max)` (ReMDM-cap)."""

    eta: float
    planned: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _in_unit("eta", self.eta)

    def sigma(self, move: Move) -> Float[Tensor, "b l"]:
        return _largest(move).clamp_max(self.eta)


@final
@dataclass(frozen=True)
class Rescale(AbstractRemaskSchedule):
    """`sigma = eta sigma_max` (ReMDM-rescale)."""

    eta: float
    planned: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _in_unit("eta", self.eta)

    def sigma(self, move: Move) -> Float[Tensor, "b l"]:
        return self.eta * _largest(move)


@final
@dataclass(frozen=True)
class Confidence(AbstractRemaskSchedule):
    """Shares out another schedule's `sigma`: what the model doubts is masked sooner (ReMDM-conf).

    The visible positions of a sequence together get their mean of it over all positions that move, and position `i`
    gets `softmax(-confidence)_i` of that; masks are lifted as often as that mean wants, so the share of masks stays on
    schedule (the paper's own rule lifts too few). A position gets no more than the largest `sigma` of its own move, so
    none is masked in its last step; what it cannot take goes to the others in the same proportion. The confidence is
    the probability that the model gives the word *now*; the paper remembers the one at the time of writing, which for a
    network that cannot doubt visible words is the only one there is.

    Attributes:
        inner: The schedule whose `sigma` is shared out.
    """

    inner: AbstractRemaskSchedule

    def sigma(self, move: Move) -> Float[Tensor, "b l"]:
        visible = move.visible
        mean = self.inner.sigma(move) / move.moving.sum(-1, keepdim=True).clamp_min(1)
        if not visible.any():
            return mean
        trust = torch.full_like(move.t, torch.inf)
        trust[visible] = move.reading.own(visible).to(trust.dtype)
        share = (-trust).softmax(-1).nan_to_num(0.0)
        most = torch.where(visible, _largest(move), 0.0)
        pooled = torch.where(visible, mean, 0.0).sum(-1, keepdim=True)
        return torch.where(visible, _poured(pooled, share, most), mean)


@final
@dataclass(frozen=True)
class ReMDM:
    """One step of ReMDM.

    Attributes:
        schedule: How likely a visible token is masked again.
    """

    schedule: AbstractRemaskSchedule
    remasks: ClassVar[bool] = True

    def __call__(self, x: Int[Tensor, "b l"], move: Move) -> Int[Tensor, "b l"]:
        return _rewrite(x, move, self.schedule.sigma(move))

    def events(self, move: Move) -> Bool[Tensor, "b l"]:
        """Where a token is masked or written; everywhere if the schedule is not planned."""
        return _events(move, self.schedule.sigma(move)) if self.schedule.planned else move.moving


@final
@dataclass(frozen=True)
class Remask:
    """Guesses the whole sequence and masks it afresh: `x_s ~ q(x_s | guess)` (published as `remask`).

    The guess keeps the visible words; each position is then masked with probability `strength` of the way from the
    ancestral step (0) to a pattern of masks drawn anew (1). ReMDM with `sigma = strength min(1 - a_s, sigma_max)`.

    Attributes:
        strength: In [0, 1].
    """

    strength: float = 1.0
    remasks: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _in_unit("strength", self.strength)

    def __call__(self, x: Int[Tensor, "b l"], move: Move) -> Int[Tensor, "b l"]:
        return _rewrite(x, move, self._sigma(move))

    def events(self, move: Move) -> Bool[Tensor, "b l"]:
        """Where a token is masked or written."""
        return _events(move, self._sigma(move))

    def _sigma(self, move: Move) -> Float[Tensor, "b l"]:
        return self.strength * torch.minimum(move.process.weights(move.s).mask, _largest(move))


@final
@dataclass(frozen=True)
class RemaskShuffle:
    """`Remask`, and what stays visible is redrawn now and then (published as `remask_adhoc_shuffle`).

    Attributes:
        eta: Strength of the redrawing, as in `AdaptiveCorrection`, in [0, 1].
        strength: Strength of the remasking, as in `Remask`, in [0, 1].
    """

    eta: float
    strength: float = 1.0
    remasks: ClassVar[bool] = True

    def __call__(self, x: Int[Tensor, "b l"], move: Move) -> Int[Tensor, "b l"]:
        return self._chain(x, move)

    def events(self, move: Move) -> Bool[Tensor, "b l"]:
        """Where a token is masked, written or redrawn."""
        return self._chain.events(move)

    @property
    def _chain(self) -> Chain:
        return Chain((Remask(self.strength), AdaptiveCorrection(self.eta)))


@final
@dataclass(frozen=True)
class Loop:
    """Remasks only in the middle, at a constant share of masks (ReMDM-loop).

    From noise 1 to `on` it runs ahead to the noise `level`; from `on` to `off` it stays there, words being taken back
    as fast as others are written; from `off` to 0 it finishes without remasking.

    Attributes:
        schedule: How likely a visible token is masked again in the middle.
        on: Noise fraction at which the middle begins, in (0, 1).
        off: Noise fraction at which it ends, in (0, `on`).
        level: Noise fraction of the middle, in (0, 1).
    """

    schedule: AbstractRemaskSchedule
    on: float = 0.55
    off: float = 0.05
    level: float = 0.1
    remasks: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.off < self.on < 1:
            raise ValueError(f"The loop needs 0 < off < on < 1; got off={self.off}, on={self.on}.")
        if not 0 < self.level < 1:
            raise ValueError(f"`level` of the loop must lie in (0, 1); got {self.level}.")

    def warp(self, u: Float[Tensor, "b l"]) -> Float[Tensor, "b l"]:
        """The noise fraction that the loop has when the hyperschedule has `u`."""
        before = self.level + (u - self.on) / (1 - self.on) * (1 - self.level)
        after = u / self.off * self.level
        return torch.where(u > self.on, before, torch.where(u < self.off, after, self.level))

    def __call__(self, x: Int[Tensor, "b l"], move: Move) -> Int[Tensor, "b l"]:
        outside, inside = self._parts(move)
        x = _rewrite(x, outside, torch.zeros_like(move.t))
        return _rewrite(x, inside, self.schedule.sigma(inside))

    def events(self, move: Move) -> Bool[Tensor, "b l"]:
        """Where a token is masked or written; in the middle everywhere if the schedule is not planned."""
        outside, inside = self._parts(move)
        again = _events(inside, self.schedule.sigma(inside)) if self.schedule.planned else inside.moving
        return _events(outside, torch.zeros_like(move.t)) | again

    def _parts(self, move: Move) -> tuple[Move, Move]:
        """The move of the positions outside the middle, and that of those inside."""
        move = replace(move, t=self.warp(move.t), s=self.warp(move.s))
        middle = move.s == move.t
        return replace(move, moving=move.moving & ~middle), replace(move, moving=move.moving & middle)


def _poured(
    total: Float[Tensor, "b 1"], share: Float[Tensor, "b l"], most: Float[Tensor, "b l"]
) -> Float[Tensor, "b l"]:
    """`min(most, c share)`, with the `c` of each row that makes the sum `total`, which is at most the sum of `most`."""
    full_at = torch.where(share > 0, most / torch.where(share > 0, share, 1.0), torch.inf)
    ordered, order = full_at.sort(-1)  # in the order in which positions become full as `c` grows
    full = torch.where(ordered.isfinite(), most.gather(-1, order), 0.0).cumsum(-1)
    rest = share.gather(-1, order).flip(-1).cumsum(-1).flip(-1)
    before = torch.nn.functional.pad(full, (1, -1))
    level = (total - before) / torch.where(rest > 0, rest, 1.0)
    level = level.masked_fill((rest <= 0) | (level > ordered), -torch.inf).amax(-1, keepdim=True)
    level = torch.where(level.isfinite(), level, torch.inf)  # if there is none, all are full
    return torch.where(share > 0, torch.minimum(most, level * share), 0.0)


def _stay(move: Move, sigma: Float[Tensor, "b l"]) -> Float[Tensor, "b l"]:
    """Probability that a mask stays, for which the share of masks keeps to the schedule."""
    mask_s, mask_t = move.process.weights(move.s).mask, move.process.weights(move.t).mask
    return (mask_s - sigma * (1 - mask_t)) / mask_t.clamp_min(torch.finfo(mask_t.dtype).tiny)


def _events(move: Move, sigma: Float[Tensor, "b l"]) -> Bool[Tensor, "b l"]:
    """Where `_rewrite` may act: as a word is masked, or a mask written."""
    return move.moving & (move.uniform(_KIND) < torch.maximum(sigma, 1 - _stay(move, sigma)))


def _rewrite(x: Int[Tensor, "b l"], move: Move, sigma: Float[Tensor, "b l"]) -> Int[Tensor, "b l"]:
    """Mask each word again with probability `sigma`; lift masks as often as keeps the share of masks on schedule."""
    require_masks(move.process, "Remasking")
    kind = move.uniform(_KIND)
    write = move.masked & (kind < 1 - _stay(move, sigma))  # all masks in the last step: `stay` is exactly 0
    new = torch.where(move.visible & (kind < sigma), move.process.mask_id, x)
    if write.any():
        new[write] = move.reading.draw(write, move.uniform(_MODEL))
    return new
