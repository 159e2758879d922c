"""MDLM (arXiv 2406.07524): `AutoModelForMaskedLM` weights with `model_type: mdlm`, and its Lightning checkpoints.

The config names no mask: it is the last row, unless the vocabulary is BERT's, which has a mask of its own. With
`time_conditioning: false` (all published ones) the network is told 0 whatever the noise, through a conditioning that is
there all the same. Visible tokens carry over, which is what `Cavity` says of masks that absorb.
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
    words,
)
from hdlm.hub.fields import Fields
from hdlm.hyperschedule import flat
from hdlm.noise_schedule import LogLinear
from hdlm.parameterization import Cavity
from hdlm.parameterization.mean import Conditioning
from hdlm.process import Absorbing
from hdlm.vocabulary import Vocabulary

__all__ = ["MDLM"]

_PREFIX = "backbone."
_SIZES = Sizes("hidden_dim", "n_blocks", "n_heads", "cond_dim", "model_length", "dropout")
_KNOWN = frozenset({*_SIZES, "vocab_size", "time_conditioning"})
_BERT_ROWS, _BERT_MASK = 30522, 103
_BERT = Vocabulary(_BERT_ROWS - 1, bos=101, eos=102, pad=0)
"""BERT's words without its mask: [CLS], [SEP] and [PAD] stand before it and keep their ids."""


@final
class MDLM(AbstractCard):
    """Masked diffusion, flat."""

    name: ClassVar[str] = "MDLM"

    def recognises(self, evidence: Evidence) -> bool:
        return evidence.config.get("model_type") == "mdlm" and has_network(evidence, _PREFIX)

    def blueprint(self, evidence: Evidence) -> Blueprint:
        fields = Fields(evidence.config, evidence.origin)
        rows = fields.whole("vocab_size")
        shape = network(evidence, _SIZES, rows=rows, prefix=_PREFIX)
        bert = rows == _BERT_ROWS
        vocabulary, tokenizer = (_BERT, "bert-base-uncased") if bert else words(rows - 1)
        told: Conditioning = "sigma" if fields.switch("time_conditioning", False) else "zero"
        return Blueprint(
            network=shape,
            vocabulary=vocabulary,
            process=Absorbing(vocabulary.num_words),
            parameterization=Cavity(told, shared=True),
            noise_schedule=LogLinear(),
            hyperschedules=(flat(shape.max_length, STEPS),),
            tensors=tensors(shape, _PREFIX),
            ignored=ignored_buffers(_PREFIX),
            mask_row=_BERT_MASK if bert else None,
            tokenizer=tokenizer,
            unknown=unknown(evidence.config, _KNOWN),
        )
