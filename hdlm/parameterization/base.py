"""What the network's numbers mean: the reading of its output as `p(x_0 | x_t)` or as a score.

A network turns tokens into one vector of `v = N + 1` raw numbers a position. A parameterization says what those numbers
are, and what the network wants to be told besides the tokens. The two readings are two views of one distribution:
the process turns either into the other (`hdlm.process`).
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
"""What the inputs of a position depend on: no noise, the noise of that position alone, or that of others as well."""


@final
@dataclass(frozen=True, slots=True)
class NetworkInputs:
    """What the network is told besides the tokens.

    Attributes:
        condition: The number of each position's timestep embedding, or None for a network that is told no time.
        blend: Share of the mask's embedding mixed into each position's, in [0, 1], or None for none.
    """

    condition: Float[Tensor, "*b"] | None = None
    blend: Float[Tensor, "*b"] | None = None


def max_noise_per_sequence(u: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """The greatest noise fraction along the last axis, at each of its positions."""
    return u.amax(-1, keepdim=True).expand_as(u)


class AbstractParameterization(abc.ABC):
    """The meaning of raw outputs, row by row.

    The methods take any leading shape `*n`: the whole canvas, or only the positions that are asked about. Raw outputs
    have a row for each word and one for the mask, which networks of processes without a mask (uniform noise) may lack;
    answers always have both.
    """

    @property
    def lookback(self) -> int:
        """The raw output that speaks of position `i` stands at position `i - lookback`."""
        return 0

    @property
    def aligned(self) -> AbstractParameterization:
        """What the numbers mean at the position that they are about; see `Shifted`."""
        return self

    @property
    def is_softmax(self) -> bool:
        """Whether `log_clean` is the log-softmax of the words' raw outputs, whatever the noise."""
        return False

    @property
    def noise_dependence(self) -> NoiseDependence:
        """What `inputs` depends on. This decides what generation may keep between calls of the network.

        `"none"`: `inputs` are the same at every noise, so an answer is valid until a token changes. `"position"`: those
        of a position depend on its own noise alone, which is 0 from the time that it is settled, so its keys and values
        can be kept. `"sequence"`: they depend on the noise of other positions as well, so nothing can be kept. This is
        the default, because it is right for every parameterization. `hdlm verify` checks the statement.
        """
        return "sequence"

    @abc.abstractmethod
    def inputs(self, u: Float[Tensor, "*b"]) -> NetworkInputs:
        """What the network is told at noise fraction `u`."""

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
        """`log p(x_0 | x_t)` over the words, up to a constant a row: all that a draw needs, and often for free."""
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
