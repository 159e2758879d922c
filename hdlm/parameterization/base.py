"""The meaning of the network's outputs: `p(x_0 | x_t)` or a score.

A network turns tokens into one vector of `v = N + 1` raw numbers per position. A parameterization defines the meaning
of these numbers, and the inputs of the network in addition to the tokens. Both meanings describe one distribution: the
process turns either into the other (`hdlm.process`).
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import Literal, final

from jaxtyping import Float, Int
from torch import Tensor

from hdlm.process import AbstractNoiseProcess

__all__ = ["AbstractParameterization", "NetworkInputs", "NoiseDependence", "max_noise_per_sequence"]

NoiseDependence = Literal["none", "position", "sequence"]
"""What the network inputs of a position depend on: no noise, its own noise, or also the noise of other positions."""


@final
@dataclass(frozen=True, slots=True)
class NetworkInputs:
    """The network's inputs in addition to the tokens.

    Attributes:
        condition: Conditioning number of each position, or None for a network without a timestep embedding.
        blend: Share of the mask's embedding mixed into each position's, in [0, 1], or None for none.
    """

    condition: Float[Tensor, "*b"] | None = None
    blend: Float[Tensor, "*b"] | None = None


def max_noise_per_sequence(u: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """The largest noise fraction along the last axis, at each of its positions."""
    return u.amax(-1, keepdim=True).expand_as(u)


class AbstractParameterization(abc.ABC):
    """The meaning of raw outputs, row by row.

    The methods take any leading shape `*n`: the whole canvas, or selected positions. Raw outputs have a row for each
    word and one for the mask, which networks of processes without a mask (uniform noise) may lack; results always have
    both.
    """

    @property
    def lookback(self) -> int:
        """The raw output for position `i` is at position `i - lookback`."""
        return 0

    @property
    def aligned(self) -> AbstractParameterization:
        """The parameterization without `Shifted` around it."""
        return self

    @property
    def is_softmax(self) -> bool:
        """Whether `log_clean` is the log-softmax of the words' raw outputs, whatever the noise."""
        return False

    @property
    def noise_dependence(self) -> NoiseDependence:
        """What `inputs` depends on, which determines what generation may reuse between calls of the network.

        `"none"`: `inputs` are equal at every noise, so a result is valid until a token changes. `"position"`: those of
        a position depend only on its own noise, which is 0 once it is settled, so its keys and values can be cached.
        `"sequence"`: they depend on the noise of other positions as well, so nothing can be cached. This is the
        default, because it is right for every parameterization. `hdlm verify` checks the value.
        """
        return "sequence"

    @abc.abstractmethod
    def inputs(self, u: Float[Tensor, "*b"]) -> NetworkInputs:
        """The network's inputs at noise fraction `u`."""

    @abc.abstractmethod
    def log_clean(
        self,
        process: AbstractNoiseProcess,
        raw: Float[Tensor, "*n rows"],
        x_t: Int[Tensor, "*n"],
        u: Float[Tensor, "*n"],
    ) -> Float[Tensor, "*n v"]:
        """`log p(x_0 | x_t)`, normalised over the words; minus infinity at the mask."""

    def log_weights(
        self,
        process: AbstractNoiseProcess,
        raw: Float[Tensor, "*n rows"],
        x_t: Int[Tensor, "*n"],
        u: Float[Tensor, "*n"],
    ) -> Float[Tensor, "*n words"]:
        """`log p(x_0 | x_t)` over the words, up to a constant per row: enough for a draw, and often without cost."""
        return self.log_clean(process, raw, x_t, u)[..., :-1]

    @abc.abstractmethod
    def log_score(
        self,
        process: AbstractNoiseProcess,
        raw: Float[Tensor, "*n rows"],
        x_t: Int[Tensor, "*n"],
        u: Float[Tensor, "*n"],
    ) -> Float[Tensor, "*n v"]:
        """`log p_u(y) / p_u(x_t)` for every `y`; 0 at `y = x_t`."""
