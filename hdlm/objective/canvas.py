"""What the network sees in training: clean sequences, noised as a hyperschedule says.

Two layouts. *One canvas*: the sequence as it is in the middle of generation, some positions settled, some active, the
rest worthless; only active ones teach. *Two streams*: `[clean x_0 | noisy x_t]` in one pass of twice the length, in
which noisy positions see the clean ones that generation would have settled before them, so that every position teaches
(the paper's efficient training; BD3-LM, arXiv 2503.09573).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hdlm import attention
from hdlm.denoiser import AbstractDenoiser, ForwardContext, Prediction
from hdlm.hyperschedule import (
    AbstractHyperschedule,
    AbstractPacking,
    Packed,
    autoregressive,
    opens_left_to_right,
    packing,
)
from hdlm.process import AbstractNoiseProcess
from hdlm.regime import Regime
from hdlm.transfer import moved

__all__ = ["Canvas", "Corruption", "document_ids", "next_tokens"]


@final
@dataclass(frozen=True)
class Canvas:
    """A noised batch.

    Attributes:
        x_0: Clean tokens.
        x_t: Noisy tokens.
        t: Noise fraction of each position.
        s: Noise fraction after the coming step of the hyperschedule, `s <= t`.
        measure: Weight of each position in an unbiased estimate of the integral over its noise fraction: du/dt
            divided by the density of the drawn time; 0 where the position is settled or worthless.
        steps: Weight of each position in an unbiased estimate of the sum over the hyperschedule's steps; 0 where the
            position does not move in this one.
        num_clean: How many clean tokens stand before the noisy ones in the network's input: 0, or `l`.
        attention: Who sees whom, as the network wants it.
        window: In two streams, the step of each noisy position: equal ones are noisy together.
        rightwards: Whether each position becomes noisy no earlier than the one before it; in two streams, and settles.
        same_noise: Whether all noisy positions of a sequence have the same noise fraction in two streams, as along a
            flat hyperschedule.
    """

    x_0: Int[Tensor, "b l"]
    x_t: Int[Tensor, "b l"]
    t: Float[Tensor, "b l"]
    s: Float[Tensor, "b l"]
    measure: Float[Tensor, "b l"]
    steps: Float[Tensor, "b l"]
    num_clean: int = 0
    attention: Any = None
    window: Int[Tensor, "b l"] | None = None
    left_to_right: bool = True
    same_noise: bool = True

    def without_lookback_positions(self, denoiser: AbstractDenoiser) -> Canvas:
        """The same without weight on the first positions, of which a shifted denoiser says nothing."""
        if not denoiser.lookback:
            return self
        speaks = torch.arange(self.x_0.shape[1], device=self.x_0.device) >= denoiser.lookback
        return replace(self, measure=self.measure * speaks, steps=self.steps * speaks)

    def to(self, device: torch.device) -> Canvas:
        """The same on another device, but for who sees whom, which is where the network wants it."""
        names = ("x_0", "x_t", "t", "s", "measure", "steps", "window")
        there: Any = moved([getattr(self, name) for name in names], device)
        return replace(self, **dict(zip(names, there, strict=True)))

    def predict(self, denoiser: AbstractDenoiser) -> Prediction:
        """Ask the denoiser about the noisy tokens; the prediction's positions are those of `x_t`.

        A shifted denoiser speaks of a position from the one before it. In two streams that is the noisy one if both are
        noisy together, else the clean one, as in generation, where it has settled by then.

        Raises:
            ValueError: If it need not have settled: the clean one might have seen what is asked. On one canvas, if the
                position before need not be there in generation. In two streams, if the denoiser is conditioned on one
                noise level a sequence and blocks have different ones.
        """
        self._check_order(denoiser)
        if not self.num_clean:
            return denoiser.predict(self.x_t, self.t, ForwardContext(attention=self.attention))
        self._check_noise(denoiser)
        tokens = torch.cat([self.x_0, self.x_t], 1)
        noise = torch.cat([torch.zeros_like(self.t), self.t], 1)
        positions = torch.arange(self.num_clean, device=tokens.device).repeat(2)[None]
        both = denoiser.predict(
            tokens, noise, ForwardContext(positions=positions, attention=self.attention, ordered=True)
        )
        stream = self._stream(denoiser.lookback).flatten()

        def there(at: Tensor) -> Tensor:
            row, place = at // self.num_clean, at % self.num_clean
            return (2 * row + stream[at]) * self.num_clean + place

        projection = both.projection
        if projection is not None:
            of_both = projection.rows
            projection = replace(projection, rows=lambda at: of_both(there(at)))
        return Prediction(
            both.process,
            both.parameterization,
            self.x_t,
            self.t,
            lambda at: both.raw(there(at)),
            projection,
        )

    def _check_order(self, denoiser: AbstractDenoiser) -> None:
        if not denoiser.lookback or self.left_to_right:
            return
        if self.num_clean:
            raise ValueError(
                "A shifted network in two streams speaks of a position from the clean one before it, but this "
                "hyperschedule does not run from left to right. Use two_stream=False, or an aligned network."
            )
        raise ValueError(
            "A shifted network predicts a position from the output at the position before it, but this hyperschedule "
            "does not open its positions from left to right. Use an aligned network, or another hyperschedule."
        )

    def _check_noise(self, denoiser: AbstractDenoiser) -> None:
        if denoiser.noise_dependence == "sequence" and not self.same_noise:
            raise ValueError(
                "This network is conditioned on one noise level a sequence, but two streams hold blocks with different "
                "noise levels in one sequence, which generation never does. Use one canvas (two_stream=false, "
                "published as annealing.efficient=false), or a flat hyperschedule."
            )

    def _stream(self, lookback: int) -> Int[Tensor, "b l"]:
        """Which stream speaks of each position: 0 for the clean one, 1 for the noisy one."""
        noisy = torch.ones_like(self.x_t)
        if lookback and self.window is not None:
            noisy[:, lookback:] = (self.window[:, lookback:] == self.window[:, :-lookback]).long()
        return noisy


@final
@dataclass(frozen=True)
class Corruption:
    """Clean batch in, `Canvas` out.

    Attributes:
        process: How tokens are noised.
        regime: When tokens are noised, how fast noise comes, and who sees whom.
        two_stream: Which of the two layouts.
        continuous: Whether times fall anywhere between two levels (an objective in continuous time), or on the
            hyperschedule's levels (one of `T` discrete steps).
        num_given: How many of the first positions stay clean and teach nothing: 1 for a shifted network, which says
            nothing of the first.
        document_end: The token that ends a document, if documents in one window are not to see one another; None if
            they are. Positions stay those of the window: rotary attention knows distances only. Inside a noisy window
            the boundary shows, which generation has yet to write: it is meant for short documents, packed.

    Raises:
        ValueError: If two streams cannot be what generation sees: with `context="full"` clean positions would look at
            later ones, and tell noisy ones what these are asked.
    """

    process: AbstractNoiseProcess
    regime: Regime
    two_stream: bool = True
    continuous: bool = True
    num_given: int = 0
    document_end: int | None = None

    def __post_init__(self) -> None:
        if self.two_stream and self.regime.context == "full" and not self.hyperschedule.settles_together:
            raise ValueError(
                "Two streams need a context of which settled positions see the past alone; with context='full' the "
                "clean stream would give away what is asked. Use one canvas (two_stream=false, published as "
                "annealing.efficient=false), or the context block_causal or causal."
            )

    @property
    def hyperschedule(self) -> AbstractHyperschedule:
        """When each position is noisy."""
        return self.regime.hyperschedule

    @property
    def num_times(self) -> int:
        """How many times `__call__` wants for each sequence."""
        return self._packing.num_epochs if self.two_stream else 1

    @property
    def num_cells(self) -> tuple[int, ...]:
        """Into how many equal parts [0, 1) is cut for each of the times, one for each step or chain of steps."""
        return self._packing.num_cells if self.two_stream else (self.hyperschedule.num_steps,)

    def __call__(
        self,
        x_0: Int[Tensor, "b l"],
        times: Float[Tensor, "b e"],
        draw: Float[Tensor, "b l"],
        device: torch.device | None = None,
    ) -> Canvas:
        """Noise a batch.

        Args:
            x_0: Clean tokens, as long as the hyperschedule.
            times: `num_times` numbers in [0, 1) for each sequence; see `stratified_times`.
            draw: One uniform number in [0, 1) for each position.
            device: Where the network is, if elsewhere: who sees whom is made there.

        Raises:
            ValueError: If the sequences are not as long as the hyperschedule.
        """
        schedule = self.hyperschedule
        if x_0.shape[1] != schedule.length:
            raise ValueError(
                f"The hyperschedule is for sequences of {schedule.length} tokens; got {x_0.shape[1]}."
            )
        packed = self._packing(times) if self.two_stream else None
        later, now, measure, steps = (
            self._one_canvas_levels(times) if packed is None else self._two_stream_levels(packed)
        )
        free = torch.arange(schedule.length, device=x_0.device) >= self.num_given
        t, s = (torch.where(free, self._noise(level), 0.0) for level in (now, later))
        return Canvas(
            x_0=x_0,
            x_t=self.process.corrupt(x_0, t, draw),
            t=t,
            s=s,
            measure=torch.where(
                free, measure * self.regime.noise_schedule.rate(now / schedule.num_levels), 0.0
            ),
            steps=torch.where(free, steps, 0.0),
            num_clean=x_0.shape[1] if self.two_stream else 0,
            attention=self._visibility(x_0, times, packed).on(x_0.device if device is None else device),
            window=None if packed is None else packed.steps,
            left_to_right=self._left_to_right,
            same_noise=schedule.settles_together,
        )

    def _noise(self, level: Float[Tensor, "b l"]) -> Float[Tensor, "b l"]:
        """Noise fraction at a level: 0 once it is settled, and above 0 before, wherever the noise schedule begins."""
        u = self.regime.noise_schedule.fraction(level / self.hyperschedule.num_levels)
        return torch.where(level > 0, u.clamp_min(torch.finfo(u.dtype).tiny), 0.0)

    def _two_stream_levels(self, packed: Packed) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Level after the step, level now, measure and steps of each position, where each has a step of its own."""
        drop = (packed.now - packed.then).double()
        now = packed.now - drop * packed.within if self.continuous else packed.now.double()
        measure = drop * packed.weight / self.hyperschedule.num_levels
        return packed.then.double(), now, measure, (drop > 0) * packed.weight

    def _one_canvas_levels(self, times: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The same when the canvas is at one step of generation."""
        schedule = self.hyperschedule
        spread = times[:, 0] * schedule.num_steps
        n = spread.long()
        level, later = schedule.levels(n).double(), schedule.levels(n + 1).double()
        drop = level - later
        now = level - drop * (spread - n)[:, None] if self.continuous else level
        measure = drop * schedule.num_steps / schedule.num_levels
        return later, now, measure, (drop > 0).double() * schedule.num_steps

    @cached_property
    def _left_to_right(self) -> bool:
        return self._packing.left_to_right if self.two_stream else opens_left_to_right(self.hyperschedule)

    @cached_property
    def _packing(self) -> AbstractPacking:
        return packing(self.hyperschedule)

    def _visibility(self, x_0: Tensor, times: Tensor, packed: Packed | None) -> attention.Visibility:
        """Who sees whom, shared by all rows where neither times nor documents matter."""
        schedule = self.hyperschedule
        if packed is not None:
            shared = packed.steps[0] if schedule.opens_together else packed.steps
            seen = self.regime.two_stream(shared)
        else:
            steps = (times[:, 0] * schedule.num_steps).long()
            shared = steps[0] if schedule.is_flat else steps
            seen = self.regime.generation_attention(shared)
        if self.document_end is None:
            return seen
        own = document_ids(x_0, self.document_end)
        return seen.within(own if packed is None else own.repeat(1, 2))


def next_tokens(x_0: Int[Tensor, "b l"], document_end: int | None = None) -> Canvas:
    """The canvas of next-token prediction: clean text without its last token, whose targets are the tokens that follow.

    Position `i` holds token `i`, sees the tokens up to it, and its target `x_0` is token `i + 1`.

    Args:
        x_0: Clean tokens, at least two a row, where the network is.
        document_end: As in `Corruption`.
    """
    before, after = x_0[:, :-1], x_0[:, 1:]
    schedule = autoregressive(before.shape[1])
    seen = attention.generation_attention(schedule, schedule.num_steps, context="causal")
    if document_end is not None:
        seen = seen.to(x_0.device).within(document_ids(before, document_end))
    zeros = torch.zeros(before.shape, dtype=torch.float64, device=x_0.device)
    return Canvas(
        x_0=after,
        x_t=before,
        t=zeros,
        s=zeros,
        measure=torch.ones_like(zeros),
        steps=zeros,
        attention=seen.on(x_0.device),
    )


def document_ids(tokens: Int[Tensor, "b l"], end: int) -> Int[Tensor, "b l"]:
    """Document of each token, counted from 0: how many documents have ended before it.

    Args:
        tokens: Clean tokens.
        end: The token that ends a document, and belongs to it.
    """
    ends = (tokens == end).long()
    return ends.cumsum(-1) - ends
