"""Laws of a hyperschedule: levels only fall, every position settles, and attention is consistent with both."""

from __future__ import annotations

import torch
from torch import Tensor

from hdlm.attention import generation_attention
from hdlm.hyperschedule import AbstractCountdown, AbstractHyperschedule
from hdlm.verification.finding import Finding, Law, Trial, error

__all__ = ["HYPERSCHEDULE_LAWS"]

MANY_STEPS = 512
"""Longer hyperschedules are tested at this many steps."""
MANY_PAIRS = 2**21
"""Number of pairs of positions that are tested, over all steps."""


def levels_fall_and_stay_in_range(hyperschedule: AbstractHyperschedule, trial: Trial) -> Finding:
    """`0 <= levels <= num_levels`, and no level ever rises."""
    n = _steps(hyperschedule)
    now, then = hyperschedule.levels(n), hyperschedule.levels(n + 1)
    outside = now.clamp_max(0) + (now - hyperschedule.num_levels).clamp_min(0)
    return _none(outside + (then - now).clamp_min(0))


def everything_settles_when_it_says(hyperschedule: AbstractHyperschedule, trial: Trial) -> Finding:
    """`settles` is the first step at level 0, and `num_steps` the last of them."""
    settles, rows = hyperschedule.settles, torch.arange(hyperschedule.length)
    at = hyperschedule.levels(settles)[rows, rows]
    before = hyperschedule.levels((settles - 1).clamp_min(0))[rows, rows]
    late = at != 0
    early = (before == 0) & (settles > 0)
    end = hyperschedule.levels(hyperschedule.num_steps) != 0
    return _none(torch.cat([late, early, end]))


def regions_are_a_partition(hyperschedule: AbstractHyperschedule, trial: Trial) -> Finding:
    """Every position is settled, active or worthless, and only active ones move."""
    n = _steps(hyperschedule)
    regions = hyperschedule.regions(n)
    parts = regions.settled.int() + regions.active.int() + regions.worthless.int()
    moves = hyperschedule.levels(n) != hyperschedule.levels(n + 1)
    return _none((parts != 1) | (moves & ~regions.active))


def times_invert(hyperschedule: AbstractHyperschedule, trial: Trial) -> Finding | None:
    """`level_at(times(n)) = levels(n)`."""
    n = _steps(hyperschedule)
    if not levels_fall_and_stay_in_range(hyperschedule, trial).ok:
        return None  # no time belongs to such levels
    read = hyperschedule.level_at(hyperschedule.times(n, 1e-4), 1e-4)
    return _none(read != hyperschedule.levels(n))


def settled_views_never_change(hyperschedule: AbstractHyperschedule, trial: Trial) -> Finding:
    """With causal or block-causal context, the view of a settled position never changes: caches are exact."""
    n = _few_steps(hyperschedule)
    changes = []
    for context in ("causal", "block_causal"):
        now, then = (generation_attention(hyperschedule, k, context).dense() for k in (n, n + 1))
        settled = hyperschedule.regions(n).settled
        changes.append((now != then) & settled[..., None])
    return _none(torch.cat(changes))


def nobody_sees_pure_noise(hyperschedule: AbstractHyperschedule, trial: Trial) -> Finding:
    """No position sees worthless ones; active ones see all settled ones and one another."""
    n = _few_steps(hyperschedule)
    seen, regions = generation_attention(hyperschedule, n).dense(), hyperschedule.regions(n)
    noise = seen & regions.worthless[:, None, :]
    missed = regions.active[..., None] & ~regions.worthless[:, None, :] & ~seen
    return _none(noise | missed)


def packed_steps_are_generation(hyperschedule: AbstractHyperschedule, trial: Trial) -> Finding | None:
    """In two streams, positions of one step are exactly those that generation has active at it."""
    if not isinstance(hyperschedule, AbstractCountdown):
        return None
    size, generator = (16, hyperschedule.num_epochs), trial.generator()
    steps = hyperschedule.packed_steps(torch.randint(hyperschedule.num_levels, size, generator=generator))
    together = steps[:, :, None] == steps[:, None, :]
    return _none(together != hyperschedule.regions(steps).active)


HYPERSCHEDULE_LAWS: tuple[Law, ...] = (
    levels_fall_and_stay_in_range,
    everything_settles_when_it_says,
    regions_are_a_partition,
    times_invert,
    settled_views_never_change,
    nobody_sees_pure_noise,
    packed_steps_are_generation,
)


def _steps(hyperschedule: AbstractHyperschedule, most: int = MANY_STEPS) -> Tensor:
    """All steps and one after the last, or `most` of them, evenly spaced."""
    end = hyperschedule.num_steps + 1
    return torch.linspace(0, end, min(end + 1, most), dtype=torch.float64).long()


def _few_steps(hyperschedule: AbstractHyperschedule) -> Tensor:
    """Fewer steps, for laws that need a table of pairs of positions at each."""
    return _steps(hyperschedule, max(MANY_PAIRS // hyperschedule.length**2, 2))


def _none(violations: Tensor) -> Finding:
    """An error unless all entries are zero."""
    return error(violations.double(), 0.0, 0.0)
