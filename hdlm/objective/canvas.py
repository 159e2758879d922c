"""The network's input in training: clean sequences with noise, as the hyperschedule determines.

There are two layouts. *One canvas*: the sequence as it is during generation, with settled, active and worthless (pure
noise) positions; only active positions have a loss. *Two streams*: `[clean x_0 | noisy x_t]` in one pass of twice the
length, in which noisy positions see the clean positions that generation would have settled before them. So every
position has a loss (the paper's efficient training; BD3-LM, arXiv 2503.09573).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, final

import torch
from jaxtyping import Bool, Float, Int
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
from hdlm.network import Previous
from hdlm.process import AbstractNoiseProcess
from hdlm.randomness import Randomness
from hdlm.regime import Regime
from hdlm.strict_config import require
from hdlm.transfer import moved

__all__ = ["Canvas", "Corruption", "CorruptionLayout", "Opening", "document_ids", "next_tokens"]

_OPENING = 0x73
"""Random stream of this module."""


@final
@dataclass(frozen=True)
class Canvas:
    """A noised batch.

    Attributes:
        x_0: Clean token ids.
        x_t: Noisy token ids.
        t: Noise fraction of each position.
        s: Noise fraction after the next step of the hyperschedule, `s <= t`.
        measure: Weight of each position in an unbiased estimate of the integral over its noise fraction: du/dt
            divided by the density of the drawn time; 0 where the position is settled or worthless.
        steps: Weight of each position in an unbiased estimate of the sum over the hyperschedule's steps; 0 where the
            position does not move in this step.
        num_clean: Number of clean tokens before the noisy tokens in the network's input: 0, or `l`.
        attention: Attention mask in the form that the network needs.
        window: In two streams, the step of each noisy position: positions with equal steps are noisy together.
        left_to_right: Whether no position becomes noisy (in two streams, also settles) before the position to its left.
        same_noise: Whether in two streams all noisy positions of a sequence have an equal noise fraction, as along a
            flat hyperschedule.
        documents: Document of each position, if positions of different documents do not attend to one another.
        conditioned: For which sequences a self-conditioned network gets the distributions of a first call; None for
            none.
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
    documents: Int[Tensor, "b l"] | None = None
    conditioned: Bool[Tensor, " b"] | None = None

    def without_lookback_positions(self, denoiser: AbstractDenoiser) -> Canvas:
        """A copy with weight 0 at the first positions, which a shifted denoiser does not predict."""
        if not denoiser.lookback:
            return self
        speaks = torch.arange(self.x_0.shape[1], device=self.x_0.device) >= denoiser.lookback
        return replace(self, measure=self.measure * speaks, steps=self.steps * speaks)

    def to(self, device: torch.device) -> Canvas:
        """A copy on another device; the attention mask stays, since it is already on the network's device."""
        names = ("x_0", "x_t", "t", "s", "measure", "steps", "window", "documents", "conditioned")
        there: Any = moved([getattr(self, name) for name in names], device)
        return replace(self, **dict(zip(names, there, strict=True)))

    def with_complement(self, mask_id: int) -> Canvas:
        """A copy whose second half is a copy of the first in which exactly the other noisy positions are masked."""
        half = len(self.x_0) // 2
        noisy, tokens, noise = self.measure[:half] > 0, self.x_t[:half], self.t[:half]
        other = torch.where(tokens == mask_id, self.x_0[:half], mask_id)
        return replace(
            self,
            x_t=torch.cat([tokens, torch.where(noisy, other, tokens)]),
            t=torch.cat([noise, torch.where(noisy, 1 - noise, noise)]),
        )

    def predict(self, denoiser: AbstractDenoiser) -> Prediction:
        """Call the denoiser on the noisy tokens; the prediction's positions are those of `x_t`.

        A shifted denoiser predicts a position from the output at the position before it. In two streams that is the
        noisy position if both are noisy together; otherwise it is the clean position, which has settled by then in
        generation.

        Raises:
            ValueError: In two streams, if the clean position may settle later, since it may see the predicted token. On
                one canvas, if the position before may be absent in generation. In two streams, if the denoiser has one
                noise level per sequence and blocks have different ones.
        """
        return self.predict_streams(denoiser)[0]

    def predict_streams(self, denoiser: AbstractDenoiser) -> tuple[Prediction, ...]:
        """The result of `predict`; in two streams also that of the clean stream, from the same call of the network.

        The clean stream predicts each token from the position before it, as a causal model does. Nothing predicts the
        first one.

        Raises:
            ValueError: As `predict`.
        """
        self._check_order(denoiser)
        if not self.num_clean:
            return (self._ask(denoiser, self.x_t, self.t, ForwardContext(attention=self.attention)),)
        self._check_noise(denoiser)
        tokens = torch.cat([self.x_0, self.x_t], 1)
        noise = torch.cat([torch.zeros_like(self.t), self.t], 1)
        positions = torch.arange(self.num_clean, device=tokens.device).repeat(2)[None]
        settled = torch.arange(tokens.shape[1], device=tokens.device) < self.num_clean
        context = ForwardContext(positions, self.attention, ordered=True, settled=settled)
        both = self._ask(denoiser, tokens, noise, context)
        stream, back = self._stream(denoiser.lookback).flatten(), 0 if denoiser.lookback else 1

        def noisy(at: Tensor) -> Tensor:
            row, place = at // self.num_clean, at % self.num_clean
            return (2 * row + stream[at]) * self.num_clean + place

        def clean(at: Tensor) -> Tensor:
            return at + at // self.num_clean * self.num_clean - back

        return self._read(both, noisy), self._read(both, clean)

    def _ask(
        self, denoiser: AbstractDenoiser, tokens: Tensor, noise: Tensor, context: ForwardContext
    ) -> Prediction:
        """The prediction of the denoiser, self-conditioned on that of a first call for some sequences."""
        if self.conditioned is None or not denoiser.self_conditioned:
            return denoiser.predict(tokens, noise, context)
        noisy = (noise > 0) & self.conditioned[:, None]
        with torch.no_grad():
            first = denoiser.predict(tokens, noise, context).raw(noisy.flatten().nonzero()[:, 0])
        place = torch.full_like(tokens, -1)
        place[noisy] = torch.arange(len(first), device=place.device)
        return denoiser.predict(tokens, noise, replace(context, previous=Previous(first, place)))

    def _read(self, both: Prediction, there: Callable[[Tensor], Tensor]) -> Prediction:
        """The prediction of one of the streams, whose position `at` is `there(at)` in both."""
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
                "A shifted network in two streams predicts a position from the clean token before it, but this "
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
                "noise levels in one sequence, which never happens in generation. Use one canvas (two_stream=false, "
                "published as annealing.efficient=false), or a flat hyperschedule."
            )

    def _stream(self, lookback: int) -> Int[Tensor, "b l"]:
        """The stream that predicts each position: 0 for the clean one, 1 for the noisy one."""
        noisy = torch.ones_like(self.x_t)
        if lookback and self.window is not None:
            noisy[:, lookback:] = (self.window[:, lookback:] == self.window[:, :-lookback]).long()
        return noisy


@final
@dataclass(frozen=True)
class Opening:
    """How far attention is open in one step, between causal and that of the regime (DiffuLLaMA, arXiv 2410.17891).

    Each pair of positions that attend to one another in the regime but not in a causal model is open with the
    probability `share`. One draw serves all sequences of the step, whatever the number of passes and processes.

    Attributes:
        share: Probability of an open pair: causal at 0, the regime at 1.
        randomness: Random numbers of the run.
        step: Number of the optimizer step.
    """

    share: float
    randomness: Randomness
    step: int

    def draw(self, size: int, device: torch.device) -> Bool[Tensor, "size size"]:
        """Which pairs of positions are open."""
        at = torch.arange(size, device=device)
        return self.randomness.uniform(at[:, None], self.step, at[None], stream=_OPENING) < self.share


@final
@dataclass(frozen=True)
class CorruptionLayout:
    """What published recipes of conversions do differently.

    Attributes:
        time: Whether each block of two streams has a time of its own, or all blocks of a sequence have one.
        complementary: Whether each sequence is there twice, the second time with the other positions masked, so that
            every position has a loss (Fast-dLLM v2).
        border: In two streams, where a shifted network reads the first token of a block: at the settled position
            before it, as in generation, or at the noisy one (Fast-dLLM v2).
        least_noise: The least noise fraction `e` of a noisy position: `e + (1 - e) u` takes the place of `u`.
    """

    time: Literal["block", "sequence"] = "block"
    complementary: bool = False
    border: Literal["settled", "noisy"] = "settled"
    least_noise: float = 0.0

    def __post_init__(self) -> None:
        for name, choices in (("time", ("block", "sequence")), ("border", ("settled", "noisy"))):
            require(getattr(self, name) in choices, name, f"one of {', '.join(choices)}", getattr(self, name))
        require(0 <= self.least_noise < 1, "least_noise", "in [0, 1)", self.least_noise)


@final
@dataclass(frozen=True)
class Corruption:
    """Builds a `Canvas` from a clean batch.

    Attributes:
        process: The noise process for the tokens.
        regime: When tokens are noised, how fast noise grows, and the attention.
        two_stream: Whether the layout has two streams.
        continuous: Whether times may lie between two levels (an objective in continuous time), or only on the
            hyperschedule's levels (an objective with `T` discrete steps).
        num_given: How many of the first positions stay clean and have no loss: 1 for a shifted network, which does not
            predict the first position.
        document_end: The token that ends a document, if documents in one window must not see one another; None if they
            may. Positions are counted from the start of the window, since rotary attention depends on distances only. A
            noisy window shows document boundaries that generation has not written yet: use it for short packed
            documents.
        layout: What published recipes of conversions do differently; see `CorruptionLayout`.

    Raises:
        ValueError: If two streams cannot match generation: with `context="full"` clean positions would see later ones,
            and pass on to noisy positions the tokens that these must predict.
    """

    process: AbstractNoiseProcess
    regime: Regime
    two_stream: bool = True
    continuous: bool = True
    num_given: int = 0
    document_end: int | None = None
    layout: CorruptionLayout = CorruptionLayout()

    def __post_init__(self) -> None:
        if (
            self.layout.complementary
            and self.process.weights(torch.tensor(0.5, dtype=torch.float64)).uniform > 0
        ):
            raise ValueError(f"complementary masks need a process that only masks; got {self.process!r}.")
        if self.two_stream and self.regime.context == "full" and not self.hyperschedule.settles_together:
            raise ValueError(
                "Two streams need a context in which settled positions attend to no later ones; with context='full' "
                "the clean stream would reveal the tokens to predict. Use one canvas (two_stream=false, published as "
                "annealing.efficient=false), or the context block_causal or causal."
            )

    @property
    def hyperschedule(self) -> AbstractHyperschedule:
        """The hyperschedule: when each position is noisy."""
        return self.regime.hyperschedule

    @property
    def num_times(self) -> int:
        """Number of times per sequence that `__call__` needs."""
        return self._packing.num_epochs if self.two_stream and self.layout.time == "block" else 1

    @property
    def num_cells(self) -> tuple[int, ...]:
        """Number of equal parts of [0, 1) for each of the times: one part for each step or chain of steps."""
        return self._packing.num_cells if self.two_stream else (self.hyperschedule.num_steps,)

    def __call__(
        self,
        x_0: Int[Tensor, "b l"],
        times: Float[Tensor, "b e"],
        draw: Float[Tensor, "b l"],
        device: torch.device | None = None,
        *,
        given: Bool[Tensor, "b l"] | None = None,
        documents: Int[Tensor, "b l"] | None = None,
        opening: Opening | None = None,
    ) -> Canvas:
        """Noise a batch.

        Args:
            x_0: Clean tokens, as long as the hyperschedule.
            times: `num_times` numbers in [0, 1) for each sequence; see `stratified_times`.
            draw: One uniform number in [0, 1) for each position.
            device: Device of the network, if different; the attention mask is made there.
            given: Positions that stay clean and have no loss, such as prompts and padding.
            documents: Document of each position, which attends to no other; by default see `document_end`.
            opening: How far attention is open; by default as the regime says.

        Raises:
            ValueError: If the sequences are not as long as the hyperschedule.
        """
        schedule, layout = self.hyperschedule, self.layout
        if x_0.shape[1] != schedule.length:
            raise ValueError(
                f"The hyperschedule is for sequences of {schedule.length} tokens; got {x_0.shape[1]}."
            )
        if layout.complementary:
            x_0, times, draw = (value.repeat(2, 1) for value in (x_0, times, draw))
            given, documents = (None if value is None else value.repeat(2, 1) for value in (given, documents))
        if documents is None and self.document_end is not None:
            documents = document_ids(x_0, self.document_end)
        if self.two_stream and layout.time == "sequence":
            times = times.expand(-1, self._packing.num_epochs)
        packed = self._packing(times) if self.two_stream else None
        later, now, measure, steps = (
            self._one_canvas_levels(times) if packed is None else self._two_stream_levels(packed)
        )
        free = (torch.arange(schedule.length, device=x_0.device) >= self.num_given).expand(x_0.shape)
        free = free if given is None else free & ~given
        t, s = (torch.where(free, self._noise(level), 0.0) for level in (now, later))
        rate = self.regime.noise_schedule.rate(now / schedule.num_levels) * (1 - layout.least_noise)
        canvas = Canvas(
            x_0=x_0,
            x_t=self.process.corrupt(x_0, t, draw),
            t=t,
            s=s,
            measure=torch.where(free, measure * rate, 0.0),
            steps=torch.where(free, steps, 0.0),
            num_clean=x_0.shape[1] if self.two_stream else 0,
            attention=self._attention(
                times, packed, documents, opening, x_0.device if device is None else device
            ),
            window=None if packed is None or layout.border == "noisy" else packed.steps,
            left_to_right=self._left_to_right,
            same_noise=schedule.settles_together or layout.time == "sequence",
            documents=documents,
        )
        return canvas.with_complement(self.process.mask_id) if layout.complementary else canvas

    def _noise(self, level: Float[Tensor, "b l"]) -> Float[Tensor, "b l"]:
        """Noise fraction at a level: 0 when settled, and above 0 before, for every noise schedule."""
        u = self.regime.noise_schedule.fraction(level / self.hyperschedule.num_levels)
        if self.layout.least_noise:
            u = self.layout.least_noise + (1 - self.layout.least_noise) * u
        return torch.where(level > 0, u.clamp_min(torch.finfo(u.dtype).tiny), 0.0)

    def _two_stream_levels(self, packed: Packed) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Level after the step, current level, measure and steps of each position, where each has its own step."""
        drop = (packed.now - packed.then).double()
        now = packed.now - drop * packed.within if self.continuous else packed.now.double()
        measure = drop * packed.weight / self.hyperschedule.num_levels
        return packed.then.double(), now, measure, (drop > 0) * packed.weight

    def _one_canvas_levels(self, times: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Level after the step, current level, measure and steps, where the canvas is at one step of generation."""
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

    def _attention(
        self,
        times: Tensor,
        packed: Packed | None,
        documents: Tensor | None,
        opening: Opening | None,
        device: torch.device,
    ) -> Any:
        """The attention mask in the form that the network needs."""
        seen = self._visibility(self.regime, times, packed, documents)
        if opening is None or opening.share >= 1:
            return seen.on(device)
        closed = replace(self.regime, context="causal", active="causal")
        causal = self._visibility(closed, times, packed, documents)
        if opening.share <= 0:
            return causal.on(device)
        mask = causal.to(device).dense() | (seen.to(device).dense() & opening.draw(seen.num_queries, device))
        return mask if mask.ndim > 2 else mask[None]

    def _visibility(
        self, regime: Regime, times: Tensor, packed: Packed | None, documents: Tensor | None
    ) -> attention.Visibility:
        """The visibility of positions, shared by all rows unless times or documents matter."""
        schedule = self.hyperschedule
        if packed is not None:
            shared = packed.steps[0] if schedule.opens_together else packed.steps
            seen = regime.two_stream(shared)
        else:
            steps = (times[:, 0] * schedule.num_steps).long()
            shared = steps[0] if schedule.is_flat else steps
            seen = regime.generation_attention(shared)
        if documents is None:
            return seen
        return seen.within(documents if packed is None else documents.repeat(1, 2))


def next_tokens(
    x_0: Int[Tensor, "b l"],
    document_end: int | None = None,
    *,
    given: Bool[Tensor, "b l"] | None = None,
    documents: Int[Tensor, "b l"] | None = None,
) -> Canvas:
    """The canvas of next-token prediction: clean text without its last token, whose targets are the tokens that follow.

    Position `i` holds token `i`, sees all tokens up to it, and its target `x_0` is token `i + 1`.

    Args:
        x_0: Clean tokens on the network's device, at least two per row.
        document_end: As in `Corruption`: the token that ends a document.
        given: As in `Corruption`: tokens that are not predicted.
        documents: As in `Corruption`: the document of each token, whose first token is not predicted.
    """
    before, after = x_0[:, :-1], x_0[:, 1:]
    schedule = autoregressive(before.shape[1])
    seen = attention.generation_attention(schedule, schedule.num_steps, context="causal")
    zeros = torch.zeros(before.shape, dtype=torch.float64, device=x_0.device)
    measure = torch.ones_like(zeros)
    if documents is not None:
        seen = seen.to(x_0.device).within(documents[:, :-1])
        measure = measure * (documents[:, 1:] == documents[:, :-1])
    elif document_end is not None:
        seen = seen.to(x_0.device).within(document_ids(before, document_end))
    if given is not None:
        measure = measure * ~given[:, 1:]
    return Canvas(
        x_0=after,
        x_t=before,
        t=zeros,
        s=zeros,
        measure=measure,
        steps=zeros,
        attention=seen.on(x_0.device),
    )


def document_ids(tokens: Int[Tensor, "b l"], end: int) -> Int[Tensor, "b l"]:
    """Document of each token, counted from 0: the number of documents that ended before it.

    Args:
        tokens: Clean token ids.
        end: The token that ends a document; it belongs to the document.
    """
    ends = (tokens == end).long()
    return ends.cumsum(-1) - ends
