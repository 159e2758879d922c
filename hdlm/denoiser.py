"""A denoiser answers one question: given a noisy sequence, what was each clean token?

`Denoiser` composes a backbone (numbers), a process (noise) and a parameterization (what the numbers mean). Its answer
is a `Prediction`, which is read only where somebody asks: the vocabulary projection runs at those positions alone.
Anything that answers the same question is a denoiser: the exact one of an enumerable world (`hdlm.verification`), or a
guided one that asks another twice (`Guided`).
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hdlm.network import Pass
from hdlm.parameterization import AbstractParameterization, NoiseDependence
from hdlm.process import AbstractNoiseProcess

__all__ = [
    "AbstractDenoiser",
    "Backbone",
    "Denoiser",
    "ForwardContext",
    "Guided",
    "Predecessors",
    "Prediction",
    "Projection",
    "resolve_device",
]

_MOST_GUIDANCE = 1e6
"""Logits times more than this may leave float32."""


@final
@dataclass(frozen=True)
class ForwardContext:
    """Where the tokens stand and what they may see.

    Attributes:
        positions: Position of each token; None for `0 .. q-1`.
        attention: Who may attend to whom, True = may, over cached keys followed by current ones; or a `BlockMask` of
            FlexAttention; None lets everybody see everybody.
        cache: What `AbstractDenoiser.new_cache` returned: keys and values of positions that no longer change.
        store: Indices of the current positions that enter the cache.
        ordered: Whether the caller has made sure that the position before each one that will be read stands directly
            before it, as shifted networks need. Otherwise reading checks it, which makes an accelerator wait.
    """

    positions: Int[Tensor, "#b q"] | None = None
    attention: Any = None
    cache: Any = None
    store: Int[Tensor, " n"] | None = None
    ordered: bool = False


@final
@dataclass(frozen=True)
class Projection:
    """Raw outputs as what they are in networks: `rows(at) @ matrix.T + bias`.

    Attributes:
        rows: Gives the hidden vectors that speak of the flattened positions with the given indices.
        parameters: Gives `matrix` and `bias`.
    """

    rows: Callable[[Int[Tensor, " n"]], Float[Tensor, "n h"]]
    parameters: Callable[[], tuple[Float[Tensor, "v h"], Float[Tensor, " v"] | None]]


@final
@dataclass(frozen=True)
class Prediction:
    """What a denoiser says of `x_t`, projected onto the vocabulary only where it is read.

    Attributes:
        process: The noise process.
        parameterization: The meaning of the raw outputs.
        tokens: `x_t`.
        noise: The noise fraction of each position.
        raw: Gives the raw outputs that speak of the positions with the given indices into the flattened `[b q]`.
        projection: The two factors of `raw`, if it is the linear layer of one network.
    """

    process: AbstractNoiseProcess
    parameterization: AbstractParameterization
    tokens: Int[Tensor, "b q"]
    noise: Float[Tensor, "b q"]
    raw: Callable[[Int[Tensor, " n"]], Float[Tensor, "n v"]]
    projection: Projection | None = None

    def log_clean(self, at: Int[Tensor, " n"]) -> Float[Tensor, "n v"]:
        """`log p(x_0 | x_t)` at the flattened positions `at`; minus infinity at the mask."""
        rows = self.tokens.flatten()[at], self.noise.flatten()[at]
        return self.parameterization.log_clean(self.process, self.raw(at), *rows)

    def log_score(self, at: Int[Tensor, " n"]) -> Float[Tensor, "n v"]:
        """`log p_u(y) / p_u(x_t)` at the flattened positions `at`."""
        rows = self.tokens.flatten()[at], self.noise.flatten()[at]
        return self.parameterization.log_score(self.process, self.raw(at), *rows)

    def everywhere(self) -> Int[Tensor, " n"]:
        """The flattened indices of all positions."""
        return torch.arange(self.tokens.numel(), device=self.tokens.device)


@final
@dataclass(frozen=True)
class Question:
    """The arguments of `AbstractDenoiser.predict`.

    Attributes:
        tokens: `x_t`.
        noise: Noise fraction of each position.
        context: Positions, attention and cache.
    """

    tokens: Int[Tensor, "b q"]
    noise: Float[Tensor, "b q"]
    context: ForwardContext


def _end_to_end(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def joined(answers: Sequence[Prediction]) -> Prediction:
    """Several answers of one denoiser as one: their flattened positions lie end to end, `[1 n]`."""
    if len(answers) == 1:
        return answers[0]
    ends = torch.tensor([answer.tokens.numel() for answer in answers]).cumsum(0)
    begins = [0, *ends.tolist()]

    def raw(at: Tensor) -> Tensor:
        part = torch.searchsorted(ends.to(at.device), at, right=True)
        rows: Tensor | None = None
        for number in part.unique().tolist():
            own = part == number
            found = answers[number].raw(at[own] - begins[number])
            rows = found.new_empty(len(at), found.shape[1]) if rows is None else rows
            rows[own] = found
        return answers[0].raw(at) if rows is None else rows

    return Prediction(
        answers[0].process,
        answers[0].parameterization,
        torch.cat([answer.tokens.flatten() for answer in answers])[None],
        torch.cat([answer.noise.flatten() for answer in answers])[None],
        raw,
    )


@final
@dataclass(frozen=True)
class Predecessors:
    """Where the outputs stand from which a network is read: at the same place, or `lookback` positions before it.

    Attributes:
        source: Index of the output for each flattened position; None if it is the position itself.
        missing: Whether the position that should be read is not in the window; None if none is missing.
    """

    source: Int[Tensor, " n"] | None = None
    missing: Bool[Tensor, " n"] | None = None

    @classmethod
    def of(cls, questions: Sequence[Question], lookback: int) -> Predecessors:
        """Those of some windows, whose flattened positions lie end to end.

        The first `lookback` positions of a sequence have no predecessor: nothing predicts them, and their own output
        stands in its place.
        """
        if not lookback:
            return cls()
        back = [_columns(one).clamp_max(lookback).flatten() for one in questions]
        moved = _end_to_end(back)
        source = torch.arange(len(moved), device=moved.device) - moved
        if all(one.context.ordered or one.context.positions is None for one in questions):
            return cls(source)
        return cls(source, torch.cat([_missing(one, lookback).flatten() for one in questions]))

    def __call__(self, at: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        """Index of the outputs that predict the flattened positions `at`.

        Raises:
            ValueError: If one of them is not in the window.
        """
        if self.source is None:
            return at
        if self.missing is not None and bool(self.missing[at].any()):
            raise ValueError(
                "A shifted network predicts a position from the output at the position before it, and that position is "
                "not in the window. Put it into the window, directly before the position that is read."
            )
        return self.source[at]


def _columns(question: Question) -> Int[Tensor, "b q"]:
    """The column of each position of a window."""
    tokens = question.tokens
    return torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape)


def _missing(question: Question, lookback: int) -> Bool[Tensor, "b q"]:
    """Where the column `lookback` places before is another position than the one that predicts this one."""
    columns, positions = _columns(question), question.context.positions
    if positions is None or question.context.ordered:
        return torch.zeros_like(columns, dtype=torch.bool)
    place = positions.to(columns.device).expand(columns.shape)
    found = place.gather(1, (columns - lookback).clamp_min(0))
    return (place >= lookback) & ((columns < lookback) | (found != place - lookback))


def resolve_device(denoiser: AbstractDenoiser, device: torch.device | str | None) -> torch.device:
    """The device for the tokens of a denoiser: by default its own, and the CPU if it has none.

    Args:
        denoiser: The denoiser.
        device: What is wanted; None for no wish.

    Raises:
        ValueError: If the denoiser is on another device.
    """
    own, wanted = denoiser.device, None if device is None else torch.device(device)
    if own is None:
        return torch.device("cpu") if wanted is None else wanted
    if wanted is not None and (
        wanted.type != own.type or (wanted.index is not None and wanted.index != (own.index or 0))
    ):
        raise ValueError(
            f"`device` is {str(wanted)!r}, and the denoiser is on {str(own)!r}: leave `device` out, or move the "
            f"denoiser first, `denoiser.to({str(wanted)!r})`."
        )
    return own


class Backbone(Protocol):
    """Tokens to one vector of raw numbers per position, in two halves; `hdlm.network.DDiT` is one."""

    def features(
        self,
        tokens: Int[Tensor, "b q"],
        *,
        positions: Int[Tensor, "#b q"] | None = None,
        condition: Float[Tensor, "b q"] | None = None,
        blend: Float[Tensor, "b q"] | None = None,
        attention: Any = None,
        cache: Any = None,
        store: Any = None,
    ) -> Float[Tensor, "b q h"]:
        """Hidden vectors, just before the vocabulary projection."""
        ...

    def features_of_many(self, passes: Any) -> list[Tensor]:
        """Hidden vectors of several `hdlm.network.Pass`, which have nothing to do with one another, in one go."""
        ...

    def head(self, hidden: Float[Tensor, "*n h"]) -> Float[Tensor, "*n v"]:
        """The vocabulary projection, row by row."""
        ...

    def projection(self) -> tuple[Float[Tensor, "v h"], Float[Tensor, " v"] | None]:
        """The matrix and the bias of `head`."""
        ...

    def new_cache(self) -> Any:
        """An empty cache of keys and values."""
        ...


class AbstractDenoiser(abc.ABC):
    """Anything that knows `p(x_0 | x_t)` of its own process.

    Attributes:
        process: The noise process whose states it understands.
    """

    process: AbstractNoiseProcess

    @property
    def lookback(self) -> int:
        """How many positions before position `i` must be in the window for `i` to be predicted; shifted networks: 1."""
        return 0

    @property
    def packs(self) -> bool:
        """Whether `predict_many` costs less than so many calls of `predict`."""
        return False

    @property
    def noise_dependence(self) -> NoiseDependence:
        """What the raw answer depends on besides the tokens; see `AbstractParameterization.noise_dependence`.

        Generation keeps answers only for `"none"`, and has an exact cache only for `"none"` and `"position"`. The
        default is right for every denoiser.
        """
        return "sequence"

    @property
    def device(self) -> torch.device | None:
        """Where the weights are, and tokens must be; None for a denoiser that computes wherever the tokens are."""
        return None

    def predict_many(self, questions: Sequence[Question]) -> Prediction:
        """The answers to several questions, end to end; one call of the network if it `packs`."""
        return joined([self.predict(one.tokens, one.noise, one.context) for one in questions])

    @abc.abstractmethod
    def predict(
        self, tokens: Int[Tensor, "b q"], noise: Float[Tensor, "b q"], context: ForwardContext
    ) -> Prediction:
        """What it says of noisy tokens.

        Args:
            tokens: `x_t`.
            noise: Noise fraction of each position, in [0, 1]; 0 where the token is known.
            context: Positions, attention and cache.
        """

    def new_cache(self) -> Any:
        """An empty cache for `ForwardContext.cache`, or None if this denoiser keeps none."""
        return None

    def retain(self, cache: Any, places: Int[Tensor, " n"]) -> None:
        """Keep only these of the positions in a cache, by their place in it, in this order."""
        if cache is not None:
            cache.retain(places)


@final
class Denoiser(nn.Module, AbstractDenoiser):
    """Backbone + process + parameterization.

    Args:
        backbone: The network; see `Backbone`.
        process: The noise process it was trained for.
        parameterization: What its outputs mean.
    """

    def __init__(
        self, backbone: nn.Module, process: AbstractNoiseProcess, parameterization: AbstractParameterization
    ) -> None:
        super().__init__()
        self.backbone: Any = backbone
        self.process = process
        self.parameterization = parameterization

    @property
    def lookback(self) -> int:
        return self.parameterization.lookback

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def predict(
        self, tokens: Int[Tensor, "b q"], noise: Float[Tensor, "b q"], context: ForwardContext
    ) -> Prediction:
        question = self._pass(Question(tokens, noise, context))
        rest = question._asdict()
        hidden = self.backbone.features(rest.pop("tokens"), **rest)
        return self._read([Question(tokens, noise, context)], [hidden])

    @property
    def packs(self) -> bool:
        return True

    @property
    def noise_dependence(self) -> NoiseDependence:
        return self.parameterization.noise_dependence

    def predict_many(self, questions: Sequence[Question]) -> Prediction:
        if len(questions) == 1:
            return self.predict(questions[0].tokens, questions[0].noise, questions[0].context)
        return self._read(questions, self.backbone.features_of_many([self._pass(one) for one in questions]))

    def _pass(self, question: Question) -> Pass:
        """What the network is asked."""
        told, context = self.parameterization.inputs(question.noise), question.context
        as_weights = next(self.parameters()).dtype
        return Pass(
            question.tokens,
            context.positions,
            None if told.condition is None else told.condition.to(as_weights),
            None if told.blend is None else told.blend.to(as_weights),
            context.attention,
            context.cache,
            context.store,
        )

    def _read(self, questions: Sequence[Question], hidden: Sequence[Tensor]) -> Prediction:
        """Hidden vectors as an answer, which is projected where it is read."""
        rows = _end_to_end([one.flatten(0, 1) for one in hidden])
        source = Predecessors.of(questions, self.lookback)

        def of(at: Tensor) -> Tensor:
            return rows[source(at)]

        def raw(at: Tensor) -> Tensor:
            read: Tensor = self.backbone.head(of(at))
            return read

        shape = questions[0].tokens.shape if len(questions) == 1 else (1, -1)
        tokens = _end_to_end([one.tokens.flatten() for one in questions]).view(shape)
        noise = _end_to_end([one.noise.flatten() for one in questions]).view(shape)
        projection = Projection(of, self.backbone.projection)
        return Prediction(self.process, self.parameterization, tokens, noise, raw, projection)

    def forward(
        self, tokens: Int[Tensor, "b q"], noise: Float[Tensor, "b q"], context: ForwardContext | None = None
    ) -> Float[Tensor, "b q v"]:
        """`log p(x_0 | x_t)` everywhere: `predict`, read at every position."""
        prediction = self.predict(tokens, noise, context or ForwardContext())
        log_p = prediction.log_clean(prediction.everywhere())
        return log_p.view(*tokens.shape, -1)

    def new_cache(self) -> Any:
        return self.backbone.new_cache()


@final
@dataclass(frozen=True)
class Guided(AbstractDenoiser):
    """Classifier-free guidance (arXiv 2207.12598): a denoiser that wraps a denoiser.

    Raw outputs are combined as `(1 + scale) conditional - scale unconditional`; logits and log scores are both
    logarithms, so this sharpens the odds that the condition gives. Unconditionally, the prompt is masked.

    Attributes:
        inner: The denoiser to guide.
        prompt: Positions whose tokens are the condition, over the whole canvas.
        scale: In [0, 1e6]; 0 is no guidance.
    """

    inner: AbstractDenoiser
    prompt: Bool[Tensor, "#b l"]
    scale: float

    def __post_init__(self) -> None:
        if not 0 <= self.scale <= _MOST_GUIDANCE:
            raise ValueError(f"`scale` of guidance must lie in [0, {_MOST_GUIDANCE:g}]; got {self.scale}.")
        if not self.process.final_mask_share:
            raise ValueError(f"guidance masks the prompt, and {self.process!r} has no mask: leave it out.")

    @property
    def process(self) -> AbstractNoiseProcess:  # type: ignore[override]
        """The process of the wrapped denoiser."""
        return self.inner.process

    @property
    def lookback(self) -> int:
        return self.inner.lookback

    @property
    def noise_dependence(self) -> NoiseDependence:
        return self.inner.noise_dependence

    @property
    def device(self) -> torch.device | None:
        return self.inner.device

    def new_cache(self) -> tuple[Any, Any]:
        return self.inner.new_cache(), self.inner.new_cache()

    def retain(self, cache: tuple[Any, Any], places: Int[Tensor, " n"]) -> None:
        for one in cache:
            self.inner.retain(one, places)

    def predict(
        self, tokens: Int[Tensor, "b q"], noise: Float[Tensor, "b q"], context: ForwardContext
    ) -> Prediction:
        caches = context.cache or (None, None)
        positions = torch.arange(tokens.shape[1], device=tokens.device)[None]
        positions = positions if context.positions is None else context.positions
        prompt = self.prompt.expand(positions.shape[0], -1).gather(1, positions)
        blank = torch.where(prompt, self.process.mask_id, tokens)

        def of(cache: Any) -> ForwardContext:
            return replace(context, cache=cache)

        informed = self.inner.predict(tokens, noise, of(caches[0]))
        blind = self.inner.predict(blank, torch.where(prompt, 1.0, noise), of(caches[1]))

        def raw(at: Tensor) -> Tensor:
            return (1 + self.scale) * informed.raw(at) - self.scale * blind.raw(at)

        return Prediction(self.process, informed.parameterization, tokens, noise, raw)
