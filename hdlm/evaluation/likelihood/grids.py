r"""Few-step time grids, learned on text: the times at which `K` steps cost least.

Words that are written in one step do not see each other. The cost of that follows from one curve, the *profile* of a
text: `c(k)`, the nats per token when it and `k - 1` others of its block of `w`, chosen at random, are masked. Each mask
occurs independently with probability `u`, so a token then costs

    c(u) = E[ c(1 + k) ],  k ~ Binomial(w - 1, u),

and along the grid `0 = u_0 < u_1 < .. < u_K = 1` a token is written with

    gap(u) = sum over k of (u_k - u_{k-1}) c(u_k)  -  mean of c

more nats than one token at a time. That is the bound in discrete time (D3PM, arXiv 2107.03006) minus the bound in
continuous time. For an exact denoiser it is the expected divergence between the data and the sampler with known order
of unmasking, and an upper bound on that of the text (arXiv 2511.04647, 2510.25544). Dynamic programming over many
candidate times gives the best grid among these candidates.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hdlm.checkpoint import Checkpoint
from hdlm.evaluation.generation.metrics import Estimate, mean
from hdlm.evaluation.likelihood.bounds import AbsorbingBound, masking_fraction
from hdlm.hyperschedule import AbstractHyperschedule
from hdlm.noise_schedule import AbstractNoiseSchedule
from hdlm.randomness import Randomness

__all__ = ["Profile", "as_masks", "as_times", "check_steps", "grid_text", "measured_profile"]

_CANDIDATES = 256
"""Number of evenly spaced masking probabilities that a grid may use."""
_POINTS = 32
"""Maximum number of mask counts at which a profile is measured; denser towards both ends."""


@final
@dataclass(frozen=True, eq=False)
class Profile:
    """The cost of a token as a function of the number of masks in its block.

    Attributes:
        nats: Nats per token of each window, where 1, 2, .. of the tokens of a block are masked.
    """

    nats: Float[Tensor, "n w"]

    @cached_property
    def _share(self) -> Float[Tensor, "m w"]:
        """Probability that `1 + k` is each count of masks, at the candidates `1/m .. 1`."""
        count = self.nats.shape[1] - 1
        k = torch.arange(count + 1, dtype=torch.float64)
        u = torch.arange(1, _CANDIDATES + 1, dtype=torch.float64)[:, None] / _CANDIDATES
        ways = math.lgamma(count + 1) - torch.lgamma(k + 1) - torch.lgamma(count - k + 1)
        return (ways + torch.xlogy(k, u) + torch.xlogy(count - k, 1 - u)).exp()

    def best(self, steps: int) -> tuple[float, ...]:
        """The `steps` masking probabilities with the least gap, if the profile rises apart from noise.

        Raises:
            ValueError: If there are more steps than candidates.
        """
        check_steps(steps)
        cost = self._share @ _rising(self.nats.double().mean(0))
        index = torch.arange(_CANDIDATES + 1)
        apart = (index[1:, None] - index).double()  # [to, from], in candidates
        price = torch.where(apart > 0, apart * cost[:, None], torch.inf)
        total = torch.full((_CANDIDATES + 1,), torch.inf, dtype=torch.float64)
        total[0] = 0.0
        came_from: list[Tensor] = []
        for _ in range(steps):
            cheapest, at = (total + price).min(1)
            came_from.append(at)
            total = torch.cat([total.new_full((1,), torch.inf), cheapest])
        path = [_CANDIDATES]
        for at in reversed(came_from[1:]):
            path.append(int(at[path[-1] - 1]))
        return tuple(place / _CANDIDATES for place in reversed(path))

    def gap(self, grid: Sequence[float]) -> Estimate:
        """Nats per token that a grid costs, with the standard error over windows.

        Args:
            grid: Rising masking probabilities that end at 1; each is rounded to the nearest candidate.
        """
        stops = [0, *(max(round(u * _CANDIDATES), 1) for u in grid)]
        apart = torch.tensor(stops, dtype=torch.float64).diff() / _CANDIDATES
        along = (apart @ self._share[[stop - 1 for stop in stops[1:]]]) @ self.nats.double().T
        gaps: list[float] = (along - self.nats.double().mean(1)).tolist()
        return mean(gaps)

    def halves(self) -> tuple[Profile, Profile]:
        """Every other window, and the rest: a half to learn from, and a half to measure on.

        Raises:
            ValueError: If there are fewer than two windows.
        """
        if len(self.nats) < 2:
            raise ValueError(
                "a grid is learned on some windows and measured on others: give text for two windows."
            )
        return Profile(self.nats[::2]), Profile(self.nats[1::2])


def check_steps(steps: int) -> None:
    """Check that a grid can have this number of steps, before a profile is measured for it.

    Raises:
        ValueError: If the number is out of range.
    """
    if not 1 <= steps <= _CANDIDATES:
        raise ValueError(f"a grid can have between 1 and {_CANDIDATES} steps; got {steps}.")


@torch.no_grad()
def measured_profile(
    checkpoint: Checkpoint,
    plan: AbstractHyperschedule,
    windows: Int[Tensor, "n l"],
    *,
    batch_size: int = 16,
    seed: int = 0,
    watch: Callable[[float], None] | None = None,
) -> Profile:
    """Measure a profile.

    The masks of a window at one count are also masked at all higher counts, so that its curve is smooth. Blocks that
    are shorter than the others have an equal share of masks.

    Args:
        checkpoint: The model, on the device of the windows.
        plan: The hyperschedule of the sampler: flat, or blocks.
        windows: Windows of text, as long as `plan`.
        batch_size: Windows per forward pass.
        seed: Seed of the masks.
        watch: Called with the share of the work that is done.

    Raises:
        ValueError: If positions of the hyperschedule that are noisy together do not start together, or the noise of
            the model does not end in masks.
    """
    if not plan.opens_together:
        raise ValueError(
            f"A grid is learned for positions that are written together, flat or in blocks; got {plan!r}."
        )
    bound = AbsorbingBound(checkpoint.denoiser, checkpoint.regime(plan), "count")
    noisy = plan.length - bound.num_given
    width = min(plan.window_size, noisy)
    counts = _spread(width)
    position = torch.arange(plan.length, device=windows.device)[None]
    rows: list[Tensor] = []
    for first in range(0, len(windows), batch_size):
        some = windows[first : first + batch_size]
        number = torch.arange(first, first + len(some), device=windows.device)[:, None]
        draw = Randomness(seed).uniform(number, 0, position, 0)
        costs: list[Tensor] = []
        for done, count in enumerate(counts):
            times = torch.full((len(some), bound.corruption.num_times), (count - 0.5) / width)
            costs.append(bound.estimate(some, times.double().to(windows.device), draw) / noisy)
            if watch is not None:
                watch((first + len(some) * (done + 1) / len(counts)) / len(windows))
        rows.append(torch.stack(costs, 1).cpu())
    return Profile(_between(counts, torch.cat(rows), width))


def _spread(width: int) -> list[int]:
    """Up to `_POINTS` counts from 1 to `width`, denser towards both ends."""
    turn = torch.linspace(0, math.pi, min(_POINTS, width), dtype=torch.float64)
    places = ((width - 1) * (1 - torch.cos(turn)) / 2).round().long() + 1
    return sorted(set(places.tolist()))


def _between(counts: Sequence[int], nats: Float[Tensor, "n c"], width: int) -> Float[Tensor, "n w"]:
    """Values at all counts, by linear interpolation between the measured counts."""
    known = torch.tensor(counts, dtype=torch.float64)
    wanted = torch.arange(1, width + 1, dtype=torch.float64)
    right = torch.searchsorted(known, wanted).clamp(min=min(1, len(counts) - 1))
    left = (right - 1).clamp(min=0)
    share = (wanted - known[left]) / (known[right] - known[left]).clamp_min(1)
    return torch.lerp(nats[:, left], nats[:, right], share.to(nats.dtype))


def _rising(values: Float[Tensor, " w"]) -> Float[Tensor, " w"]:
    """The nearest curve that never falls; value `k` has weight `k + 1` (isotonic regression)."""
    weight = torch.arange(1, len(values) + 1, dtype=values.dtype)
    zero = values.new_zeros(1)
    sums, weights = torch.cat([zero, (weight * values).cumsum(0)]), torch.cat([zero, weight.cumsum(0)])
    inside = torch.ones(len(values), len(values)).triu().bool()  # [from, to]
    means = (sums[1:] - sums[:-1, None]) / (weights[1:] - weights[:-1, None])
    least = means.where(inside, torch.inf).flip(1).cummin(1).values.flip(1)
    return least.where(inside, -torch.inf).amax(0)


def as_times(grid: Sequence[float], checkpoint: Checkpoint) -> tuple[float, ...]:
    """Masking probabilities as times of the checkpoint's noise schedule; the last is 1, where generation begins."""
    u = masking_fraction(checkpoint.denoiser.process, torch.tensor(grid[:-1], dtype=torch.float64))
    times: list[float] = checkpoint.noise_schedule.time(u).tolist()
    return (*times, 1.0)


def as_masks(times: AbstractNoiseSchedule, steps: int, checkpoint: Checkpoint) -> tuple[float, ...]:
    """The masking probabilities of a time grid with this number of steps; the last is 1, where generation begins."""
    even = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    u = checkpoint.noise_schedule.fraction(times.fraction(even))
    masks: list[float] = checkpoint.denoiser.process.weights(u).mask.tolist()
    return (*masks[:-1], 1.0)


def grid_text(text: str, steps: int | None) -> str:
    """A grid in the form that `hdlm.noise_schedule.time_grid` reads, from a file of grids if one has this name.

    Args:
        text: A grid, or the name of a file: a list of times, or what `hdlm tune` wrote.
        steps: Number of steps of the grid to take from a file; by default its only grid.

    Raises:
        FileNotFoundError: If the file does not exist; the message names the command that writes grids.
        ValueError: If the file holds no grids, or none with this number of steps.
    """
    path = Path(text)
    if path.suffix != ".json" and not path.is_file():
        return text
    try:
        document = json.loads(path.read_bytes())
        times_by_steps = {str(len(document)): document} if isinstance(document, list) else document["grids"]
        grids = {count: [float(time) for time in times] for count, times in times_by_steps.items()}
        if not grids or not all(grids.values()):
            raise ValueError("the list is empty")
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"there is no file {path}: give a file of grids, which `hdlm tune --output {path}` writes, or a grid by "
            "name, such as cosine."
        ) from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{path} has no grids: give a list of times that rise to 1, or a file of `hdlm tune`."
        ) from error
    name = next(iter(grids)) if steps is None and len(grids) == 1 else str(steps)
    if name not in grids:
        raise ValueError(
            f"{path} has grids of {', '.join(grids)} steps: choose one by --steps, or learn another by `hdlm tune`."
        )
    return ",".join(map(str, grids[name]))
