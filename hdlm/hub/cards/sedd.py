"""SEDD (arXiv 2310.16834): log scores under absorbing or uniform noise; its config is the whole training config.

`tokens` counts the words; `graph.type: absorb` adds a row for the mask, `uniform` does not. Only the geometric schedule
uses the noise range of the config. There is no `model_type`.
"""

from __future__ import annotations

from collections.abc import Mapping
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
from hdlm.noise_schedule import AbstractNoiseSchedule, Geometric, LogLinear
from hdlm.parameterization import LogScore
from hdlm.process import Absorbing, Uniform

__all__ = ["SEDDCard"]

_SIZES = Sizes(
    "model.hidden_size", "model.n_blocks", "model.n_heads", "model.cond_dim", "model.length", "model.dropout"
)
_KNOWN = (
    frozenset({*_SIZES, "tokens", "ngpus", "model.name", "model.type", "model.scale_by_sigma"})
    | {"graph.type", "graph.file", "graph.report_all", "noise.type", "noise.sigma_min", "noise.sigma_max"}
    | {"sampling.steps", "sampling.predictor", "sampling.noise_removal", "data", "eval", "optim", "training"}
)
_GRAPHS = ("absorb", "uniform")
_FLOOR = 1e-9
"""Distance from 1 of the largest noise fraction, for the geometric schedule."""


@final
class SEDDCard(AbstractCard):
    """Score entropy discrete diffusion, flat."""

    name: ClassVar[str] = "SEDD"

    def recognises(self, evidence: Evidence) -> bool:
        graph = evidence.config.get("graph")
        kind = graph.get("type") if isinstance(graph, Mapping) else None
        is_own = kind in _GRAPHS and "tokens" in evidence.config and "model_type" not in evidence.config
        return is_own and has_network(evidence)

    def blueprint(self, evidence: Evidence) -> Blueprint:
        fields = Fields(evidence.config, evidence.origin)
        vocabulary, tokenizer = words(fields.whole("tokens"))
        count = vocabulary.num_words
        absorbs = fields.choice("graph.type", _GRAPHS) == "absorb"
        shape = network(evidence, _SIZES, rows=count + 1 if absorbs else count)
        return Blueprint(
            network=shape,
            vocabulary=vocabulary,
            process=Absorbing(count) if absorbs else Uniform(count),
            parameterization=LogScore(fields.switch("model.scale_by_sigma", True), floor=_FLOOR, shared=True),
            noise_schedule=_noise_schedule(fields),
            hyperschedules=(flat(shape.max_length, fields.whole("sampling.steps", STEPS)),),
            tensors=tensors(shape),
            ignored=ignored_buffers(),
            tokenizer=tokenizer,
            unknown=unknown(evidence.config, _KNOWN),
        )


def _noise_schedule(fields: Fields) -> AbstractNoiseSchedule:
    if fields.choice("noise.type", ("loglinear", "geometric")) == "geometric":
        return Geometric(fields.number("noise.sigma_min"), fields.number("noise.sigma_max"))
    return LogLinear()
