"""Laws of an objective, and of a process through its bounds, with exact denoisers."""

from __future__ import annotations

from dataclasses import replace
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hdlm.denoiser import AbstractDenoiser, ForwardContext, Prediction
from hdlm.hyperschedule import AbstractHyperschedule, Block, PublishedWave, Slide, Wave, flat
from hdlm.objective import NELBO, AbstractObjective, Corruption, ScoreEntropy
from hdlm.parameterization import NoiseDependence
from hdlm.process import Absorbing, AbstractNoiseProcess, EpsilonHybrid, GammaHybrid
from hdlm.regime import Regime
from hdlm.verification.exact import ExactDenoiser
from hdlm.verification.expectation import every_canvas, expected_loss, nelbo_by_hand
from hdlm.verification.finding import Finding, Law, Trial, error
from hdlm.verification.world import World, random_world

__all__ = ["OBJECTIVE_LAWS", "PROCESS_BOUND_LAWS"]

LENGTH = 3
NODES = 24
"""Number of quadrature nodes in continuous time."""


def the_truth_is_the_best_answer(objective: AbstractObjective, trial: Trial) -> Finding:
    """No change of the exact prediction lowers the expected loss to first order: its gradient there is zero."""
    gradients = [_gradient_at_truth(objective, process, trial) for process in _processes()]
    return error(torch.cat(gradients), 0.0, 1e-8)


def wrong_answers_cost_more(objective: AbstractObjective, trial: Trial) -> Finding:
    """A sharper and a flatter denoiser than the exact one have a higher expected loss."""
    excess = []
    for process in _processes():
        world = random_world(process.num_words, LENGTH, trial.seed)
        exact, sharp, flat_ = (
            _loss(objective, ExactDenoiser(world, process, sharpness=power), flat(LENGTH, 2), world)
            for power in (1.0, 1.5, 0.5)
        )
        excess += [sharp - exact, flat_ - exact]
    return error(torch.stack([e.sum() for e in excess]).clamp_max(0), 0.0, 1e-9)


def two_streams_are_one_canvas(objective: AbstractObjective, trial: Trial) -> Finding:
    """A packed pass over `[clean | noisy]` costs as much as generation's canvases, position by position."""
    gaps = []
    for process in _processes():
        world = random_world(process.num_words, LENGTH, trial.seed)
        denoiser = ExactDenoiser(world, process)
        for schedule in _hyperschedules(LENGTH):
            canvas, streams = (_loss(objective, denoiser, schedule, world, two) for two in (False, True))
            gaps.append(canvas - streams)
    return error(torch.cat(gaps), 0.0, 1e-9)


def the_bound_is_what_the_steps_cost(process: AbstractNoiseProcess, trial: Trial) -> Finding:
    """`NELBO` is the sum of the divergences of all steps, computed by hand from the joint law, on any hyperschedule."""
    world = _world(process, trial)
    denoiser = ExactDenoiser(world, process)
    gaps = []
    for schedule in _hyperschedules(world.length):
        by_hand = nelbo_by_hand(process, schedule, world)
        for two_stream in (False, True):
            corruption = Corruption(process, Regime(schedule), two_stream=two_stream, continuous=False)
            gaps.append(expected_loss(NELBO(), denoiser, corruption, world).sum() - by_hand)
    return error(torch.stack(gaps), 0.0, 1e-9)


def the_bound_is_above_the_entropy(process: AbstractNoiseProcess, trial: Trial) -> Finding:
    """The bound of every hyperschedule that begins at pure noise is at least the entropy of the data."""
    world = _world(process, trial)
    excess = [
        nelbo_by_hand(process, schedule, world) - world.entropy
        for schedule in _hyperschedules(world.length)
        if bool((schedule.levels(0) == schedule.num_levels).all())
    ]
    return error(torch.tensor(excess, dtype=torch.float64).clamp_max(0), 0.0, 1e-9)


def score_entropy_is_the_entropy(process: AbstractNoiseProcess, trial: Trial) -> Finding | None:
    """If noise comes gradually, the score entropy of the exact score integrates to the entropy of the data."""
    hair = process.weights(torch.full((1,), 1e-12, dtype=torch.float64))
    if float(hair.clean) < 1 - 1e-3:
        return None  # noise that jumps at 0 has an additional reconstruction cost
    world = _world(process, trial)
    corruption = Corruption(process, Regime(flat(world.length, 1)), two_stream=False)
    objective = ScoreEntropy(floor=1e-14)
    integral = expected_loss(objective, ExactDenoiser(world, process), corruption, world, 2 * NODES)
    return error(integral.sum(), world.entropy, 1e-5)


OBJECTIVE_LAWS: tuple[Law, ...] = (
    the_truth_is_the_best_answer,
    wrong_answers_cost_more,
    two_streams_are_one_canvas,
)
PROCESS_BOUND_LAWS: tuple[Law, ...] = (
    the_bound_is_what_the_steps_cost,
    the_bound_is_above_the_entropy,
    score_entropy_is_the_entropy,
)


def _processes() -> tuple[AbstractNoiseProcess, ...]:
    """Processes that every objective supports."""
    return Absorbing(2), EpsilonHybrid(2, 0.2), GammaHybrid(2, 0.3)


def _hyperschedules(length: int) -> tuple[AbstractHyperschedule, ...]:
    return (
        flat(length, 2),
        Block(length, 2, 2),
        Slide(length, 2, 2),
        Wave(length, 2, 2),
        PublishedWave(length, 2, 2),
    )


def _world(process: AbstractNoiseProcess, trial: Trial) -> World:
    return random_world(process.num_words, LENGTH if process.num_words < 4 else 2, trial.seed)


def _loss(
    objective: AbstractObjective,
    denoiser: ExactDenoiser,
    hyperschedule: AbstractHyperschedule,
    world: World,
    two_stream: bool = False,
) -> Tensor:
    """Expected loss of each position, halfway between the hyperschedule's steps."""
    corruption = Corruption(denoiser.process, Regime(hyperschedule), two_stream=two_stream)
    return expected_loss(objective, denoiser, corruption, world)


def _gradient_at_truth(objective: AbstractObjective, process: AbstractNoiseProcess, trial: Trial) -> Tensor:
    """Derivative of the expected loss with respect to each raw output of each canvas, at the exact prediction."""
    world = random_world(process.num_words, LENGTH, trial.seed)
    tilted = _Tilted(ExactDenoiser(world, process))
    corruption = Corruption(process, Regime(flat(LENGTH, 2)), two_stream=False)
    times = torch.tensor([[0.2], [0.8]], dtype=torch.float64)
    canvas, probability = every_canvas(corruption, world, times, torch.full((2,), 0.5, dtype=torch.float64))
    return torch.autograd.grad((probability @ objective(tilted, canvas)).sum(), tilted.tilts)[0].flatten()


@final
class _Tilted(AbstractDenoiser):
    """An exact denoiser whose raw outputs can be differentiated: one number is added to each, here zero."""

    def __init__(self, inner: ExactDenoiser) -> None:
        self.inner, self.process = inner, inner.process
        self.tilts = torch.zeros(0)

    @property
    def noise_dependence(self) -> NoiseDependence:
        return self.inner.noise_dependence

    def predict(
        self, tokens: Int[Tensor, "b q"], noise: Float[Tensor, "b q"], context: ForwardContext
    ) -> Prediction:
        exact = self.inner.predict(tokens, noise, context)
        states, back = torch.cat([tokens.double(), noise], 1).unique(dim=0, return_inverse=True)
        shape = (len(states), tokens.shape[1], self.process.num_words + 1)
        self.tilts = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
        tilts = self.tilts[back].flatten(0, 1)
        return replace(exact, raw=lambda at: exact.raw(at) + tilts[at])
