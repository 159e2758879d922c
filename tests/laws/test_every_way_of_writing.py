"""Every combination writes text: no mask is left, given tokens do not change, and every token is a word.

Every algorithm, hyperschedule and process, with random networks: what they answer is consistent with no distribution of
sequences, so the test detects a step that works only for exact denoisers.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

import hdlm
from hdlm.denoiser import Denoiser
from hdlm.hyperschedule import (
    AbstractHyperschedule,
    Block,
    PublishedSlide,
    PublishedWave,
    Slide,
    Table,
    Wave,
    autoregressive,
    flat,
)
from hdlm.noise_schedule import LINEAR, AbstractNoiseSchedule, ConstantRate, Cosine, Geometric, LogLinear
from hdlm.parameterization import AbstractParameterization, LeaveOneOut, LogScore, Mean
from hdlm.process import GIDD, Absorbing, AbstractNoiseProcess, EpsilonHybrid, GammaHybrid, Uniform
from hdlm.regime import Regime
from hdlm.sampling import (
    ALGORITHMS,
    RULES,
    Cap,
    Confidence,
    Execution,
    Frame,
    Prompt,
    ReMDM,
    Rescale,
    Step,
    algorithm,
    sample,
)
from hdlm.sampling.algorithms import WRITES_LIKELIEST
from tests.along import sample_along
from tests.covering import Factors, assert_covers, cases, setting_of
from tests.laws.test_hyperschedules import ANY
from tests.tiny import tiny_algorithm, tiny_denoiser

WORDS, LENGTH = 5, 7
PROCESSES: dict[str, AbstractNoiseProcess] = {
    repr(process): process
    for process in (
        Absorbing(WORDS),
        Uniform(WORDS),
        EpsilonHybrid(WORDS, 0.1),
        GammaHybrid(WORDS, 0.0),
        GammaHybrid(WORDS, 0.3),
        GammaHybrid(WORDS, 1.0),
        GIDD(WORDS, 0.0),
        GIDD(WORDS, 0.3),
    )
}
READINGS: tuple[AbstractParameterization, ...] = (Mean(), LeaveOneOut(), LogScore())
NOISES: tuple[AbstractNoiseSchedule, ...] = (
    LINEAR,
    LogLinear(1e-3),
    LogLinear(0.1),
    Cosine(),
    Geometric(),
    ConstantRate(),
)
RANDOM_TABLE = Table(
    torch.tensor(
        [[3, 3, 2, 3, 1, 3, 3], [3, 1, 2, 2, 1, 3, 0], [2, 1, 0, 2, 1, 3, 0], [0, 1, 0, 0, 0, 1, 0], [0] * 7]
    )
)
SCHEDULES: list[AbstractHyperschedule] = [
    flat(LENGTH, 4),
    Block(LENGTH, 3, 2),
    Slide(LENGTH, 3, 4),
    Wave(LENGTH, 3, 3),
    PublishedSlide(LENGTH, 3, 2),
    PublishedWave(LENGTH, 3, 3),
    autoregressive(LENGTH),
    RANDOM_TABLE,
]


def fits(name: str, process: AbstractNoiseProcess) -> bool:
    """Whether an algorithm supports a process. Other pairs are refused with a reason."""
    if name == "first_hitting":
        return process.words_stay
    masks_alone = float(process.weights(torch.ones(1, dtype=torch.float64)).mask) == 1
    lifts_masks = name.startswith("rem") or (name in WRITES_LIKELIEST and name != "entropy_renoising")
    return masks_alone or not lifts_masks


def prompt_of(kind: str, schedule: AbstractHyperschedule, generator: torch.Generator) -> Prompt | None:
    """Nothing given, a prefix, or anything anywhere; positions that begin at level 0 are always given."""
    length, never = schedule.length, schedule.never_written
    fixed = torch.zeros(1, length, dtype=torch.bool)
    if kind == "prefix":
        fixed[:, : length // 2] = True
    if kind == "infill":
        fixed = torch.rand(1, length, generator=generator) < 0.4
    fixed |= never
    tokens = torch.randint(WORDS, (1, length), generator=generator)
    return Prompt(torch.where(fixed, tokens, 0), fixed) if fixed.any() else None


def assert_writes_words(
    denoiser: Denoiser, schedule: AbstractHyperschedule, step: Step, prompt: Prompt | None, **options: Any
) -> None:
    """Assert that the text consists of words and that given tokens stay in every frame."""

    def watch(frame: Frame) -> None:
        assert torch.equal(frame.before[~frame.moving], frame.after[~frame.moving])
        if prompt is not None:
            fixed = prompt.fixed.expand_as(frame.after)
            assert torch.equal(frame.after[fixed], prompt.tokens.expand_as(frame.after)[fixed])

    tokens = sample_along(
        denoiser, schedule, step, prompt=prompt, watch=watch, together=True, **options
    ).tokens
    assert ((tokens >= 0) & (tokens < denoiser.process.num_words)).all()
    if prompt is not None:
        fixed = prompt.fixed.expand_as(tokens)
        assert torch.equal(tokens[fixed], prompt.tokens.expand_as(tokens)[fixed])


ALL = [(name, key) for name in ALGORITHMS for key, process in PROCESSES.items() if fits(name, process)]
FACTORS: Factors = {
    "kind": ("none", "prefix", "infill"),
    "reading": READINGS,
    "noise_schedule": NOISES,
    "eta": (0.0, 0.05, 0.5, 1.0),
    "sampling_eps": (None, 1e-3),
}
"""What else a run of an algorithm along a hyperschedule can vary."""


def number_of(pair: int, schedule: int) -> int:
    """The number of the setting for a pair of algorithm and process and a hyperschedule, by their places."""
    return 9 * pair + schedule


def test_settings_cover_every_pair_of_values() -> None:
    """Each pair of algorithm and process, and each hyperschedule, also has every value of every factor."""
    assert_covers(
        FACTORS, [[number_of(pair, at) for at in range(len(SCHEDULES))] for pair in range(len(ALL))]
    )


@pytest.mark.parametrize(("name", "key"), ALL)
def test_every_algorithm_and_process_writes_words_only(name: str, key: str) -> None:
    """One hyperschedule and setting per pair; the next test has every hyperschedule."""
    pair = ALL.index((name, key))
    assert_setting_writes_words(name, key, pair % len(SCHEDULES))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "key"), ALL)
def test_every_algorithm_and_process_writes_words_only_along_every_hyperschedule(name: str, key: str) -> None:
    """The product of algorithms, processes and hyperschedules is full; the other factors are a covering design."""
    for at in range(len(SCHEDULES)):
        assert_setting_writes_words(name, key, at)


def assert_setting_writes_words(name: str, key: str, at: int) -> None:
    """Assert it for an algorithm, a process and the place of a hyperschedule, which select the setting."""
    process, schedule, number = PROCESSES[key], SCHEDULES[at], number_of(ALL.index((name, key)), at)
    setting = setting_of(FACTORS, number)
    reading = setting["reading"]
    denoiser = tiny_denoiser(process, reading, conditioned=isinstance(reading, LogScore), seed=number).eval()
    assert_writes_words(
        denoiser,
        schedule,
        tiny_algorithm(name, process, setting["eta"]),
        prompt_of(setting["kind"], schedule, torch.Generator().manual_seed(number)),
        num_sequences=16,
        seed=number,
        noise_schedule=setting["noise_schedule"],
        sampling_eps=setting["sampling_eps"],
    )


@pytest.mark.parametrize(
    ("greedy", "part"),
    [
        (False, None),
        (True, 2),
        *(pytest.param(*one, marks=pytest.mark.slow) for one in ((True, None), (False, 2))),
    ],
)
@pytest.mark.parametrize("name", sorted(WRITES_LIKELIEST))
def test_every_published_rule_writes_words_only(name: str, greedy: bool, part: int | None) -> None:
    """Likeliest words and parts of the canvas included."""
    process = Absorbing(WORDS)
    choice = torch.Generator().manual_seed(len(name))
    assert_writes_words(
        tiny_denoiser(process, seed=len(name)).eval(),
        flat(LENGTH, 3),
        tiny_algorithm(name, process, 0.3, sub_block=part, greedy=greedy),
        prompt_of("infill", flat(LENGTH, 3), choice),
        num_sequences=8,
    )


def test_likeliest_words_are_a_choice_of_the_same_algorithms() -> None:
    process = Absorbing(WORDS)
    greedy = {name for name in ALGORITHMS | RULES if hasattr(algorithm(name, process), "greedy")}
    assert greedy == WRITES_LIKELIEST


REMASKING = {
    "confidence": lambda eta: ReMDM(Confidence(Cap(eta))),
    "confidence of rescale": lambda eta: ReMDM(Confidence(Rescale(eta))),
    "by name": lambda eta: algorithm("remdm_confidence", EpsilonHybrid(WORDS, 0.1), eta),
}


@pytest.mark.parametrize(
    ("schedule", "build", "kind"), cases(SCHEDULES, list(REMASKING), ["none", "prefix", "infill"]), ids=str
)
def test_remdm_confidence_leaves_no_mask(schedule: AbstractHyperschedule, build: str, kind: str) -> None:
    """Regression: it masked words in their last step."""
    prompt = prompt_of(kind, schedule, torch.Generator().manual_seed(1))
    denoiser = tiny_denoiser(EpsilonHybrid(WORDS, 0.1), num_blocks=1).eval()
    assert_writes_words(denoiser, schedule, REMASKING[build](0.9), prompt, num_sequences=40, seed=3)


@settings(max_examples=30, deadline=None)
@given(ANY, st.sampled_from(["remdm_confidence", "exact", "acs"]), st.integers(0, 2**31))
@example(Table(torch.zeros(1, 3, dtype=torch.long)), "exact", 0)
def test_every_valid_hyperschedule_can_be_sampled(
    schedule: AbstractHyperschedule, name: str, seed: int
) -> None:
    process = EpsilonHybrid(WORDS, 0.1)
    prompt = prompt_of("none", schedule, torch.Generator().manual_seed(seed))
    assert_writes_words(
        tiny_denoiser(process, num_blocks=1).eval(),
        schedule,
        algorithm(name, process, 0.5),
        prompt,
        num_sequences=2,
        seed=seed,
    )


@pytest.mark.parametrize(
    "schedule", [Slide(24, 8, 6), pytest.param(Block(64, 16, 16), marks=pytest.mark.slow)]
)
def test_remdm_confidence_with_shipped_model_leaves_no_mask(schedule: AbstractHyperschedule) -> None:
    """It left masks for 6 seeds of 8 at the settings of `hdlm sample --algorithm remdm_confidence`."""
    model = hdlm.load("kjv-epsilon-4m")
    step = algorithm("remdm_confidence", model.denoiser.process, 0.05)
    done = sample(
        model.denoiser,
        Regime(schedule, noise_schedule=model.noise_schedule, context=model.context, active=model.active),
        step,
        prompt=Prompt.prefix([model.vocabulary.bos], schedule.length),
        num_sequences=8,
        seed=0,
        execution=Execution(together=True),
    )
    assert int(done.tokens.max()) < model.denoiser.process.num_words


# --- positions that begin at level 0 ---------------------------------------------------------------------------------
BEGINS_SETTLED = Table(torch.tensor([[2, 0, 2], [1, 0, 1], [0, 0, 0]]))


def test_position_at_level_0_needs_a_given_token() -> None:
    denoiser, step = tiny_denoiser(Absorbing(WORDS)).eval(), algorithm("exact", Absorbing(WORDS))
    with pytest.raises(ValueError, match=r"Position 1 begins at level 0 in Table.*no token is given there"):
        sample(denoiser, Regime(BEGINS_SETTLED), step)
    with pytest.raises(ValueError, match="Position 1 begins at level 0"):
        sample(denoiser, Regime(BEGINS_SETTLED), step, prompt=Prompt.prefix([3], 3))
    given = Prompt(torch.tensor([[0, 3, 0]]), torch.tensor([[False, True, False]]))
    assert_writes_words(denoiser, BEGINS_SETTLED, step, given, num_sequences=4)


def test_a_published_wave_of_one_level_is_refused() -> None:
    with pytest.raises(ValueError, match=r"num_levels of at least 2; got 1.*Use Wave"):
        PublishedWave(8, 4, 1)


# --- the first canvas ------------------------------------------------------------------------------------------------
def first_canvas(
    denoiser: Any, noise_schedule: AbstractNoiseSchedule, length: int, count: int = 64
) -> Tensor:
    """The canvas before the first step."""
    frames: list[Tensor] = []

    def watch(frame: Frame) -> None:
        if frame.step == 0:
            frames.append(frame.before)

    step = algorithm("exact", denoiser.process)
    options = {"noise_schedule": noise_schedule, "together": True, "watch": watch}
    sample_along(denoiser, flat(length, 2), step, num_sequences=count, **options)
    return torch.cat(frames)


@pytest.mark.parametrize("noise", NOISES, ids=repr)
@pytest.mark.parametrize("key", PROCESSES)
def test_first_canvas_follows_prior_of_process(key: str, noise: AbstractNoiseSchedule) -> None:
    """Only masks if words stay, only words for uniform noise, otherwise both with their marginal frequency."""
    process = PROCESSES[key]
    canvas = first_canvas(tiny_denoiser(process, num_blocks=1).eval(), noise, LENGTH, 300)
    masked = canvas == process.mask_id
    u = noise.fraction(torch.ones((), dtype=torch.float64))
    share = 1.0 if process.words_stay else float(process.weights(u).mask)
    if share in (0.0, 1.0):
        assert (masked == bool(share)).all()
    spread = (share * (1 - share) / masked.numel()) ** 0.5
    assert abs(float(masked.double().mean()) - share) <= 5 * spread


PEERS = ("mdlm", "sedd", "sedd_uniform", "bd3lm", "gidd", "duo")


@pytest.mark.parametrize("name", PEERS)
def test_first_canvas_of_peer_models_has_masks_of_prior(shared: Any, name: str) -> None:
    """Regression: MDLM and SEDD-absorb began with about one uniform word per thousand positions."""
    model = hdlm.load(shared / "golden" / "peers" / name)
    process = model.denoiser.process
    u = model.noise_schedule.fraction(torch.ones((), dtype=torch.float64)).expand(200_000)
    draw = torch.rand(200_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    masked = process.draw_prior(u, draw) == process.mask_id
    match name:
        case "mdlm" | "sedd" | "bd3lm":
            assert masked.all()
        case "sedd_uniform" | "duo":
            assert not masked.any()
        case "gidd":
            words = 1 - process.weights(u[:1]).mask
            assert float((~masked).double().mean()) <= float(words) * 1.2 + 1e-4
