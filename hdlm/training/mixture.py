"""The choice of what each optimizer step trains on: a warm start, then the parts of a mixture by their shares.

Part `k` owns an interval of [0, 1) as long as its share, and step `n` trains the part whose interval contains
`n / golden ratio mod 1`. These points are spread evenly, so the shares hold over every few steps. A part may be limited
to an interval of the run, and its attention may open during the run: so blocks grow, and a causal model becomes one
that attends to both sides. What a step trains is a function of the seed, the step and the share of the run that is
done.
"""

from __future__ import annotations

import bisect
import itertools
import math
from dataclasses import dataclass
from typing import final

from hdlm.hyperschedule import AbstractHyperschedule
from hdlm.objective import (
    NELBO,
    AbstractObjective,
    CleanStream,
    Combination,
    Corruption,
    CorruptionLayout,
)
from hdlm.process import AbstractNoiseProcess
from hdlm.randomness import Randomness
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
        seed: Seed of the random numbers that a step needs.
    """

    parts: tuple[Noisy, ...]
    warm_start: NextToken | None = None
    warm_share: float = 0.0
    seed: int = 0

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
            require(
                not (part.complementary and isinstance(objective, NELBO)),
                "mixture.complementary",
                "false with objective.type=NELBO, which needs the noise after the next step",
                part.complementary,
            )
            require(
                not _reads_clean_stream(objective)
                or (part.two_stream and recipe.network.context == "causal"),
                "network.context",
                "causal, with two streams, so that the clean stream does not contain what CleanStream predicts",
                recipe.network.context,
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
                layout=CorruptionLayout(part.time, part.complementary, part.border, part.least_noise),
            )
            size = batch_size * part.batch_scale
            parts.append(Noisy(corruption, objective, size, part.share, part.begins, part.ends, part.opens))
        warm = recipe.warm_start
        first = NextToken(batch_size * warm.batch_scale, document_end) if warm.share else None
        mixture = cls(tuple(parts), first, warm.share, recipe.run.seed)
        for begins in sorted({warm.share, *(part.ends for part in parts)} - {1.0}):
            require(
                begins < warm.share or bool(mixture._active(begins)),
                "mixture.ends",
                f"such that a part is trained when {begins:g} of the run is done; see also {{}}",
                [part.ends for part in parts],
                "mixture.begins",
            )
        return mixture

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
        active = self._active(progress)
        part = active[bisect.bisect_right(_bounds(active), step * _GOLDEN % 1)]
        return part.at(step, progress, Randomness(self.seed))

    def _active(self, progress: float) -> tuple[Noisy, ...]:
        """The parts that are trained when this share of the run is done."""
        return tuple(
            part for part in self.parts if part.begins <= progress < part.ends or progress >= part.ends == 1
        )


def _reads_clean_stream(objective: AbstractObjective) -> bool:
    """Whether an objective has a loss on the clean stream."""
    if isinstance(objective, Combination):
        return any(_reads_clean_stream(part) for _, part in objective.parts)
    return isinstance(objective, CleanStream)


def _bounds(parts: tuple[Noisy, ...]) -> list[float]:
    """The end of each part's interval, except the last."""
    ends = list(itertools.accumulate(part.share for part in parts))
    return [end / ends[-1] for end in ends[:-1]]
