"""The model as published callers know it: `smart_model_loader`, and a module that is called on ids and positions.

| published | here |
|---|---|
| `smart_model_loader(...)` | `hdlm.load(...)`, a `Checkpoint` |
| the model it returns | `Checkpoint.denoiser`: network, process, parameterization |
| `attn_mask`, True = may not attend | `ForwardContext.attention`, True = may attend |
| the metaschedule | a hyperschedule, `hdlm.hyperschedule` |
| any function `model(ids, positions)` | `CallableDenoiser` |

The rest of the package needs none of this.
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
"""The logit that post-processing gives to masks that cannot be."""


@functools.cache
def say_once(message: str) -> None:
    """Tell the user, on the error stream, the first time only."""
    print(message, file=sys.stderr)


def option(config: Any, path: str, default: Any = None) -> Any:
    """What a configuration says: a mapping, an OmegaConf node, or an object with attributes.

    Args:
        config: The configuration, or None.
        path: Dotted name.
        default: The answer where it says nothing, or None.
    """
    found = config
    for name in path.split("."):
        found = found.get(name) if isinstance(found, Mapping) else getattr(found, name, None)
        if found is None:
            return default
    return found


def pick_device(device: torch.device | str | int | None) -> torch.device:
    """The device to use: the one that is asked for, or the CPU where the machine has none of its kind.

    Args:
        device: What is asked for; None for a GPU where there is one.
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
    """A hyperschedule under the names of a published metaschedule; good wherever a hyperschedule is.

    Offered are `max_step`, `worthless`, and everything that a hyperschedule has.

    Attributes:
        hyperschedule: The hyperschedule itself.
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
        """Steps that generation takes; the published number counts at least one more, in which nothing changes."""
        return self.num_steps

    @property
    def worthless(self) -> int:
        """The level of a position that is pure noise, the published tau."""
        return self.num_levels

    def levels(self, n: int | Int[Tensor, "*b"]) -> Int[Tensor, "*b l"]:
        return self.hyperschedule.levels(n)

    @property
    def settles(self) -> Int[Tensor, " l"]:
        return self.hyperschedule.settles

    def fitted(self, length: int) -> AbstractHyperschedule:
        """The same hyperschedule over another number of positions.

        Raises:
            ValueError: If it has no other length, as a table of levels.
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
    """A checkpoint as a module that is called as the published ones are; its state dict has the published names.

    Args:
        checkpoint: The model.
        config: The configuration it came with.
        post_process: Change the logits of what cannot be, where `settled_tokens` are given.
        autoregressive: Post-process as for the published `sampling_method: AR`.

    Attributes:
        checkpoint: As given; shares its weights with this module.
        config: As given.
        post_process: As given.
        autoregressive: As given.
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
        """Where the weights are."""
        return next(self.parameters()).device

    def save_pretrained(self, folder: str | Path, **options: Any) -> None:
        """Write a folder in the published layout; see `hdlm.sharing.export.export`."""
        export(self.checkpoint, folder, **options)

    def push_to_hub(self, repo_id: str, **options: Any) -> Shared:
        """Send it to the hub in the published layout, to a private repository; see `hdlm.sharing.push.push_to_hub`."""
        return push_to_hub(self.checkpoint, repo_id, layout="published", **options)

    @abc.abstractmethod
    def forward(self, *args: Any, **kwargs: Any) -> Float[Tensor, "b q v"]:
        """What the published model of the family says of the tokens."""

    def _finish(
        self, logits: Float[Tensor, "b q v"], ids: Int[Tensor, "b q"], settled: Bool[Tensor, "#b q"] | None
    ) -> Float[Tensor, "b q v"]:
        """Post-processing, as published: a settled token is no mask, and the position before it knows."""
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
    """`model(ids, positions)`: raw logits, of a network that is told no noise.

    Networks of the field that are told their noise (Duo, GIDD) can be sampled from, but not called in this way.
    """

    def forward(
        self,
        ids: Int[Tensor, "b q"],
        positions: Int[Tensor, "..."] | None = None,
        attn_mask: Tensor | None = None,
        settled_tokens: Bool[Tensor, "#b q"] | None = None,
    ) -> Float[Tensor, "b q v"]:
        """Logits of every row, the mask's last.

        Args:
            ids: Tokens.
            positions: Where they stand, `[q]`, `[1, q]` or `[b, q]`; `0 .. q-1` by default.
            attn_mask: Who may not attend to whom, True = may not: `[q, q]`, `[b, q, q]` or `[b, 1, q, q]`.
            settled_tokens: Which are finished; used by the post-processing, where the model has any.

        Raises:
            ValueError: If the network wants to be told the noise.
        """
        network, meaning = self.checkpoint.network, self.denoiser.parameterization.aligned
        if getattr(meaning, "conditioning", None) not in ("none", "zero"):
            raise ValueError(
                f"A network that is told its noise ({meaning!r}) cannot be called as `model(ids, positions)`. Use "
                "`model.denoiser`, or the samplers."
            )
        noise = meaning.inputs(network.projection()[0].new_zeros(ids.shape))
        logits = network(
            ids, positions=_rows(positions), condition=noise.condition, attention=_may_attend(attn_mask)
        )
        return self._finish(logits, ids, settled_tokens)


@final
class GammaModel(AbstractPublishedModel):
    """`model(ids, sigma, positions)`: log scores, of the network that is told the total noise.

    They are as the network gives them: that of the token itself is 0 by definition, and is not made so here.

    Raises:
        ValueError: If the network does not speak of scores.
    """

    def __init__(self, checkpoint: Checkpoint, config: Any = None, **choices: bool) -> None:
        super().__init__(checkpoint, config, **choices)
        if not isinstance(checkpoint.denoiser.parameterization.aligned, LogScore):
            raise ValueError(f"{checkpoint.denoiser.parameterization!r} gives no scores; use `EpsilonModel`.")

    def forward(
        self,
        ids: Int[Tensor, "b q"],
        sigma: Float[Tensor, "..."],
        positions: Int[Tensor, "..."] | None = None,
        attn_mask: Tensor | None = None,
        settled_tokens: Bool[Tensor, "#b q"] | None = None,
    ) -> Float[Tensor, "b q v"]:
        """Log scores of every row, the mask's last.

        Args:
            ids: Tokens.
            sigma: Total noise of each of them, `[b, q]`; or of each sequence, `[b]` or `[b, 1]`.
            positions: Where they stand, `[q]`, `[1, q]` or `[b, q]`; `0 .. q-1` by default.
            attn_mask: Who may not attend to whom, True = may not: `[q, q]`, `[b, q, q]` or `[b, 1, q, q]`.
            settled_tokens: Which are finished; used by the post-processing, where the model has any.
        """
        network, meaning = self.checkpoint.network, self.denoiser.parameterization.aligned
        if not isinstance(meaning, LogScore):
            raise ValueError(f"{meaning!r} gives no scores.")
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
    """Any function of ids and positions as a denoiser.

    A function with a parameter `attn_mask` is told who may not attend to whom; any other lets everybody see everybody.
    There is no cache: every question is about all positions.

    Attributes:
        model: `model(ids, positions)`, or `model(ids, sigma, positions=positions)`; gives `[b, q, rows]`.
        process: The noise process it was trained for; there is a row for each word, and may be one for the mask.
        parameterization: What the rows mean.
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
                raise ValueError(f"{self.parameterization!r} tells the network no noise.")
            answer = self.model(tokens, sigma.float(), positions=positions, **extra)
        else:
            answer = self.model(tokens, positions, **extra)
        rows = self._checked(answer, tokens).flatten(0, 1)
        source = Predecessors.of([Question(tokens, noise, context)], self.lookback)

        def raw(at: Tensor) -> Tensor:
            chosen = rows[source(at)]
            if chosen.isnan().any():
                raise ValueError("The model's output holds numbers that are not numbers (NaN).")
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
    """A published mask: dense, a row for each sequence, True = may not."""
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
    """Load a model, whatever its family.

    Args:
        model_path: Hub id, folder, run or file: all that `hdlm.load` takes.
        model_type: `"epsilon_hybrid"`, `"gamma_hybrid"`, or `"auto"`: the content says which. It always decides; to
            name the other family is an error.
        device: Where the model goes. Where the machine has no such device, the CPU is used and that is said.
        config_path: The configuration, or the run folder that holds it, where it does not lie beside the weights.
        accelerator: An `accelerate.Accelerator` to return; a new one by default.
        options: More options of `hdlm.load`: `weights`, `revision`, `cache_dir`, `token`, `offline`.

    Returns:
        The model, in evaluation mode; its configuration, with access by attribute and by item; the device; the
        accelerator; and the hyperschedule it was trained along, which samplers take as `metaschedule`.

    Raises:
        ValueError: If the source is no model, or one of the other family.
        OSError: If it cannot be reached.
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
    """What a model that names no hyperschedule was trained along."""
    return flat(checkpoint.length, checkpoint.length)


def _configuration(checkpoint: Checkpoint, family: Family) -> Any:
    """The configuration that the model came with; for a model of this project, what the published trainer would say."""
    try:
        from omegaconf import OmegaConf
    except ModuleNotFoundError as error:
        raise OSError(_LACKING.format(error)) from error
    came_with = checkpoint.training.get("config")
    foreign = checkpoint.training.get("format") in {card.name for card in hub.CARDS}
    found = dict(came_with) if foreign and isinstance(came_with, Mapping) else _as_published(checkpoint)
    found.setdefault("model_type", family)
    tables = {
        "tokenizer": {"tokens": checkpoint.vocabulary.num_words},
        "model": {"length": checkpoint.length, "hidden_size": checkpoint.network.config.hidden_size},
    }
    for name, known in tables.items():
        table = found.get(name)
        if table is None or isinstance(table, Mapping):
            found[name] = {**known, **(table or {})}
    return OmegaConf.create(_literal(found))


def _as_published(checkpoint: Checkpoint) -> dict[str, Any]:
    """The published words for a model of this project; its own where there are none."""
    try:
        return dict(published_config(checkpoint))
    except ValueError:
        return dict(checkpoint.config())


def _literal(value: Any) -> Any:
    """The same values, in which OmegaConf finds nothing to interpolate: all that could be resolved has been."""
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
