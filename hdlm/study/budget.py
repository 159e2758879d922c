"""Budgets: the tokens and the FLOPs that a recipe spends, and the number of steps for a budget.

The numbers are those that a run counts: tokens of the windows that it trains on, and the FLOPs of
`hdlm.training.monitor.flops`, in which a two-stream pass costs nearly twice as much as a causal one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, final

from hdlm.training import Recipe
from hdlm.training.mixture import Mixture
from hdlm.training.monitor.flops import training_flops
from hdlm.training.parts import Noisy

__all__ = ["Spent", "evaluation_flops", "spent", "steps_for"]

_SAMPLE = 1000
"""Steps that are counted for a first estimate."""


@final
@dataclass(frozen=True)
class Spent:
    """What a run spends.

    Attributes:
        tokens: Tokens that are trained on, repeated ones included.
        flops: FLOPs of the network, forwards and backwards.
    """

    tokens: int
    flops: float


def spent(recipe: Recipe, steps: int) -> Spent:
    """Tokens and FLOPs of the first run of a recipe with this number of steps."""
    whole = replace(recipe, run=replace(recipe.run, steps=steps, minutes=None))
    mixture = Mixture.of(whole, whole.build_process(whole.data.vocabulary))
    network, length = _network(recipe), recipe.data.context
    sequences, flops = 0, 0.0
    costs = [training_flops(network, length, two_stream=two) for two in (False, True)]
    for step in range(steps):
        part = mixture.at(step, step / steps)
        sequences += part.batch_size
        flops += part.batch_size * costs[isinstance(part, Noisy) and part.corruption.two_stream]
    return Spent(sequences * length, flops)


def steps_for(recipe: Recipe, budget: float, unit: str) -> int:
    """The number of optimizer steps that comes nearest to a budget, at least 1.

    Args:
        recipe: The recipe of the run.
        budget: Tokens or FLOPs.
        unit: `"tokens"` or `"flops"`.
    """
    steps = _SAMPLE
    for _ in range(2):  # the second pass is exact up to the order of the mixture's parts
        steps = max(1, round(steps * budget / getattr(spent(recipe, steps), unit)))
    return steps


def evaluation_flops(recipe: Recipe, sequences: float, length: int | None = None) -> float:
    """FLOPs of passes over dense canvases without a backward pass."""
    return sequences * training_flops(_network(recipe), length or recipe.data.context, two_stream=False) / 3


def _network(recipe: Recipe) -> Any:
    return recipe.network_config(recipe.data.vocabulary + 1)
