"""BD3-LM (arXiv 2503.09573): block diffusion, `model_type: bd3lm`.

The attention mask is not in the file: it follows from `model_length` and `block_size`. Their two streams are
`[noisy | clean]`, ours `[clean | noisy]`; the attention is equal. Masks come at `u = t` exactly, without a floor.
"""

from __future__ import annotations

from typing import ClassVar, final

from hdlm.hub.card import AbstractCard, Blueprint, Evidence
from hdlm.hub.cards._field import (
    STEPS,
    Sizes,
    has_network,
    ignored_buffers,
    network,
    tensors,
    unknown,
    vocabulary_rows,
    words,
)
from hdlm.hub.fields import Fields
from hdlm.hyperschedule import Block, flat
from hdlm.noise_schedule import LINEAR
from hdlm.parameterization import LeaveOneOut
from hdlm.parameterization.mean import Conditioning
from hdlm.process import Absorbing

__all__ = ["BD3LMCard"]

_SIZES = Sizes("hidden_dim", "n_blocks", "n_heads", "cond_dim", "model_length", "dropout")
_KNOWN = frozenset({*_SIZES, "vocab_size", "adaln", "attn_backend", "block_size", "causal", "cross_attn"}) | {
    "sampling_eps_max",
    "sampling_eps_min",
    "time_conditioning",
    "var_min",
}
_CLIP = "range of the times in its training, not part of the model"


@final
class BD3LMCard(AbstractCard):
    """Masked diffusion, block by block."""

    name: ClassVar[str] = "BD3-LM"

    def recognises(self, evidence: Evidence) -> bool:
        return evidence.config.get("model_type") == "bd3lm" and has_network(evidence)

    def blueprint(self, evidence: Evidence) -> Blueprint:
        fields = Fields(evidence.config, evidence.origin)
        rows = vocabulary_rows(evidence)
        if fields.switch("causal", False) or not fields.switch("adaln", True):
            raise ValueError(
                f"{evidence.origin}: `causal: true` and `adaln: false` are BD3-LM's baselines, not block diffusion."
            )
        shape = network(evidence, _SIZES, rows=rows.used)
        length = shape.max_length
        width = fields.whole("block_size") if fields.switch("cross_attn", True) else length
        if width > length or length % width:
            raise ValueError(
                f"{evidence.origin}: `block_size` must divide `model_length`, {length}; got {width}."
            )
        vocabulary, tokenizer = words(rows.words)
        conditioning: Conditioning = "sigma" if fields.switch("time_conditioning", False) else "zero"
        return Blueprint(
            network=shape,
            vocabulary=vocabulary,
            process=Absorbing(vocabulary.num_words),
            parameterization=LeaveOneOut(conditioning, shared=True),
            noise_schedule=LINEAR,
            hyperschedules=(flat(length, STEPS) if width == length else Block(length, width, width),),
            tensors=tensors(shape),
            ignored={**ignored_buffers(), "sampling_eps_min": _CLIP, "sampling_eps_max": _CLIP},
            mask_row=rows.mask,
            padding=rows.padding,
            tokenizer=tokenizer,
            unknown=unknown(evidence.config, _KNOWN),
        )
