"""Laws of samplers, and of a process through its sampler, with exact denoisers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from hdlm.hyperschedule import AbstractHyperschedule, Wave, autoregressive, flat
from hdlm.noise_schedule import Cosine
from hdlm.process import AbstractNoiseProcess
from hdlm.regime import Regime
from hdlm.sampling import (
    Ancestral,
    ByConfidence,
    ByEntropy,
    ByFactor,
    ByThreshold,
    EntropyRenoising,
    Execution,
    Frame,
    InParts,
    JointThreshold,
    Loop,
    Prompt,
    Step,
    sample,
)
from hdlm.verification.chain import chain, text_law
from hdlm.verification.exact import ExactDenoiser
from hdlm.verification.finding import Finding, Law, Trial, error, p_value
from hdlm.verification.statistics import chi_square, mean_p_value
from hdlm.verification.world import World, agreeing_world, random_world

__all__ = ["PROCESS_SAMPLING_LAWS", "SAMPLER_LAWS", "Sampler"]

LENGTH = 3


@final
@dataclass(frozen=True)
class Sampler:
    """A sampler: a step, and a process that it can reverse.

    Attributes:
        step: Step of the sampler.
        process: The noise process of the denoisers that it is tested with.
    """

    step: Step
    process: AbstractNoiseProcess


def only_words_are_emitted(sampler: Sampler, trial: Trial) -> Finding:
    """Finished text holds no mask, on any hyperschedule."""
    masks = [
        (_draw(sampler, schedule, trial, 200) >= sampler.process.num_words).double()
        for schedule in _hyperschedules()
    ]
    return error(torch.cat(masks), 0.0, 0.0)


def given_tokens_stay(sampler: Sampler, trial: Trial) -> Finding:
    """Tokens of a prompt, at any position, are never changed, not even temporarily."""
    tokens = torch.tensor([[1, 0, 1]])
    prompt = Prompt(tokens, torch.tensor([[False, True, True]]))
    changes: list[Tensor] = []

    def watch(frame: Frame) -> None:
        changes.append((frame.after != tokens)[:, 1:].double())

    for schedule in _hyperschedules():
        sample(
            _denoiser(sampler),
            Regime(schedule),
            sampler.step,
            num_sequences=50,
            prompt=prompt,
            watch=watch,
            seed=trial.seed,
        )
    return error(torch.cat(changes), 0.0, 0.0)


def batches_do_not_matter(sampler: Sampler, trial: Trial) -> Finding:
    """A sequence does not depend on the batch size, nor on the sequences before it in the run."""
    schedule, denoiser = flat(LENGTH, 3), _denoiser(sampler)
    whole, cut = (
        sample(
            denoiser,
            Regime(schedule),
            sampler.step,
            num_sequences=20,
            seed=trial.seed,
            execution=Execution(batch_size=size),
        ).tokens
        for size in (20, 12)
    )
    late = sample(
        denoiser,
        Regime(schedule),
        sampler.step,
        num_sequences=5,
        seed=trial.seed,
        execution=Execution(first_sequence=15),
    )
    return error(torch.cat([cut - whole, late.tokens - whole[15:]]).double(), 0.0, 0.0)


def autoregression_is_exact(sampler: Sampler, trial: Trial) -> Finding:
    """One position after another, in one step each, every sampler reproduces the world (chi-square)."""
    tokens = _draw(sampler, autoregressive(LENGTH), trial, trial.samples)
    world = _world(sampler.process)
    return p_value(chi_square(world.count(tokens), world.law))


def masks_follow_the_schedule(sampler: Sampler, trial: Trial) -> Finding | None:
    """After every step the share of masked tokens is that of the process and the hyperschedule."""
    schedule, shares = flat(LENGTH, 4), []
    if sampler.process.final_mask_share == 0:
        return None
    if _at_its_own_pace(sampler.step):
        return None
    sample(
        _denoiser(sampler),
        Regime(schedule),
        sampler.step,
        num_sequences=trial.samples // 4,
        seed=trial.seed,
        watch=lambda frame: shares.append((frame.after == sampler.process.mask_id).double().mean(-1)),
    )
    worst = 1.0
    for n, share in enumerate(shares[:-1]):
        u = schedule.noise(n + 1)[None, :1]
        u = sampler.step.warp(u) if isinstance(sampler.step, Loop) else u
        worst = min(worst, mean_p_value(share, float(sampler.process.weights(u).mask)))
    return p_value(min(worst * len(shares), 1.0))


def ancestral_sampling_is_its_own_chain(process: AbstractNoiseProcess, trial: Trial) -> Finding:
    """With many positions at once in few steps, draws have the law of a sum over all canvases (chi-square)."""
    world = _world(process)
    denoiser = ExactDenoiser(world, process)
    counts, laws = [], []
    for schedule in _hyperschedules():
        tokens = sample(
            denoiser,
            Regime(schedule, noise_schedule=Cosine()),
            Ancestral(),
            num_sequences=trial.samples // 4,
            seed=trial.seed,
        ).tokens
        counts.append(world.count(tokens))
        *_, law = chain(denoiser, Regime(schedule, noise_schedule=Cosine()))
        laws.append(text_law(law, world.num_words, LENGTH))
    return p_value(chi_square(torch.stack(counts), torch.stack(laws)))


def one_position_is_exact_in_any_number_of_steps(process: AbstractNoiseProcess, trial: Trial) -> Finding:
    """A world of one position is reproduced by the posterior, with any number of steps."""
    world = random_world(process.num_words, 1, trial.seed)
    gaps = []
    for num_levels in (1, 2, 7):
        *_, law = chain(ExactDenoiser(world, process), Regime(flat(1, num_levels)))
        gaps.append(text_law(law, world.num_words, 1) - world.law)
    return error(torch.cat(gaps), 0.0, 1e-10)


SAMPLER_LAWS: tuple[Law, ...] = (
    only_words_are_emitted,
    given_tokens_stay,
    batches_do_not_matter,
    autoregression_is_exact,
    masks_follow_the_schedule,
)
PROCESS_SAMPLING_LAWS: tuple[Law, ...] = (
    one_position_is_exact_in_any_number_of_steps,
    ancestral_sampling_is_its_own_chain,
)


def _at_its_own_pace(step: Step) -> bool:
    """Whether a move replaces all its masks, however small it is, or rounds their number."""
    if isinstance(step, ByConfidence):
        return step.quota != "random" or step.threshold is not None
    return isinstance(step, ByEntropy | ByFactor | ByThreshold | InParts | JointThreshold | EntropyRenoising)


def _hyperschedules() -> tuple[AbstractHyperschedule, ...]:
    return flat(LENGTH, 3), Wave(LENGTH, 2, 2)


def _world(process: AbstractNoiseProcess) -> World:
    return agreeing_world(process.num_words, LENGTH)


def _denoiser(sampler: Sampler) -> ExactDenoiser:
    return ExactDenoiser(_world(sampler.process), sampler.process)


def _draw(sampler: Sampler, schedule: AbstractHyperschedule, trial: Trial, count: int) -> Tensor:
    denoiser = _denoiser(sampler)
    return sample(denoiser, Regime(schedule), sampler.step, num_sequences=count, seed=trial.seed).tokens
