"""DDiT, the diffusion transformer over tokens: tokens in, one vector of `v` numbers per position out.

What the numbers mean is not its business, and it has never heard of noise: it may be told a number per
position (`condition`) and how much of the last embedding row to blend into each token (`blend`). Lou et al.,
"Discrete Diffusion Modeling by Estimating the Ratios of the Data Distribution",
https://arxiv.org/abs/2310.16834.
"""

from __future__ import annotations

import functools
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hdlm.network.attention import Attention, resolve
from hdlm.network.cache import KVCache, Store
from hdlm.network.config import DDiTConfig
from hdlm.network.layers import Block, Embedding, OutputLayer, TimestepEmbedding
from hdlm.network.rotary import Rotary

__all__ = ["DDiT"]


@final
class DDiT(nn.Module):
    """A transformer that sees both ways, or as `attention` tells it.

    Parameters and their names are those of the published weights, whose state dict loads strictly.

    Args:
        config: Sizes and switches.

    Attributes:
        config: As given.
        checkpoint_activations: Recompute every block in the backward pass instead of keeping its activations.
    """

    def __init__(self, config: DDiTConfig) -> None:
        super().__init__()
        self.config = config
        self.checkpoint_activations = False
        self.vocab_embed = Embedding(config.vocab_size, config.hidden_size)
        self.rotary_emb = Rotary(config.head_dim)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_blocks))
        self.output_layer = OutputLayer(config)
        self.sigma_map = TimestepEmbedding(config.cond_dim) if config.timestep_embedding else None

    def reset_parameters(self) -> None:
        """Draw all weights anew, as the published code does: output layer and adaLN are zero."""
        for layer in (self.vocab_embed, *self.blocks, self.output_layer, self.sigma_map):
            if layer is not None:
                layer.reset_parameters()

    def forward(
        self,
        tokens: Int[Tensor, "b q"],
        *,
        positions: Int[Tensor, "#b q"] | None = None,
        condition: Float[Tensor, "#b #q"] | None = None,
        blend: Float[Tensor, "#b #q"] | None = None,
        attention: Attention = None,
        cache: KVCache | None = None,
        store: Store | None = None,
    ) -> Float[Tensor, "b q v"]:
        """`head(features(...))`: see `features` for the arguments."""
        hidden = self.features(
            tokens,
            positions=positions,
            condition=condition,
            blend=blend,
            attention=attention,
            cache=cache,
            store=store,
        )
        return self.head(hidden)

    def features(
        self,
        tokens: Int[Tensor, "b q"],
        *,
        positions: Int[Tensor, "#b q"] | None = None,
        condition: Float[Tensor, "#b #q"] | None = None,
        blend: Float[Tensor, "#b #q"] | None = None,
        attention: Attention = None,
        cache: KVCache | None = None,
        store: Store | None = None,
    ) -> Float[Tensor, "b q h"]:
        """All but the vocabulary projection, so that it need run on chosen positions only.

        Args:
            tokens: Rows of the embedding, in `[0, vocab_size)`.
            positions: Where each token stands, any integers; by default those that follow the cached ones.
            condition: What the network is told at each position (the total noise sigma of gamma-hybrid, SEDD,
                MDLM; the time of GIDD); required if and only if `config.timestep_embedding`.
            blend: Share in `[0, 1]` of the last embedding row in every
                input: `(1 - blend) E[x] + blend E[last]`.
            attention: Who may attend whom (True = may; keys are the cached positions, then the current ones);
                `None` if all attend all. A query that may attend nobody attends all keys equally.
            cache: Keys and values of earlier positions, attended to besides the current ones.
            store: Which current positions the cache keeps after this pass: a number of leading ones, indices
                or a mask; by default none.

        Returns:
            Hidden states after the final norm.

        Raises:
            ValueError: If `condition` does not fit the network, `store` comes without `cache`, or `attention`
                or `cache` do not fit the tokens.
        """
        if store is not None and cache is None:
            raise ValueError(
                "`store` says what a cache keeps, but there is no `cache`: pass one, or leave `store` out."
            )
        num_queries, num_cached = tokens.shape[1], 0 if cache is None else len(cache)
        if positions is None:
            positions = torch.arange(num_cached, num_cached + num_queries, device=tokens.device)[None]
        mask, rotation = resolve(attention, self.rotary_emb(positions), num_queries, num_cached + num_queries)
        told = self._told(condition)
        x = self.vocab_embed(tokens, blend)
        for index, block in enumerate(self.blocks):
            if cache is not None:
                x = block(x, told, rotation, mask, functools.partial(cache.write, index))
            elif self.checkpoint_activations and torch.is_grad_enabled():
                x = checkpoint(block, x, told, rotation, mask, use_reentrant=False)
            else:
                x = block(x, told, rotation, mask)
        if cache is not None and store is not None:
            cache.keep(store, num_queries)
        return self.output_layer.normalise(x, told)

    def head(self, hidden: Float[Tensor, "*n h"]) -> Float[Tensor, "*n v"]:
        """Project hidden states, of any selection of positions, onto the vocabulary."""
        projected: Tensor = self.output_layer.linear(hidden)
        return projected

    def projection(self) -> tuple[Float[Tensor, "v h"], Float[Tensor, " v"]]:
        """The matrix and the bias of `head`, for losses that never hold all of its output."""
        linear = self.output_layer.linear
        return linear.weight, linear.bias

    def new_cache(self) -> KVCache:
        """An empty cache for `features`."""
        return KVCache()

    def _told(self, condition: Tensor | None) -> Tensor | None:
        """The conditioning vectors, or `None` for a network without conditioning."""
        if (condition is None) != (self.sigma_map is None):
            raise ValueError(
                "This network is told nothing about the noise: leave `condition` out."
                if self.sigma_map is None
                else "This network is told the noise: pass `condition`, one number per position."
            )
        return None if self.sigma_map is None or condition is None else self.sigma_map(condition)
