"""DDiT, the diffusion transformer over tokens: tokens in, one vector of `v` numbers per position out.

The network does not know about noise processes. It may get one number for each position (`condition`) and the share of
the last embedding row to blend into each token (`blend`). Lou et al., "Discrete Diffusion Modeling by Estimating the
Ratios of the Data Distribution", https://arxiv.org/abs/2310.16834.
"""

from __future__ import annotations

from typing import ClassVar, final

from jaxtyping import Float
from torch import Tensor, nn

from hdlm.network.config import DDiTConfig
from hdlm.network.layers import Embedding, OutputLayer, TimestepEmbedding, TransformerBlock
from hdlm.network.recomputation import Recomputation
from hdlm.network.rotary import Rotary
from hdlm.network.transformer import AbstractTransformer

__all__ = ["DDiT"]


@final
class DDiT(AbstractTransformer):
    """A diffusion transformer with rotary positions and, if the config says so, adaptive layer norms.

    The parameter names are those of the published weights, whose state dict loads strictly.

    Args:
        config: Sizes and switches.
    """

    config: DDiTConfig
    token_rows: ClassVar[tuple[str, ...]] = (
        "vocab_embed.embedding",
        "output_layer.linear.weight",
        "output_layer.linear.bias",
    )

    def __init__(self, config: DDiTConfig) -> None:
        super().__init__()
        self.config = config
        self.checkpoint_activations: Recomputation = "none"
        self.vocab_embed = Embedding(config.vocab_size, config.hidden_size)
        self.rotary_emb = self.new_rotary()
        self.blocks = nn.ModuleList(TransformerBlock(config) for _ in range(config.num_blocks))
        self.output_layer = OutputLayer(config)
        self.sigma_map = TimestepEmbedding(config.cond_dim) if config.timestep_embedding else None

    def reset_parameters(self) -> None:
        """Draw new weights, as the published code does: output layer and adaLN are zero."""
        for layer in (self.vocab_embed, *self.blocks, self.output_layer, self.sigma_map):
            if layer is not None:
                layer.reset_parameters()

    def new_rotary(self) -> Rotary:
        return Rotary(self.config.head_dim)

    def head(self, hidden: Float[Tensor, "*n h"]) -> Float[Tensor, "*n v"]:
        projected: Tensor = self.output_layer.linear(hidden)
        return projected

    def projection(self) -> tuple[Float[Tensor, "v h"], Float[Tensor, " v"] | None]:
        linear = self.output_layer.linear
        return linear.weight, linear.bias

    def _embed(self, tokens: Tensor, blend: Tensor | None, places: Tensor) -> Tensor:
        embedded: Tensor = self.vocab_embed(tokens, blend)
        return embedded

    def _conditioning(self, condition: Tensor | None) -> Tensor | None:
        if (condition is None) != (self.sigma_map is None):
            raise ValueError(
                "This network gets no noise level: leave `condition` out."
                if self.sigma_map is None
                else "This network needs the noise level: pass `condition`, one number per position."
            )
        return None if self.sigma_map is None or condition is None else self.sigma_map(condition)

    def _normalise(self, x: Tensor, cond: Tensor | None) -> Tensor:
        return self.output_layer.normalise(x, cond)
