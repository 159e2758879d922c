"""Pass: what a network is asked, as one value, so that several questions can be answered in one go."""

from __future__ import annotations

from typing import NamedTuple, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hdlm.network.attention import Attention
from hdlm.network.cache import KVCache

__all__ = ["Pass"]


@final
class Pass(NamedTuple):
    """The arguments of `DDiT.features`, for one of several passes that are made together."""

    tokens: Int[Tensor, "b q"]
    positions: Int[Tensor, "#b q"] | None = None
    condition: Float[Tensor, "#b #q"] | None = None
    blend: Float[Tensor, "#b #q"] | None = None
    attention: Attention = None
    cache: KVCache | None = None
    store: Int[Tensor, " n"] | None = None

    @property
    def num_kept(self) -> int:
        """How many positions the cache holds."""
        return 0 if self.cache is None else len(self.cache)

    @property
    def num_keys(self) -> int:
        """How many positions may be attended to: those that are kept, then the current ones."""
        return self.num_kept + self.tokens.shape[1]

    @property
    def places(self) -> Int[Tensor, "#b q"]:
        """Where each token stands; by default those that follow the kept ones."""
        if self.positions is not None:
            return self.positions
        return torch.arange(self.num_kept, self.num_keys, device=self.tokens.device)[None]
