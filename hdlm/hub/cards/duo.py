"""Duo (arXiv 2506.10892): uniform noise, `model_type: duo`. Tensors and sizes are MDLM's; only the config differs.

There is no mask. Each row is a word, also the [PAD] that was added to the GPT-2 vocabulary, so that the network has
as many rows as the network of MDLM. The network always gets the total noise. Its output for a position does not use
the noisy word at that position: `LeaveOneOut`.
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
from hdlm.process import Uniform

__all__ = ["DuoCard"]

_SIZES = Sizes("hidden_dim", "n_blocks", "n_heads", "cond_dim", "model_length", "dropout")
_KNOWN = frozenset({*_SIZES, "vocab_size", "causal", "var_min"})


@final
class DuoCard(AbstractCard):
    """Uniform diffusion, flat."""

    name: ClassVar[str] = "Duo"

    def recognises(self, evidence: Evidence) -> bool:
        return evidence.config.get("model_type") == "duo" and has_network(evidence)

    def blueprint(self, evidence: Evidence) -> Blueprint:
        fields = Fields(evidence.config, evidence.origin)
        rows = vocabulary_rows(evidence, masked=False)
        if fields.switch("causal", False):
            raise ValueError(
                f"{evidence.origin}: `causal: true` is Duo's autoregressive baseline, not a diffusion."
            )
        shape = network(evidence, _SIZES, rows=rows.used)
        vocabulary, tokenizer = words(rows.words, pad=rows.words - 1)
        return Blueprint(
            network=shape,
            vocabulary=vocabulary,
            process=Uniform(rows.words),
            parameterization=LeaveOneOut("sigma", shared=True),
            noise_schedule=LogLinear(),
            hyperschedules=(flat(shape.max_length, STEPS),),
            tensors=tensors(shape),
            ignored=ignored_buffers(),
            padding=rows.padding,
            tokenizer=tokenizer,
            unknown=unknown(evidence.config, _KNOWN),
        )
