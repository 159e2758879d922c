"""The likelihood of a text: windows, replicates, and a bound on each window, summed over all tokens.

A replicate is one pass over all windows with noise of its own; if stratified, its times cover [0, 1) evenly over the
windows. Replicates are independent, so their spread is the standard error. All random numbers are functions of
(seed, replicate, window, position): no batch size changes them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hdlm import attention
from hdlm.denoiser import AbstractDenoiser, resolve_device
from hdlm.evaluation.likelihood.bounds import AbstractBound, bound_along, check_bound, least_variance
from hdlm.evaluation.likelihood.result import BoundName, Estimator, LikelihoodResult
from hdlm.evaluation.likelihood.windows import Stack, windows
from hdlm.hyperschedule import AbstractHyperschedule
from hdlm.noise_schedule import LINEAR, AbstractNoiseSchedule
from hdlm.objective import stratified_times
from hdlm.randomness import Randomness
from hdlm.transfer import moved

__all__ = ["EvaluationProgress", "Likelihood", "estimate_likelihood"]

_TIMES, _DRAWS = 0xA1, 0xA2
"""Random streams of this module."""


@final
@dataclass(frozen=True)
class EvaluationProgress:
    """How far an evaluation is.

    Attributes:
        done: Windows evaluated, each once a replicate.
        total: How many there are.
    """

    done: int
    total: int


@final
@dataclass(frozen=True, eq=False)
class Likelihood:
    """A likelihood to be measured, in pieces: the arguments of `estimate_likelihood` that say which number it is.

    Raises:
        ValueError: As `estimate_likelihood`.
    """

    denoiser: AbstractDenoiser
    tokens: Int[Tensor, " n"]
    hyperschedule: AbstractHyperschedule
    bound: BoundName = "absorbing"
    estimator: Estimator | None = None
    noise_schedule: AbstractNoiseSchedule = LINEAR
    context: attention.Context = "block_causal"
    active: attention.Active = "full"
    num_bytes: int | None = None
    stride: int | None = None
    documents: tuple[int, ...] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_bound(self.bound)
        _check(self.denoiser, self.tokens)

    @cached_property
    def stacks(self) -> tuple[Stack, ...]:
        """The windows."""
        return windows(self.tokens, self.hyperschedule.length, self.stride, self.documents)

    @cached_property
    def outline(self) -> LikelihoodResult:
        """The result to be, with one estimate of 0: what it will say of itself."""
        return LikelihoodResult(
            estimates=(0.0,),
            num_tokens=len(self.tokens),
            num_bytes=self.num_bytes,
            bound=self.bound,
            estimator=self.estimator
            or least_variance(self.bound, self.hyperschedule, self.context, self.denoiser.noise_dependence),
            seed=self.seed,
            num_windows=sum(len(stack.tokens) for stack in self.stacks),
            stride=self.stride or self.hyperschedule.length,
            hyperschedule=repr(self.hyperschedule),
            noise_schedule=repr(self.noise_schedule),
            context=self.context,
            active=self.active,
            within_documents=self.documents is not None,
        )

    @torch.no_grad()
    def measure(
        self,
        first: int,
        count: int,
        *,
        batch_size: int = 16,
        device: torch.device | str | None = None,
        watch: Callable[[EvaluationProgress], None] | None = None,
    ) -> LikelihoodResult:
        """Replicates `first .. first + count - 1`; a single one if the likelihood is exact."""
        for name, value in (("replicates", count), ("batch_size", batch_size)):
            if value < 1:
                raise ValueError(f"`{name}` must be at least 1; got {value}.")
        device = resolve_device(self.denoiser, device)
        if first < 0:
            raise ValueError(f"`first_replicate` must not be negative; got {first}.")
        exact = self.outline.estimator == "exact"
        numbers = range(first, first + (1 if exact else count))
        passes = _Passes(Randomness(self.seed), numbers, self.outline.num_windows, batch_size, watch)
        estimates = torch.zeros(len(numbers), dtype=torch.float64)
        for stack in self.stacks:
            estimates += passes(self._bound(stack), stack.tokens.to(device))
        return replace(self.outline, estimates=tuple(estimates.tolist()))

    def _bound(self, stack: Stack) -> AbstractBound:
        """The bound on windows like these."""
        cut = self.hyperschedule.first_positions(stack.tokens.shape[1])
        return bound_along(
            self.denoiser,
            cut,
            bound=self.bound,
            estimator=self.outline.estimator,
            noise_schedule=self.noise_schedule,
            context=self.context,
            active=self.active,
            given=stack.given,
        )


def estimate_likelihood(
    denoiser: AbstractDenoiser,
    tokens: Int[Tensor, " n"],
    hyperschedule: AbstractHyperschedule,
    *,
    bound: BoundName = "absorbing",
    estimator: Estimator | None = None,
    noise_schedule: AbstractNoiseSchedule = LINEAR,
    context: attention.Context = "block_causal",
    active: attention.Active = "full",
    num_bytes: int | None = None,
    stride: int | None = None,
    documents: Sequence[int] | None = None,
    replicates: int = 4,
    first_replicate: int = 0,
    batch_size: int = 16,
    seed: int = 0,
    device: torch.device | str | None = None,
    watch: Callable[[EvaluationProgress], None] | None = None,
) -> LikelihoodResult:
    """Measure an upper bound on `-log p` of a text, in windows as long as the hyperschedule.

    Args:
        denoiser: The model; a network in evaluation mode.
        tokens: The text: words, in order. All are counted, those of a short last window too.
        hyperschedule: When each position of a window is noisy.
        bound: `"absorbing"` (the paper's protocol) or `"hybrid"` (of the process itself).
        estimator: See `AbsorbingBound`; by default the one with the least variance that fits.
        noise_schedule: Of the hybrid bound: where it ends, generation begins. The absorbing bound has none.
        context: What settled positions see of one another, as in `hdlm.sampling.sample`.
        active: What active positions see of one another.
        num_bytes: Bytes of UTF-8 that the tokens stand for, if bits per byte are wanted.
        stride: New tokens in each window, where windows are to overlap; see `windows`.
        documents: Tokens of each document, if no window is to cross from one into the next.
        replicates: Independent estimates, at least 1; two or more give a standard error. An exact likelihood is
            measured once.
        first_replicate: Number of the first of them: replicates 4 to 7 are the second half of a longer evaluation.
        batch_size: Windows in a pass of the network, at least 1.
        seed: Of all random numbers.
        device: Where tokens are; that of the denoiser by default, and no other.
        watch: Told the progress after every pass.

    Raises:
        ValueError: If an argument is out of range, the bound or the estimator does not fit the model or the
            hyperschedule, the network is in training mode, or the model gives a token the probability 0.
    """
    likelihood = Likelihood(
        denoiser,
        tokens,
        hyperschedule,
        bound=bound,
        estimator=estimator,
        noise_schedule=noise_schedule,
        context=context,
        active=active,
        num_bytes=num_bytes,
        stride=stride,
        documents=None if documents is None else tuple(documents),
        seed=seed,
    )
    return likelihood.measure(first_replicate, replicates, batch_size=batch_size, device=device, watch=watch)


@final
class _Passes:
    """Runs a bound over stacks of windows, all replicates together, and counts windows across stacks."""

    def __init__(
        self,
        randomness: Randomness,
        replicates: range,
        num_windows: int,
        batch_size: int,
        watch: Callable[[EvaluationProgress], None] | None,
    ) -> None:
        self._randomness, self._replicates, self._batch_size = randomness, replicates, batch_size
        self._num_windows, self._watch = num_windows, watch
        self._windows, self._done = 0, 0

    def __call__(self, bound: AbstractBound, stack: Int[Tensor, "w l"]) -> Float[Tensor, " r"]:
        """Nats of a stack, one sum a replicate."""
        times = self._times(bound, len(stack))
        totals = torch.zeros(len(self._replicates), dtype=torch.float64)
        for rows in torch.arange(len(times)).split(self._batch_size):
            replicate, window = rows // len(stack), rows % len(stack)
            draw = self._randomness.uniform(
                (self._windows + window)[:, None],
                (self._replicates.start + replicate)[:, None],
                torch.arange(stack.shape[1])[None],
                stream=_DRAWS,
            )
            chosen, time, noise = moved([window, times[rows], draw], stack.device)
            nats = bound(stack[chosen], time, noise)
            totals.index_add_(0, replicate, nats.double().cpu())
            self._report(len(rows))
        self._windows += len(stack)
        return totals

    def _times(self, bound: AbstractBound, count: int) -> Float[Tensor, "rows e"]:
        """The times of every window of every replicate, replicate by replicate."""
        if bound.estimator == "random":
            window = self._windows + torch.arange(count)
            every = torch.tensor(self._replicates)[:, None, None]
            time = torch.arange(bound.corruption.num_times)
            return self._randomness.uniform(window[:, None], every, time, stream=_TIMES).flatten(0, 1)
        # each stack of each replicate is a stratified set of its own; the first window tells stacks apart
        steps = (replicate * self._num_windows + self._windows for replicate in self._replicates)
        return torch.cat(
            [stratified_times(self._randomness, step, count, bound.corruption.num_times) for step in steps]
        )

    def _report(self, count: int) -> None:
        self._done += count
        if self._watch is not None:
            self._watch(EvaluationProgress(self._done, len(self._replicates) * self._num_windows))


def _check(denoiser: AbstractDenoiser, tokens: Tensor) -> None:
    words = denoiser.process.num_words
    if len(tokens) and not 0 <= int(tokens.min()) <= int(tokens.max()) < words:
        raise ValueError(
            f"`tokens` must be words, ids in [0, {words}); got ids from {int(tokens.min())} to {int(tokens.max())}."
        )
    if isinstance(denoiser, nn.Module) and denoiser.training:
        raise ValueError(
            "the network is in training mode, where dropout is part of it; call `denoiser.eval()` first."
        )
