"""A denoiser predicts the clean tokens of a noisy sequence.

`Denoiser` composes a backbone (numbers), a process (noise) and a parameterization (meaning of the numbers). Its result
is a `Prediction`, which is evaluated only where it is read: the vocabulary projection runs at these positions alone.
Other denoisers have the same interface: the exact one of an enumerable world (`hdlm.verification`), and a guided one,
which calls another denoiser twice (`Guided`).
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hdlm.network import Pass, Previous
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
"""Logits times a larger number may exceed float32."""


@final
@dataclass(frozen=True)
class ForwardContext:
    """Positions, attention and cache of the tokens in a forward pass.

    Attributes:
        positions: Position of each token; None for `0 .. q-1`.
        attention: Which keys each query may attend to, True = may, over cached keys followed by current ones; or a
            `BlockMask` of FlexAttention; None if all attend to all.
        cache: A cache from `AbstractDenoiser.new_cache`: keys and values of positions that no longer change.
        store: Indices of the current positions that enter the cache.
        ordered: Whether the caller has made sure that the position before each one that will be read is directly before
            it in the window, as shifted networks need. Otherwise reading checks it, which makes an accelerator wait.
        settled: Which positions are settled, for networks that encode them; by default those whose noise is 0.
        previous: Distributions of the call before, for self-conditioned networks; None for none.
        given: Which tokens the user has given, for guidance by the prompt of each sequence; None if that is unknown.
    """

    positions: Int[Tensor, "#b q"] | None = None
    attention: Any = None
    cache: Any = None
    store: Int[Tensor, " n"] | None = None
    ordered: bool = False
    settled: Bool[Tensor, " q"] | None = None
    previous: Previous | None = None
    given: Bool[Tensor, "#b q"] | None = None


@final
@dataclass(frozen=True)
class Projection:
    """Raw outputs as a linear layer: `rows(at) @ matrix.T + bias`.

    Attributes:
        rows: Returns the hidden vectors for the flattened positions with the given indices.
        parameters: Returns `matrix` and `bias`.
    """

    rows: Callable[[Int[Tensor, " n"]], Float[Tensor, "n h"]]
    parameters: Callable[[], tuple[Float[Tensor, "v h"], Float[Tensor, " v"] | None]]


@final
@dataclass(frozen=True)
class Prediction:
    """The prediction of a denoiser for `x_t`, projected onto the vocabulary only where it is read.

    Attributes:
        process: The noise process.
        parameterization: The meaning of the raw outputs.
        tokens: The noisy tokens `x_t`.
        noise: The noise fraction of each position.
        raw: Returns the raw outputs for the positions with the given indices into the flattened `[b q]`.
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
        tokens: The noisy tokens `x_t`.
        noise: Noise fraction of each position.
        context: Positions, attention and cache.
    """

    tokens: Int[Tensor, "b q"]
    noise: Float[Tensor, "b q"]
    context: ForwardContext


def _end_to_end(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def joined(answers: Sequence[Prediction]) -> Prediction:
    """Several predictions of one denoiser as one: their flattened positions lie one after another, `[1 n]`."""
    if len(answers) == 1:
        return answers[0]
    ends = torch.tensor([answer.tokens.numel() for answer in answers]).cumsum(0)
    begins = [0, *ends.tolist()]

    def raw(at: Tensor) -> Tensor:
        part = torch.searchsorted(ends.to(at.device), at, right=True)
        rows: Tensor | None = None
        for number in part.unique().tolist():
            own = part == number
            outputs = answers[number].raw(at[own] - begins[number])
            rows = outputs.new_empty(len(at), outputs.shape[1]) if rows is None else rows
            rows[own] = outputs
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
    """The output that predicts each position: its own, or the one `lookback` positions before it.

    Attributes:
        source: Index of the output for each flattened position; None if it is the position itself.
        missing: Whether the position of that output is not in the window; None if none is missing.
    """

    source: Int[Tensor, " n"] | None = None
    missing: Bool[Tensor, " n"] | None = None

    @classmethod
    def of(cls, questions: Sequence[Question], lookback: int) -> Predecessors:
        """The predecessors in several windows, whose flattened positions lie one after another.

        The first `lookback` positions of a sequence have no predecessor and are not predicted; their own output is used
        in its place.
        """
        if not lookback:
            return cls()
        back = [_columns(question).clamp_max(lookback).flatten() for question in questions]
        moved = _end_to_end(back)
        source = torch.arange(len(moved), device=moved.device) - moved
        contexts = [question.context for question in questions]
        if all(context.ordered or context.positions is None for context in contexts):
            return cls(source)
        return cls(source, torch.cat([_missing(question, lookback).flatten() for question in questions]))

    def __call__(self, at: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        """Index of the outputs that predict the flattened positions `at`.

        Raises:
            ValueError: If one of these outputs is not in the window.
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
    """Where the column `lookback` places before does not hold the position that predicts this one."""
    columns, positions = _columns(question), question.context.positions
    if positions is None or question.context.ordered:
        return torch.zeros_like(columns, dtype=torch.bool)
    here = positions.to(columns.device).expand(columns.shape)
    before = here.gather(1, (columns - lookback).clamp_min(0))
    return (here >= lookback) & ((columns < lookback) | (before != here - lookback))


def _settled(question: Question) -> Bool[Tensor, " q"]:
    """The settled positions of a window.

    Raises:
        ValueError: If they are not known, and sequences differ in the positions without noise.
    """
    if question.context.settled is not None:
        return question.context.settled
    settled = question.noise == 0
    if bool((settled != settled[:1]).any()):
        raise ValueError(
            "This network encodes settled positions, and the sequences of a pass must have them at the same places. "
            "Use two streams (two_stream=true), or one sequence at a time."
        )
    return settled[0]


def resolve_device(denoiser: AbstractDenoiser, device: torch.device | str | None) -> torch.device:
    """The device for the tokens of a denoiser: by default its own, and the CPU if it has none.

    Args:
        denoiser: Denoiser of the tokens.
        device: The requested device, or None.

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
        """Hidden vectors of several independent `hdlm.network.Pass`, in one call."""
        ...

    def head(self, hidden: Float[Tensor, "*n h"]) -> Float[Tensor, "*n v"]:
        """The vocabulary projection, row by row."""
        ...

    def projection(self) -> tuple[Float[Tensor, "v h"], Float[Tensor, " v"] | None] | None:
        """The matrix and the bias of `head`; None if `head` is not a linear layer."""
        ...

    def new_cache(self) -> Any:
        """An empty cache of keys and values."""
        ...


class AbstractDenoiser(abc.ABC):
    """Anything that predicts `p(x_0 | x_t)` for its process.

    Attributes:
        process: The noise process.
    """

    process: AbstractNoiseProcess

    @property
    def lookback(self) -> int:
        """Number of positions before `i` that must be in the window for `i` to be predicted; shifted networks: 1."""
        return 0

    @property
    def packs(self) -> bool:
        """Whether `predict_many` costs less than separate calls of `predict`."""
        return False

    @property
    def self_conditioned(self) -> bool:
        """Whether the outputs also depend on `ForwardContext.previous`."""
        return False

    @property
    def reads_given(self) -> bool:
        """Whether the outputs also depend on `ForwardContext.given`."""
        return False

    @property
    def noise_dependence(self) -> NoiseDependence:
        """What the raw outputs depend on in addition to the tokens; see `AbstractParameterization.noise_dependence`.

        Generation reuses results only for `"none"`, and has an exact cache only for `"none"` and `"position"`. The
        default is right for every denoiser.
        """
        return "sequence"

    @property
    def device(self) -> torch.device | None:
        """The device of the weights and the tokens; None for a denoiser that computes on the device of the tokens."""
        return None

    def predict_many(self, questions: Sequence[Question]) -> Prediction:
        """The predictions for several questions, one after another; one call of the network if it `packs`."""
        return joined(
            [self.predict(question.tokens, question.noise, question.context) for question in questions]
        )

    @abc.abstractmethod
    def predict(
        self, tokens: Int[Tensor, "b q"], noise: Float[Tensor, "b q"], context: ForwardContext
    ) -> Prediction:
        """Predict the clean tokens.

        Args:
            tokens: The noisy tokens `x_t`.
            noise: Noise fraction of each position, in [0, 1]; 0 if the token is known.
            context: Positions, attention and cache.
        """

    def new_cache(self) -> Any:
        """An empty cache for `ForwardContext.cache`, or None if this denoiser has none."""
        return None

    def retain(self, cache: Any, places: Int[Tensor, " n"]) -> None:
        """Keep some of the positions in a cache, by their place in it, in this order."""
        if cache is not None:
            cache.retain(places)


@final
class Denoiser(nn.Module, AbstractDenoiser):
    """Backbone + process + parameterization.

    Args:
        backbone: The network; see `Backbone`.
        process: The noise process that it was trained with.
        parameterization: The meaning of its outputs.
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
        """The device of the weights."""
        return next(self.parameters()).device

    def predict(
        self, tokens: Int[Tensor, "b q"], noise: Float[Tensor, "b q"], context: ForwardContext
    ) -> Prediction:
        arguments = self._pass(Question(tokens, noise, context))._asdict()
        given = {name: value for name, value in arguments.items() if value is not None}
        hidden = self.backbone.features(given.pop("tokens"), **given)
        return self._read([Question(tokens, noise, context)], [hidden])

    @property
    def packs(self) -> bool:
        return True

    @property
    def self_conditioned(self) -> bool:
        return bool(getattr(self.backbone, "self_conditioned", False))

    @property
    def noise_dependence(self) -> NoiseDependence:
        alone = self.parameterization.noise_dependence
        # A result must not be used again for equal tokens if the distributions of the call before are an input, too.
        return "position" if self.self_conditioned and alone == "none" else alone

    def predict_many(self, questions: Sequence[Question]) -> Prediction:
        if len(questions) == 1:
            return self.predict(questions[0].tokens, questions[0].noise, questions[0].context)
        return self._read(
            questions, self.backbone.features_of_many([self._pass(question) for question in questions])
        )

    def _pass(self, question: Question) -> Pass:
        """The arguments of the network."""
        inputs, context = self.parameterization.inputs(question.noise), question.context
        dtype = next(self.parameters()).dtype
        arguments = Pass(
            question.tokens,
            context.positions,
            None if inputs.condition is None else inputs.condition.to(dtype),
            None if inputs.blend is None else inputs.blend.to(dtype),
            context.attention,
            context.cache,
            context.store,
        )
        if not self.self_conditioned:
            return arguments
        return arguments._replace(settled=_settled(question), previous=context.previous)

    def _read(self, questions: Sequence[Question], hidden: Sequence[Tensor]) -> Prediction:
        """A prediction from hidden vectors, which are projected where it is read."""
        rows = _end_to_end([vectors.flatten(0, 1) for vectors in hidden])
        source = Predecessors.of(questions, self.lookback)

        def of(at: Tensor) -> Tensor:
            return rows[source(at)]

        def raw(at: Tensor) -> Tensor:
            outputs: Tensor = self.backbone.head(of(at))
            return outputs

        shape = questions[0].tokens.shape if len(questions) == 1 else (1, -1)
        tokens = _end_to_end([question.tokens.flatten() for question in questions]).view(shape)
        noise = _end_to_end([question.noise.flatten() for question in questions]).view(shape)
        linear = self.backbone.projection() is not None
        projection = Projection(of, self.backbone.projection) if linear else None
        return Prediction(self.process, self.parameterization, tokens, noise, raw, projection)

    def forward(
        self, tokens: Int[Tensor, "b q"], noise: Float[Tensor, "b q"], context: ForwardContext | None = None
    ) -> Float[Tensor, "b q v"]:
        """`log p(x_0 | x_t)` at every position."""
        prediction = self.predict(tokens, noise, context or ForwardContext())
        log_p = prediction.log_clean(prediction.everywhere())
        return log_p.view(*tokens.shape, -1)

    def new_cache(self) -> Any:
        return self.backbone.new_cache()


@final
@dataclass(frozen=True)
class Guided(AbstractDenoiser):
    """Classifier-free guidance (arXiv 2207.12598), around another denoiser.

    Raw outputs are combined as `(1 + scale) conditional - scale unconditional`; logits and log scores are both
    logarithms, so this raises the odds that the condition gives. For the unconditional output the prompt is masked.

    Attributes:
        inner: The denoiser to guide.
        prompt: Positions whose tokens are the condition in all sequences, over the whole canvas; None for the tokens
            that are given in each sequence, which may differ.
        scale: Strength in [0, 1e6]; 0 disables it.
    """

    inner: AbstractDenoiser
    prompt: Bool[Tensor, "#b l"] | None
    scale: float

    def __post_init__(self) -> None:
        if self.prompt is not None and len(self.prompt) > 1:
            raise ValueError(
                f"`prompt` of guidance must have one row for all sequences; got {len(self.prompt)}. With None, the "
                "tokens that are given in each sequence are its condition."
            )
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
    def reads_given(self) -> bool:
        return self.prompt is None

    @property
    def noise_dependence(self) -> NoiseDependence:
        return self.inner.noise_dependence

    @property
    def device(self) -> torch.device | None:
        return self.inner.device

    def new_cache(self) -> tuple[Any, Any] | None:
        caches = self.inner.new_cache(), self.inner.new_cache()
        return None if caches[0] is None else caches

    def retain(self, cache: tuple[Any, Any], places: Int[Tensor, " n"]) -> None:
        for inner_cache in cache:
            self.inner.retain(inner_cache, places)

    def predict(
        self, tokens: Int[Tensor, "b q"], noise: Float[Tensor, "b q"], context: ForwardContext
    ) -> Prediction:
        caches, prompt = context.cache or (None, None), self._condition(tokens, context)
        blank = torch.where(prompt, self.process.mask_id, tokens)

        def of(cache: Any) -> ForwardContext:
            return replace(context, cache=cache)

        informed = self.inner.predict(tokens, noise, of(caches[0]))
        blind = self.inner.predict(blank, torch.where(prompt, 1.0, noise), of(caches[1]))

        def raw(at: Tensor) -> Tensor:
            return (1 + self.scale) * informed.raw(at) - self.scale * blind.raw(at)

        return Prediction(self.process, informed.parameterization, tokens, noise, raw)

    def _condition(self, tokens: Int[Tensor, "b q"], context: ForwardContext) -> Bool[Tensor, "#b q"]:
        """Which tokens of a window are the condition."""
        if self.prompt is None:
            if context.given is None:
                raise ValueError(
                    "Guidance without `prompt` needs to know which tokens are given: `context.given`."
                )
            return context.given
        positions = torch.arange(tokens.shape[1], device=tokens.device)[None]
        positions = positions if context.positions is None else context.positions
        return self.prompt.expand(positions.shape[0], -1).gather(1, positions)
