"""Several processes, started by `accelerate launch`, share work out and put what they found together again."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, final

__all__ = ["ALONE", "Processes"]

_PATIENCE = timedelta(days=30)
"""How long one process waits for the others, who may have been given longer work."""


@final
@dataclass(frozen=True)
class Processes:
    """The processes of a launch; one if there was none.

    Attributes:
        count: How many there are.
        rank: Which of them this is.
    """

    count: int = 1
    rank: int = 0

    @classmethod
    def launched(cls, *, cpu: bool) -> tuple[Processes, Any]:
        """The processes of this launch, and the device of this one; `None` if it is alone.

        Args:
            cpu: Whether to work on the CPU whatever else there is.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) < 2:
            return ALONE, None
        from accelerate import PartialState

        state = PartialState(cpu=cpu, timeout=_PATIENCE)
        return cls(state.num_processes, state.process_index), state.device

    @property
    def is_main(self) -> bool:
        """Whether this is the one that writes and speaks."""
        return self.rank == 0

    def share(self, count: int) -> tuple[int, int]:
        """The first of the replicates that fall to this process, and how many do."""
        least, rest = divmod(count, self.count)
        return self.rank * least + min(self.rank, rest), least + (self.rank < rest)

    def gather(self, own: Sequence[float]) -> tuple[float, ...]:
        """The numbers of all processes, in their order; the same for each."""
        if self.count == 1:
            return tuple(own)
        from torch import distributed

        found: list[Any] = [None] * self.count
        distributed.all_gather_object(found, list(own))
        return tuple(number for numbers in found for number in numbers)

    def wait(self) -> None:
        """Until all processes have come here."""
        if self.count > 1:
            from torch import distributed

            distributed.barrier()


ALONE = Processes()
