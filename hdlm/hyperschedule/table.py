"""A hyperschedule given level by level, as any table whose columns never rise and end at 0."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Int
from torch import Tensor

from hdlm.hyperschedule.base import AbstractHyperschedule


@final
@dataclass(frozen=True, init=False, eq=False, repr=False)
class Table(AbstractHyperschedule):
    """Levels from a table: row `n` holds the level of every position after `n` steps.

    The first row may hold any levels: a position that begins at 0 is a prompt, whose token must be given for
    generation; one that begins below `num_levels` starts from partly noised text.

    Args:
        table: Levels `[num_steps + 1, l]`, rows in the order of steps; the last row is all 0.
        num_levels: Level of pure noise; the largest level of the table by default.

    Raises:
        ValueError: If it is empty or not of integers, leaves `[0, num_levels]`, rises, or does not settle.
    """

    table: Int[Tensor, "rows l"]
    num_levels: int

    def __init__(self, table: Int[Tensor, "rows l"] | Sequence[Any], num_levels: int | None = None) -> None:
        table = _tensor(table)
        if table.ndim != 2 or table.numel() == 0:
            raise ValueError(f"`table` must be of shape [steps + 1, length]; got {tuple(table.shape)}.")
        if table.is_floating_point() or table.is_complex() or table.dtype == torch.bool:
            raise ValueError(f"`table` must hold integer levels; got {table.dtype}. Round it first.")
        largest = max(int(table.max()), 1)
        # Fields of a frozen dataclass cannot be assigned.
        object.__setattr__(self, "table", table.long().clone())
        object.__setattr__(self, "length", table.shape[1])
        object.__setattr__(self, "num_levels", largest if num_levels is None else num_levels)
        self._check()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Table):
            return NotImplemented
        return self.num_levels == other.num_levels and torch.equal(self.table, other.table)

    def __hash__(self) -> int:
        return hash((self.num_levels, tuple(self.table.flatten().tolist())))

    def _check(self) -> None:
        low, high = int(self.table.min()), int(self.table.max())
        if low < 0 or high > self.num_levels:
            raise ValueError(f"levels must lie in [0, num_levels={self.num_levels}]; got {low} to {high}.")
        rises = (self.table[1:] > self.table[:-1]).nonzero()
        if len(rises):
            step, position = rises[0].tolist()
            before, after = self.table[step : step + 2, position].tolist()
            raise ValueError(
                f"levels must never rise; position {position} goes from {before} at step {step} to {after}."
            )
        left = self.table[-1].nonzero()
        if len(left):
            position = int(left[0])
            raise ValueError(
                f"every position must end settled, at level 0; position {position} ends at level "
                f"{int(self.table[-1, position])}. Append a row of zeros."
            )

    def __repr__(self) -> str:
        return f"Table(length={self.length}, num_levels={self.num_levels}, num_steps={self.num_steps})"

    def levels(self, n: int | Int[Tensor, "*b"]) -> Int[Tensor, "*b l"]:
        """Row `n` of the table, or its last row."""
        rows = torch.as_tensor(n).clamp(max=len(self.table) - 1)
        chosen = self._held("table", rows.device).index_select(0, rows.reshape(-1))
        return chosen.view(*rows.shape, self.length)

    @property
    def settles(self) -> Int[Tensor, " l"]:
        return (self.table > 0).sum(0)


def _tensor(table: Tensor | Sequence[Any]) -> Tensor:
    """The levels as a tensor.

    Raises:
        ValueError: If the rows have different lengths.
    """
    if isinstance(table, Tensor):
        return table
    try:
        return torch.tensor(table)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`table` must be rows of levels, all of one length; got {table!r}.") from error
