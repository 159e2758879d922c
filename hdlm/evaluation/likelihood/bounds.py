r"""Two upper bounds on `-log p(x_0)`, of one window, each as an unbiased random estimate. Never to be mixed.

The *absorbing* bound is the paper's protocol (arXiv 2504.06416): masks and no wrong words, whatever the process,

    integral over u of E[ sum over masked i of -log p(x_0^i | x_u) ] / u,

the likelihood of the sampler that unmasks tokens into draws from `p(x_0 | x_u)`. The *hybrid* bound is that of the
process itself: exact score entropy, integrated over its noise, plus what the prior is off, plus a reconstruction
where the noise does not come gradually (the epsilon-hybrids replace words at `u = 0+`),

    integral of score entropy + KL(q(x_1 | x_0) || prior) + E[ sum over i of -log p(x_0^i | y) ],  y ~ q(x_0+ | x_0).

On a hyperschedule `u` is the noise of a position while it is active, and it sees what generation lets it see.
"""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import cast, final, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hdlm.denoiser import AbstractDenoiser, Prediction
from hdlm.evaluation.likelihood.result import BoundName, Estimator
from hdlm.evaluation.likelihood.times import Density, density_of, place_times
from hdlm.hyperschedule import AbstractCountdown, AbstractHyperschedule
from hdlm.noise_schedule import LINEAR
from hdlm.objective import Canvas, Corruption, ScoreEntropy, prior_divergence
from hdlm.parameterization import NoiseDependence
from hdlm.process import Absorbing, AbstractNoiseProcess
from hdlm.regime import Regime

__all__ = [
    "AbsorbingBound",
    "AbstractBound",
    "HybridBound",
    "bound_along",
    "check_bound",
    "least_variance",
    "masking_fraction",
]

_HAIR = 1e-12
"""Noise fractions are read this close to 0 and 1."""
_ROWS = 1024
"""Positions whose distribution over the vocabulary is held at a time."""
_PASSES = 4
"""Passes of the network for a reconstruction, at most: more would buy less than as many more replicates."""
_BISECTIONS = 60
"""Halvings of [0, 1]: more than float64 can tell apart."""


class AbstractBound(abc.ABC):
    """A random estimate of an upper bound on `-log p` of each window; unbiased, with finite moments.

    Times that are handed in are even; they are moved towards small noise and weighed for it (see
    `hdlm.evaluation.likelihood.times`).

    Shifted denoisers say nothing of the first positions. These are given, and charged `log N` nats each, as if drawn
    uniformly.

    Attributes:
        denoiser: The model.
        regime: When each position of a window is noisy, and who sees whom; its length is that of the windows.
        estimator: How noise is drawn.
        given: How many of the first tokens are given: they stay clean, and are not counted.
    """

    denoiser: AbstractDenoiser
    regime: Regime
    estimator: Estimator
    given: int

    @property
    def hyperschedule(self) -> AbstractHyperschedule:
        """When each position of a window is noisy."""
        return self.regime.hyperschedule

    @property
    @abc.abstractmethod
    def corruption(self) -> Corruption:
        """How windows are noised."""

    @abc.abstractmethod
    def estimate(
        self, x_0: Int[Tensor, "b l"], times: Float[Tensor, "b e"], draw: Float[Tensor, "b l"]
    ) -> Float[Tensor, " b"]:
        """Nats of the positions that the denoiser speaks of; arguments as below."""

    @final
    def __call__(
        self, x_0: Int[Tensor, "b l"], times: Float[Tensor, "b e"], draw: Float[Tensor, "b l"]
    ) -> Float[Tensor, " b"]:
        """Nats of each window.

        Args:
            x_0: The windows.
            times: `corruption.num_times` numbers for each, uniform on [0, 1).
            draw: A uniform number in [0, 1) for each position.
        """
        silent = max(min(self.denoiser.lookback, x_0.shape[1]) - self.given, 0)
        return self.estimate(x_0, times, draw) + silent * math.log(self.denoiser.process.num_words)

    @property
    def num_given(self) -> int:
        """How many of the first positions stay clean: those that are given, or of which the denoiser says nothing."""
        return max(self.denoiser.lookback, self.given)

    @final
    def _noised(
        self, x_0: Int[Tensor, "b l"], times: Float[Tensor, "b e"], draw: Float[Tensor, "b l"]
    ) -> Canvas:
        """The canvas at times from `density`, with the inverse of that density in its measure."""
        moved, weight = place_times(times, self._endings, self._num_cells, self.density, _HAIR)
        canvas = self.corruption(x_0, moved, draw)
        return replace(canvas, measure=canvas.measure * self._by_position(weight))

    @cached_property
    def density(self) -> Density:
        """How times are drawn."""
        together = (self.hyperschedule.length - self.num_given) / self.corruption.num_times
        return density_of(self.corruption.process, self.corruption.regime.noise_schedule, together)

    @property
    def _num_cells(self) -> int:
        """Into how many cells the time of a pass is cut."""
        plan = self.hyperschedule
        return plan.num_levels if self.corruption.two_stream else plan.num_steps

    def _by_position(self, of_times: Float[Tensor, "*b e"]) -> Float[Tensor, "*b l"]:
        """What belongs to each time of a window, at each of its positions, or once for all if there is one time."""
        if not self.corruption.two_stream:
            return of_times
        return of_times[..., cast("AbstractCountdown", self.hyperschedule).epochs.to(of_times.device)]

    @cached_property
    def _endings(self) -> list[Int[Tensor, " cells"]]:
        """For each time of a window, the cells of it in whose last moment the noise of some position ends."""
        schedule = self.hyperschedule
        free = torch.arange(schedule.length) >= self.num_given
        if not self.corruption.two_stream:
            return [(schedule.settles[free] - 1).unique()]
        plan = cast("AbstractCountdown", schedule)
        starts, epochs = plan.starts, plan.epochs
        every = range(self.corruption.num_times)
        first = torch.stack([starts[epochs == epoch].amin() for epoch in every])
        cells = (starts - first[epochs] - 1) % schedule.num_levels
        return [cells[free & (epochs == epoch)].unique() for epoch in every]

    @final
    def _noising(self, process: AbstractNoiseProcess, regime: Regime) -> Corruption:
        """Two streams where they show more than one canvas does: every position is then measured in every pass."""
        schedule = self.hyperschedule
        return Corruption(
            process,
            regime,
            two_stream=schedule.has_epochs
            and not schedule.is_flat
            and regime.fits_one_pass(self.denoiser.noise_dependence),
            num_given=self.num_given,
        )


@final
@dataclass(frozen=True, eq=False)
class AbsorbingBound(AbstractBound):
    """Masked cross-entropy over the share of masks.

    Four estimators. `"random"` and `"stratified"` draw the masking probability `u` of each epoch; for the second the
    caller spreads `times` evenly. `"count"` draws the number `k` of masks instead, uniform on `1 .. w` in an epoch of
    `w` positions that start together, masks that many and weighs them `w / k`. Given `k`, the `u` that goes with it is
    the `k`-th smallest of `w` uniform numbers, so the expectation is the same and the variance less. `"exact"` is for
    epochs of one position, as in autoregression: each is predicted once, from pure noise, and nothing is random.

    A network that is told the noise is told the fraction at which its own process masks as much.

    Raises:
        ValueError: If the estimator does not fit the hyperschedule, or the denoiser's process never masks everything.
    """

    denoiser: AbstractDenoiser
    regime: Regime
    estimator: Estimator
    given: int = 0

    def __post_init__(self) -> None:
        _check_start(self.hyperschedule)
        if self.estimator not in get_args(Estimator):
            raise ValueError(f"`estimator` must be one of {get_args(Estimator)}; got {self.estimator!r}.")
        process = self.denoiser.process
        if not process.ends_in_masks:
            raise ValueError(
                f"The absorbing bound needs a process whose full noise is all masks; got {process!r}. "
                "Use bound='hybrid'."
            )
        if self.estimator == "count" and not self.hyperschedule.opens_together:
            raise ValueError(
                "estimator='count' needs a hyperschedule in whose epochs all positions start together (flat or Block); "
                f"got {self.hyperschedule!r}. Use estimator='stratified'."
            )
        if self.estimator == "exact" and not self.hyperschedule.is_autoregressive:
            raise ValueError(
                "estimator='exact' needs a hyperschedule that takes one position at a time, left to right; got "
                f"{self.hyperschedule!r}. Use estimator='count' or 'stratified'."
            )
        if self.estimator in ("count", "exact") and not self.regime.fits_one_pass(
            self.denoiser.noise_dependence
        ):
            raise ValueError(
                f"estimator={self.estimator!r} measures all positions in one pass. That is wrong with context='full', "
                "in which settled positions attend to later ones, and for a network that is conditioned on one noise "
                "level a sequence, unless the hyperschedule is flat. Use estimator='stratified'."
            )

    @cached_property
    def corruption(self) -> Corruption:
        """Masks alone; the noise schedule makes no difference."""
        return self._noising(
            Absorbing(self.denoiser.process.num_words), replace(self.regime, noise_schedule=LINEAR)
        )

    def estimate(
        self, x_0: Int[Tensor, "b l"], times: Float[Tensor, "b e"], draw: Float[Tensor, "b l"]
    ) -> Float[Tensor, " b"]:
        if self.estimator in ("count", "exact"):
            canvas = self.corruption(
                x_0, torch.zeros_like(times) if self.estimator == "exact" else times, draw
            )
        else:
            canvas = self._noised(x_0, times, draw)
        weight = canvas.measure / canvas.t
        if self.estimator == "count":
            canvas, weight = self._counted(canvas, times, draw)
        masked = canvas.x_t == self.denoiser.process.mask_id
        told = replace(canvas, t=masking_fraction(self.denoiser.process, canvas.t))
        return _cross_entropy(told.predict(self.denoiser), x_0, torch.where(masked, weight, 0.0))

    def _counted(self, canvas: Canvas, times: Tensor, draw: Tensor) -> tuple[Canvas, Tensor]:
        """The canvas with a uniform number of masks in each epoch, and the weight of these."""
        epochs = cast("AbstractCountdown", self.hyperschedule).epochs.to(draw.device)
        free = torch.arange(len(epochs), device=draw.device) >= self.corruption.num_given
        sizes = epochs[free].bincount(minlength=times.shape[1])
        count = (times * sizes).long() + 1
        masked = (_rank_within(epochs, torch.where(free, draw, 1.0)) < count[:, epochs]) & free
        last = torch.zeros_like(times).scatter_reduce(
            1, epochs.expand(draw.shape), torch.where(masked, draw, 0.0), "amax"
        )
        x_t = torch.where(masked, self.denoiser.process.mask_id, canvas.x_0)
        told = torch.where(free, last[:, epochs], 0.0)
        return replace(canvas, x_t=x_t, t=told), (sizes / count.double())[:, epochs]


@final
@dataclass(frozen=True, eq=False)
class HybridBound(AbstractBound):
    """The bound of the denoiser's own process, in continuous time; for mean and score parameterizations.

    Where the noise schedule of the regime ends, generation begins.

    Raises:
        ValueError: If the estimator is neither `"random"` nor `"stratified"`.
    """

    denoiser: AbstractDenoiser
    regime: Regime
    estimator: Estimator
    given: int = 0

    def __post_init__(self) -> None:
        _check_start(self.hyperschedule)
        if self.estimator not in ("random", "stratified"):
            raise ValueError(
                f"The hybrid bound has the estimators 'random' and 'stratified'; got {self.estimator!r}."
            )

    @cached_property
    def corruption(self) -> Corruption:
        """The denoiser's own noise."""
        return self._noising(self.denoiser.process, self.regime)

    def estimate(
        self, x_0: Int[Tensor, "b l"], times: Float[Tensor, "b e"], draw: Float[Tensor, "b l"]
    ) -> Float[Tensor, " b"]:
        objective = ScoreEntropy(_HAIR)
        path = objective(self.denoiser, self._noised(x_0, times, draw)).sum(-1)
        off = prior_divergence(self.denoiser.process, self.regime.noise_schedule)
        nats = path + off * max(x_0.shape[1] - self.num_given, 0)
        return nats + self._reconstruction(x_0, times, draw) if self._jumps else nats

    @property
    def _jumps(self) -> bool:
        """Whether data are noisy at once, by however little: a model may recover them as badly as it likes."""
        first = self.regime.noise_schedule.fraction(torch.zeros((), dtype=torch.float64))
        least = first.clamp_min(torch.finfo(first.dtype).tiny)
        return float(self.denoiser.process.weights(least).clean) < 1

    def _reconstruction(self, x_0: Tensor, times: Tensor, draw: Tensor) -> Tensor:
        """`-log p(x_0 | y)` of each position in the last moment of its noise.

        A pass is one cell of time for each epoch. Where there are more than `_PASSES` of them, that many are taken,
        evenly spread from a random beginning, for all.
        """
        cells = self._num_cells
        passes = [min(len(found), _PASSES) for found in self._endings]
        total = torch.zeros(len(x_0), dtype=torch.float64, device=x_0.device)
        for number in range(max(passes)):
            ends, weight = torch.zeros_like(times), torch.zeros_like(times[0])
            for epoch, (found, count) in enumerate(zip(self._endings, passes, strict=True)):
                if number < count:
                    weight[epoch] = len(found) / count
                    at = ((times[:, epoch] + number) * weight[epoch]).long().clamp(max=len(found) - 1)
                    ends[:, epoch] = (found.to(at.device)[at].double() + 1) / cells - _HAIR
            total += self._ended(x_0, ends, draw, weight)
        return total

    def _ended(self, x_0: Tensor, times: Tensor, draw: Tensor, weight: Tensor) -> Tensor:
        """Cross-entropy of the positions whose noise ends at these times, weighed by epoch."""
        canvas = self.corruption(x_0, times, draw)
        weight = self._by_position(weight)
        ends = (canvas.steps > 0) & (canvas.s == 0)
        return _cross_entropy(canvas.predict(self.denoiser), x_0, torch.where(ends, weight, 0.0))


def check_bound(bound: str) -> None:
    """See that there is a bound of this name.

    Raises:
        ValueError: If there is not.
    """
    if bound not in get_args(BoundName):
        raise ValueError(f"`bound` must be one of {get_args(BoundName)}; got {bound!r}.")


def bound_along(
    denoiser: AbstractDenoiser, regime: Regime, *, bound: BoundName, estimator: Estimator, given: int
) -> AbstractBound:
    """The bound of a name, on windows as long as the regime; arguments are the attributes of the bounds.

    Raises:
        ValueError: As the bounds.
    """
    kind = AbsorbingBound if bound == "absorbing" else HybridBound
    return kind(denoiser, regime, estimator, given)


def least_variance(bound: BoundName, regime: Regime, dependence: NoiseDependence = "position") -> Estimator:
    """The estimator of a bound with the least variance among those that fit.

    Args:
        bound: The bound.
        regime: When each position is noisy, and who sees whom.
        dependence: `noise_dependence` of the denoiser.
    """
    if bound == "hybrid" or not regime.fits_one_pass(dependence):
        return "stratified"
    if regime.hyperschedule.is_autoregressive:
        return "exact"
    return "count" if regime.hyperschedule.opens_together else "stratified"


def masking_fraction(process: AbstractNoiseProcess, mask: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """The noise fraction at which a process masks with probability `mask`, by bisection.

    Args:
        process: A process whose mask weight rises from 0 to 1.
        mask: Masking probabilities in [0, 1], float64.
    """
    low, high = torch.zeros_like(mask), torch.ones_like(mask)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        below = process.weights(middle).mask < mask
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return high


def _cross_entropy(
    prediction: Prediction, x_0: Int[Tensor, "b l"], weight: Float[Tensor, "b l"]
) -> Float[Tensor, " b"]:
    """`sum of weight * -log p(x_0 | x_t)`, read only where the weight is not 0."""
    out = torch.zeros(x_0.numel(), dtype=torch.float64, device=x_0.device)
    for at in (weight > 0).flatten().nonzero()[:, 0].split(_ROWS):
        log_p = prediction.log_clean(at).gather(1, x_0.flatten()[at][:, None])[:, 0]
        out[at] = -log_p.double() * weight.flatten()[at]
    return out.view(x_0.shape).sum(-1)


def _rank_within(group: Int[Tensor, " l"], values: Float[Tensor, "b l"]) -> Int[Tensor, "b l"]:
    """How many smaller values of its own group each has in its row."""
    by_value = values.argsort(-1)
    order = by_value.gather(-1, group[by_value].argsort(dim=-1, stable=True))
    ordered = group[order[0]]
    first = torch.searchsorted(ordered, ordered)
    place = torch.arange(len(group), device=group.device) - first
    return torch.empty_like(order).scatter_(-1, order, place.expand_as(order))


def _check_start(hyperschedule: AbstractHyperschedule) -> None:
    """Every token has to be generated, or the sum over positions bounds nothing."""
    begun = int((hyperschedule.levels(0) < hyperschedule.num_levels).sum())
    if begun:
        raise ValueError(
            f"A likelihood needs every position to begin as pure noise; {begun} positions of {hyperschedule!r} begin "
            "below that. Use a Block, Slide or Wave, or a Table with a row of pure noise before the others."
        )
