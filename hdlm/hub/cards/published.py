"""The published HDLM checkpoints, epsilon-hybrids and gamma-hybrids (arXiv 2504.06416).

The config is the whole training config. Tensors have the names that `hdlm.network.DDiT` has taken over from them, and
neither family modulates its output layer, which sets them apart from SEDD, whose config is alike.

| | epsilon-hybrid | gamma-hybrid |
|---|---|---|
| `model_type` | `epsilon_hybrid` | `gamma_hybrid`; where it is missing, graph, name or tensors tell |
| process | `EpsilonHybrid(training.epsilon)` | `GammaHybrid(graph.gamma)` |
| outputs | logits | log scores; told sigma, and the mask's embedding is blended in |
| noise | as time goes | `noise.type` |
"""

from __future__ import annotations

import re
from typing import Any, Literal, cast, final

import torch

from hdlm.attention import Active, Context
from hdlm.hub.card import AbstractCard, Blueprint, Evidence
from hdlm.hub.cards._field import ignored_buffers, tensors
from hdlm.hub.fields import Fields, unknown_keys
from hdlm.hyperschedule import AbstractHyperschedule, Block, PublishedSlide, PublishedWave, flat
from hdlm.network import DDiTConfig
from hdlm.noise_schedule import LINEAR, AbstractNoiseSchedule, Geometric, LogLinear
from hdlm.parameterization import AbstractParameterization, LogScore, Mean, Shifted
from hdlm.process import Absorbing, AbstractNoiseProcess, EpsilonHybrid, GammaHybrid, Uniform
from hdlm.vocabulary import GPT2, Vocabulary

__all__ = ["PublishedEpsilon", "PublishedGamma"]

LOG_LINEAR_FLOOR = 5e-3
"""What is left of the data at the end of `noise.type: loglinear`; it is no option of the published config."""

SAMPLING_EPS = 1e-4
"""Time of a settled position, where the config is silent: what a gamma-hybrid is told of words that are known."""

_EMBEDDING, _OUTPUT_MODULATION = "vocab_embed.embedding", "output_layer.adaLN_modulation.weight"
_TIMESTEP, _BLOCK_MODULATION = "sigma_map.mlp.0.weight", "blocks.0.adaLN_modulation.weight"
_OF_BLOCK = re.compile(r"blocks\.(\d+)\.norm1\.weight")

_COMMON = frozenset(
    {"model_type", "ngpus", "gradient_accumulation_steps", "type", "reset_step_for_finetuning", "hf_model_id"}
    | {"tokenizer.tokens", "tokenizer.model", "sampling.predictor", "sampling.noise_removal"}
    | {f"data.{key}" for key in ("train", "valid", "cache_dir", "debug")}
    | {f"eval.{key}" for key in ("batch_size", "perplexity", "perplexity_batch_size")}
    | {f"experiment.{key}" for key in ("name", "wandb_project")}
    | {f"annealing.{key}" for key in ("type", "efficient", "width", "tau", "eval_tau", "sampling_method")}
    | {f"annealing.{key}" for key in ("sampling_eps", "match_inference")}
    | {f"annealing.attention.{key}" for key in ("context_type", "block_type")}
    | {f"optim.{key}" for key in ("optimizer", "lr", "beta1", "beta2", "eps", "weight_decay", "warmup")}
    | {f"optim.{key}" for key in ("grad_clip", "scheduler")}
    | {f"training.{key}" for key in ("batch_size", "accum", "n_iters", "snapshot_freq", "log_freq")}
    | {f"training.{key}" for key in ("eval_freq", "snapshot_freq_for_preemption", "snapshot_sampling")}
    | {f"training.{key}" for key in ("ema", "warmup_iter", "lr", "finetune_lr_multiplier")}
    | {f"model.{key}" for key in ("name", "type", "hidden_size", "cond_dim", "length", "n_blocks", "n_heads")}
    | {f"model.{key}" for key in ("dropout", "scale_by_sigma", "transformer_sigma_conditioning")}
    | {f"model.{key}" for key in ("hybrid_sigma_embedding", "post_process_logits", "use_timestep_embedding")}
)
_OF_EPSILON = _COMMON | {"training.loss_type", "training.epsilon", "training.lambda"}
_OF_GAMMA = (
    _COMMON
    | {"training.weight", "annealing.steps_per_level", "annealing.diffusion_loss_weight"}
    | {"annealing.ce_loss_weight", "sampling.steps_per_level", "sampling.strategy", "sampling.strategy_param"}
    | {f"graph.{key}" for key in ("type", "gamma", "report_all", "expanded_sigma")}
    | {f"noise.{key}" for key in ("type", "sigma_min", "sigma_max", "ar_diffusion", "expanded_sigma")}
)


@final
class PublishedEpsilon(AbstractCard):
    """Epsilon-hybrids: logits of a network that is told no time."""

    name = "published epsilon-hybrid"

    def recognises(self, evidence: Evidence) -> bool:
        return _family(evidence) == "epsilon"

    def blueprint(self, evidence: Evidence) -> Blueprint:
        fields = Fields(evidence.config, evidence.origin)
        words = fields.whole("tokenizer.tokens")
        network = _network(evidence, fields, rows=words + 1)
        if network.timestep_embedding:
            raise ValueError(
                f"{evidence.origin} is an epsilon-hybrid that is told the noise (`model.use_timestep_embedding`); no "
                "published one is, and what it is told is not known here."
            )
        process = _valid(evidence, EpsilonHybrid, words, fields.number("training.epsilon"))
        return _blueprint(evidence, network, process, Mean(), LINEAR, _OF_EPSILON)


@final
class PublishedGamma(AbstractCard):
    """Gamma-hybrids: log scores of a network that is told the total noise of each position."""

    name = "published gamma-hybrid"

    def recognises(self, evidence: Evidence) -> bool:
        return _family(evidence) == "gamma"

    def blueprint(self, evidence: Evidence) -> Blueprint:
        fields = Fields(evidence.config, evidence.origin)
        words = fields.whole("tokenizer.tokens")
        graph = fields.choice("graph.type", ("QGamma", "absorb", "uniform"))
        network = _network(evidence, fields, rows=words if graph == "uniform" else words + 1)
        if not network.timestep_embedding:
            raise ValueError(
                f"{evidence.origin} is a gamma-hybrid that is not told the noise (`model.use_timestep_embedding`); no "
                "published one is."
            )
        process: AbstractNoiseProcess
        if graph == "QGamma":
            process = _valid(evidence, GammaHybrid, words, fields.number("graph.gamma"))
        else:
            process = Absorbing(words) if graph == "absorb" else Uniform(words)
        blended = fields.switch("model.hybrid_sigma_embedding", False)
        noise = _noise(evidence, fields)
        earliest = torch.tensor(fields.number("annealing.sampling_eps", SAMPLING_EPS), dtype=torch.float64)
        outputs = _valid(
            evidence,
            LogScore,
            fields.switch("model.scale_by_sigma", False),
            fields.number("graph.gamma") if blended else None,
            floor=float(noise.fraction(earliest)),
        )
        return _blueprint(evidence, network, process, outputs, noise, _OF_GAMMA)


def _family(evidence: Evidence) -> Literal["epsilon", "gamma"] | None:
    """Which of the two it is, if any."""
    fields = Fields(evidence.config, evidence.origin)
    sizes = ("tokenizer.tokens", "model.hidden_size", "model.n_blocks", "model.n_heads")
    if any(fields.get(key) is None for key in sizes) or "format" in evidence.config:
        return None
    if _EMBEDDING not in evidence.shapes or _OUTPUT_MODULATION in evidence.shapes:
        return None
    match fields.get("model_type"):
        case "epsilon_hybrid":
            return "epsilon"
        case "gamma_hybrid":
            return "gamma"
        case None:
            told = _TIMESTEP in evidence.shapes or _BLOCK_MODULATION in evidence.shapes
            named = "gamma" in str(fields.get("model.name"))
            return "gamma" if told or named or fields.get("graph.type") == "QGamma" else "epsilon"
        case _:
            return None


def _network(evidence: Evidence, fields: Fields, rows: int) -> DDiTConfig:
    """The shape of the network, where config and tensors agree on it."""
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
    told = _TIMESTEP in shapes
    return cast(
        DDiTConfig,
        _valid(
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
            and told,
            max_length=fields.whole("model.length"),
        ),
    )


def _agreed(evidence: Evidence, fields: Fields, switch: str, tensor: str) -> bool:
    """A switch of the config, which must be on if and only if a tensor is there."""
    there = tensor in evidence.shapes
    if fields.switch(f"model.{switch}", there) != there:
        raise ValueError(
            f"{evidence.origin} contradicts itself: `model.{switch}` is {str(not there).lower()}, but there is "
            f"{'a' if there else 'no'} tensor {tensor}."
        )
    return there


def _noise(evidence: Evidence, fields: Fields) -> AbstractNoiseSchedule:
    if fields.choice("noise.type", ("loglinear", "geometric"), "loglinear") == "loglinear":
        return LogLinear(LOG_LINEAR_FLOOR)
    ends = fields.number("noise.sigma_min"), fields.number("noise.sigma_max")
    return cast(Geometric, _valid(evidence, Geometric, *ends))


def _hyperschedules(evidence: Evidence, fields: Fields, length: int) -> tuple[AbstractHyperschedule, ...]:
    """What it was trained on; one more, in front, if it was to be evaluated with another number of levels."""
    kinds = {"block": Block, "simple": PublishedSlide, "hybrid": PublishedWave}
    kind = fields.choice("annealing.type", (*kinds, "none"), "none")
    if kind == "none":
        return (flat(length, fields.whole("annealing.tau", length)),)
    width = fields.whole("annealing.width")
    levels = fields.whole("annealing.tau", width)
    wanted = dict.fromkeys((fields.whole("annealing.eval_tau", levels), levels))
    return tuple(_valid(evidence, kinds[kind], length, width, each) for each in wanted)


def _blueprint(
    evidence: Evidence,
    network: DDiTConfig,
    process: AbstractNoiseProcess,
    outputs: AbstractParameterization,
    noise: AbstractNoiseSchedule,
    known: frozenset[str],
) -> Blueprint:
    """What the two families share."""
    fields = Fields(evidence.config, evidence.origin)
    names = fields.get("tokenizer.model")
    shifted = fields.choice("type", ("aligned", "shifted"), "aligned") == "shifted"
    attention = "annealing.attention"
    context = fields.choice(f"{attention}.context_type", ("block_causal", "causal", "full"), "block_causal")
    active = fields.choice(f"{attention}.block_type", ("full", "causal"), "full")
    return Blueprint(
        network=network,
        vocabulary=GPT2 if process.num_words == GPT2.num_words else Vocabulary(process.num_words),
        process=process,
        parameterization=Shifted(outputs) if shifted else outputs,
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
    """What `make` makes of values of the config; if it refuses them, the error says whose they are."""
    try:
        return make(*values, **named)
    except ValueError as error:
        raise ValueError(f"{evidence.origin}: {error}") from error
