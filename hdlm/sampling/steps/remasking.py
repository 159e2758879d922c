"""Samplers that replace words by masks: ReMDM and the published `remask` algorithms, with the right marginals.

With `a = 1 - mask` the share of visible tokens, ReMDM (arXiv 2503.00307) masks a visible token again with probability
`sigma` and replaces a mask with probability `(a_s - (1 - sigma) a_t) / (1 - a_t)`. For every `sigma` in `[0, min(1, (1
- a_s) / a_t)]`, the share of masks follows the schedule; `sigma = 0` is ancestral sampling.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass, replace
from functools import cached_property
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
    """The largest `sigma` for which all probabilities are at most 1."""
    mask_s, mask_t = move.process.weights(move.s).mask, move.process.weights(move.t).mask
    return (mask_s / (1 - mask_t).clamp_min(torch.finfo(mask_t.dtype).tiny)).clamp_max(1.0)


def _in_unit(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"`{name}` of the remasking must lie in [0, 1]; got {value}.")


class AbstractRemaskSchedule(abc.ABC):
    """The probability that a visible token is masked again.

    Attributes:
        planned: Whether `sigma` depends only on the noise fractions of the move, not on tokens or the network.
    """

    planned: ClassVar[bool] = False

    @abc.abstractmethod
    def sigma(self, move: Move) -> Float[Tensor, "b l"]:
        """Probability at each position, at most the largest value that keeps the marginals."""


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
    """Distributes another schedule's `sigma` by confidence: uncertain words are masked sooner (ReMDM-conf).

    The visible positions of a sequence together get the mean of `sigma` over all moving positions, and position `i`
    gets the share `softmax(-confidence)_i` of it. Masks are replaced as often as that mean requires, so the share of
    masks stays on schedule (the paper's own rule replaces too few). A position gets at most the largest `sigma` of its
    own move, so none is masked in its last step; the rest goes to the other positions in equal proportion. The
    confidence is the model's *current* probability of the word. The paper uses the probability at the time of writing,
    which is the only one that exists for a network that cannot judge visible words.

    Attributes:
        inner: The schedule whose `sigma` is distributed.
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
        schedule: The probability that a visible token is masked again.
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
    """Predicts the whole sequence and masks it again: `x_s ~ q(x_s | guess)` (published as `remask`).

    The guess keeps the visible words. Each position is then masked with a probability between that of the ancestral
    step (`strength` 0) and that of a new pattern of masks (1). It is ReMDM with `sigma = strength min(1 - a_s,
    sigma_max)`.

    Attributes:
        strength: Strength in [0, 1].
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
    """`Remask`, after which visible words are sometimes redrawn (published as `remask_adhoc_shuffle`).

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

    @cached_property
    def _chain(self) -> Chain:
        return Chain((Remask(self.strength), AdaptiveCorrection(self.eta)))


@final
@dataclass(frozen=True)
class Loop:
    """Remasks only in the middle, at a constant share of masks (ReMDM-loop).

    From noise 1 to `on` it advances to the noise `level`. From `on` to `off` it stays there, and masks words as fast as
    it writes others. From `off` to 0 it finishes without remasking.

    Attributes:
        schedule: The probability that a visible token is masked again in the middle.
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
        """The loop's noise fraction when the hyperschedule has `u`."""
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
        """The move of the positions outside the middle, and the move of the positions inside."""
        move = replace(move, t=self.warp(move.t), s=self.warp(move.s))
        middle = move.s == move.t
        return replace(move, moving=move.moving & ~middle), replace(move, moving=move.moving & middle)


def _poured(
    total: Float[Tensor, "b 1"], share: Float[Tensor, "b l"], most: Float[Tensor, "b l"]
) -> Float[Tensor, "b l"]:
    """`min(most, c share)`, where `c` makes the sum of each row `total`, which is at most the sum of `most`."""
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
    """Probability that a mask stays, so that the share of masks follows the schedule."""
    mask_s, mask_t = move.process.weights(move.s).mask, move.process.weights(move.t).mask
    return (mask_s - sigma * (1 - mask_t)) / mask_t.clamp_min(torch.finfo(mask_t.dtype).tiny)


def _events(move: Move, sigma: Float[Tensor, "b l"]) -> Bool[Tensor, "b l"]:
    """Where `_rewrite` may act: where a word or a mask would be replaced."""
    return move.moving & (move.uniform(_KIND) < torch.maximum(sigma, 1 - _stay(move, sigma)))


def _rewrite(x: Int[Tensor, "b l"], move: Move, sigma: Float[Tensor, "b l"]) -> Int[Tensor, "b l"]:
    """Mask each word again with probability `sigma`; replace masks so that their share stays on schedule."""
    require_masks(move.process, "Remasking")
    kind = move.uniform(_KIND)
    write = move.masked & (kind < 1 - _stay(move, sigma))  # all masks in the last step: `stay` is exactly 0
    new = torch.where(move.visible & (kind < sigma), move.process.mask_id, x)
    if write.any():
        new[write] = move.reading.draw(write, move.uniform(_MODEL))
    return new
