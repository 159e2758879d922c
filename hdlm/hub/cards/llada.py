"""LLaDA and iLLaDA (arXiv 2502.09992), `model_type: llada`: masked diffusion with the network of Llama, full attention.

The config has names of its own. `ff_proj` is the gate of the feed-forward network. The embedding has `embedding_size`
rows, more than the tokenizer has tokens. The output at a position predicts the token of that position.
"""

from __future__ import annotations

from typing import ClassVar, final

from hdlm.checkpoint.weights import Stored
from hdlm.hub.card import AbstractCard, Blueprint, Evidence
from hdlm.hub.cards._decoder import CANVAS, key_table, masked_rows, special_tokens
from hdlm.hub.cards._field import STEPS, unknown
from hdlm.hub.fields import Fields
from hdlm.hyperschedule import Block, flat
from hdlm.network import DecoderConfig
from hdlm.parameterization import Mean
from hdlm.process import Absorbing

__all__ = ["LLaDACard"]

_FIXED = {
    "activation_type": "silu",
    "alibi": False,
    "attention_layer_norm": False,
    "bias_for_layer_norm": False,
    "block_group_size": 1,
    "block_type": "llama",
    "include_bias": False,
    "input_emb_norm": False,
    "layer_norm_type": "rms",
    "layer_norm_with_affine": True,
    "rope": True,
    "scale_logits": False,
}
"""Switches that all released models have like this; another value is refused."""
_SIZES = frozenset(
    {"d_model", "n_heads", "n_kv_heads", "n_layers", "mlp_hidden_size", "embedding_size", "vocab_size"}
    | {"max_sequence_length", "rms_norm_eps", "rope_theta", "weight_tying", "include_qkv_bias"}
)
_SILENT = frozenset(
    {"alibi_bias_max", "attention_dropout", "attention_layer_norm_with_affine", "embedding_dropout"}
    | {"eos_token_id", "pad_token_id", "bos_token_id", "flash_attention", "init_cutoff_factor", "init_device"}
    | {"init_fn", "init_std", "mlp_ratio", "multi_query_attention", "precision", "residual_dropout"}
    | {"rope_full_precision", "use_cache"}
)
_LAYER = {
    "norm1": "attn_norm",
    "attn_out": "attn_out",
    "norm2": "ff_norm",
    "gate": "ff_proj",
    "up": "up_proj",
}
_TOP = {"vocab_embed": "wte", "norm_final": "ln_f", "output_layer": "ff_out"}
_BLOCK = 32


@final
class LLaDACard(AbstractCard):
    """Masked diffusion, flat or in blocks."""

    name: ClassVar[str] = "LLaDA"

    def recognises(self, evidence: Evidence) -> bool:
        return evidence.config.get("model_type") == "llada" and any(
            name.endswith("wte.weight") for name in evidence.shapes
        )

    def blueprint(self, evidence: Evidence) -> Blueprint:
        fields = Fields(evidence.config, evidence.origin)
        for key, value in _FIXED.items():
            if (given := fields.get(key)) not in (None, value):
                raise ValueError(f"{evidence.origin}: `{key}` is {given!r}; only {value!r} is known here.")
        heads = fields.whole("n_heads")
        hidden = fields.whole("d_model")
        count = fields.whole("embedding_size", fields.whole("vocab_size"))
        rows = masked_rows(evidence, count, fields.get("mask_token_id"), what=self.name)
        network = DecoderConfig(
            vocab_size=count,
            hidden_size=hidden,
            num_blocks=fields.whole("n_layers"),
            num_heads=heads,
            num_kv_heads=fields.whole("n_kv_heads", heads),
            head_dim=max(1, hidden // heads),
            intermediate_size=fields.whole("mlp_hidden_size"),
            norm_epsilon=fields.number("rms_norm_eps", 1e-5),
            qkv_bias=fields.switch("include_qkv_bias", False),
            rotary_base=fields.number("rope_theta", 10_000.0),
            tied=fields.switch("weight_tying", False),
            max_length=fields.whole("max_sequence_length"),
        )
        prefix = "transformer." if "transformer.wte.weight" in evidence.shapes else ""

        def stored(module: str, kind: str, block: str) -> str | Stored:
            if not block:
                return f"{prefix}{_TOP[module]}.{kind}"
            layer = f"{prefix}blocks.{block}."
            if module == "qkv":
                return Stored(tuple(f"{layer}{part}_proj.{kind}" for part in "qkv"))
            return f"{layer}{_LAYER.get(module, 'ff_out')}.{kind}"

        length = min(CANVAS, network.max_length)
        return Blueprint(
            network=network,
            vocabulary=special_tokens(evidence, rows),
            process=Absorbing(rows.words),
            parameterization=Mean(),
            hyperschedules=(flat(length, min(STEPS, length)), Block(length, min(_BLOCK, length), _BLOCK)),
            tensors=key_table(network, stored),
            mask_row=rows.mask,
            spare_rows=True,
            context="full",
            unknown=unknown(evidence.config, _SIZES | _SILENT | frozenset(_FIXED)),
        )
