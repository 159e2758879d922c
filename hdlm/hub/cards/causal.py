"""Causal language models of `transformers`: Llama, Qwen2, Qwen3 and GPT-2, and families with the same layout (SmolLM).

They are autoregressive: the output at a position predicts the next token (`Shifted`), positions settle one by one from
left to right, and nobody sees what follows. They know no mask. A row is added for it, the mean of the others. Along an
autoregressive hyperschedule no prediction depends on that row, so likelihood and text are those of the causal model.
"""

from __future__ import annotations

from typing import ClassVar, final

from hdlm.hub.card import AbstractCard, Blueprint, Evidence
from hdlm.hub.cards._decoder import CANVAS, Family, MaskedRows, gpt2, llama, special_tokens
from hdlm.hub.fields import Fields
from hdlm.hyperschedule import autoregressive
from hdlm.parameterization import Mean, Shifted
from hdlm.process import Absorbing

__all__ = ["CausalCard"]

_LLAMA = ("llama", "qwen2", "qwen3")


@final
class CausalCard(AbstractCard):
    """Next-token prediction."""

    name: ClassVar[str] = "causal"

    def recognises(self, evidence: Evidence) -> bool:
        if evidence.config.get("model_type") in _LLAMA:
            return "embed_tokens.weight" in evidence.shapes and evidence.config.get("mask_id") is None
        return evidence.config.get("model_type") == "gpt2" and _embedding(evidence) is not None

    def blueprint(self, evidence: Evidence) -> Blueprint:
        fields = Fields(evidence.config, evidence.origin)
        rows = MaskedRows(fields.whole("vocab_size"), None, adds_mask=True)
        family = _family(evidence, fields, rows.words + 1)
        length = min(CANVAS, family.network.max_length)
        return Blueprint(
            network=family.network,
            vocabulary=special_tokens(evidence, rows),
            process=Absorbing(rows.words),
            parameterization=Shifted(Mean()),
            hyperschedules=(autoregressive(length),),
            tensors=family.tensors,
            ignored=family.ignored,
            adds_mask=True,
            spare_rows=True,
            unknown=family.unknown,
        )


def _embedding(evidence: Evidence) -> str | None:
    """Name of the embedding of a GPT-2, without its last part."""
    return next((name for name in ("wte", "transformer.wte") if f"{name}.weight" in evidence.shapes), None)


def _family(evidence: Evidence, fields: Fields, rows: int) -> Family:
    kind = fields.choice("model_type", (*_LLAMA, "gpt2"))
    if kind == "gpt2":
        embedding = _embedding(evidence) or "wte"
        return gpt2(evidence, rows, frozenset(), embedding.removesuffix("wte"), embedding)
    return llama(evidence, rows, frozenset(), qkv_bias=kind == "qwen2", qk_norm=kind == "qwen3")
