"""Causal language models of `transformers`: Llama, Qwen2, Qwen3 and GPT-2, and families with the same layout (SmolLM).

They are autoregressive: the output at a position predicts the next token (`Shifted`), positions settle one by one
from left to right, and no position attends to later ones. They have no mask. A row is added for it, the mean of the
others. Along an autoregressive hyperschedule no prediction depends on that row, so likelihood and text are those of
the causal model.
"""

from __future__ import annotations

from typing import ClassVar, final

from hdlm.hub.card import AbstractCard, Blueprint, Evidence
from hdlm.hub.cards._decoder import (
    CANVAS,
    LLAMA_FAMILY,
    PIECES,
    MaskedRows,
    causal_family,
    gpt2_embedding,
    special_tokens,
)
from hdlm.hub.fields import Fields
from hdlm.hyperschedule import autoregressive
from hdlm.parameterization import Mean, Shifted
from hdlm.process import Absorbing

__all__ = ["CausalCard"]


@final
class CausalCard(AbstractCard):
    """Next-token prediction."""

    name: ClassVar[str] = "causal"

    def recognises(self, evidence: Evidence) -> bool:
        if PIECES in evidence.config:
            return False
        if evidence.config.get("model_type") in LLAMA_FAMILY:
            return "embed_tokens.weight" in evidence.shapes and evidence.config.get("mask_id") is None
        return evidence.config.get("model_type") == "gpt2" and gpt2_embedding(evidence) is not None

    def blueprint(self, evidence: Evidence) -> Blueprint:
        fields = Fields(evidence.config, evidence.origin)
        rows = MaskedRows(fields.whole("vocab_size"), None, adds_mask=True)
        family = causal_family(evidence, rows.words + 1)
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
