"""Pass: the arguments of a forward pass as one value, so that several passes can be run together."""

from __future__ import annotations

from typing import NamedTuple, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hdlm.network.attention import Attention
from hdlm.network.cache import KVCache

__all__ = ["Pass", "Previous"]


@final
class Previous(NamedTuple):
    """The distributions of the call before, which self-conditioned networks read.

    Attributes:
        log_p: Log probabilities of the words, up to a constant per row.
        place: Row of `log_p` of each position; -1 for a position without one.
    """

    log_p: Float[Tensor, "n v"]
    place: Int[Tensor, "b q"]


@final
class Pass(NamedTuple):
    """The arguments of `DDiT.features`; see there.

    The last two are for self-conditioned networks: whether each position is settled, and the distributions of the call
    before.
    """

    tokens: Int[Tensor, "b q"]
    positions: Int[Tensor, "#b q"] | None = None
    condition: Float[Tensor, "#b #q"] | None = None
    blend: Float[Tensor, "#b #q"] | None = None
    attention: Attention = None
    cache: KVCache | None = None
    store: Int[Tensor, " n"] | None = None
    settled: Bool[Tensor, " q"] | None = None
    previous: Previous | None = None

    @property
    def num_kept(self) -> int:
        """Number of positions in the cache."""
        return 0 if self.cache is None else len(self.cache)

    @property
    def num_keys(self) -> int:
        """Number of keys: the cached positions, then the current ones."""
        return self.num_kept + self.tokens.shape[1]

    @property
    def places(self) -> Int[Tensor, "#b q"]:
        """Position of each token; by default those after the cached ones."""
        if self.positions is not None:
            return self.positions
        return torch.arange(self.num_kept, self.num_keys, device=self.tokens.device)[None]
