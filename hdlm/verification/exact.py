"""The exact denoiser of a world with a known law: `p(x_0 | what a position sees)`.

It takes the place of a network: it respects positions, attention and cache, so a sampler or an objective works with it
unchanged. Tokens that a query may not attend to are summed over. A query always knows its own token, as a network does
through its residual stream. A token that the process cannot have made, such as a word in pure absorbing noise, carries
no information.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hdlm.denoiser import AbstractDenoiser, ForwardContext, Prediction
from hdlm.parameterization import AbstractParameterization, LogScore, Mean, NoiseDependence
from hdlm.process import AbstractNoiseProcess
from hdlm.verification.world import AbstractWorld

__all__ = ["ExactDenoiser", "Memory", "OutputKind"]

OutputKind = Literal["mean", "score"]

_SCORE = LogScore(scale_by_sigma=False, floor=1e-6)


@final
@dataclass(frozen=True)
class _Keys:
    """The tokens that queries may attend to: cached ones, then current ones."""

    tokens: Int[Tensor, "b k"]
    noise: Float[Tensor, "b k"]
    positions: Int[Tensor, "b k"]

    def select(self, rows: Tensor | slice, columns: Tensor | slice) -> _Keys:
        """Selected rows and columns, in this order."""
        parts = (self.tokens, self.noise, self.positions)
        return _Keys(*(part[rows][:, columns] for part in parts))

    def followed_by(self, others: _Keys) -> _Keys:
        """These, then the others."""
        return _Keys(
            torch.cat([self.tokens, others.tokens], 1),
            torch.cat([self.noise, others.noise], 1),
            torch.cat([self.positions, others.positions], 1),
        )


@final
class Memory:
    """The cache of an exact denoiser: tokens that no longer change, with their positions and noise."""

    def __init__(self) -> None:
        self._keys: _Keys | None = None

    def __len__(self) -> int:
        return 0 if self._keys is None else self._keys.tokens.shape[1]

    def before(self, current: _Keys) -> _Keys:
        """The stored keys, then the current ones."""
        return current if self._keys is None else self._keys.followed_by(current)

    def keep(self, current: _Keys, store: Tensor) -> None:
        """Store some of the current keys after the others; `store` is that of `ForwardContext`."""
        self._keys = self.before(current.select(slice(None), store))

    def retain(self, places: Tensor) -> None:
        """Keep only some of the stored positions, in this order."""
        if self._keys is not None:
            self._keys = self._keys.select(slice(None), places)

    def select(self, rows: Tensor) -> None:
        """Keep only some sequences of the batch, in this order."""
        if self._keys is not None:
            self._keys = self._keys.select(rows, slice(None))


@final
@dataclass(frozen=True)
class ExactDenoiser(AbstractDenoiser):
    """The exact denoiser of a world.

    Attributes:
        world: The law of clean sequences.
        process: The noise process.
        reading: Kind of its raw outputs: log probabilities of the clean token (`"mean"`), or log ratios
            `p_u(y) / p_u(x_t)` (`"score"`; noise fractions are clamped to values just inside (0, 1), because ratios are
            infinite at the ends).
        sharpness: Its probabilities are raised to this power and normalised: 1 for the truth, any other value for a
            denoiser that is wrong on purpose.
    """

    world: AbstractWorld
    process: AbstractNoiseProcess
    reading: OutputKind = "mean"
    sharpness: float = 1.0

    def __post_init__(self) -> None:
        if self.reading not in get_args(OutputKind):
            raise ValueError(f"`reading` must be one of {get_args(OutputKind)}; got {self.reading!r}.")
        if self.process.num_words != self.world.num_words:
            raise ValueError(
                f"The process has {self.process.num_words} words and the world {self.world.num_words}; "
                "they must agree."
            )

    @property
    def parameterization(self) -> AbstractParameterization:
        """The meaning of the raw outputs."""
        return Mean() if self.reading == "mean" else _SCORE

    @property
    def noise_dependence(self) -> NoiseDependence:
        return "position"

    def new_cache(self) -> Memory:
        return Memory()

    def predict(
        self, tokens: Int[Tensor, "b q"], noise: Float[Tensor, "b q"], context: ForwardContext
    ) -> Prediction:
        current = _current(tokens, noise, context)
        memory = Memory() if context.cache is None else context.cache
        keys = memory.before(current)
        visible = _visible(context.attention, tokens.shape[1], keys.tokens.shape[1])
        if context.store is not None:
            memory.keep(current, context.store)
        rows, back = _distinct(keys, visible)
        table = self._raw(*rows).to(tokens.device)[back].flatten(0, 1)
        return Prediction(self.process, self.parameterization, tokens, noise, lambda at: table[at])

    def _raw(self, keys: _Keys, visible: Bool[Tensor, "b q k"]) -> Float[Tensor, "b q v"]:
        """The raw outputs of distinct rows."""
        num_queries = visible.shape[1]
        tokens, noise = keys.tokens[:, -num_queries:], keys.noise[:, -num_queries:]
        cavity = self._cavity(keys, visible)
        if self.reading == "score":
            noise = noise.clamp(_SCORE.floor, 1 - _SCORE.floor)
        if self.reading == "mean":
            log_p = (cavity * self._likelihood(tokens, noise)).log() * self.sharpness
            return torch.nn.functional.pad(torch.log_softmax(log_p, -1), (0, 1))
        kernel = self.process.between(torch.zeros_like(noise), noise)
        everywhere = self.process.spread(torch.nn.functional.pad(cavity**self.sharpness, (0, 1)), kernel)
        return (everywhere / everywhere.gather(-1, tokens[..., None])).log()

    def _likelihood(self, tokens: Int[Tensor, "b k"], noise: Float[Tensor, "b k"]) -> Float[Tensor, "b k n"]:
        """`q(x_u | x_0)` for every word `x_0`; ones if the process cannot have made the token."""
        q = self.process.likelihood(tokens, self.process.between(torch.zeros_like(noise), noise))[..., :-1]
        return torch.where((q > 0).any(-1, keepdim=True), q, 1.0)

    def _cavity(self, keys: _Keys, visible: Bool[Tensor, "b q k"]) -> Float[Tensor, "b q n"]:
        """`p(x_0 | everything that a query sees except its own token)`, over the words."""
        log_q = self._likelihood(keys.tokens, keys.noise).log()
        return self.world.cavity(log_q, keys.positions, visible)


def _current(tokens: Tensor, noise: Tensor, context: ForwardContext) -> _Keys:
    """The window as keys, on the CPU."""
    positions = torch.arange(tokens.shape[1])[None] if context.positions is None else context.positions
    return _Keys(tokens.cpu(), noise.double().cpu(), positions.cpu().expand(tokens.shape))


def _visible(attention: object, num_queries: int, num_keys: int) -> Bool[Tensor, "#b q k"]:
    """The keys that each query may attend to; each query may attend to itself."""
    if attention is None:
        return torch.ones(1, num_queries, num_keys, dtype=torch.bool)
    if not isinstance(attention, Tensor) or attention.shape[-2:] != (num_queries, num_keys):
        raise ValueError(
            f"An exact denoiser needs a dense mask over {num_queries} queries and {num_keys} keys (cached, then "
            f"current); got {getattr(attention, 'shape', attention)}."
        )
    itself = torch.eye(num_queries, dtype=torch.bool)
    return attention.cpu() | torch.nn.functional.pad(itself, (num_keys - num_queries, 0))


def _distinct(
    keys: _Keys, visible: Bool[Tensor, "#b q k"]
) -> tuple[tuple[_Keys, Bool[Tensor, "r q k"]], Int[Tensor, " b"]]:
    """Distinct rows, and the index of every row of the batch among them: small worlds have few states."""
    own_mask = visible.flatten(1) if len(visible) > 1 else visible.new_zeros(len(keys.tokens), 0)
    columns = torch.cat([keys.tokens, keys.noise, keys.positions, own_mask], 1).unbind(1)
    back = torch.zeros_like(keys.tokens[:, 0])
    for column in columns:
        if bool((column != column[0]).any()):
            back = (back * len(column) + column.unique(return_inverse=True)[1]).unique(return_inverse=True)[1]
    place = torch.arange(len(back))
    few = torch.zeros(int(back.max()) + 1, dtype=torch.long).scatter(0, back, place)  # any row of each kind
    few_visible = visible[few] if len(visible) > 1 else visible.expand(len(few), -1, -1)
    return (keys.select(few, slice(None)), few_visible), back
