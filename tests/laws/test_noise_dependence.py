"""The stated noise dependence of network inputs is true, and generation caches only what it permits."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import final

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from hdlm.checkpoint import Checkpoint
from hdlm.denoiser import AbstractDenoiser, Guided
from hdlm.evaluation.likelihood.bounds import HybridBound, least_variance
from hdlm.hub import load
from hdlm.hyperschedule import Block, Slide, Wave, flat
from hdlm.objective import Corruption
from hdlm.parameterization import (
    AbstractParameterization,
    LeaveOneOut,
    LogScore,
    Mean,
    NetworkInputs,
    Shifted,
)
from hdlm.process import GIDD, Absorbing, EpsilonHybrid, GammaHybrid, Uniform
from hdlm.regime import Regime
from hdlm.sampling import ALGORITHMS, ApproximateCache, Execution, Prompt, algorithm, sample
from hdlm.verification import Trial, verify
from tests.along import sample_along
from tests.laws.test_cache import schedules
from tests.tiny import tiny_algorithm, tiny_denoiser

TRIAL = Trial(seed=3, samples=100)
WORDS = 4
STATED = [
    (Mean(), "none"),
    (Mean("zero"), "none"),
    (Mean("sigma"), "position"),
    (Mean("fraction"), "position"),
    (LeaveOneOut(), "none"),
    (LeaveOneOut("zero", shared=True), "none"),
    (LeaveOneOut("none", shared=True), "none"),
    (LeaveOneOut("sigma"), "position"),
    (LeaveOneOut("sigma", shared=True), "sequence"),
    (LeaveOneOut("fraction", shared=True), "sequence"),
    (LogScore(), "position"),
    (LogScore(blend_rate=0.2), "position"),
    (LogScore(shared=True), "sequence"),
    (LogScore(blend_rate=0.2, shared=True), "sequence"),
]
STATED += [(Shifted(inner), dependence) for inner, dependence in STATED]


def violated_laws(subject) -> set[str]:
    """Names of the laws that a subject breaks."""
    return {verdict.law for verdict in verify(subject, TRIAL) if not verdict.finding.ok}


def network(reading: AbstractParameterization, process=None):
    """A small network that takes the inputs of a parameterization."""
    told = reading.inputs(torch.zeros(1, 1)).condition is not None
    return tiny_denoiser(process or GammaHybrid(WORDS, 0.3), reading, conditioned=told)


def tensors(inputs: NetworkInputs) -> list[torch.Tensor]:
    return [one for one in (inputs.condition, inputs.blend) if one is not None]


@pytest.mark.parametrize(("reading", "dependence"), STATED, ids=repr)
def test_parameterization_states_exact_noise_dependence(reading, dependence) -> None:
    """The inputs depend on the stated noise and on no other noise."""
    assert reading.noise_dependence == network(reading).noise_dependence == dependence
    assert not violated_laws(reading)
    noise = torch.tensor([[0.2, 0.4, 0.3]], dtype=torch.float64)
    if dependence != "none":
        own = noise + torch.tensor([[0.5, 0.0, 0.0]])
        assert any(bool((a != b)[0, 0]) for a, b in _input_pairs(reading, noise, own))
    if dependence == "sequence":
        other = noise + torch.tensor([[0.0, 0.5, 0.0]])
        assert any(bool((a != b)[0, 0]) for a, b in _input_pairs(reading, noise, other))


def _input_pairs(reading, one, two):
    return zip(tensors(reading.inputs(one)), tensors(reading.inputs(two)), strict=True)


# Not final, as they are wrong on purpose.
@dataclass(frozen=True)
class WrongDependence(AbstractParameterization):
    """States a dependence that differs from that of its inputs."""

    inner: AbstractParameterization
    stated: str

    noise_dependence = property(lambda self: self.stated)
    lookback = property(lambda self: self.inner.lookback)

    def inputs(self, u):
        return self.inner.inputs(u)

    def log_clean(self, *case):
        return self.inner.log_clean(*case)

    def log_score(self, *case):
        return self.inner.log_score(*case)


KEPT, CACHED = "kept answers are those of a new call", "the exact cache changes no output"
SHARED, LOCKSTEP = "company changes no output", "steps in common change no output"
RENEWED = "a cache renewed at every call is none"
STATES = "answers depend on the stated noise"


@pytest.mark.parametrize(
    ("reading", "stated", "broken"),
    [
        (LeaveOneOut("fraction", shared=True), "position", {CACHED, SHARED, LOCKSTEP, RENEWED}),
        (LeaveOneOut("fraction", shared=True), "none", {STATES, KEPT, CACHED, SHARED, LOCKSTEP, RENEWED}),
        (LogScore(shared=True), "position", {CACHED, SHARED, LOCKSTEP, RENEWED}),
        (LogScore(), "none", {STATES, KEPT}),
        (Mean("sigma"), "none", {STATES, KEPT}),
        (LogScore(blend_rate=0.3), "none", {STATES, KEPT}),
        (Shifted(LogScore(shared=True)), "position", {CACHED, SHARED, LOCKSTEP, RENEWED}),
    ],
    ids=lambda value: ", ".join(sorted(value)) if isinstance(value, set) else repr(value),
)
def test_wrong_noise_dependence_violates_laws(reading, stated, broken) -> None:
    """The laws of the parameterization and of its denoiser both fail."""
    wrong = WrongDependence(reading, stated)
    assert "inputs depend on the stated noise" in violated_laws(wrong)
    assert broken <= violated_laws(network(wrong))


def test_too_cautious_noise_dependence_violates_no_law() -> None:
    for dependence in ("position", "sequence"):
        assert not violated_laws(WrongDependence(Mean(), dependence))
        assert not violated_laws(network(WrongDependence(Mean(), dependence)))


def test_noise_dependence_defaults_to_sequence() -> None:
    class Own(AbstractDenoiser):
        process = Absorbing(WORDS)

        def predict(self, tokens, noise, context):
            raise NotImplementedError

    assert Own().noise_dependence == "sequence"


# --- checkpoints of others -----------------------------------------------------------------------------------------
FOLDERS = {
    "peers/mdlm": "none",
    "peers/bd3lm": "none",
    "peers/sedd": "sequence",
    "peers/sedd_uniform": "sequence",
    "peers/gidd": "sequence",
    "peers/duo": "sequence",
    "peers/mdlm+time": "sequence",
    "peers/bd3lm+time": "sequence",
    "epsilon": "none",
    "gamma": "position",
}


def golden_checkpoint(shared: Path, name: str, aside: Path) -> Checkpoint:
    """A golden checkpoint; with `+time`, one whose network gets the time."""
    folder = shared / "golden" / name.removesuffix("+time")
    if not name.endswith("+time"):
        return load(folder)
    shutil.copytree(folder, aside, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.npz", "*.ckpt"))
    config = json.loads((folder / "config.json").read_text())
    (aside / "config.json").write_text(json.dumps(config | {"time_conditioning": True}))
    return load(aside)


@pytest.mark.parametrize("name", FOLDERS)
def test_golden_checkpoints_obey_stated_noise_dependence(shared, tmp_path, name) -> None:
    """Results do not depend on the cache, on reused predictions or on the batch."""
    denoiser = golden_checkpoint(shared, name, tmp_path).denoiser
    assert denoiser.noise_dependence == FOLDERS[name]
    assert not violated_laws(denoiser)


@final
class UncachedDenoiser(AbstractDenoiser):
    """A denoiser that declares no dependence, so nothing is cached."""

    def __init__(self, inner: AbstractDenoiser) -> None:
        self.inner, self.process = inner, inner.process

    lookback = property(lambda self: self.inner.lookback)
    packs = property(lambda self: self.inner.packs)

    def predict(self, tokens, noise, context):
        return self.inner.predict(tokens, noise, context)

    def predict_many(self, questions):
        return self.inner.predict_many(questions)


def _written(denoiser, checkpoint, plan, method, **options):
    step = algorithm(method, denoiser.process)
    noise = checkpoint.noise_schedule
    return sample_along(denoiser, plan, step, noise_schedule=noise, active=checkpoint.active, **options)


@pytest.mark.parametrize(("num", "steps"), [pytest.param(32, 64, marks=pytest.mark.slow), (2, 24)], ids=repr)
@pytest.mark.parametrize(
    ("name", "method"),
    [("gidd", "original"), ("duo", "original"), ("sedd", "analytic"), ("sedd_uniform", "analytic")],
)
def test_flat_sampling_of_conditioned_peer_calls_network_at_every_step(
    shared, name, method, num, steps
) -> None:
    """Tokens and number of calls equal those of a denoiser without any cache."""
    checkpoint = load(shared / "golden" / "peers" / name)
    options = {"num_sequences": num, "together": True}
    plan = flat(16, steps)
    ours = _written(checkpoint.denoiser, checkpoint, plan, method, **options)
    anew = _written(UncachedDenoiser(checkpoint.denoiser), checkpoint, plan, method, **options)
    assert torch.equal(ours.tokens, anew.tokens)
    assert ours.num_evaluations == anew.num_evaluations > steps // 4


@pytest.mark.parametrize(
    ("num", "plan"),
    [pytest.param(8, Block(16, 4, 8), marks=pytest.mark.slow), (2, Block(12, 4, 4))],
    ids=repr,
)
@pytest.mark.parametrize(
    ("name", "method"), [("sedd", "analytic"), ("gidd", "original"), ("duo", "original")]
)
def test_block_sampling_of_peer_does_not_depend_on_cache_and_batch(shared, name, method, num, plan) -> None:
    """Guidance and `together` also keep the tokens."""
    checkpoint = load(shared / "golden" / "peers" / name)
    prompt = Prompt.prefix([3, 1], plan.length)
    guide = [1.5] if name == "sedd" else []
    for denoiser in (
        checkpoint.denoiser,
        *(Guided(checkpoint.denoiser, prompt.fixed, scale) for scale in guide),
    ):
        options = {"num_sequences": num, "prompt": prompt}
        plain = _written(denoiser, checkpoint, plan, method, use_cache=False, batch_size=1, **options)
        for how in (
            {},
            {"together": True},
            {"approximate": ApproximateCache(1, active=True)},
            {"approximate": ApproximateCache(1), "together": True},
        ):
            assert torch.equal(
                plain.tokens, _written(denoiser, checkpoint, plan, method, **options, **how).tokens
            )


# --- every process, algorithm and hyperschedule -------------------------------------------------------------------
PROCESSES = [
    Absorbing(WORDS),
    Uniform(WORDS),
    EpsilonHybrid(WORDS, 0.2),
    GammaHybrid(WORDS, 0.3),
    GIDD(WORDS, p_uniform=0.2),
]
READINGS = [reading for reading, _ in STATED if not reading.lookback]


@st.composite
def _ways(draw):
    process = draw(st.sampled_from(PROCESSES))
    every = sorted(ALGORITHMS)
    method = draw(st.sampled_from(["exact", "gibbs"] if isinstance(process, Uniform | GIDD) else every))
    if method == "euler" and not isinstance(process, Absorbing):
        method = "exact"
    reading = draw(st.sampled_from(READINGS))
    return process, method, reading, draw(schedules(longest=6)), draw(st.integers(0, 2**32))


@settings(max_examples=6, deadline=None, phases=(Phase.generate,))
@given(_ways(), st.sampled_from(("block_causal", "causal", "full")), st.booleans())
def test_sample_equals_uncached_denoiser_for_every_setting(way, context, guided) -> None:
    """For every process, algorithm and hyperschedule the tokens equal those without caching."""
    process, method, reading, plan, seed = way
    denoiser = network(reading, process)
    prompt = Prompt.prefix([1], plan.length)
    if guided and float(process.weights(torch.ones((), dtype=torch.float64)).mask):
        denoiser = Guided(denoiser, prompt.fixed, 0.7)
    try:
        step = tiny_algorithm(method, process, 0.3)
        options = {"num_sequences": 2, "prompt": prompt, "context": context, "seed": seed}
        plain = sample_along(UncachedDenoiser(denoiser), plan, step, batch_size=1, **options)
    except (ValueError, RuntimeError) as error:  # an algorithm that is not for this process or these numbers
        with pytest.raises(type(error)):
            sample_along(denoiser, plan, tiny_algorithm(method, process, 0.3), **options)
        return
    for how in ({}, {"together": True}, {"approximate": ApproximateCache(1, active=True)}):
        found = sample_along(denoiser, plan, step, **options, **how)
        assert torch.equal(plain.tokens, found.tokens)
        if denoiser.packs and denoiser.noise_dependence != "none" and not how.get("together"):
            assert torch.equal(plain.evaluations, found.evaluations)


@pytest.mark.parametrize("plan", [Block(6, 3, 3), Slide(6, 3, 4), Wave(6, 3, 2)], ids=repr)
def test_exact_cache_saves_positions_unless_noise_is_per_sequence(plan) -> None:
    """The exact cache saves positions for the first two dependences, and is off for the third."""
    for reading, dependence in (
        (Mean(), "none"),
        (LogScore(), "position"),
        (LogScore(shared=True), "sequence"),
    ):
        done = [
            sample(
                network(reading),
                Regime(plan),
                algorithm("exact", PROCESSES[3]),
                seed=2,
                execution=Execution(use_cache=use),
            )
            for use in (False, True)
        ]
        computed = [int(one.computed) for one in done]
        assert (computed[1] < computed[0]) == (dependence != "sequence")


def test_approximate_settled_cache_saves_positions_without_exact_cache() -> None:
    """It is allowed with any context if the noise of the whole sequence is an input."""
    denoiser, plan = network(LogScore(shared=True)), Block(6, 2, 2)
    step = algorithm("exact", denoiser.process)
    plain, kept = (
        sample(denoiser, Regime(plan), step, execution=Execution(approximate=how))
        for how in (None, ApproximateCache(refresh=None))
    )
    assert int(kept.computed) < int(plain.computed)
    with pytest.raises(ValueError, match="context='full'"):
        sample(network(Mean()), Regime(plan), step, execution=Execution(approximate=ApproximateCache()))


@pytest.mark.parametrize("plan", [Block(8, 4, 2), Slide(8, 4, 4), Wave(8, 4, 4)], ids=repr)
def test_shared_noise_network_is_measured_on_one_canvas(plan) -> None:
    """Two streams would give every block the greatest noise of all blocks, unlike generation."""
    denoiser = network(LogScore(shared=True))
    tokens = torch.randint(WORDS, (2, 8), generator=torch.Generator().manual_seed(0))
    draw = torch.rand(2, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    two_streams = Corruption(denoiser.process, Regime(plan))
    times = torch.rand(2, two_streams.num_times, dtype=torch.float64)
    with pytest.raises(ValueError, match="one noise level a sequence"):
        two_streams(tokens, times, draw).predict(denoiser)
    assert not HybridBound(denoiser, Regime(plan), "stratified").corruption.two_stream
    assert HybridBound(network(LogScore()), Regime(plan), "stratified").corruption.two_stream
    assert least_variance("absorbing", Regime(plan), dependence="sequence") == "stratified"
    flat_streams = Corruption(denoiser.process, Regime(flat(8, 4)))
    flat_streams(tokens, times[:, :1], draw).predict(denoiser)
