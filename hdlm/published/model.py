"""The published interface of models: `smart_model_loader`, and a module that is called with ids and positions.

| published | here |
|---|---|
| `smart_model_loader(...)` | `hdlm.load(...)`, a `Checkpoint` |
| the model it returns | `Checkpoint.denoiser`: network, process, parameterization |
| `attn_mask`, True = may not attend | `ForwardContext.attention`, True = may attend |
| the metaschedule | a hyperschedule, `hdlm.hyperschedule` |
| any function `model(ids, positions)` | `CallableDenoiser` |

The rest of the package does not use this module.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import inspect
import math
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, final, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask

from hdlm import hub
from hdlm.checkpoint import Checkpoint
from hdlm.denoiser import AbstractDenoiser, Denoiser, ForwardContext, Predecessors, Prediction, Question
from hdlm.hyperschedule import AbstractHyperschedule, flat
from hdlm.parameterization import AbstractParameterization, LogScore
from hdlm.process import AbstractNoiseProcess
from hdlm.published_names import Family
from hdlm.sharing.export import export, published_config
from hdlm.sharing.push import Shared, push_to_hub

__all__ = [
    "AbstractPublishedModel",
    "CallableDenoiser",
    "EpsilonModel",
    "GammaModel",
    "Metaschedule",
    "option",
    "pick_device",
    "say_once",
    "smart_model_loader",
]

_LACKING = "smart_model_loader needs what pip install 'hdlm[published]' brings ({})."

_NEVER = -1000.0
"""Logit that post-processing assigns to impossible masks."""


@functools.cache
def say_once(message: str) -> None:
    """Print a message on standard error, only once."""
    print(message, file=sys.stderr)


def option(config: Any, path: str, default: Any = None) -> Any:
    """The value of an option in a configuration: a mapping, an OmegaConf node, or an object with attributes.

    Args:
        config: The configuration, or None.
        path: Dotted name of the option.
        default: The result if the option is missing or None.
    """
    value = config
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)
        if value is None:
            return default
    return value


def pick_device(device: torch.device | str | int | None) -> torch.device:
    """The requested device, or the CPU if the machine has no device of this kind.

    Args:
        device: The requested device; None for a GPU if there is one.
    """
    if device is None:
        return torch.device(torch.cuda.current_device() if torch.cuda.is_available() else "cpu")
    wanted = torch.device(device)
    if wanted.type in ("cpu", "meta") or torch.get_device_module(wanted).is_available():
        return wanted
    say_once(f"hdlm: this machine has no {wanted.type} device; using the CPU.")
    return torch.device("cpu")


@final
@dataclass(frozen=True)
class Metaschedule(AbstractHyperschedule):
    """A hyperschedule with the attribute names of a published metaschedule; can be used as any hyperschedule.

    It offers `max_step`, `worthless`, and everything that a hyperschedule offers.

    Attributes:
        hyperschedule: The wrapped hyperschedule itself.
    """

    hyperschedule: AbstractHyperschedule

    @property
    def length(self) -> int:  # type: ignore[override]
        """Number of positions."""
        return self.hyperschedule.length

    @property
    def num_levels(self) -> int:  # type: ignore[override]
        """The level of a worthless position."""
        return self.hyperschedule.num_levels

    @property
    def max_step(self) -> int:
        """Number of generation steps; the published number counts at least one more, in which nothing changes."""
        return self.num_steps

    @property
    def worthless(self) -> int:
        """The level of a position of pure noise, the published tau."""
        return self.num_levels

    def levels(self, n: int | Int[Tensor, "*b"]) -> Int[Tensor, "*b l"]:
        return self.hyperschedule.levels(n)

    @property
    def settles(self) -> Int[Tensor, " l"]:
        return self.hyperschedule.settles

    def fitted(self, length: int) -> AbstractHyperschedule:
        """This hyperschedule for another number of positions.

        Raises:
            ValueError: If it supports no other length, as a table of levels.
        """
        plan: Any = self.hyperschedule
        sizes = [field.name for field in dataclasses.fields(plan)] if dataclasses.is_dataclass(plan) else []
        if plan.length != length and not {"length", "width"} <= set(sizes):
            raise ValueError(
                f"The metaschedule {plan!r} is for {plan.length} positions and has no other length; {length} are "
                "asked for."
            )
        if plan.length != length:
            plan = dataclasses.replace(plan, length=length, width=min(plan.width, length))
        return cast("AbstractHyperschedule", plan)


class AbstractPublishedModel(nn.Module, abc.ABC):
    """A checkpoint as a module with the published interface; its state dict has the published names.

    Args:
        checkpoint: The checkpoint of the model.
        config: The configuration of the checkpoint.
        post_process: Whether to change the logits of impossible tokens, where `settled_tokens` are given.
        autoregressive: Whether to post-process as for the published `sampling_method: AR`.

    Attributes:
        checkpoint: The checkpoint; it shares its weights with this module.
        config: The configuration as given.
        post_process: The choice as given.
        autoregressive: The choice as given.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        config: Any = None,
        *,
        post_process: bool = False,
        autoregressive: bool = False,
    ) -> None:
        super().__init__()
        self.checkpoint, self.config = checkpoint, config
        self.post_process, self.autoregressive = post_process, autoregressive
        for name, layer in checkpoint.network.named_children():
            self.add_module(name, layer)
        self.train(checkpoint.network.training)

    @property
    def denoiser(self) -> Denoiser:
        """Network, process and parameterization."""
        return self.checkpoint.denoiser

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.parameters()).device

    def save_pretrained(self, folder: str | Path, **options: Any) -> None:
        """Write a folder in the published layout; see `hdlm.sharing.export.export`."""
        export(self.checkpoint, folder, **options)

    def push_to_hub(self, repo_id: str, **options: Any) -> Shared:
        """Upload to the hub in the published layout, to a private repository; see `hdlm.sharing.push.push_to_hub`."""
        return push_to_hub(self.checkpoint, repo_id, layout="published", **options)

    @abc.abstractmethod
    def forward(self, *args: Any, **kwargs: Any) -> Float[Tensor, "b q v"]:
        """The outputs of the published model of the family."""

    def _finish(
        self, logits: Float[Tensor, "b q v"], ids: Int[Tensor, "b q"], settled: Bool[Tensor, "#b q"] | None
    ) -> Float[Tensor, "b q v"]:
        """Post-process as published: the position before a settled token cannot predict the mask."""
        if settled is None or not self.post_process:
            return logits
        ahead, mask = logits[:, :-1], self.checkpoint.vocabulary.mask_id
        if self.autoregressive:
            ahead = ahead.scatter(-1, ids[:, 1:, None], 0.0)
        impossible = torch.zeros_like(ahead, dtype=torch.bool)
        impossible[..., mask] = settled[:, 1:].bool()
        return torch.cat([ahead.masked_fill(impossible, _NEVER), logits[:, -1:]], dim=1)


@final
class EpsilonModel(AbstractPublishedModel):
    """`model(ids, positions)`: raw logits of a network without noise conditioning.

    Networks of the literature with noise conditioning (Duo, GIDD) can be sampled from, but not called in this way.
    """

    def forward(
        self,
        ids: Int[Tensor, "b q"],
        positions: Int[Tensor, "..."] | None = None,
        attn_mask: Tensor | None = None,
        settled_tokens: Bool[Tensor, "#b q"] | None = None,
    ) -> Float[Tensor, "b q v"]:
        """Logits of every row; the mask's row is the last.

        Args:
            ids: Token ids of the sequences.
            positions: Positions of the tokens, `[q]`, `[1, q]` or `[b, q]`; `0 .. q-1` by default.
            attn_mask: Attention mask, True = may not attend: `[q, q]`, `[b, q, q]` or `[b, 1, q, q]`.
            settled_tokens: Which tokens are settled; used by the post-processing, where the model has any.

        Raises:
            ValueError: If the network needs the noise as an input.
        """
        network, meaning = self.checkpoint.network, self.denoiser.parameterization.aligned
        if getattr(meaning, "conditioning", None) not in ("none", "zero"):
            raise ValueError(
                f"A network that is conditioned on the noise ({meaning!r}) cannot be called as `model(ids, "
                f"positions)`. Use "
                "`model.denoiser`, or the samplers."
            )
        noise = meaning.inputs(next(network.parameters()).new_zeros(ids.shape))
        logits = network(
            ids, positions=_rows(positions), condition=noise.condition, attention=_may_attend(attn_mask)
        )
        return self._finish(logits, ids, settled_tokens)


@final
class GammaModel(AbstractPublishedModel):
    """`model(ids, sigma, positions)`: log scores of a network that is conditioned on the total noise.

    They are the network's raw outputs: the log score of the token itself is 0 by definition, but is not set to 0 here.

    Raises:
        ValueError: If the network does not predict scores.
    """

    def __init__(self, checkpoint: Checkpoint, config: Any = None, **choices: bool) -> None:
        super().__init__(checkpoint, config, **choices)
        if not isinstance(checkpoint.denoiser.parameterization.aligned, LogScore):
            raise ValueError(
                f"{checkpoint.denoiser.parameterization!r} does not give scores; use `EpsilonModel`."
            )

    def forward(
        self,
        ids: Int[Tensor, "b q"],
        sigma: Float[Tensor, "..."],
        positions: Int[Tensor, "..."] | None = None,
        attn_mask: Tensor | None = None,
        settled_tokens: Bool[Tensor, "#b q"] | None = None,
    ) -> Float[Tensor, "b q v"]:
        """Log scores of every row; the mask's row is the last.

        Args:
            ids: Token ids of the sequences.
            sigma: Total noise of each token, `[b, q]`; or of each sequence, `[b]` or `[b, 1]`.
            positions: Positions of the tokens, `[q]`, `[1, q]` or `[b, q]`; `0 .. q-1` by default.
            attn_mask: Attention mask, True = may not attend: `[q, q]`, `[b, q, q]` or `[b, 1, q, q]`.
            settled_tokens: Which tokens are settled; used by the post-processing, where the model has any.
        """
        network, meaning = self.checkpoint.network, self.denoiser.parameterization.aligned
        if not isinstance(meaning, LogScore):
            raise ValueError(f"{meaning!r} does not give scores.")
        noise = (sigma[:, None] if sigma.ndim == 1 else sigma).expand(ids.shape)
        raw = network(
            ids,
            positions=_rows(positions),
            condition=noise,
            blend=None if meaning.blend_rate is None else -torch.expm1(-meaning.blend_rate * noise),
            attention=_may_attend(attn_mask),
        )
        if meaning.scale_by_sigma:
            raw = raw - (torch.expm1(noise).log() + math.log(raw.shape[-1] - 1))[..., None]
        return self._finish(raw, ids, settled_tokens)


def _rows(positions: Tensor | None) -> Tensor | None:
    return positions[None] if positions is not None and positions.ndim == 1 else positions


def _may_attend(attn_mask: Tensor | None) -> Bool[Tensor, "#b q k"] | None:
    if attn_mask is None:
        return None
    forbidden = attn_mask.bool()
    return ~(
        forbidden[:, 0] if forbidden.ndim == 4 else forbidden[None] if forbidden.ndim == 2 else forbidden
    )


@final
@dataclass(frozen=True)
class CallableDenoiser(AbstractDenoiser):
    """A function of ids and positions as a denoiser.

    A function with a parameter `attn_mask` gets the attention mask; without it every position sees every other. There
    is no cache: every call computes all positions.

    Attributes:
        model: `model(ids, positions)`, or `model(ids, sigma, positions=positions)`; returns `[b, q, rows]`.
        process: The noise process of its training; there is a row for each word, and may be one for the mask.
        parameterization: The meaning of the rows.
        told_sigma: Whether it is called with the total noise of each position.
    """

    model: Callable[..., Any]
    process: AbstractNoiseProcess
    parameterization: AbstractParameterization
    told_sigma: bool = False

    @property
    def lookback(self) -> int:
        return self.parameterization.lookback

    @property
    def device(self) -> torch.device | None:
        weights = next(self.model.parameters(), None) if isinstance(self.model, nn.Module) else None
        return None if weights is None else weights.device

    def predict(
        self, tokens: Int[Tensor, "b q"], noise: Float[Tensor, "b q"], context: ForwardContext
    ) -> Prediction:
        length = tokens.shape[1]
        positions = torch.arange(length, device=tokens.device)[None]
        positions = positions if context.positions is None else context.positions
        positions = positions.expand(tokens.shape).contiguous()
        extra: dict[str, Any] = {}
        if context.attention is not None and self._takes("attn_mask"):
            extra["attn_mask"] = _may_not_attend(context.attention, tokens)
        if self.told_sigma:
            sigma = self.parameterization.inputs(noise).condition
            if sigma is None:
                raise ValueError(f"{self.parameterization!r} does not condition the network on the noise.")
            answer = self.model(tokens, sigma.float(), positions=positions, **extra)
        else:
            answer = self.model(tokens, positions, **extra)
        rows = self._checked(answer, tokens).flatten(0, 1)
        source = Predecessors.of([Question(tokens, noise, context)], self.lookback)

        def raw(at: Tensor) -> Tensor:
            chosen = rows[source(at)]
            if chosen.isnan().any():
                raise ValueError("The model's output contains NaN.")
            return chosen

        return Prediction(self.process, self.parameterization, tokens, noise, raw)

    def _takes(self, name: str) -> bool:
        """Whether the function has a parameter of this name."""
        function = self.model.forward if isinstance(self.model, nn.Module) else self.model
        try:
            return name in inspect.signature(function).parameters
        except (ValueError, TypeError):
            return False

    def _checked(self, answer: Any, tokens: Tensor) -> Tensor:
        words = self.process.num_words
        if (
            not isinstance(answer, Tensor)
            or answer.ndim != 3
            or answer.shape[:2] != tokens.shape
            or answer.shape[2] not in (words, words + 1)
        ):
            got = list(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
            raise ValueError(
                f"The model must return a tensor [{tokens.shape[0]}, {tokens.shape[1]}, {words + 1}], a row for each "
                f"word and one for the mask, whose id is dim={words}; got {got}. Is `dim` right?"
            )
        return answer


def _may_not_attend(attention: Any, tokens: Tensor) -> Bool[Tensor, "b q k"]:
    """A published attention mask: dense, one per sequence, True = may not attend."""
    rows, length = tokens.shape
    if isinstance(attention, BlockMask):
        place = torch.arange(length, device=tokens.device)
        first = torch.zeros_like(place[:1])
        attention = attention.mask_mod(first, first, place[:, None], place)[None]
    forbidden: Tensor = ~attention
    return forbidden.expand(rows, -1, -1)


def smart_model_loader(
    model_path: str | Path,
    model_type: str = "auto",
    device: torch.device | str | int | None = None,
    config_path: str | Path | None = None,
    *,
    accelerator: Any = None,
    **options: Any,
) -> tuple[AbstractPublishedModel, Any, torch.device, Any, Metaschedule]:
    """Load a model of any family.

    Args:
        model_path: Hub id, folder, run or file: any source that `hdlm.load` accepts.
        model_type: `"epsilon_hybrid"`, `"gamma_hybrid"`, or `"auto"`. The content of the checkpoint decides; it is an
            error to name the other family.
        device: Device of the model. If the machine has no such device, the CPU is used, with a message.
        config_path: The configuration, or the run folder that holds it, if it is not in the folder of the weights.
        accelerator: The `accelerate.Accelerator` to return; a new one by default.
        options: Further options of `hdlm.load`: `weights`, `revision`, `cache_dir`, `token`, `offline`.

    Returns:
        The model, in evaluation mode; its configuration, with access by attribute and by item; the device; the
        accelerator; and the hyperschedule of its training, which samplers accept as `metaschedule`.

    Raises:
        ValueError: If the source is not a model, or is a model of the other family.
        OSError: If the source cannot be reached.
    """
    if model_type not in ("auto", *get_args(Family)):
        known = ", ".join(("auto", *get_args(Family)))
        raise ValueError(f"Unknown `model_type` {model_type!r}; known are {known}.")
    place = pick_device(device)
    config = None if config_path is None else Path(config_path)
    checkpoint = hub.load(model_path, config=config, device=place, **options)
    family: Family = (
        "gamma_hybrid"
        if isinstance(checkpoint.denoiser.parameterization.aligned, LogScore)
        else "epsilon_hybrid"
    )
    if model_type not in ("auto", family):
        raise ValueError(
            f'{model_path} holds a model of the family {family}, not {model_type}: leave `model_type` at "auto".'
        )
    published = _configuration(checkpoint, family)
    kind = GammaModel if family == "gamma_hybrid" else EpsilonModel
    model = kind(
        checkpoint,
        published,
        post_process=bool(option(published, "model.post_process_logits", False)),
        autoregressive=option(published, "annealing.sampling_method") == "AR",
    )
    plan = checkpoint.hyperschedules[0] if checkpoint.hyperschedules else _flat(checkpoint)
    return model, published, place, accelerator or _accelerator(place), Metaschedule(plan)


def _flat(checkpoint: Checkpoint) -> AbstractHyperschedule:
    """The hyperschedule of a model that records none."""
    return flat(checkpoint.length, checkpoint.length)


def _configuration(checkpoint: Checkpoint, family: Family) -> Any:
    """The configuration of the checkpoint; for a model of hdlm, the configuration of the published trainer."""
    try:
        from omegaconf import OmegaConf
    except ModuleNotFoundError as error:
        raise OSError(_LACKING.format(error)) from error
    came_with = checkpoint.training.get("config")
    foreign = checkpoint.training.get("format") in {card.name for card in hub.CARDS}
    configuration = (
        dict(came_with) if foreign and isinstance(came_with, Mapping) else _as_published(checkpoint)
    )
    configuration.setdefault("model_type", family)
    tables = {
        "tokenizer": {"tokens": checkpoint.vocabulary.num_words},
        "model": {"length": checkpoint.length, "hidden_size": checkpoint.network.config.hidden_size},
    }
    for name, known in tables.items():
        table = configuration.get(name)
        if table is None or isinstance(table, Mapping):
            configuration[name] = {**known, **(table or {})}
    return OmegaConf.create(_literal(configuration))


def _as_published(checkpoint: Checkpoint) -> dict[str, Any]:
    """The published options for a model of hdlm; its own options where there are no published ones."""
    try:
        return dict(published_config(checkpoint))
    except ValueError:
        return dict(checkpoint.config())


def _literal(value: Any) -> Any:
    """A copy of the values in which OmegaConf resolves no interpolations: all that can be resolved already are."""
    if isinstance(value, Mapping):
        return {key: _literal(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_literal(part) for part in value]
    return _INTERPOLATION.sub(r"\1\1\\${", value) if isinstance(value, str) else value


_INTERPOLATION = re.compile(r"(\\*)\$\{")


def _accelerator(device: torch.device) -> Any:
    try:
        from accelerate import Accelerator
    except ModuleNotFoundError as error:
        raise OSError(_LACKING.format(error)) from error
    return Accelerator(cpu=device.type == "cpu")
