"""A hyperschedule determines when each position is noisy.

It is a table of integers `levels[n, i]`: the noise level of position `i` after `n` generation steps, between
`num_levels` (worthless: pure noise, not computed) and 0 (settled: never changed again). Levels never rise from step to
step. A step moves the positions that are *active* from `levels[n]` to `levels[n + 1]`. The whole table is never built:
every class computes the levels of the steps that are needed.

Reference: Unifying Autoregressive and Diffusion-Based Sequence Generation (arXiv 2504.06416), section 3.
"""

from __future__ import annotations

import abc
import functools
from dataclasses import dataclass, fields, is_dataclass, replace
from numbers import Integral
from typing import Any, cast, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hdlm.strict_config import OptionError, require

ACTIVE_MARGIN = 10
"""Active levels stay `ACTIVE_MARGIN * eps` away from both ends of time; settled and worthless ones `eps`."""


@dataclass(frozen=True, slots=True)
class Regions:
    """The three parts of the canvas at one step; every position is in exactly one.

    Attributes:
        settled: Positions at level 0, which are finished.
        active: Positions between two levels, or about to leave the worthless one.
        worthless: Positions that are pure noise, also after the next step.
    """

    settled: Bool[Tensor, "*b l"]
    active: Bool[Tensor, "*b l"]
    worthless: Bool[Tensor, "*b l"]


class AbstractHyperschedule(abc.ABC):
    """The noise level of each position at each generation step.

    Attributes:
        length: Number of positions `l`.
        num_levels: The level `T` of a worthless position, at least 1.
    """

    length: int
    num_levels: int

    @abc.abstractmethod
    def levels(self, n: int | Int[Tensor, "*b"]) -> Int[Tensor, "*b l"]:
        """Noise level of every position after `n` steps, in `[0, num_levels]`; 0 after the last step.

        Args:
            n: Number of steps done, at least 0. The result is on the device of a tensor, or on the CPU for an int.
        """

    @property
    @abc.abstractmethod
    def settles(self) -> Int[Tensor, " l"]:
        """First step at which each position is settled (level 0)."""

    @final
    def settles_on(self, device: torch.device) -> Int[Tensor, " l"]:
        """`settles` on a device; the copy is kept, so that later steps need no other."""
        return self._held("settles", device)

    @functools.cached_property
    def _copies(self) -> dict[tuple[str, torch.device], Tensor]:
        """Copies of attributes by name and device."""
        return {}

    @final
    def _held(self, name: str, device: torch.device) -> Int[Tensor, "*shape"]:
        """The attribute `name` on a device; the copy is kept."""
        if (name, device) not in self._copies:
            self._copies[name, device] = getattr(self, name).to(device)
        return self._copies[name, device]

    @property
    def num_steps(self) -> int:
        """Number of steps until every position is settled."""
        return int(self.settles.max())

    @property
    def never_written(self) -> Bool[Tensor, " l"]:
        """Positions that begin at level 0: no step changes them, so their tokens must be given."""
        return self.levels(0) == 0

    # -- questions about the whole table ------------------------------------------------------------------------

    @property
    def window_size(self) -> int:
        """Number of positions that are noisy together: the `width`, or all positions if there is none."""
        return int(getattr(self, "width", self.length))

    @functools.cached_property
    def settles_together(self) -> bool:
        """Whether all positions settle at one step."""
        return len(self.settles.unique()) == 1

    @property
    def has_epochs(self) -> bool:
        """Whether it is a countdown (`AbstractCountdown`), which alone has `starts` and `epochs`."""
        return False

    @property
    def opens_together(self) -> bool:
        """Whether it is a countdown in which positions that are noisy together also start together (flat, blocks)."""
        return False

    @property
    def is_autoregressive(self) -> bool:
        """Whether it is a countdown in which one position at a time is noisy, from left to right."""
        return False

    @property
    def is_flat(self) -> bool:
        """Whether all positions count down together, so that no position is settled while another is noisy."""
        return self.opens_together and self.settles_together

    def begin_in_noise(self) -> AbstractHyperschedule:
        """The nearest hyperschedule that begins in pure noise, for a bound on the likelihood."""
        return self

    def behind(self, given: int) -> AbstractHyperschedule:
        """The hyperschedule for a prompt of `given` tokens; most hyperschedules do not depend on the prompt."""
        return self

    @final
    def first_positions(self, length: int) -> AbstractHyperschedule:
        """The hyperschedule of the first positions alone, at the same steps.

        Args:
            length: Number of positions to keep, in [1, `self.length`].

        Raises:
            ValueError: If `length` is out of range.
        """
        if not 1 <= length <= self.length:
            raise ValueError(f"`length` must lie in [1, {self.length}]; got {length}.")
        return self if length == self.length else self._first(length)

    def _first(self, length: int) -> AbstractHyperschedule:
        return _FirstPositions(self, length)

    @final
    def resized(self, length: int, width: int | None, num_levels: int) -> AbstractHyperschedule:
        """A copy with other sizes, if its class has them.

        Args:
            length: Number of positions.
            width: Positions that are noisy together; by default as many as now, or all if there are fewer.
            num_levels: Steps that each position takes from noise to word.

        Raises:
            ValueError: If the class has no such field.
        """
        options: set[str] = {option.name for option in fields(self)} if is_dataclass(self) else set()
        sizes = {"length": length, "width": width, "num_levels": num_levels}
        wanted = {name: size for name, size in sizes.items() if size not in (None, getattr(self, name, None))}
        if not wanted:
            return self
        fixed = [
            "steps" if name == "num_levels" else name for name in wanted if not {name, "length"} <= options
        ]
        if fixed:
            raise ValueError(
                f"The checkpoint's hyperschedule, {self!r}, has no other {', '.join(fixed)}: leave that out, or name "
                "another hyperschedule."
            )
        if "width" in options and width is None:
            wanted["width"] = min(self.window_size, length)
        return cast("AbstractHyperschedule", replace(cast("Any", self), **wanted))

    # -- time -----------------------------------------------------------------------------------------------------

    def noise(self, n: int | Int[Tensor, "*b"]) -> Float[Tensor, "*b l"]:
        """Noise of every position after `n` steps, `levels / num_levels` in `[0, 1]` (float64)."""
        return self.levels(n).double() / self.num_levels

    def regions(self, n: int | Int[Tensor, "*b"]) -> Regions:
        """The settled, active and worthless positions in the step from `n` to `n + 1`."""
        now, then = self.levels(n), self.levels(n + 1)
        settled = now == 0
        worthless = (now == self.num_levels) & (then == self.num_levels)
        return Regions(settled, ~(settled | worthless), worthless)

    def time_grid(self, eps: float) -> Float[Tensor, " levels"]:
        """Time in `(0, 1)` of each level `0..num_levels` (float64, strictly increasing).

        Level `k` in `1..T-1` sits at `e + k (1 - 2e) / (T - 1)` with `e = 10 eps`; settled sits at `eps`,
        worthless at `1 - eps`.

        Args:
            eps: Distance of the ends from 0 and 1, in `(0, 0.05)`; published models use 1e-4.

        Raises:
            ValueError: If `eps` leaves no room between the active levels.
        """
        largest = 0.5 / ACTIVE_MARGIN
        if not 0 < eps < largest:
            raise ValueError(f"`eps` must lie in (0, {largest}) to leave room for active levels; got {eps}.")
        margin = ACTIVE_MARGIN * eps
        share = torch.arange(1, self.num_levels, dtype=torch.float64) / max(self.num_levels - 1, 1)
        ends = torch.tensor([eps, 1 - eps], dtype=torch.float64)
        return torch.cat([ends[:1], margin + share * (1 - 2 * margin), ends[1:]])

    def times(self, n: int | Int[Tensor, "*b"], eps: float) -> Float[Tensor, "*b l"]:
        """Time of every position after `n` steps: the `time_grid(eps)` at its level."""
        levels = self.levels(n)
        return self.time_grid(eps).to(levels.device)[levels]

    def level_at(self, times: Float[Tensor, "*s"], eps: float) -> Int[Tensor, "*s"]:
        """The level whose time is nearest: the inverse of `times`."""
        grid = self.time_grid(eps)
        midpoints = (grid[1:] + grid[:-1]) / 2
        return torch.bucketize(times.double(), midpoints.to(times.device))


@final
@dataclass(frozen=True)
class _FirstPositions(AbstractHyperschedule):
    """The first positions of a hyperschedule that is not a countdown."""

    whole: AbstractHyperschedule
    length: int

    @property
    def num_levels(self) -> int:  # type: ignore[override]
        return self.whole.num_levels

    def levels(self, n: int | Int[Tensor, "*b"]) -> Int[Tensor, "*b l"]:
        return self.whole.levels(n)[..., : self.length]

    @property
    def settles(self) -> Int[Tensor, " l"]:
        return self.whole.settles[: self.length]


@dataclass(frozen=True)
class Windowed(AbstractHyperschedule):
    """The fields of every hyperschedule that moves a window of positions over the canvas.

    Attributes:
        length: Number of positions, at least 1.
        width: Positions that are active together, in `[1, length]`.
        num_levels: Noise levels `T` of a position, at least 1.

    Raises:
        ValueError: If a field lies outside its range.
    """

    length: int
    width: int
    num_levels: int

    def __post_init__(self) -> None:
        for name in ("length", "width", "num_levels"):
            value = getattr(self, name)
            require(isinstance(value, Integral), name, "an integer", value)
        require(self.length >= 1, "length", "at least 1 position", self.length)
        if not 1 <= self.width <= self.length:
            advice = f" Use {self.length} for one window over the whole canvas."
            raise OptionError("width", self.width, f"lie in [1, length={self.length}]", advice=advice)
        require(self.num_levels >= 1, "num_levels", "at least 1", self.num_levels)
