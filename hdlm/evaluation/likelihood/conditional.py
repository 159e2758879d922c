"""`log p(text | what stands before it)`: from below, by a bound on the tokens that are not given.

A window is some tokens that are given and some that are measured. A text that is longer than the network is measured
in several windows, each token in one of them, behind as much as fits: the last window is full, and so is a first one
that has to be cut on its left.

    log p(text | given)  >=  - sum over windows of the mean of the bound over replicates

All random numbers are functions of (seed, what the window is known by, replicate, position): neither batches nor other
windows change them. Texts behind the same context are noised alike, so that the differences between them, by which
answers are chosen, are surer than the numbers themselves.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hdlm import attention
from hdlm.denoiser import AbstractDenoiser, resolve_device
from hdlm.evaluation.likelihood.bounds import AbstractBound, bound_along, check_bound, least_variance
from hdlm.evaluation.likelihood.result import BoundName, Estimator
from hdlm.hyperschedule import AbstractHyperschedule
from hdlm.noise_schedule import LINEAR, AbstractNoiseSchedule
from hdlm.objective import Corruption, stratified_times
from hdlm.randomness import Randomness

__all__ = ["Conditional", "Window", "split_text"]

_DRAWS, _TIMES = 0xC1, 0xC2
"""Random streams of this module."""


@final
@dataclass(frozen=True)
class Window:
    """Tokens to be measured behind tokens that are given.

    Attributes:
        tokens: All of them.
        given: How many of the first are given.
        key: What the window's noise depends on, in [0, 2^32).
    """

    tokens: tuple[int, ...]
    given: int
    key: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.given < len(self.tokens):
            raise ValueError(
                f"`given` must leave something to measure of {len(self.tokens)} tokens; got {self.given}."
            )


def split_text(tokens: Sequence[int], given: int, length: int, *, alike: bool = False) -> list[Window]:
    """A text as windows that the network can read.

    Args:
        tokens: What is given, then what is to be measured.
        given: How many tokens are given.
        length: Tokens that the network can read, at least 2.
        alike: Whether the noise depends on what is given only, not on what is measured.

    Raises:
        ValueError: If `length` or `given` is out of range.
    """
    if length < 2:
        raise ValueError(
            f"a text is measured behind something, which takes 2 positions; `length` is {length}."
        )
    if not 0 <= given <= len(tokens):
        raise ValueError(f"`given` must lie in [0, {len(tokens)}], the tokens there are; got {given}.")
    found, done = [], given
    while done < len(tokens):
        end = min(len(tokens), done + length - min(done, 1))
        start = max(end - length, 0)
        known = tokens[start : done if alike else end]
        found.append(Window(tuple(tokens[start:end]), done - start, zlib.crc32(repr(tuple(known)).encode())))
        done = end
    return found


@final
@dataclass(frozen=True, eq=False)
class Conditional:
    """How windows are measured.

    Attributes:
        denoiser: The model; a network in evaluation mode.
        hyperschedule: When each position is noisy, on the longest window; shorter ones are its first positions.
        bound: `"absorbing"` or `"hybrid"`; see `hdlm.evaluation.likelihood.bounds`.
        estimator: By default the one with the least variance that fits.
        noise_schedule: Of the hybrid bound.
        context: What settled positions see of one another.
        active: What active positions see of one another.
        replicates: Estimates of each window, whose mean is taken; an exact likelihood takes one.
        batch_size: Windows in a pass of the network.
        seed: Of all random numbers.
        device: Where tokens are; that of the denoiser by default, and no other.

    Raises:
        ValueError: If a number is out of range, or the denoiser is on another device.
    """

    denoiser: AbstractDenoiser
    hyperschedule: AbstractHyperschedule
    bound: BoundName = "absorbing"
    estimator: Estimator | None = None
    noise_schedule: AbstractNoiseSchedule = LINEAR
    context: attention.Context = "block_causal"
    active: attention.Active = "full"
    replicates: int = 32
    batch_size: int = 32
    seed: int = 0
    device: torch.device | str | None = None

    def __post_init__(self) -> None:
        for name in ("replicates", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1; got {getattr(self, name)}.")
        check_bound(self.bound)
        resolve_device(self.denoiser, self.device)

    @property
    def _device(self) -> torch.device:
        return resolve_device(self.denoiser, self.device)

    @property
    def measured_by(self) -> Estimator:
        """The estimator, chosen if it was left open."""
        return self.estimator or least_variance(
            self.bound, self.hyperschedule, self.context, self.denoiser.noise_dependence
        )

    @torch.no_grad()
    def nats(
        self, windows: Sequence[Window], watch: Callable[[int], None] | None = None
    ) -> Float[Tensor, " w"]:
        """Of each window, the mean over replicates of an upper bound on `-log p` of what is not given.

        Args:
            windows: What to measure.
            watch: Told after every pass how many windows it measured, in parts where replicates are apart.
        """
        replicates = 1 if self.measured_by == "exact" else self.replicates
        totals = torch.zeros(len(windows), dtype=torch.float64)
        for at, rows in self._alike(windows):
            bound = self._bound(rows.shape[1], windows[int(at[0])].given)
            keys = torch.tensor([windows[i].key for i in at.tolist()])
            times = self._times(bound, keys, replicates)
            for passed in torch.arange(len(at) * replicates).split(self.batch_size):
                window, replicate = passed // replicates, passed % replicates
                draw = self._draw(keys[window], replicate, rows.shape[1])
                nats = bound(rows[window], times[passed].to(self._device), draw)
                totals.index_add_(0, at[window], nats.double().cpu())
                if watch is not None:
                    watch(len(passed))
        return totals / replicates

    @torch.no_grad()
    def greedy(self, windows: Sequence[Window]) -> list[bool]:
        """Whether each window is what the model would write if it took the likeliest token, from left to right.

        A token is predicted behind all true tokens before it, while it and everything behind it is pure noise. This is
        what greedy means for autoregression; a model that writes in another order need not write the same.
        """
        right = torch.ones(len(windows), dtype=torch.bool)
        for at, rows in self._alike(windows):
            first = windows[int(at[0])].given
            keys = torch.tensor([windows[i].key for i in at.tolist()])
            for position in range(first, rows.shape[1]):
                left = right[at].nonzero()[:, 0]
                if not len(left):
                    break
                for some in left.split(self.batch_size):
                    right[at[some]] = self._likeliest(rows[some], position, keys[some]).cpu()
        return right.tolist()

    def _likeliest(
        self, rows: Int[Tensor, "b l"], position: int, keys: Int[Tensor, " b"]
    ) -> Bool[Tensor, " b"]:
        """Whether the true token at a position is the likeliest one there."""
        length = rows.shape[1]
        if position < self.denoiser.lookback:
            return torch.zeros(len(rows), dtype=torch.bool)
        corruption = self._bound(length, position).corruption
        draw = self._draw(keys, torch.zeros_like(keys), length)
        times = torch.full((len(rows), corruption.num_times), _last_moment(corruption, position))
        canvas = corruption(rows, times.double().to(rows.device), draw)
        noisy = torch.arange(length, device=rows.device) >= position
        full = corruption.noise_schedule.fraction(torch.ones((), dtype=torch.float64)).to(rows.device)
        t = torch.where(noisy, full, 0.0).expand(rows.shape)
        canvas = replace(canvas, t=t, x_t=corruption.process.corrupt(rows, t, draw))
        at = torch.arange(len(rows), device=rows.device) * length + position
        found: Bool[Tensor, " b"] = (
            canvas.predict(self.denoiser).log_clean(at).argmax(-1) == rows[:, position]
        )
        return found

    def _alike(self, windows: Sequence[Window]) -> Iterator[tuple[Int[Tensor, " n"], Int[Tensor, "n l"]]]:
        """Windows of one length with equally much given: their indices and their tokens."""
        groups: dict[tuple[int, int], list[int]] = {}
        for index, window in enumerate(windows):
            groups.setdefault((len(window.tokens), window.given), []).append(index)
        for members in groups.values():
            rows = torch.tensor([windows[index].tokens for index in members], device=self._device)
            yield torch.tensor(members), rows

    def _bound(self, length: int, given: int) -> AbstractBound:
        cut = self.hyperschedule.first_positions(length)
        return bound_along(
            self.denoiser,
            cut,
            bound=self.bound,
            estimator=self.measured_by,
            noise_schedule=self.noise_schedule,
            context=self.context,
            active=self.active,
            given=given,
        )

    def _times(
        self, bound: AbstractBound, keys: Int[Tensor, " n"], replicates: int
    ) -> Float[Tensor, "rows e"]:
        """Times of every replicate of every window: spread evenly over the replicates, unless they are to be random."""
        count = bound.corruption.num_times
        if bound.estimator == "random":
            replicate, time = torch.arange(replicates)[:, None], torch.arange(count)
            every = self._randomness.uniform(keys[:, None, None], replicate, time, stream=_TIMES)
            return every.flatten(0, 1)
        return torch.cat(
            [stratified_times(self._randomness, int(key), replicates, count) for key in keys.tolist()]
        )

    def _draw(
        self, keys: Int[Tensor, " b"], replicate: Int[Tensor, " b"], length: int
    ) -> Float[Tensor, "b l"]:
        position = torch.arange(length)[None]
        return self._randomness.uniform(keys[:, None], replicate[:, None], position, stream=_DRAWS).to(
            self._device
        )

    @property
    def _randomness(self) -> Randomness:
        return Randomness(self.seed)


def _last_moment(corruption: Corruption, position: int) -> float:
    """The time at which a position sees all that settles before it: on one canvas, the last step in which it moves."""
    plan = corruption.hyperschedule
    return 0.0 if corruption.two_stream else (int(plan.settles[position]) - 0.5) / plan.num_steps
