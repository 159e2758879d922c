"""An exponential moving average of the weights, one tick an optimizer step.

    average <- d average + (1 - d) weights,    d = min(decay, (1 + ticks) / (10 + ticks))

so that a short run is not averaged with its random beginning.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import final

import torch
from torch import Tensor, nn

__all__ = ["ExponentialMovingAverage"]


@final
class ExponentialMovingAverage:
    """Keeps the average of a module's parameters, which evaluation and checkpoints use.

    Args:
        module: Whose parameters; its buffers are not averaged.
        decay: The `decay` above, in [0, 1); 0 keeps the weights themselves.

    Raises:
        ValueError: If `decay` is out of range.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"`decay` must lie in [0, 1); got {decay}.")
        self.decay = decay
        self.ticks = 0
        self._module = module
        self._average = {name: value.detach().clone() for name, value in module.named_parameters()}

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the weights of now."""
        keep = min(self.decay, (1 + self.ticks) / (10 + self.ticks))
        self.ticks += 1
        for name, value in self._module.named_parameters():
            self._average[name].lerp_(value, 1 - keep)

    def state_dict(self) -> dict[str, Tensor]:
        """The average, under the parameters' names, and the module's buffers."""
        return {**self._module.state_dict(), **self._average}

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Put the average in the place of the module's weights for the length of a block, for evaluation."""
        own = {name: value.detach().clone() for name, value in self._module.named_parameters()}
        self.give_to(self._module)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in self._module.named_parameters():
                    value.copy_(own[name])

    @torch.no_grad()
    def give_to(self, module: nn.Module) -> None:
        """Overwrite a module's parameters with the average."""
        for name, parameter in module.named_parameters():
            parameter.copy_(self._average[name])
