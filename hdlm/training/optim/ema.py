"""An exponential moving average of the weights, updated after each optimizer step.

    average <- d average + (1 - d) weights,    d = min(decay, (1 + ticks) / (10 + ticks))

The smaller `d` of the first steps keeps the random initial weights out of the average of a short run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import final

import torch
from torch import Tensor, nn

from hdlm.training.distributed.sharding import full_tensor, named_parameters, spread_like

__all__ = ["ExponentialMovingAverage"]


@final
class ExponentialMovingAverage:
    """The average of a module's parameters, which evaluation and checkpoints use.

    Args:
        module: The module; its buffers are not averaged. FSDP must have sharded it before.
        decay: The `decay` above, in [0, 1); 0 keeps the weights themselves.

    Attributes:
        decay: The `decay` above.
        ticks: Number of updates so far.

    Raises:
        ValueError: If `decay` is out of range.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"`decay` must lie in [0, 1); got {decay}.")
        self.decay = decay
        self.ticks = 0
        self._module = module
        self._average = {name: value.detach().clone() for name, value in named_parameters(module).items()}

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the current weights."""
        keep = min(self.decay, (1 + self.ticks) / (10 + self.ticks))
        self.ticks += 1
        for name, value in named_parameters(self._module).items():
            self._average[name].lerp_(value, 1 - keep)

    def state_dict(self) -> dict[str, Tensor]:
        """The average, whole, under the parameters' names, and the module's buffers."""
        average = {name: full_tensor(value) for name, value in self._average.items()}
        return {**self._module.state_dict(), **average}

    @torch.no_grad()
    def restore(self, average: Mapping[str, Tensor], ticks: int) -> None:
        """Continue from an average.

        Args:
            average: Averaged weights, as returned by `state_dict`.
            ticks: Number of updates that it had.
        """
        self.ticks = ticks
        for name, value in self._average.items():
            value.copy_(spread_like(average[name], value))

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Use the average as the module's weights inside a `with` block, for evaluation."""
        own = {name: value.detach().clone() for name, value in named_parameters(self._module).items()}
        self.copy_to(self._module)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in named_parameters(self._module).items():
                    value.copy_(own[name])

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Overwrite a module's parameters with the average."""
        for name, parameter in named_parameters(module).items():
            parameter.copy_(self._average[name])
