"""The one loop: from noise to text along any hyperschedule, with any step, for any denoiser.

At each generation step the positions whose level drops may change. The network sees a *window*: the active positions
and those that have settled since it was last asked; settled ones leave keys and values in the cache and are never
computed again, worthless ones are absent. A step that changes nothing never asks, so prompts are read in one go.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hdlm.attention import Active, Context, generation
from hdlm.denoiser import AbstractDenoiser
from hdlm.denoiser import Context as Asked
from hdlm.hyperschedule import AbstractHyperschedule
from hdlm.noise_schedule import LINEAR, AbstractNoiseSchedule
from hdlm.randomness import Randomness
from hdlm.sampling.base import Move, Reading, Step, Transform
from hdlm.sampling.prompt import Prompt

__all__ = ["Frame", "Generation", "sample"]

_PRIOR = 2**32 - 1
"""The random stream of the noise in which generation begins."""


@final
@dataclass(frozen=True)
class Frame:
    """What a watcher sees after every generation step.

    Attributes:
        step: Index of the generation step, from 0.
        num_steps: How many there are.
        sequence: Index of each sequence in the run.
        before: Tokens before the step.
        after: Tokens after it.
        moving: Positions that might have changed.
        num_evaluations: Calls of the network so far, for this batch.
    """

    step: int
    num_steps: int
    sequence: Int[Tensor, " b"]
    before: Int[Tensor, "b l"]
    after: Int[Tensor, "b l"]
    moving: Bool[Tensor, "b l"]
    num_evaluations: int


@final
@dataclass(frozen=True)
class Generation:
    """What `sample` returns.

    Attributes:
        tokens: Finished sequences; words only.
        num_evaluations: Calls of the network, each for a batch (NFE).
    """

    tokens: Int[Tensor, "n l"]
    num_evaluations: int


@torch.no_grad()
def sample(
    denoiser: AbstractDenoiser,
    hyperschedule: AbstractHyperschedule,
    step: Step,
    *,
    num_sequences: int = 1,
    batch_size: int | None = None,
    seed: int = 0,
    first_sequence: int = 0,
    prompt: Prompt | None = None,
    transforms: Sequence[Transform] = (),
    noise_schedule: AbstractNoiseSchedule = LINEAR,
    sampling_eps: float | None = None,
    context: Context = "block_causal",
    active: Active = "full",
    use_cache: bool = True,
    device: torch.device | str = "cpu",
    watch: Callable[[Frame], None] | None = None,
) -> Generation:
    """Generate sequences.

    Args:
        denoiser: Knows `p(x_0 | x_t)`.
        hyperschedule: When each position is noisy; its length is that of the sequences.
        step: How to walk back; see `hdlm.sampling` for the choice.
        num_sequences: How many sequences, at least 1.
        batch_size: How many at a time; all at once by default. It changes no random number.
        seed: Of all random numbers.
        first_sequence: Index of the first sequence: `first_sequence=5` gives what a longer run has as its sixth.
        prompt: Given tokens, which are kept.
        transforms: Temperature and the like, applied in order before draws.
        noise_schedule: From a position's time, `level / num_levels`, to its noise fraction.
        sampling_eps: Read times off the published grid with this margin (`AbstractHyperschedule.times`) instead.
        context: What settled positions see of one another.
        active: What active positions see of one another.
        use_cache: Keep keys and values of settled positions; exact, so it changes no logit. `context="full"`, in
            which settled positions look at later ones, has none.
        device: Where tokens live; that of the denoiser.
        watch: Called with a `Frame` after every step.

    Raises:
        ValueError: If the prompt does not fit the canvas or the vocabulary, or a shifted network is given no first
            token.
    """
    if num_sequences < 1:
        raise ValueError(f"`num_sequences` must be at least 1; got {num_sequences}.")
    size = num_sequences if batch_size is None else batch_size
    if size < 1:
        raise ValueError(f"`batch_size` must be at least 1; got {batch_size}.")
    _check_prompt(prompt, denoiser, hyperschedule.length, num_sequences)
    clock = _Clock(hyperschedule, noise_schedule, sampling_eps)
    view = _View(context, active, use_cache and context != "full")
    tokens, evaluations = [], 0
    for begin in range(0, num_sequences, size):
        rows = torch.arange(begin, min(begin + size, num_sequences), device=device)
        run = _Run(denoiser, clock, view, tuple(transforms), Randomness(seed), rows + first_sequence)
        tokens.append(run(step, _rows_of(prompt, rows), watch))
        evaluations += run.num_evaluations
    return Generation(torch.cat(tokens), evaluations)


@dataclass(frozen=True)
class _Clock:
    """Noise fractions along a hyperschedule."""

    hyperschedule: AbstractHyperschedule
    noise_schedule: AbstractNoiseSchedule
    sampling_eps: float | None

    def noise(self, n: Int[Tensor, ""]) -> Float[Tensor, " l"]:
        """Noise fraction of each position after `n` steps; exactly 0 where it is settled."""
        levels = self.hyperschedule.levels(n)
        if self.sampling_eps is None:
            time = levels.double() / self.hyperschedule.num_levels
        else:
            time = self.hyperschedule.times(n, self.sampling_eps)
        return torch.where(levels > 0, self.noise_schedule.fraction(time), 0.0)


@dataclass(frozen=True)
class _View:
    context: Context
    active: Active
    use_cache: bool


class _Run:
    """One batch: owns the tokens, the cache and the last answer of the network."""

    def __init__(
        self,
        denoiser: AbstractDenoiser,
        clock: _Clock,
        view: _View,
        transforms: tuple[Transform, ...],
        randomness: Randomness,
        sequence: Int[Tensor, " b"],
    ) -> None:
        self.num_evaluations = 0
        self._denoiser, self._clock, self._view = denoiser, clock, view
        self._transforms, self._randomness, self._sequence = transforms, randomness, sequence
        length = clock.hyperschedule.length
        self._positions = torch.arange(length, device=sequence.device)
        self._cache = denoiser.new_cache() if view.use_cache else None
        self._cached = self._positions[:0]
        self._in_cache = torch.zeros(length, dtype=torch.bool, device=sequence.device)
        self._last: tuple[Tensor, Tensor, Reading] | None = None
        self._n = torch.zeros((), dtype=torch.long, device=sequence.device)

    def __call__(
        self, step: Step, prompt: tuple[Tensor, Tensor] | None, watch: Callable[[Frame], None] | None
    ) -> Int[Tensor, "b l"]:
        schedule, process = self._clock.hyperschedule, self._denoiser.process
        start = self._randomness.uniform(self._sequence[:, None], 0, self._positions[None], _PRIOR)
        full = self._clock.noise_schedule.fraction(torch.ones_like(start))
        x = process.draw_prior(full, start)
        fixed = torch.zeros_like(x, dtype=torch.bool)
        if prompt is not None:
            x, fixed = torch.where(prompt[1], prompt[0], x), prompt[1].expand_as(x)
        num_steps = schedule.num_steps
        for n in range(num_steps):
            self._n = torch.full_like(self._n, n)
            moving = (schedule.levels(self._n + 1) < schedule.levels(self._n)) & ~fixed
            before = x
            if moving.any():
                t = self._clock.noise(self._n).masked_fill(fixed, 0.0)
                s = self._clock.noise(self._n + 1).masked_fill(fixed, 0.0)
                move = Move(process, x, t, s, moving, self._ask, self._randomness, self._sequence, n)
                x = step(x, move)
            if watch is not None:
                watch(Frame(n, num_steps, self._sequence, before, x, moving, self.num_evaluations))
        if (x >= process.num_words).any():
            raise RuntimeError(
                f"{step!r} left masks in finished text; a step must lift every mask on its way to s = 0."
            )
        return x

    def _ask(self, x: Tensor, u: Tensor) -> Reading:
        """What the network says of the window of this step; the last answer is kept."""
        if self._last is not None and self._last[0] is x and self._last[1] is u:
            return self._last[2]
        window, store = self._window()
        keys = torch.cat([self._cached, window])
        seen = generation(self._clock.hyperschedule, self._n, self._view.context, self._view.active)
        asked = Asked(
            positions=window[None],
            attention=seen.select(window, keys).on(x.device),
            cache=self._cache,
            store=store if self._view.use_cache else None,
        )
        prediction = self._denoiser.predict(x[:, window], u[:, window], asked)
        self.num_evaluations += 1
        if self._view.use_cache:
            self._cached = torch.cat([self._cached, window[store]])
            self._in_cache[window[store]] = True
        place = torch.full_like(self._positions, -1)
        place[window] = torch.arange(len(window), device=window.device)
        reading = Reading(prediction, place, x, self._transforms)
        self._last = (x, u, reading)
        return reading

    def _window(self) -> tuple[Int[Tensor, " q"], Any]:
        """Positions the network must see now, and which of them (indices into these) it may remember for good.

        A shifted network reads position `i` off position `i - 1`, so that one is remembered only when `i` is settled.
        """
        regions = self._clock.hyperschedule.regions(self._n)
        window = self._positions[~regions.worthless & ~self._in_cache]
        done = regions.settled.clone()
        for ahead in range(1, self._denoiser.lookback + 1):
            done[:-ahead] &= regions.settled[ahead:]
        return window, done[window].nonzero()[:, 0]


def _rows_of(prompt: Prompt | None, rows: Tensor) -> tuple[Tensor, Tensor] | None:
    """The prompt's tokens and marks for some sequences."""
    if prompt is None:
        return None
    tokens, fixed = prompt.tokens.to(rows.device), prompt.fixed.to(rows.device)
    return (tokens[rows], fixed[rows]) if len(tokens) > 1 else (tokens, fixed)


def _check_prompt(prompt: Prompt | None, denoiser: AbstractDenoiser, length: int, num_sequences: int) -> None:
    if prompt is not None:
        rows, columns = prompt.tokens.shape
        if columns != length or rows not in (1, num_sequences):
            raise ValueError(
                f"The prompt must have {length} positions, and 1 or {num_sequences} rows; got {columns} and {rows}."
            )
        words = denoiser.process.num_words
        given = prompt.tokens[prompt.fixed]
        if len(given) and not 0 <= int(given.min()) <= int(given.max()) < words:
            raise ValueError(
                f"Tokens of the prompt must be words, in [0, {words}); got {int(given.min())} to {int(given.max())}. "
                "Was it encoded with the checkpoint's tokenizer?"
            )
    lookback = denoiser.lookback
    if lookback and (prompt is None or not prompt.fixed[:, :lookback].all()):
        raise ValueError(
            f"A shifted network says nothing of the first {lookback} position(s): give a prompt that begins with the "
            "begin-of-sequence token."
        )
