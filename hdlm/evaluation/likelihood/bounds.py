r"""Two upper bounds on `-log p(x_0)` of one window, each as an unbiased random estimate. They must not be mixed.

The *absorbing* bound is the paper's protocol (arXiv 2504.06416): masks and no wrong words, for every process,

    integral over u of E[ sum over masked i of -log p(x_0^i | x_u) ] / u,

the likelihood of the sampler that unmasks tokens by drawing from `p(x_0 | x_u)`. The *hybrid* bound is that of the
process itself: exact score entropy, integrated over its noise, plus the divergence of the prior, plus a reconstruction
term where the noise does not start gradually (the epsilon-hybrids replace words at `u = 0+`),

    integral of score entropy + KL(q(x_1 | x_0) || prior) + E[ sum over i of -log p(x_0^i | y) ],  y ~ q(x_0+ | x_0).

On a hyperschedule `u` is the noise of a position while it is active. An active position sees what it sees in
generation.
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
"""Distance that noise fractions keep from 0 and 1."""
_ROWS = 1024
"""Number of positions whose distribution over the vocabulary is in memory at a time."""
_PASSES = 4
"""Maximum network passes for a reconstruction; additional replicates reduce the variance more than further passes."""
_BISECTIONS = 60
"""Halvings of [0, 1]: more than float64 can resolve."""


class AbstractBound(abc.ABC):
    """A random estimate of an upper bound on `-log p` of each window; unbiased, with finite moments.

    The given times are uniform; they are moved towards small noise and weighted for it (see
    `hdlm.evaluation.likelihood.times`).

    Shifted denoisers do not predict the first positions. These are given, and cost `log N` nats each, as if drawn
    uniformly.

    Attributes:
        denoiser: The denoiser of the model.
        regime: When each position of a window is noisy, and its attention; its length is that of the windows.
        estimator: How noise is drawn.
        given: How many of the first tokens are given; they stay clean, and are not counted.
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
        """Nats of the positions that the denoiser predicts; arguments as in `__call__`."""

    @final
    def __call__(
        self, x_0: Int[Tensor, "b l"], times: Float[Tensor, "b e"], draw: Float[Tensor, "b l"]
    ) -> Float[Tensor, " b"]:
        """Nats of each window.

        Args:
            x_0: Tokens of the windows.
            times: `corruption.num_times` numbers for each window, uniform on [0, 1).
            draw: A uniform number in [0, 1) for each position.
        """
        silent = max(min(self.denoiser.lookback, x_0.shape[1]) - self.given, 0)
        return self.estimate(x_0, times, draw) + silent * math.log(self.denoiser.process.num_words)

    @property
    def num_given(self) -> int:
        """Number of first positions that stay clean: they are given, or the denoiser does not predict them."""
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
        """Number of cells into which the time of a pass is cut."""
        plan = self.hyperschedule
        return plan.num_levels if self.corruption.two_stream else plan.num_steps

    def _by_position(self, of_times: Float[Tensor, "*b e"]) -> Float[Tensor, "*b l"]:
        """Values per time of a window, expanded to its positions; unchanged if a window has one time."""
        if not self.corruption.two_stream:
            return of_times
        return of_times[..., cast("AbstractCountdown", self.hyperschedule).epochs.to(of_times.device)]

    @cached_property
    def _endings(self) -> list[Int[Tensor, " cells"]]:
        """For each time of a window, its cells in whose last moment the noise of some position ends."""
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
        """Two streams where they measure more than one canvas does: every position is then measured in every pass."""
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
    """Masked cross-entropy divided by the share of masks.

    Four estimators. `"random"` and `"stratified"` draw the masking probability `u` of each epoch; for `"stratified"`
    the caller spreads `times` evenly. `"count"` draws the number `k` of masks instead, uniform on `1 .. w` in an epoch
    of `w` positions that start together; it masks that many and weights them with `w / k`. Given `k`, the corresponding
    `u` is the `k`-th smallest of `w` uniform numbers, so the expectation is equal and the variance is lower. `"exact"`
    is for epochs of one position, as in autoregression: each is predicted once, from pure noise, without any
    randomness.

    A network with noise conditioning gets the noise fraction at which its own process masks as much.

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
        """Masks only; the noise schedule makes no difference."""
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
        conditioned = replace(canvas, t=masking_fraction(self.denoiser.process, canvas.t))
        return _cross_entropy(conditioned.predict(self.denoiser), x_0, torch.where(masked, weight, 0.0))

    def _counted(self, canvas: Canvas, times: Tensor, draw: Tensor) -> tuple[Canvas, Tensor]:
        """The canvas with a uniform number of masks in each epoch, and the weight of the masks."""
        epochs = cast("AbstractCountdown", self.hyperschedule).epochs.to(draw.device)
        free = torch.arange(len(epochs), device=draw.device) >= self.corruption.num_given
        sizes = epochs[free].bincount(minlength=times.shape[1])
        count = (times * sizes).long() + 1
        masked = (_rank_within(epochs, torch.where(free, draw, 1.0)) < count[:, epochs]) & free
        last = torch.zeros_like(times).scatter_reduce(
            1, epochs.expand(draw.shape), torch.where(masked, draw, 0.0), "amax"
        )
        x_t = torch.where(masked, self.denoiser.process.mask_id, canvas.x_0)
        level = torch.where(free, last[:, epochs], 0.0)
        return replace(canvas, x_t=x_t, t=level), (sizes / count.double())[:, epochs]


@final
@dataclass(frozen=True, eq=False)
class HybridBound(AbstractBound):
    """The bound of the denoiser's own process, in continuous time; for mean and score parameterizations.

    Generation begins where the noise schedule of the regime ends.

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
        """Whether data become noisy at once, by however little; a model may reconstruct them badly."""
        first = self.regime.noise_schedule.fraction(torch.zeros((), dtype=torch.float64))
        least = first.clamp_min(torch.finfo(first.dtype).tiny)
        return float(self.denoiser.process.weights(least).clean) < 1

    def _reconstruction(self, x_0: Tensor, times: Tensor, draw: Tensor) -> Tensor:
        """`-log p(x_0 | y)` of each position in the last moment of its noise.

        A pass takes one cell of time for each epoch. If an epoch has more than `_PASSES` cells, that many are taken,
        evenly spaced from a random start that all of them share.
        """
        cells = self._num_cells
        passes = [min(len(cells_of_epoch), _PASSES) for cells_of_epoch in self._endings]
        total = torch.zeros(len(x_0), dtype=torch.float64, device=x_0.device)
        for number in range(max(passes)):
            ends, weight = torch.zeros_like(times), torch.zeros_like(times[0])
            for epoch, (cells_of_epoch, count) in enumerate(zip(self._endings, passes, strict=True)):
                if number < count:
                    weight[epoch] = len(cells_of_epoch) / count
                    at = (
                        ((times[:, epoch] + number) * weight[epoch]).long().clamp(max=len(cells_of_epoch) - 1)
                    )
                    ends[:, epoch] = (cells_of_epoch.to(at.device)[at].double() + 1) / cells - _HAIR
            total += self._ended(x_0, ends, draw, weight)
        return total

    def _ended(self, x_0: Tensor, times: Tensor, draw: Tensor, weight: Tensor) -> Tensor:
        """Cross-entropy of the positions whose noise ends at these times, weighted by epoch."""
        canvas = self.corruption(x_0, times, draw)
        weight = self._by_position(weight)
        ends = (canvas.steps > 0) & (canvas.s == 0)
        return _cross_entropy(canvas.predict(self.denoiser), x_0, torch.where(ends, weight, 0.0))


def check_bound(bound: str) -> None:
    """Check that there is a bound of this name.

    Raises:
        ValueError: If the name is unknown.
    """
    if bound not in get_args(BoundName):
        raise ValueError(f"`bound` must be one of {get_args(BoundName)}; got {bound!r}.")


def bound_along(
    denoiser: AbstractDenoiser, regime: Regime, *, bound: BoundName, estimator: Estimator, given: int
) -> AbstractBound:
    """Build the bound with this name, on windows as long as the regime; arguments are the attributes of the bounds.

    Raises:
        ValueError: As in `AbsorbingBound` and `HybridBound`.
    """
    kind = AbsorbingBound if bound == "absorbing" else HybridBound
    return kind(denoiser, regime, estimator, given)


def least_variance(bound: BoundName, regime: Regime, dependence: NoiseDependence = "position") -> Estimator:
    """The estimator of a bound with the least variance among those that fit.

    Args:
        bound: Name of the bound.
        regime: When each position is noisy, and its attention.
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
    """`sum of weight * -log p(x_0 | x_t)`, computed only where the weight is not 0."""
    out = torch.zeros(x_0.numel(), dtype=torch.float64, device=x_0.device)
    for at in (weight > 0).flatten().nonzero()[:, 0].split(_ROWS):
        log_p = prediction.log_clean(at).gather(1, x_0.flatten()[at][:, None])[:, 0]
        out[at] = -log_p.double() * weight.flatten()[at]
    return out.view(x_0.shape).sum(-1)


def _rank_within(group: Int[Tensor, " l"], values: Float[Tensor, "b l"]) -> Int[Tensor, "b l"]:
    """For each value, the number of smaller values of its group in its row."""
    by_value = values.argsort(-1)
    order = by_value.gather(-1, group[by_value].argsort(dim=-1, stable=True))
    ordered = group[order[0]]
    first = torch.searchsorted(ordered, ordered)
    place = torch.arange(len(group), device=group.device) - first
    return torch.empty_like(order).scatter_(-1, order, place.expand_as(order))


def _check_start(hyperschedule: AbstractHyperschedule) -> None:
    """Check that every token is generated; otherwise the sum over positions is not a bound."""
    begun = int((hyperschedule.levels(0) < hyperschedule.num_levels).sum())
    if begun:
        raise ValueError(
            f"A likelihood needs every position to begin as pure noise; {begun} positions of {hyperschedule!r} begin "
            "below that. Use a Block, Slide or Wave, or a Table with a row of pure noise before the others."
        )
