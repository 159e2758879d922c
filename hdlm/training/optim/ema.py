"""An exponential moving average of the weights, one tick an optimizer step.

    average <- d average + (1 - d) weights,    d = min(decay, (1 + ticks) / (10 + ticks))

so that a short run is not averaged with its random beginning.
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
    """Keeps the average of a module's parameters, which evaluation and checkpoints use.

    Args:
        module: Whose parameters; its buffers are not averaged. If FSDP spreads them, it must have done so.
        decay: The `decay` above, in [0, 1); 0 keeps the weights themselves.

    Attributes:
        decay: As above.
        ticks: Optimizer steps so far.

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
        """Move the average towards the weights of now."""
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
        """Go on from what `state_dict` gave.

        Args:
            average: That.
            ticks: Optimizer steps it is the average of.
        """
        self.ticks = ticks
        for name, value in self._average.items():
            value.copy_(spread_like(average[name], value))

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Put the average in the place of the module's weights for the length of a block, for evaluation."""
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
