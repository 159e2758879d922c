"""The published HDLM checkpoints, epsilon-hybrids and gamma-hybrids (arXiv 2504.06416).

The config is the whole training config. `hdlm.network.DDiT` uses the names of the published tensors. Neither family
modulates its output layer, which distinguishes them from SEDD, whose config is similar.

| | epsilon-hybrid | gamma-hybrid |
|---|---|---|
| `model_type` | `epsilon_hybrid` | `gamma_hybrid`; if it is missing, graph, name or tensors decide |
| process | `EpsilonHybrid(training.epsilon)` | `GammaHybrid(graph.gamma)` |
| outputs | logits | log scores; the network gets sigma, and the mask's embedding is blended in |
| noise | linear in time | `noise.type` |
"""

from __future__ import annotations

import re
from typing import Any, cast, final, get_args

import torch

from hdlm.attention import Active, Context
from hdlm.hub.card import AbstractCard, Blueprint, Evidence
from hdlm.hub.cards._field import ignored_buffers, tensors
from hdlm.hub.fields import Fields, unknown_keys
from hdlm.hyperschedule import AbstractHyperschedule
from hdlm.network import DDiTConfig
from hdlm.noise_schedule import LINEAR, AbstractNoiseSchedule
from hdlm.parameterization import AbstractParameterization, LogScore, Mean
from hdlm.process import AbstractNoiseProcess, EpsilonHybrid
from hdlm.published_names import (
    DEFAULTS,
    AlignmentName,
    AnnealingName,
    Family,
    GraphName,
    NoiseName,
    dotted,
    family_defaults,
    hyperschedule,
    noise_process,
    noise_schedule,
    parameterization,
)
from hdlm.vocabulary import GPT2, Vocabulary

__all__ = ["PublishedEpsilonCard", "PublishedGammaCard"]

_EMBEDDING, _OUTPUT_MODULATION = "vocab_embed.embedding", "output_layer.adaLN_modulation.weight"
_TIMESTEP, _BLOCK_MODULATION = "sigma_map.mlp.0.weight", "blocks.0.adaLN_modulation.weight"
_OF_BLOCK = re.compile(r"blocks\.(\d+)\.norm1\.weight")

_BOTH = frozenset(
    {"hf_model_id", "tokenizer.tokens", "tokenizer.model", "sampling.predictor", "sampling.noise_removal"}
    | {"type", "reset_step_for_finetuning", "training.lr", "training.finetune_lr_multiplier"}
    | {f"annealing.{key}" for key in ("type", "width", "tau", "eval_tau")}
    | {f"model.{key}" for key in ("hidden_size", "cond_dim", "length", "n_blocks", "n_heads", "dropout")}
    | {f"model.{key}" for key in ("scale_by_sigma", "transformer_sigma_conditioning")}
    | {f"model.{key}" for key in ("hybrid_sigma_embedding", "use_timestep_embedding")}
)
"""Options of both families that have no published default."""


@final
class PublishedEpsilonCard(AbstractCard):
    """Epsilon-hybrids: logits of a network without noise conditioning."""

    name = "published epsilon-hybrid"

    def recognises(self, evidence: Evidence) -> bool:
        return _family(evidence) == "epsilon_hybrid"

    def blueprint(self, evidence: Evidence) -> Blueprint:
        fields = Fields(evidence.config, evidence.origin)
        words = fields.whole("tokenizer.tokens")
        network = _network(evidence, fields, rows=words + 1)
        if network.timestep_embedding:
            raise ValueError(
                f"{evidence.origin} is an epsilon-hybrid whose network gets the noise "
                "(`model.use_timestep_embedding`); no published one does, and the meaning of that input is unknown."
            )
        process = _valid(evidence, EpsilonHybrid, words, fields.number("training.epsilon"))
        return _blueprint(evidence, network, process, Mean(), LINEAR, "epsilon_hybrid")


@final
class PublishedGammaCard(AbstractCard):
    """Gamma-hybrids: log scores of a network that gets the total noise of each position."""

    name = "published gamma-hybrid"

    def recognises(self, evidence: Evidence) -> bool:
        return _family(evidence) == "gamma_hybrid"

    def blueprint(self, evidence: Evidence) -> Blueprint:
        fields = Fields(evidence.config, evidence.origin)
        words = fields.whole("tokenizer.tokens")
        graph = fields.choice("graph.type", get_args(GraphName))
        network = _network(evidence, fields, rows=words if graph == "uniform" else words + 1)
        if not network.timestep_embedding:
            raise ValueError(
                f"{evidence.origin} is a gamma-hybrid whose network does not get the noise "
                "(`model.use_timestep_embedding`); every published one does."
            )
        gamma = fields.number("graph.gamma") if graph == "QGamma" else 0.0
        process = _valid(evidence, noise_process, graph, words, gamma)
        blended = fields.switch("model.hybrid_sigma_embedding", False)
        noise = _noise(evidence, fields)
        earliest = fields.number("annealing.sampling_eps", DEFAULTS["annealing.sampling_eps"])
        outputs = _valid(
            evidence,
            LogScore,
            fields.switch("model.scale_by_sigma", False),
            fields.number("graph.gamma") if blended else None,
            floor=float(noise.fraction(torch.tensor(earliest, dtype=torch.float64))),
        )
        return _blueprint(evidence, network, process, outputs, noise, "gamma_hybrid")


def _family(evidence: Evidence) -> Family | None:
    """The family of a checkpoint, if it is a published one."""
    fields = Fields(evidence.config, evidence.origin)
    sizes = ("tokenizer.tokens", "model.hidden_size", "model.n_blocks", "model.n_heads")
    if any(fields.get(key) is None for key in sizes) or "format" in evidence.config:
        return None
    if _EMBEDDING not in evidence.shapes or _OUTPUT_MODULATION in evidence.shapes:
        return None
    match fields.get("model_type"):
        case "epsilon_hybrid" | "gamma_hybrid" as family:
            return cast(Family, family)
        case None:
            conditioned = _TIMESTEP in evidence.shapes or _BLOCK_MODULATION in evidence.shapes
            named = "gamma" in str(fields.get("model.name"))
            gamma = conditioned or named or fields.get("graph.type") == "QGamma"
            return "gamma_hybrid" if gamma else "epsilon_hybrid"
        case _:
            return None


def _network(evidence: Evidence, fields: Fields, rows: int) -> DDiTConfig:
    """The configuration of the network; config and tensors must agree on it."""
    origin, shapes = evidence.origin, evidence.shapes
    hidden = fields.whole("model.hidden_size")
    if shapes[_EMBEDDING] != (rows, hidden):
        raise ValueError(
            f"{origin} contradicts itself: with `tokenizer.tokens` {fields.get('tokenizer.tokens')} and "
            f"`model.hidden_size` {hidden} the embedding is {[rows, hidden]}, but {_EMBEDDING} is "
            f"{list(shapes[_EMBEDDING])}."
        )
    blocks = {int(match[1]) for name in shapes if (match := _OF_BLOCK.fullmatch(name))}
    if fields.whole("model.n_blocks") != len(blocks):
        raise ValueError(
            f"{origin} contradicts itself: `model.n_blocks` is {fields.get('model.n_blocks')}, but its tensors are "
            f"those of {len(blocks)} blocks."
        )
    conditioned = _TIMESTEP in shapes
    config: DDiTConfig = _valid(
        evidence,
        DDiTConfig,
        vocab_size=rows,
        hidden_size=hidden,
        num_blocks=len(blocks),
        num_heads=fields.whole("model.n_heads"),
        cond_dim=fields.whole("model.cond_dim", 128),
        dropout=fields.number("model.dropout", 0.0),
        timestep_embedding=_agreed(evidence, fields, "use_timestep_embedding", _TIMESTEP),
        condition_blocks=_agreed(evidence, fields, "transformer_sigma_conditioning", _BLOCK_MODULATION)
        and conditioned,
        max_length=fields.whole("model.length"),
    )
    return config


def _agreed(evidence: Evidence, fields: Fields, switch: str, tensor: str) -> bool:
    """A switch of the config, which must be on exactly if a tensor exists."""
    there = tensor in evidence.shapes
    if fields.switch(f"model.{switch}", there) != there:
        raise ValueError(
            f"{evidence.origin} contradicts itself: `model.{switch}` is {str(not there).lower()}, but there is "
            f"{'a' if there else 'no'} tensor {tensor}."
        )
    return there


def _noise(evidence: Evidence, fields: Fields) -> AbstractNoiseSchedule:
    noise = fields.choice("noise.type", get_args(NoiseName), DEFAULTS["noise.type"])
    ends = (fields.number(f"noise.{end}") for end in ("sigma_min", "sigma_max") if noise == "geometric")
    schedule: AbstractNoiseSchedule = _valid(evidence, noise_schedule, noise, *ends)
    return schedule


def _hyperschedules(evidence: Evidence, fields: Fields, length: int) -> tuple[AbstractHyperschedule, ...]:
    """The hyperschedule of training, preceded by that of evaluation if it has another number of levels."""
    kind = fields.choice("annealing.type", get_args(AnnealingName), "none")
    width = length if kind == "none" else fields.whole("annealing.width")
    levels = fields.whole("annealing.tau", width)
    counts = dict.fromkeys((fields.whole("annealing.eval_tau", levels), levels))
    return tuple(_valid(evidence, hyperschedule, kind, length, width, count) for count in counts)


def _blueprint(
    evidence: Evidence,
    network: DDiTConfig,
    process: AbstractNoiseProcess,
    outputs: AbstractParameterization,
    noise: AbstractNoiseSchedule,
    family: Family,
) -> Blueprint:
    """The blueprint of either family."""
    fields = Fields(evidence.config, evidence.origin)
    names = fields.get("tokenizer.model")
    alignment = fields.choice("type", get_args(AlignmentName), DEFAULTS["type"])
    attention = "annealing.attention"
    context, active = (
        fields.choice(f"{attention}.{key}", get_args(words), DEFAULTS[f"{attention}.{key}"])
        for key, words in (("context_type", Context), ("block_type", Active))
    )
    known = _BOTH | {option for option, _ in dotted(family_defaults(family))}
    return Blueprint(
        network=network,
        vocabulary=GPT2 if process.num_words == GPT2.num_words else Vocabulary(process.num_words),
        process=process,
        parameterization=parameterization(alignment, outputs),
        noise_schedule=noise,
        hyperschedules=_hyperschedules(evidence, fields, network.max_length),
        tensors=tensors(network),
        ignored=ignored_buffers(),
        tokenizer=names if isinstance(names, str) else None,
        context=cast(Context, context),
        active=cast(Active, active),
        unknown=unknown_keys(evidence.config, known),
    )


def _valid(evidence: Evidence, make: Any, *values: Any, **named: Any) -> Any:
    """The result of `make` for values of the config; its errors name the config."""
    try:
        return make(*values, **named)
    except ValueError as error:
        raise ValueError(f"{evidence.origin}: {error}") from error
