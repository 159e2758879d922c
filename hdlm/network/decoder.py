"""Decoder: the network of Llama, Qwen2, Qwen3, GPT-2 and of the diffusion models that were made from them.

Each block adds two branches to the residual stream, `x + f(norm(x))`, with `f` attention and then a feed-forward
network. What differs between the families are switches of `DecoderConfig`. Attention is not causal by itself: as in
`DDiT`, the mask says which positions a position attends to. So one set of weights can be read as an autoregressive
model, with a causal mask, and as a diffusion model, with another one.

References: Llama (Touvron et al., arXiv 2302.13971), RMSNorm (Zhang and Sennrich, arXiv 1910.07467), SwiGLU (Shazeer,
arXiv 2002.05202), grouped-query attention (Ainslie et al., arXiv 2305.13245), Qwen2 (arXiv 2407.10671), Qwen3 (arXiv
2505.09388), GPT-2 (Radford et al., 2019).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, final

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hdlm.network.attention import SharedMask, attend
from hdlm.network.layers import AbstractBlock, See
from hdlm.network.packed import PackedLinear
from hdlm.network.recomputation import Recomputation
from hdlm.network.rotary import Rotary, RotaryScaling, Rotation
from hdlm.network.transformer import AbstractTransformer
from hdlm.strict_config import OptionError, read_table, require

__all__ = ["Decoder", "DecoderConfig"]

_COUNTS = (
    "vocab_size",
    "hidden_size",
    "num_blocks",
    "num_heads",
    "num_kv_heads",
    "head_dim",
    "intermediate_size",
    "max_length",
)
_INITIAL_DEVIATION = 0.02


@final
@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Sizes and switches of a decoder.

    | family | norm | feed-forward network | biases | positions | else |
    |---|---|---|---|---|---|
    | Llama | `"rms"` | gated, `"silu"` | none | rotary | |
    | Qwen2 | `"rms"` | gated, `"silu"` | `qkv_bias` | rotary | |
    | Qwen3 | `"rms"` | gated, `"silu"` | none | rotary | `qk_norm`, `head_dim` of its own |
    | GPT-2 | `"layer"` | `"gelu_tanh"` | all | learned | tied |

    Args:
        vocab_size: Rows of the embedding and of the output layer: the words, and the mask if there is one.
        hidden_size: Width of the residual stream.
        num_blocks: Number of blocks.
        num_heads: Number of heads of queries.
        num_kv_heads: Number of heads of keys and values; it divides `num_heads`.
        head_dim: Width of a head; even.
        intermediate_size: Width inside the feed-forward network.
        norm: `"rms"` for RMSNorm, `"layer"` for LayerNorm with a bias.
        norm_epsilon: What a norm adds to the mean square, or to the variance.
        activation: `"silu"`, `"gelu"`, or `"gelu_tanh"`, its approximation.
        gated: Whether the activation multiplies a second projection (SwiGLU).
        qkv_bias: Whether queries, keys and values have biases.
        out_bias: Whether the projection behind attention has a bias.
        mlp_bias: Whether the feed-forward network has biases.
        qk_norm: Whether queries and keys are normalised in each head, before they are rotated.
        learned_positions: Whether positions are rows of a table that are added to the embedding; else rotary.
        rotary_base: Base of the frequencies of rotary positions (`rope_theta`).
        rotary_scaling: How frequencies are changed for longer contexts; None leaves them as they are.
        tied: Whether the output layer uses the matrix of the embedding.
        dropout: Probability of dropping a coordinate of the embedding or of a branch in training, in `[0, 1)`.
        max_length: Number of positions that the network is meant for; with learned positions, rows of the table.

    Raises:
        ValueError: If a size is not a positive integer, a switch is unknown, or sizes contradict each other.
    """

    vocab_size: int
    hidden_size: int
    num_blocks: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    norm: Literal["rms", "layer"] = "rms"
    norm_epsilon: float = 1e-6
    activation: Literal["silu", "gelu", "gelu_tanh"] = "silu"
    gated: bool = True
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    learned_positions: bool = False
    rotary_base: float = 10_000.0
    rotary_scaling: RotaryScaling | None = None
    tied: bool = False
    dropout: float = 0.0
    max_length: int = 2048

    def __post_init__(self) -> None:
        for name in _COUNTS:
            value = getattr(self, name)
            counts = isinstance(value, int) and not isinstance(value, bool) and value >= 1
            require(counts, name, "a positive integer", value)
        for name in ("gated", "qkv_bias", "out_bias", "mlp_bias", "qk_norm", "learned_positions", "tied"):
            value = getattr(self, name)
            require(isinstance(value, bool), name, "true or false", value)
        for name, choices in (("norm", ("rms", "layer")), ("activation", tuple(_ACTIVATIONS))):
            value = getattr(self, name)
            require(value in choices, name, f"one of {', '.join(choices)}", value)
        for name in ("norm_epsilon", "rotary_base"):
            value = getattr(self, name)
            require(isinstance(value, int | float) and value > 0, name, "a positive number", value)
        if not isinstance(self.dropout, int | float) or not 0 <= self.dropout < 1:
            raise OptionError("dropout", self.dropout, "lie in [0, 1)")
        require(self.head_dim % 2 == 0, "head_dim", "even, so that a head splits into pairs", self.head_dim)
        require(
            self.num_heads % self.num_kv_heads == 0,
            "num_kv_heads",
            f"a divisor of {{}} ({self.num_heads})",
            self.num_kv_heads,
            "num_heads",
        )

    @property
    def timestep_embedding(self) -> bool:
        """Whether the network gets the noise level: never."""
        return False

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values, and the type of the network; the inverse of `from_dict`."""
        return {"type": "Decoder", **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> DecoderConfig:
        """Build a config from plain values, strictly.

        Args:
            fields: Field names and values, as `to_dict` gives them; those with a default may be left out.

        Raises:
            ValueError: If a key is unknown (the nearest known one is named), missing, or has a bad value.
        """
        return read_table(cls, {name: value for name, value in fields.items() if name != "type"})


_ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": functools.partial(F.gelu, approximate="tanh"),
}


@final
class _HeadNorm(nn.RMSNorm):
    """RMSNorm in the precision of its weight, whatever the precision of its input (bf16 under autocast)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype)).to(x.dtype)


@final
class DecoderBlock(AbstractBlock):
    """Attention and a feed-forward network, each behind a norm and added to the residual stream.

    Args:
        config: The shape of the network.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        width, inner, dim = config.hidden_size, config.intermediate_size, config.head_dim
        self.heads = (config.num_heads, config.num_kv_heads, config.num_kv_heads)
        self.activation = config.activation
        self.norm1 = _norm(config, width)
        self.qkv = PackedLinear(width, sum(self.heads) * dim, bias=config.qkv_bias)
        self.query_norm = _HeadNorm(dim, eps=config.norm_epsilon) if config.qk_norm else None
        self.key_norm = _HeadNorm(dim, eps=config.norm_epsilon) if config.qk_norm else None
        self.attn_out = PackedLinear(config.num_heads * dim, width, bias=config.out_bias)
        self.norm2 = _norm(config, width)
        self.gate = PackedLinear(width, inner, bias=config.mlp_bias) if config.gated else None
        self.up = PackedLinear(width, inner, bias=config.mlp_bias)
        self.down = PackedLinear(inner, width, bias=config.mlp_bias)
        self.dropout = nn.Dropout(config.dropout)

    @property
    def changes_branches(self) -> bool:
        return self.dropout.p > 0

    def forward(
        self,
        x: Float[Tensor, "b q h"],
        condition: None,
        rotation: Rotation,
        attention: SharedMask,
        see: See | None = None,
    ) -> Float[Tensor, "b q h"]:
        """Add both branches to the residual stream; `see`, if given, attends in the place of `attention`."""
        query, key, value = self._qkv(x, rotation)
        heads = attend(query, key, value, attention) if see is None else see(query, key, value)
        return self._residual(x, heads)

    def _qkv(self, x: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        """Queries `[b heads q d]`, keys and values `[b kv_heads q d]`."""
        heads = self.qkv(self.norm1(x)).unflatten(-1, (sum(self.heads), -1))
        query, key, value = heads.split(self.heads, dim=2)
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        query, key = rotation.turn(query, key)
        return query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)

    def _residual(self, x: Tensor, heads: Tensor) -> Tensor:
        """Add the output of attention, then that of the feed-forward network."""
        x = x + self.dropout(self.attn_out(heads.transpose(1, 2).flatten(2)))
        normed = self.norm2(x)
        activate = _ACTIVATIONS[self.activation]
        inner = (
            activate(self.up(normed)) if self.gate is None else activate(self.gate(normed)) * self.up(normed)
        )
        added: Tensor = x + self.dropout(self.down(inner))
        return added


@final
class Decoder(AbstractTransformer):
    """A decoder without a causal mask of its own and without conditioning on the noise level.

    Args:
        config: Sizes and switches.
    """

    config: DecoderConfig
    vocab_embed: nn.Embedding
    token_rows: ClassVar[tuple[str, ...]] = ("vocab_embed.weight", "output_layer.weight")

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.checkpoint_activations: Recomputation = "none"
        self.vocab_embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.positions = (
            nn.Embedding(config.max_length, config.hidden_size) if config.learned_positions else None
        )
        self.rotary_emb = self.new_rotary()
        self.blocks = nn.ModuleList(DecoderBlock(config) for _ in range(config.num_blocks))
        self.norm_final = _norm(config, config.hidden_size)
        self.output_layer = (
            None if config.tied else PackedLinear(config.hidden_size, config.vocab_size, bias=False)
        )
        self.dropout = nn.Dropout(config.dropout)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw matrices from a normal distribution of standard deviation 0.02; biases are 0, weights of norms 1."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=_INITIAL_DEVIATION)
            elif isinstance(module, nn.RMSNorm | nn.LayerNorm):
                nn.init.ones_(module.weight)
            bias = getattr(module, "bias", None)
            if isinstance(bias, nn.Parameter):
                nn.init.zeros_(bias)

    def new_rotary(self) -> Rotary:
        config = self.config
        if config.learned_positions:
            return Rotary.identity(config.head_dim)
        return Rotary(config.head_dim, config.rotary_base, config.rotary_scaling)

    def projection(self) -> tuple[Float[Tensor, "v h"], Float[Tensor, " v"] | None]:
        layer = self.vocab_embed if self.output_layer is None else self.output_layer
        return layer.weight, None

    def head(self, hidden: Float[Tensor, "*n h"]) -> Float[Tensor, "*n v"]:
        if self.output_layer is None:
            return super().head(hidden)
        projected: Tensor = self.output_layer(hidden)
        return projected

    def _embed(self, tokens: Tensor, blend: Tensor | None, places: Tensor) -> Tensor:
        x: Tensor = self.vocab_embed(tokens)
        if blend is not None:
            x = x.lerp(self.vocab_embed.weight[-1].expand_as(x), blend[..., None].to(x.dtype))
        if self.positions is not None:
            x = x + self.positions(places)
        dropped: Tensor = self.dropout(x)
        return dropped

    def _conditioning(self, condition: Tensor | None) -> None:
        if condition is not None:
            raise ValueError("This network gets no noise level: leave `condition` out.")

    def _normalise(self, x: Tensor, cond: Tensor | None) -> Tensor:
        normed: Tensor = self.norm_final(x)
        return normed


def _norm(config: DecoderConfig, width: int) -> nn.Module:
    return (nn.RMSNorm if config.norm == "rms" else nn.LayerNorm)(width, eps=config.norm_epsilon)
