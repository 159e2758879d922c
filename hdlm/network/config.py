"""The configuration of a DDiT: the numbers that determine its parameters and their sizes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol, final, runtime_checkable

from hdlm.strict_config import OptionError, read_table, require

__all__ = ["DDiTConfig", "NetworkShape"]

_COUNTS = ("vocab_size", "hidden_size", "num_blocks", "num_heads", "cond_dim", "mlp_ratio", "max_length")
_SWITCHES = ("timestep_embedding", "condition_blocks", "condition_output")


@runtime_checkable
class NetworkShape(Protocol):
    """What the rest of the package reads of the configuration of a network; see `hdlm.network.DDiTConfig`."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def hidden_size(self) -> int: ...

    @property
    def num_blocks(self) -> int: ...

    @property
    def num_heads(self) -> int: ...

    @property
    def num_kv_heads(self) -> int: ...

    @property
    def head_dim(self) -> int: ...

    @property
    def max_length(self) -> int: ...

    @property
    def timestep_embedding(self) -> bool: ...

    def to_dict(self) -> dict[str, Any]: ...


@final
@dataclasses.dataclass(frozen=True)
class DDiTConfig:
    """Sizes and switches of a diffusion transformer over tokens.

    The published families are choices of the three switches: epsilon-hybrid uses none, gamma-hybrid
    `timestep_embedding` and `condition_blocks`, and MDLM, SEDD, BD3-LM, GIDD and Duo all three.

    Args:
        vocab_size: Rows of the embedding and of the output layer (words plus mask, where there is a mask).
        hidden_size: Width of the residual stream.
        num_blocks: Number of transformer blocks.
        num_heads: Number of attention heads; `hidden_size / num_heads` must be even (rotary pairs).
        cond_dim: Width of the conditioning vector.
        dropout: Probability of dropping a coordinate of a residual branch, in `[0, 1)`.
        mlp_ratio: Hidden width of the feed-forward part, in units of `hidden_size`.
        timestep_embedding: Whether the network gets the noise (has `sigma_map`).
        condition_blocks: Whether every block is modulated by the noise.
        condition_output: Whether the final norm is modulated by the noise.
        max_length: Number of positions that the network is meant for. Rotary positions need no table, so the network
            itself has no limit; it is for code that chooses a context length.

    Raises:
        ValueError: If a size is not a positive integer, or the sizes or switches contradict each other.
    """

    vocab_size: int
    hidden_size: int
    num_blocks: int
    num_heads: int
    cond_dim: int = 128
    dropout: float = 0.0
    mlp_ratio: int = 4
    timestep_embedding: bool = False
    condition_blocks: bool = False
    condition_output: bool = False
    max_length: int = 1024

    def __post_init__(self) -> None:
        for name in _COUNTS:
            value = getattr(self, name)
            counts = isinstance(value, int) and not isinstance(value, bool) and value >= 1
            require(counts, name, "a positive integer", value)
        for name in _SWITCHES:
            value = getattr(self, name)
            require(isinstance(value, bool), name, "true or false", value)
        if not isinstance(self.dropout, int | float) or not 0 <= self.dropout < 1:
            raise OptionError("dropout", self.dropout, "lie in [0, 1)")
        require(
            self.hidden_size % (2 * self.num_heads) == 0,
            "hidden_size",
            f"an even multiple of {{}} ({self.num_heads}), so that every head splits into rotary pairs",
            self.hidden_size,
            "num_heads",
        )
        require(
            self.timestep_embedding or not (self.condition_blocks or self.condition_output),
            "timestep_embedding",
            "true with {} or {}, which use it",
            False,
            "condition_blocks",
            "condition_output",
        )

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_heads

    @property
    def num_kv_heads(self) -> int:
        """Number of heads of keys and values: one for each head of queries."""
        return self.num_heads

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values; the inverse of `from_dict`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> DDiTConfig:
        """Build a config from plain values, strictly.

        Args:
            fields: Field names and values, as returned by `to_dict`; those with a default may be left out.

        Raises:
            ValueError: If a key is unknown (the nearest known one is named), missing, or has a bad value.
        """
        return read_table(cls, fields)
