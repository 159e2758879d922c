"""The loop: prompts, infilling, cache, seeds, batches, traces; with a small random network."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hdlm.denoiser import Denoiser, Guided
from hdlm.hyperschedule import AbstractHyperschedule, Block, Slide, Wave, autoregressive, flat
from hdlm.network import DDiT, DDiTConfig
from hdlm.parameterization import AbstractParameterization, LogScore, Mean, Shifted
from hdlm.process import Absorbing, AbstractNoiseProcess, EpsilonHybrid, GammaHybrid
from hdlm.regime import Regime
from hdlm.sampling import (
    ALGORITHMS,
    Ancestral,
    Chain,
    Execution,
    FirstHitting,
    Frame,
    Move,
    Prompt,
    Trace,
    algorithm,
    sample,
)
from tests.covering import cases
from tests.tiny import tiny_algorithm

WORDS, LENGTH = 11, 8
SCHEDULES = [
    flat(LENGTH, 3),
    Block(LENGTH, 4, 2),
    Slide(LENGTH, 3, 3),
    Wave(LENGTH, 4, 2),
    autoregressive(LENGTH),
]
PROMPT = Prompt.prefix([3, 1], LENGTH)


def denoiser(
    process: AbstractNoiseProcess | None = None, parameterization: AbstractParameterization | None = None
) -> Denoiser:
    reading = parameterization or Mean()
    told = isinstance(reading, LogScore)
    config = DDiTConfig(
        WORDS + 1, 16, 2, 2, timestep_embedding=told, condition_blocks=told, cond_dim=8, max_length=LENGTH
    )
    torch.manual_seed(0)
    network = DDiT(config).double()
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.4)
    return Denoiser(network, process or EpsilonHybrid(WORDS, 0.1), reading)


@pytest.mark.parametrize(("name", "schedule"), cases(list(ALGORITHMS), SCHEDULES), ids=str)
def test_sample_keeps_prompt_and_writes_words(name: str, schedule: AbstractHyperschedule) -> None:
    model = denoiser()
    done = sample(
        model, Regime(schedule), tiny_algorithm(name, model.process, 0.3), num_sequences=3, prompt=PROMPT
    )
    assert (done.tokens[:, :2] == torch.tensor([3, 1])).all()
    assert ((done.tokens >= 0) & (done.tokens < WORDS)).all()
    assert done.num_evaluations > 0


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("name", ["acs", "exact", "gibbs", "analytic", "first_hitting"])
def test_sample_tokens_do_not_depend_on_cache_and_batch(name: str, schedule: AbstractHyperschedule) -> None:
    model = denoiser()
    step = algorithm(name, model.process, 0.3)
    once = sample(model, Regime(schedule), step, num_sequences=3, seed=4, prompt=PROMPT)
    apart = sample(
        model,
        Regime(schedule),
        step,
        num_sequences=3,
        seed=4,
        prompt=PROMPT,
        execution=Execution(batch_size=2, use_cache=False),
    )
    later = sample(
        model,
        Regime(schedule),
        step,
        num_sequences=1,
        seed=4,
        prompt=PROMPT,
        execution=Execution(first_sequence=2),
    )
    assert torch.equal(once.tokens, apart.tokens)
    assert torch.equal(once.tokens[2:], later.tokens)


@pytest.mark.parametrize("schedule", [Block(LENGTH, 4, 2), autoregressive(LENGTH)], ids=str)
def test_sample_of_shifted_network_does_not_depend_on_cache(schedule: AbstractHyperschedule) -> None:
    model = denoiser(parameterization=Shifted(Mean()))
    step = algorithm("original", model.process)
    kept = sample(model, Regime(schedule), step, num_sequences=4, prompt=PROMPT)
    fresh = sample(
        model, Regime(schedule), step, num_sequences=4, prompt=PROMPT, execution=Execution(use_cache=False)
    )
    assert torch.equal(kept.tokens, fresh.tokens)
    with pytest.raises(ValueError, match="begin-of-sequence"):
        sample(model, Regime(schedule), step)


def test_autoregressive_sample_makes_one_call_per_written_token() -> None:
    model = denoiser(Absorbing(WORDS))
    done = sample(model, Regime(autoregressive(LENGTH)), algorithm("original", model.process), prompt=PROMPT)
    assert done.num_evaluations == LENGTH - 2


def test_first_hitting_makes_at_most_one_call_per_token() -> None:
    model = denoiser(Absorbing(WORDS))
    asked = sample(model, Regime(flat(LENGTH, 2)), FirstHitting()).num_evaluations
    assert asked <= LENGTH


def test_first_hitting_rejects_process_that_changes_words() -> None:
    model = denoiser(GammaHybrid(WORDS, 0.2), LogScore())
    with pytest.raises(ValueError, match="changes no word"):
        sample(model, Regime(flat(LENGTH, 2)), FirstHitting())


def test_infill_keeps_given_tokens() -> None:
    model = denoiser()
    prompt = Prompt.infill([5, WORDS, WORDS, 2, WORDS, 7, 7, 0], blank=WORDS)
    done = sample(
        model, Regime(flat(LENGTH, 4)), algorithm("acs", model.process, 0.5), num_sequences=4, prompt=prompt
    )
    assert (done.tokens[:, [0, 3, 5, 6, 7]] == torch.tensor([5, 2, 7, 7, 0])).all()
    with pytest.raises(ValueError, match="Nothing to fill in"):
        Prompt.infill([1, 2], blank=WORDS)


def test_sample_seed_repeats_tokens() -> None:
    model = denoiser()
    step = algorithm("original", model.process)
    first, again, other = (sample(model, Regime(flat(LENGTH, 4)), step, seed=s).tokens for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_trace_records_every_change_with_reason() -> None:
    model = denoiser()
    trace = Trace(WORDS)
    frames: list[Frame] = []

    def watch(frame: Frame) -> None:
        trace(frame)
        frames.append(frame)

    step = algorithm("remask_adhoc_shuffle", model.process, 0.9)
    done = sample(model, Regime(flat(LENGTH, 6)), step, num_sequences=2, seed=1, watch=watch)
    for sequence in range(2):
        tokens = list(trace.start[sequence])
        for _, position, new in trace.edits(sequence):
            tokens[position] = new
        assert tokens == done.tokens[sequence].tolist()
    assert {change.reason for change in trace.changes} == {"unmasked", "corrected", "remasked"}
    assert all((frame.before == frame.after)[~frame.moving].all() for frame in frames)


def test_guidance_scale_changes_tokens_unless_zero() -> None:
    model = denoiser()
    step = algorithm("original", model.process)
    schedule = Block(LENGTH, 4, 2)
    plain = sample(model, Regime(schedule), step, num_sequences=6, prompt=PROMPT)
    none = sample(Guided(model, PROMPT.fixed, 0.0), Regime(schedule), step, num_sequences=6, prompt=PROMPT)
    much = sample(Guided(model, PROMPT.fixed, 3.0), Regime(schedule), step, num_sequences=6, prompt=PROMPT)
    assert torch.equal(plain.tokens, none.tokens)
    assert not torch.equal(plain.tokens, much.tokens)


def test_sample_and_prompt_reject_bad_input() -> None:
    model = denoiser()
    step = algorithm("original", model.process)
    with pytest.raises(ValueError, match="Did you mean 'remdm'"):
        algorithm("redm", model.process)
    with pytest.raises(ValueError, match=r"got -0\.5"):
        algorithm("acs", model.process, -0.5)
    with pytest.raises(ValueError, match="nothing is left to write"):
        Prompt.prefix(list(range(LENGTH)), LENGTH)
    with pytest.raises(ValueError, match="must have 8 positions"):
        sample(model, Regime(flat(LENGTH, 2)), step, prompt=Prompt.prefix([1], LENGTH - 1))
    with pytest.raises(ValueError, match="must be words"):
        sample(model, Regime(flat(LENGTH, 2)), step, prompt=Prompt.prefix([WORDS], LENGTH))
    with pytest.raises(ValueError, match="num_sequences"):
        sample(model, Regime(flat(LENGTH, 2)), step, num_sequences=0)


def test_acs_of_tiny_eta_equals_original() -> None:
    model = denoiser()
    plain, corrected = (
        sample(
            model,
            Regime(Slide(LENGTH, 3, 3)),
            algorithm(name, model.process, 1e-9),
            num_sequences=8,
            prompt=PROMPT,
        )
        for name in ("original", "acs")
    )
    assert torch.equal(plain.tokens, corrected.tokens)


def test_nested_chain_steps_have_distinct_random_streams() -> None:
    streams = set()

    def record(x: Tensor, move: Move) -> Tensor:
        assert move.stream not in streams
        streams.add(move.stream)
        return x

    nested = Chain((Chain((record, record)), record, Chain((record, Chain((record, record))))))
    model = denoiser()

    def step(x: Tensor, move: Move) -> Tensor:
        streams.clear()
        nested(x, move)
        return Ancestral()(x, move)

    sample(model, Regime(flat(LENGTH, 1)), step, prompt=PROMPT)
    assert len(streams) == 6
