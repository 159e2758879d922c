"""SEDD (arXiv 2310.16834): log scores under absorbing or uniform noise; its config is the whole training config.

`tokens` counts the words; `graph.type: absorb` adds a row for the mask, `uniform` does not. The range of the noise in
the config is read by the geometric schedule only. There is no `model_type`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, final

from hdlm.hub.card import AbstractCard, Blueprint, Evidence
from hdlm.hub.cards._field import STEPS, Options, has_network, ignored_buffers, network, tensors, words
from hdlm.hyperschedule import flat
from hdlm.noise_schedule import AbstractNoiseSchedule, Geometric, LogLinear
from hdlm.parameterization import LogScore
from hdlm.process import Absorbing, Uniform

__all__ = ["SEDD"]

_SIZES = ("hidden_size", "n_blocks", "n_heads", "cond_dim", "length", "dropout")
_GRAPHS = ("absorb", "uniform")
_OTHER_TABLES = ("data", "eval", "ngpus", "optim", "training")
_FLOOR = 1e-9
"""Geometric noise comes this close to 1."""


@final
class SEDD(AbstractCard):
    """Score entropy discrete diffusion, flat."""

    name: ClassVar[str] = "SEDD"

    def recognises(self, evidence: Evidence) -> bool:
        graph = evidence.config.get("graph")
        kind = graph.get("type") if isinstance(graph, Mapping) else None
        is_own = kind in _GRAPHS and "tokens" in evidence.config and "model_type" not in evidence.config
        return is_own and has_network(evidence)

    def blueprint(self, evidence: Evidence) -> Blueprint:
        top = Options(evidence)
        model, graph, noise, sampling = (
            Options(evidence, t) for t in ("model", "graph", "noise", "sampling")
        )
        top.known("model", "graph", "noise", "sampling", *_OTHER_TABLES)
        model.known("name", "type")
        graph.known("file", "report_all")
        sampling.known("noise_removal", "predictor")
        vocabulary, tokenizer = words(top.integer("tokens"))
        count = vocabulary.num_words
        absorbs = graph.choice("type", _GRAPHS) == "absorb"
        shape = network(model, evidence, "", rows=count + 1 if absorbs else count, names=_SIZES)
        return Blueprint(
            network=shape,
            vocabulary=vocabulary,
            process=Absorbing(count) if absorbs else Uniform(count),
            parameterization=LogScore(model.flag("scale_by_sigma", True), floor=_FLOOR, shared=True),
            noise_schedule=_noise_schedule(noise),
            hyperschedules=(flat(shape.max_length, sampling.integer("steps", STEPS)),),
            tensors=tensors(shape),
            ignored=ignored_buffers(),
            tokenizer=tokenizer,
            unknown=tuple(key for part in (top, model, graph, noise, sampling) for key in part.unknown()),
        )


def _noise_schedule(noise: Options) -> AbstractNoiseSchedule:
    if noise.choice("type", ("loglinear", "geometric")) == "geometric":
        return Geometric(noise.number("sigma_min"), noise.number("sigma_max"))
    noise.known("sigma_min", "sigma_max")
    return LogLinear()
