"""The layers of a DDiT, under the parameter names of the published weights.

A block adds two branches to the residual stream, `x + gate * dropout(f(norm(x) * (1 + scale) + shift))`, with
`f` attention and then a feed-forward network. Shift, scale and gate are linear in the conditioning vector (adaLN:
Peebles & Xie, "Scalable Diffusion Models with Transformers", https://arxiv.org/abs/2212.09748), or absent.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from typing import NamedTuple, TypeAlias, final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from hdlm.network.attention import SharedMask, attend
from hdlm.network.config import DDiTConfig
from hdlm.network.packed import PackedLinear
from hdlm.network.rotary import Rotation

__all__ = [
    "AbstractBlock",
    "Embedding",
    "Modulation",
    "OutputLayer",
    "See",
    "TimestepEmbedding",
    "TransformerBlock",
]

See: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Attention of the current queries, given their keys and values; it may use caches."""

_NORM_EPSILON = 1e-5


@final
class Modulation(NamedTuple):
    """The effect of the conditioning on one branch; None for no effect."""

    shift: Float[Tensor, "#b #q h"] | None = None
    scale: Float[Tensor, "#b #q h"] | None = None
    gate: Float[Tensor, "#b #q h"] | None = None

    def enter(self, x: Float[Tensor, "b q h"]) -> Float[Tensor, "b q h"]:
        """Modulate the normalised input of the branch."""
        return x if self.shift is None or self.scale is None else x * (1 + self.scale) + self.shift

    def leave(self, x: Float[Tensor, "b q h"]) -> Float[Tensor, "b q h"]:
        """Gate the output of the branch."""
        return x if self.gate is None else self.gate * x


@final
class Embedding(nn.Module):
    """Tokens to vectors; the last row may be blended into each of them.

    Args:
        vocab_size: Number of rows.
        hidden_size: Width of the vectors.
    """

    def __init__(self, vocab_size: int, hidden_size: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(vocab_size, hidden_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw every row uniformly with entries up to `1 / sqrt(hidden_size)`."""
        nn.init.kaiming_uniform_(self.embedding, a=math.sqrt(5))

    def forward(
        self, tokens: Int[Tensor, "b q"], blend: Float[Tensor, "#b #q"] | None = None
    ) -> Float[Tensor, "b q h"]:
        """Look up `E[x]`, or `(1 - blend) E[x] + blend E[last]`."""
        rows = F.embedding(tokens, self.embedding)
        if blend is None:
            return rows
        return rows.lerp(self.embedding[-1].expand_as(rows), blend[..., None].to(rows.dtype))


@final
class TimestepEmbedding(nn.Module):
    """A noise level to a conditioning vector: `silu(MLP([cos(sigma f), sin(sigma f)]))`.

    The frequencies are `f_k = 10000^(-k / 128)`, `k` from 0 to 127.

    Args:
        cond_dim: Width of the conditioning vector.
    """

    num_frequencies = 128
    max_period = 10_000.0

    def __init__(self, cond_dim: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            PackedLinear(2 * self.num_frequencies, cond_dim), nn.SiLU(), PackedLinear(cond_dim, cond_dim)
        )

    def reset_parameters(self) -> None:
        """Initialise as linear layers are by default."""
        _reset_layers(self)

    def forward(self, sigma: Float[Tensor, "*b"]) -> Float[Tensor, "*b c"]:
        """Embed every noise level by itself."""
        sigma = sigma.to(torch.promote_types(sigma.dtype, torch.float32))
        exponents = torch.arange(self.num_frequencies, device=sigma.device, dtype=sigma.dtype)
        angles = sigma[..., None] * self.max_period ** (-exponents / self.num_frequencies)
        waves = torch.cat([angles.cos(), angles.sin()], dim=-1)
        return F.silu(self.mlp(waves.to(self.mlp.get_parameter("0.weight").dtype)))


class AbstractBlock(nn.Module, abc.ABC):
    """Attention and a feed-forward network, as residual branches."""

    @property
    @abc.abstractmethod
    def changes_branches(self) -> bool:
        """Whether a branch is gated or has dropout before it is added, so that gradients depend on its output."""

    def compile_parts(self) -> None:
        """Compile what lies before and behind attention: two graphs for all blocks, caches and batches."""
        for name in ("_qkv", "_residual"):
            setattr(self, name, torch.compile(getattr(self, name), dynamic=True))


@final
class TransformerBlock(AbstractBlock):
    """One transformer block.

    Args:
        config: The network's shape.
    """

    def __init__(self, config: DDiTConfig) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.mlp_ratio * config.hidden_size
        self.num_heads = config.num_heads
        self.norm1 = nn.LayerNorm(width, eps=_NORM_EPSILON, bias=False)
        self.attn_qkv = PackedLinear(width, 3 * width, bias=False)
        self.attn_out = PackedLinear(width, width, bias=False)
        self.norm2 = nn.LayerNorm(width, eps=_NORM_EPSILON, bias=False)
        self.mlp = nn.Sequential(
            PackedLinear(width, inner), nn.GELU(approximate="tanh"), PackedLinear(inner, width)
        )
        self.dropout = nn.Dropout(config.dropout)
        self.adaLN_modulation = PackedLinear(config.cond_dim, 6 * width) if config.condition_blocks else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Linear layers get their default; adaLN gets zeros, so that a conditioned block starts as the identity."""
        _reset_layers(self)
        if self.adaLN_modulation is not None:
            _zero(self.adaLN_modulation)

    @property
    def changes_branches(self) -> bool:
        return self.adaLN_modulation is not None or self.dropout.p > 0

    def forward(
        self,
        x: Float[Tensor, "b q h"],
        condition: Float[Tensor, "#b #q c"] | None,
        rotation: Rotation,
        attention: SharedMask,
        see: See | None = None,
    ) -> Float[Tensor, "b q h"]:
        """Add both branches to the residual stream; `see`, if given, attends in place of `attention`."""
        attn_mod, mlp_mod = self._modulations(condition)
        query, key, value = self._qkv(x, attn_mod, rotation)
        heads = attend(query, key, value, attention) if see is None else see(query, key, value)
        return self._residual(x, heads, attn_mod, mlp_mod)

    def _modulations(self, condition: Tensor | None) -> tuple[Modulation, Modulation]:
        if self.adaLN_modulation is None:
            return Modulation(), Modulation()
        chunks = self.adaLN_modulation(condition).chunk(6, dim=-1)
        return Modulation(*chunks[:3]), Modulation(*chunks[3:])

    def _qkv(self, x: Tensor, attn_mod: Modulation, rotation: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, `[b heads q d]`."""
        qkv = self.attn_qkv(attn_mod.enter(self.norm1(x))).unflatten(-1, (3, self.num_heads, -1))
        rotated, value = qkv.split((2, 1), dim=2)
        query, key = (part.transpose(1, 2) for part in rotation(rotated).unbind(2))
        return query, key, value[:, :, 0].transpose(1, 2)

    def _residual(self, x: Tensor, heads: Tensor, attn_mod: Modulation, mlp_mod: Modulation) -> Tensor:
        """Add the outputs of attention and of the feed-forward network."""
        x = x + attn_mod.leave(self.dropout(self.attn_out(heads.transpose(1, 2).flatten(2))))
        return x + mlp_mod.leave(self.dropout(self.mlp(mlp_mod.enter(self.norm2(x)))))


@final
class OutputLayer(nn.Module):
    """The final norm, modulated or not, and the projection onto the vocabulary.

    Args:
        config: The network's shape.
    """

    def __init__(self, config: DDiTConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.norm_final = nn.LayerNorm(width, eps=_NORM_EPSILON, bias=False)
        self.linear = PackedLinear(width, config.vocab_size)
        self.adaLN_modulation = PackedLinear(config.cond_dim, 2 * width) if config.condition_output else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Zero both linear layers, so that a fresh network predicts the uniform distribution."""
        self.norm_final.reset_parameters()
        _zero(self.linear)
        if self.adaLN_modulation is not None:
            _zero(self.adaLN_modulation)

    def normalise(
        self, x: Float[Tensor, "b q h"], condition: Float[Tensor, "#b #q c"] | None
    ) -> Float[Tensor, "b q h"]:
        """The final norm, without the projection."""
        x = self.norm_final(x)
        if self.adaLN_modulation is None:
            return x
        return Modulation(*self.adaLN_modulation(condition).chunk(2, dim=-1)).enter(x)


def _reset_layers(module: nn.Module) -> None:
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.LayerNorm):
            layer.reset_parameters()


def _zero(linear: nn.Linear) -> None:
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
