"""The likelihood of text: a bound on each window, estimated by independent replicates.

`Likelihood` holds the settings of a measurement; it measures a whole text (`of_text`), or windows behind given tokens
(`nats`):

    log p(text | given)  >=  - sum over windows of the mean of the bound over replicates

Each replicate has its own noise, so the spread of the replicates gives the standard error. All random numbers are
functions of (seed, key of the window, replicate, position): neither batches nor other windows change them. In a text
the key is the number of the window, and stratified times are spread over the windows of a replicate. Windows behind
given tokens have their own keys, and their times are spread over the replicates of a window. So texts behind one
context have equal noise, and the differences between them, which decide between answers, are more precise than the
numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hdlm.denoiser import AbstractDenoiser, resolve_device
from hdlm.evaluation.likelihood.bounds import AbstractBound, bound_along, check_bound, least_variance
from hdlm.evaluation.likelihood.result import BoundName, Estimator, LikelihoodResult
from hdlm.evaluation.likelihood.windows import Window, WindowedText
from hdlm.evaluation.records.protocol import describe_piece
from hdlm.objective import Corruption, stratified_times
from hdlm.randomness import Randomness
from hdlm.regime import Regime
from hdlm.transfer import moved

__all__ = ["EvaluationProgress", "Likelihood", "estimate_likelihood"]

_OF_TEXT, _OF_WINDOWS = (0xA1, 0xA2), (0xC2, 0xC1)
"""Random streams of times and of noise."""


@final
@dataclass(frozen=True)
class EvaluationProgress:
    """Progress of an evaluation.

    Attributes:
        done: Windows evaluated, each counted once per replicate.
        total: Number of windows to evaluate.
    """

    done: int
    total: int


@final
@dataclass(frozen=True)
class _Rows:
    """Windows of one length, each once per replicate, in the order of measurement.

    Attributes:
        tokens: Tokens of the windows.
        given: How many of the first tokens of each are given.
        window: Index of the window of each row.
        replicate: Number of the replicate of each row.
        keys: What the noise of each window depends on.
        strata: Number and size of each set of consecutive rows whose times are spread evenly.
        streams: Random streams of times and of noise.
    """

    tokens: Int[Tensor, "w l"]
    given: int
    window: Int[Tensor, " n"]
    replicate: Int[Tensor, " n"]
    keys: Int[Tensor, " w"]
    strata: Sequence[tuple[int, int]]
    streams: tuple[int, int]


@final
@dataclass(frozen=True, eq=False)
class Likelihood:
    """The model and the settings for measuring windows of text.

    Attributes:
        denoiser: The model; a network in evaluation mode.
        regime: When each position of the longest window is noisy; shorter windows are its first positions. Generation
            begins where the noise schedule ends; the absorbing bound does not depend on it.
        bound: `"absorbing"` (the paper's protocol) or `"hybrid"` (of the process itself).
        estimator: See `AbsorbingBound`; by default the one with the least variance that fits.
        seed: Seed of all random numbers.
        device: Where a denoiser without weights computes; one with weights refuses another device than theirs.

    Raises:
        ValueError: If the bound is unknown, or the denoiser is on another device.
    """

    denoiser: AbstractDenoiser
    regime: Regime
    bound: BoundName = "absorbing"
    estimator: Estimator | None = None
    seed: int = 0
    device: torch.device | str | None = None

    def __post_init__(self) -> None:
        check_bound(self.bound)
        resolve_device(self.denoiser, self.device)

    @cached_property
    def measured_by(self) -> Estimator:
        """The estimator; by default the one with the least variance."""
        return self.estimator or least_variance(self.bound, self.regime, self.denoiser.noise_dependence)

    # -- a whole text -------------------------------------------------------------------------------------------

    def outline(self, text: WindowedText) -> LikelihoodResult:
        """The protocol of a text's result before the measurement, as a result with the single estimate 0.

        Raises:
            ValueError: If the windows are not as long as the regime, tokens are not words, or the network is in
                training mode.
        """
        if text.length != self.regime.length:
            raise ValueError(
                f"The regime is for windows of {self.regime.length} tokens; the text has windows of {text.length}."
            )
        if isinstance(self.denoiser, nn.Module) and self.denoiser.training:
            raise ValueError(
                "the network is in training mode, in which dropout is active; call `denoiser.eval()` first."
            )
        _check_words(text.tokens, self.denoiser.process.num_words)
        return LikelihoodResult(
            estimates=(0.0,),
            num_tokens=len(text.tokens),
            num_bytes=text.num_bytes,
            bound=self.bound,
            estimator=self.measured_by,
            seed=self.seed,
            num_windows=text.num_windows,
            stride=text.stride or text.length,
            hyperschedule=describe_piece(self.regime.hyperschedule) | {"length": self.regime.length},
            noise_schedule=describe_piece(self.regime.noise_schedule),
            context=self.regime.context,
            active=self.regime.active,
            within_documents=text.documents is not None,
        )

    @torch.no_grad()
    def of_text(
        self,
        text: WindowedText,
        replicates: int = 4,
        *,
        first_replicate: int = 0,
        batch_size: int = 16,
        watch: Callable[[EvaluationProgress], None] | None = None,
    ) -> LikelihoodResult:
        """Measure a text.

        Args:
            text: The text and its windows.
            replicates: Independent estimates, at least 1; an exact likelihood is measured once.
            first_replicate: Number of the first replicate: replicates 4 to 7 are the second half of a longer
                evaluation.
            batch_size: Windows in a pass of the network, at least 1.
            watch: Called with the progress after every pass.

        Raises:
            ValueError: If a number is out of range, or as `outline`.
        """
        _check_counts(replicates=replicates, batch_size=batch_size)
        if first_replicate < 0:
            raise ValueError(f"`first_replicate` must not be negative; got {first_replicate}.")
        outline = self.outline(text)
        count = 1 if self.measured_by == "exact" else replicates
        totals, done = torch.zeros(count, dtype=torch.float64), 0

        def measured(more: int) -> None:
            nonlocal done
            done += more
            if watch is not None:
                watch(EvaluationProgress(done, count * text.num_windows))

        for rows in _rows_of_text(text, range(first_replicate, first_replicate + count)):
            nats = self._nats(rows, batch_size, measured)
            totals += torch.zeros_like(totals).index_add_(0, rows.replicate - first_replicate, nats)
        return replace(outline, estimates=tuple(totals.tolist()))

    # -- windows behind given tokens ----------------------------------------------------------------------------

    @torch.no_grad()
    def nats(
        self,
        windows: Sequence[Window],
        replicates: int = 32,
        *,
        batch_size: int = 32,
        watch: Callable[[int], None] = lambda count: None,
    ) -> Float[Tensor, " w"]:
        """The mean over replicates of an upper bound on `-log p` of the tokens that are not given, for each window.

        Args:
            windows: The windows to measure.
            replicates: Estimates of each window, at least 1; an exact likelihood takes one.
            batch_size: Windows in a pass of the network, at least 1.
            watch: Called after every pass with its number of windows, each counted once per replicate.
        """
        _check_counts(replicates=replicates, batch_size=batch_size)
        count = 1 if self.measured_by == "exact" else replicates
        totals = torch.zeros(len(windows), dtype=torch.float64)
        for at in _alike(windows):
            rows = _rows_of_windows([windows[index] for index in at], count)
            totals.index_add_(0, torch.tensor(at)[rows.window], self._nats(rows, batch_size, watch))
        return totals / count

    @torch.no_grad()
    def greedy(self, windows: Sequence[Window], *, batch_size: int = 32) -> list[bool]:
        """Whether each window is the result of greedy decoding from left to right.

        A token is predicted from all true tokens before it, while it and all later tokens are pure noise. This is the
        meaning of greedy for autoregression; a model that writes in another order need not write the same tokens.
        """
        right = [True] * len(windows)
        for at in _alike(windows):
            rows = _rows_of_windows([windows[index] for index in at], 1)
            tokens = rows.tokens.to(resolve_device(self.denoiser, self.device))
            left = torch.arange(len(at))
            for position in range(rows.given, tokens.shape[1]):
                parts = [
                    self._likeliest(tokens[some], position, rows.keys[some]).cpu()
                    for some in left.split(batch_size)
                ]
                left = left[torch.cat(parts)]
                if not len(left):
                    break
            for index in set(range(len(at))) - set(left.tolist()):
                right[at[index]] = False
        return right

    def _likeliest(
        self, rows: Int[Tensor, "b l"], position: int, keys: Int[Tensor, " b"]
    ) -> Bool[Tensor, " b"]:
        """Whether the true token at a position is the likeliest one there."""
        length = rows.shape[1]
        if position < self.denoiser.lookback:
            return torch.zeros(len(rows), dtype=torch.bool)
        corruption = self._bound(length, position).corruption
        draw = self._draw(keys, torch.zeros_like(keys), length, _OF_WINDOWS[1]).to(rows.device)
        times = torch.full((len(rows), corruption.num_times), _last_moment(corruption, position))
        canvas = corruption(rows, times.double().to(rows.device), draw)
        noisy = torch.arange(length, device=rows.device) >= position
        t = torch.zeros_like(draw).masked_fill(noisy, corruption.regime.final_noise)
        canvas = replace(canvas, t=t, x_t=corruption.process.corrupt(rows, t, draw))
        at = torch.arange(len(rows), device=rows.device) * length + position
        likeliest: Bool[Tensor, " b"] = (
            canvas.predict(self.denoiser).log_clean(at).argmax(-1) == rows[:, position]
        )
        return likeliest

    # -- passes -----------------------------------------------------------------------------------------------------

    def _nats(self, rows: _Rows, batch_size: int, watch: Callable[[int], None]) -> Float[Tensor, " n"]:
        """Nats of each row, in passes of `batch_size` rows."""
        length = rows.tokens.shape[1]
        bound = self._bound(length, rows.given)
        times = self._times(bound, rows)
        tokens = rows.tokens.to(resolve_device(self.denoiser, self.device))
        nats = []
        for some in torch.arange(len(rows.window)).split(batch_size):
            window = rows.window[some]
            draw = self._draw(rows.keys[window], rows.replicate[some], length, rows.streams[1])
            window, time, noise = moved([window, times[some], draw], tokens.device)
            nats.append(bound(tokens[window], time, noise).double().cpu())
            watch(len(some))
        return torch.cat(nats)

    def _bound(self, length: int, given: int) -> AbstractBound:
        return bound_along(
            self.denoiser,
            self.regime.first_positions(length),
            bound=self.bound,
            estimator=self.measured_by,
            given=given,
        )

    def _times(self, bound: AbstractBound, rows: _Rows) -> Float[Tensor, "n e"]:
        count, randomness = bound.corruption.num_times, Randomness(self.seed)
        if bound.estimator == "random":
            keys, time = rows.keys[rows.window], torch.arange(count)
            return randomness.uniform(keys[:, None], rows.replicate[:, None], time, stream=rows.streams[0])
        return torch.cat([stratified_times(randomness, step, size, count) for step, size in rows.strata])

    def _draw(
        self, keys: Int[Tensor, " b"], replicate: Int[Tensor, " b"], length: int, stream: int
    ) -> Float[Tensor, "b l"]:
        position = torch.arange(length)[None]
        return Randomness(self.seed).uniform(keys[:, None], replicate[:, None], position, stream=stream)


def estimate_likelihood(
    denoiser: AbstractDenoiser,
    text: WindowedText | Int[Tensor, " n"],
    regime: Regime,
    *,
    bound: BoundName = "absorbing",
    estimator: Estimator | None = None,
    replicates: int = 4,
    batch_size: int = 16,
    seed: int = 0,
    device: torch.device | str | None = None,
    watch: Callable[[EvaluationProgress], None] | None = None,
) -> LikelihoodResult:
    """Measure an upper bound on `-log p` of a text, in windows as long as the regime.

    Args:
        denoiser: The model; a network in evaluation mode.
        text: Words in order, or a `WindowedText`, which has more settings for its windows. All tokens are counted,
            including those of a short last window.
        regime: When positions of a window are noisy, and their attention; see `Checkpoint.regime`.
        bound: `"absorbing"` (the paper's protocol) or `"hybrid"` (of the process itself).
        estimator: See `AbsorbingBound`; by default the one with the least variance that fits.
        replicates: Independent estimates, at least 1; two or more give a standard error. An exact likelihood is
            measured once.
        batch_size: Windows in a pass of the network, at least 1.
        seed: Seed of all random numbers.
        device: Where a denoiser without weights computes; one with weights refuses another device than theirs.
        watch: Called with the progress after every pass.

    Raises:
        ValueError: If an argument is out of range, the bound or the estimator does not fit the model or the
            hyperschedule, the network is in training mode, or the model gives a token the probability 0.
    """
    likelihood = Likelihood(denoiser, regime, bound, estimator, seed, device)
    windowed = WindowedText(text, regime.length) if isinstance(text, Tensor) else text
    return likelihood.of_text(windowed, replicates, batch_size=batch_size, watch=watch)


def _rows_of_text(text: WindowedText, replicates: range) -> Iterator[_Rows]:
    """The windows of each stack, replicate by replicate."""
    begin = 0
    for stack in text.stacks:
        count = len(stack.tokens)
        yield _Rows(
            stack.tokens,
            stack.given,
            window=torch.arange(count).repeat(len(replicates)),
            replicate=torch.tensor(replicates).repeat_interleave(count),
            keys=begin + torch.arange(count),
            # The number of the first window distinguishes the stacks of a replicate.
            strata=[(replicate * text.num_windows + begin, count) for replicate in replicates],
            streams=_OF_TEXT,
        )
        begin += count


def _alike(windows: Sequence[Window]) -> list[list[int]]:
    """Indices of the windows that agree in length and in the number of given tokens."""
    groups: dict[tuple[int, int], list[int]] = {}
    for index, window in enumerate(windows):
        groups.setdefault((len(window.tokens), window.given), []).append(index)
    return list(groups.values())


def _rows_of_windows(windows: Sequence[Window], replicates: int) -> _Rows:
    """All replicates of each window, window by window."""
    keys = [window.key for window in windows]
    return _Rows(
        torch.tensor([window.tokens for window in windows]),
        windows[0].given,
        window=torch.arange(len(windows)).repeat_interleave(replicates),
        replicate=torch.arange(replicates).repeat(len(windows)),
        keys=torch.tensor(keys),
        strata=[(key, replicates) for key in keys],
        streams=_OF_WINDOWS,
    )


def _last_moment(corruption: Corruption, position: int) -> float:
    """The time at which a position sees all positions that settle before it: on one canvas, its last step."""
    plan = corruption.hyperschedule
    return 0.0 if corruption.two_stream else (int(plan.settles[position]) - 0.5) / plan.num_steps


def _check_counts(**counts: int) -> None:
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"`{name}` must be at least 1; got {value}.")


def _check_words(tokens: Tensor, num_words: int) -> None:
    if len(tokens) and not 0 <= int(tokens.min()) <= int(tokens.max()) < num_words:
        raise ValueError(
            f"`tokens` must be words, ids in [0, {num_words}); got ids from {int(tokens.min())} to "
            f"{int(tokens.max())}."
        )
