"""GIDD (arXiv 2503.04482): masks with a hump of uniform noise, `model_type: dit`, which other models use too.

The config names no mask. It is the last row, unless rows were added after it to make a round number, which the config
or the user must describe (`num_words`). The row before it is [PAD], which counts as a word here. The network gets the
time itself. The file holds rotary tables, which are computed here, in place of frequencies.
"""

from __future__ import annotations

from typing import ClassVar, final

from hdlm import process
from hdlm.hub.card import AbstractCard, Blueprint, Evidence
from hdlm.hub.cards._field import STEPS, Sizes, has_network, network, tensors, unknown, vocabulary_rows, words
from hdlm.hub.fields import Fields
from hdlm.hyperschedule import flat
from hdlm.noise_schedule import LINEAR
from hdlm.parameterization import LeaveOneOut

__all__ = ["GIDDCard"]

_SIZES = Sizes(
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "timestep_cond_dim",
    "max_seq_len",
    "attention_dropout",
)
_KNOWN = frozenset({*_SIZES, "vocab_size", "p_uniform", "t_eps"})
_TABLES = ("rotary_emb.cos_cached", "rotary_emb.sin_cached")


@final
class GIDDCard(AbstractCard):
    """Generalized interpolating discrete diffusion, flat."""

    name: ClassVar[str] = "GIDD"

    def recognises(self, evidence: Evidence) -> bool:
        tables = all(name in evidence.shapes for name in _TABLES)
        return evidence.config.get("model_type") == "dit" and tables and has_network(evidence)

    def blueprint(self, evidence: Evidence) -> Blueprint:
        if "logit_bias" in evidence.shapes:
            raise ValueError(
                f"{evidence.origin} holds `logit_bias`: a training checkpoint of GIDD, whose rows are rounded up, "
                "so that the last is not the mask. Use weights in its format for `transformers`."
            )
        fields = Fields(evidence.config, evidence.origin)
        rows = vocabulary_rows(evidence)
        shape = network(evidence, _SIZES, rows=rows.used)
        vocabulary, tokenizer = words(rows.words, pad=rows.words - 1)
        return Blueprint(
            network=shape,
            vocabulary=vocabulary,
            process=process.GIDD(vocabulary.num_words, fields.number("p_uniform")),
            parameterization=LeaveOneOut("fraction", shared=True),
            noise_schedule=LINEAR,
            hyperschedules=(flat(shape.max_length, STEPS),),
            tensors=tensors(shape),
            ignored=dict.fromkeys(_TABLES, "rotary tables are computed, not read"),
            mask_row=rows.mask,
            padding=rows.padding,
            tokenizer=tokenizer,
            unknown=unknown(evidence.config, _KNOWN),
        )
