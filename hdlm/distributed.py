"""Several processes, started by `accelerate launch`, share work and gather their results."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, final

__all__ = ["ALONE", "Processes"]

_PATIENCE = timedelta(days=30)
"""Time that one process waits for the others, whose work may take longer."""


@final
@dataclass(frozen=True)
class Processes:
    """The processes of a launch; a single one without a launch.

    Attributes:
        count: Number of processes.
        rank: Index of this process.
    """

    count: int = 1
    rank: int = 0

    @classmethod
    def launched(cls, *, cpu: bool) -> tuple[Processes, Any]:
        """The processes of this launch, and the device of this one, or None for a single process.

        Args:
            cpu: Whether to use the CPU even if there is an accelerator.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) < 2:
            return ALONE, None
        from accelerate import PartialState

        state = PartialState(cpu=cpu, timeout=_PATIENCE)
        return cls(state.num_processes, state.process_index), state.device

    @property
    def is_main(self) -> bool:
        """Whether this is the one that writes files and messages."""
        return self.rank == 0

    def share(self, count: int) -> tuple[int, int]:
        """The first replicate of this process, and the number of its replicates."""
        least, rest = divmod(count, self.count)
        return self.rank * least + min(self.rank, rest), least + (self.rank < rest)

    def gather(self, own: Sequence[float]) -> tuple[float, ...]:
        """The numbers of all processes, in their order; each process gets all of them."""
        if self.count == 1:
            return tuple(own)
        from torch import distributed

        gathered: list[Any] = [None] * self.count
        distributed.all_gather_object(gathered, list(own))
        return tuple(number for numbers in gathered for number in numbers)

    def wait(self) -> None:
        """Wait until all processes have reached this call."""
        if self.count > 1:
            from torch import distributed

            distributed.barrier()


ALONE = Processes()
