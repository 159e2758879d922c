"""The choice of what each optimizer step trains on: a warm start, then the parts of a mixture by their shares.

Part `k` owns an interval of [0, 1) as long as its share, and step `n` trains the part whose interval contains
`n / golden ratio mod 1`. These points are spread evenly, so the shares hold over every few steps.
"""

from __future__ import annotations

import bisect
import itertools
import math
from dataclasses import dataclass
from functools import cached_property
from typing import final

from hdlm.hyperschedule import AbstractHyperschedule
from hdlm.objective import NELBO, Corruption
from hdlm.process import AbstractNoiseProcess
from hdlm.regime import Regime
from hdlm.strict_config import require
from hdlm.training.parts import AbstractPart, NextToken, Noisy
from hdlm.training.recipe import Recipe

__all__ = ["Mixture"]

_GOLDEN = (math.sqrt(5) - 1) / 2


@final
@dataclass(frozen=True)
class Mixture:
    """The parts of a mixture and its warm start.

    Attributes:
        parts: The noisy parts.
        warm_start: Next-token prediction before them, if any.
        warm_share: Share of the run that the warm start takes, in [0, 1).
    """

    parts: tuple[Noisy, ...]
    warm_start: NextToken | None = None
    warm_share: float = 0.0

    @classmethod
    def of(cls, recipe: Recipe, process: AbstractNoiseProcess, document_end: int | None = None) -> Mixture:
        """Build the mixture of a recipe.

        Args:
            recipe: The recipe of the run.
            process: The noise process.
            document_end: The token that ends a document, if attention between documents is masked.

        Raises:
            ValueError: If a hyperschedule is unknown or does not fit the context, or if two streams would show the
                targets; see `Corruption`.
        """
        batch_size, objective = recipe.run.batch_size, recipe.build_objective()
        noise_schedule, lookback = recipe.build_noise_schedule(), recipe.build_parameterization().lookback
        parts = []
        for part in recipe.mixture:
            require(
                not (part.continuous and isinstance(objective, NELBO)),
                "mixture.continuous",
                "false with objective.type=NELBO, which is a sum over the hyperschedule's own steps",
                part.continuous,
            )
            corruption = Corruption(
                process,
                Regime(
                    part.build(recipe.data.context),
                    noise_schedule,
                    recipe.network.context,
                    recipe.network.active,
                ),
                two_stream=part.two_stream,
                continuous=part.continuous,
                num_given=lookback,
                document_end=document_end,
            )
            parts.append(Noisy(corruption, objective, batch_size * part.batch_scale, part.share))
        warm = recipe.warm_start
        first = NextToken(batch_size * warm.batch_scale, document_end) if warm.share else None
        return cls(tuple(parts), first, warm.share)

    @property
    def hyperschedules(self) -> tuple[AbstractHyperschedule, ...]:
        """The hyperschedules of the parts, in order."""
        return tuple(part.corruption.hyperschedule for part in self.parts)

    def at(self, step: int, progress: float) -> AbstractPart:
        """The part that a step trains.

        Args:
            step: Optimizer steps done before.
            progress: Share of the run that is done, in [0, 1].
        """
        if self.warm_start is not None and progress < self.warm_share:
            return self.warm_start
        return self.parts[bisect.bisect_right(self._bounds, step * _GOLDEN % 1)]

    @cached_property
    def _bounds(self) -> list[float]:
        """The end of each part's interval, except the last."""
        ends = list(itertools.accumulate(part.share for part in self.parts))
        return [end / ends[-1] for end in ends[:-1]]
