"""MDLM (arXiv 2406.07524): `AutoModelForMaskedLM` weights with `model_type: mdlm`, and its Lightning checkpoints.

The config names no mask: it is the last row, unless the vocabulary is BERT's, which has its own mask. With
`time_conditioning: false` (all published models) the conditioning exists and gets 0 at every noise level. Visible
tokens are copied, as in `LeaveOneOut` with the absorbing process.
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
from hdlm.hyperschedule import flat
from hdlm.noise_schedule import LogLinear
from hdlm.parameterization import LeaveOneOut
from hdlm.parameterization.mean import Conditioning
from hdlm.process import Absorbing
from hdlm.vocabulary import Vocabulary

__all__ = ["MDLMCard"]

_SIZES = Sizes("hidden_dim", "n_blocks", "n_heads", "cond_dim", "model_length", "dropout")
_KNOWN = frozenset({*_SIZES, "vocab_size", "time_conditioning"})
_BERT_ROWS, _BERT_MASK = 30522, 103
_BERT = Vocabulary(_BERT_ROWS - 1, bos=101, eos=102, pad=0)
"""BERT's words without its mask: [CLS], [SEP] and [PAD] stand before it and keep their ids."""


@final
class MDLMCard(AbstractCard):
    """Masked diffusion, flat."""

    name: ClassVar[str] = "MDLM"

    def recognises(self, evidence: Evidence) -> bool:
        return evidence.config.get("model_type") == "mdlm" and has_network(evidence)

    def blueprint(self, evidence: Evidence) -> Blueprint:
        fields = Fields(evidence.config, evidence.origin)
        rows = vocabulary_rows(evidence, mask=_BERT_MASK if fields.get("vocab_size") == _BERT_ROWS else None)
        bert = (rows.words, rows.mask) == (_BERT_ROWS - 1, _BERT_MASK)
        shape = network(evidence, _SIZES, rows=rows.used)
        vocabulary, tokenizer = (_BERT, "bert-base-uncased") if bert else words(rows.words)
        conditioning: Conditioning = "sigma" if fields.switch("time_conditioning", False) else "zero"
        return Blueprint(
            network=shape,
            vocabulary=vocabulary,
            process=Absorbing(vocabulary.num_words),
            parameterization=LeaveOneOut(conditioning, shared=True),
            noise_schedule=LogLinear(),
            hyperschedules=(flat(shape.max_length, STEPS),),
            tensors=tensors(shape),
            ignored=ignored_buffers(),
            mask_row=rows.mask,
            padding=rows.padding,
            tokenizer=tokenizer,
            unknown=unknown(evidence.config, _KNOWN),
        )
