"""Each law finds a wrong implementation, and all built-in pieces obey the laws."""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass, replace
from importlib import import_module
from types import FunctionType

import pytest
import torch

from hdlm.cli import main
from hdlm.hyperschedule import AbstractCountdown, AbstractHyperschedule, Block
from hdlm.noise_schedule import AbstractNoiseSchedule, Linear
from hdlm.objective import (
    NELBO,
    AbstractObjective,
    CleanStream,
    MaskedCrossEntropy,
    ScoreEntropy,
    WeightedCrossEntropy,
)
from hdlm.parameterization import AbstractParameterization, LogScore, Mean, NetworkInputs
from hdlm.process import AbstractNoiseProcess, GammaHybrid, Kernel, Weights
from hdlm.sampling import Ancestral
from hdlm.verification import GROUPS, Sampler, Trial, built_in, laws_of, verify

QUICK = Trial(seed=1, samples=4000)


def violated_laws(subject, trial=QUICK):
    """Names of the laws that a subject breaks."""
    return {verdict.law.replace(" ", "_") for verdict in verify(subject, trial) if not verdict.finding.ok}


PUBLISHED_LOSSES = {CleanStream, MaskedCrossEntropy}
"""Losses of published recipes that are not the same on one canvas and in two streams, which is a law of the others.

`CleanStream` has no terms on one canvas, and the weights of `MaskedCrossEntropy` do not depend on the hyperschedule.
`tests/parity/test_golden_recipes.py` and `tests/unit/test_conversion.py` test them.
"""


# --- what is built in --------------------------------------------------------------------------------------------
def test_built_in_subjects_cover_every_public_piece():
    kinds = (
        AbstractNoiseSchedule,
        AbstractNoiseProcess,
        AbstractHyperschedule,
        AbstractParameterization,
        AbstractObjective,
    )
    tried = {type(subject) for subject in built_in().values()}
    for group in GROUPS:
        module = import_module(f"hdlm.{group}")
        exported = [getattr(module, name) for name in module.__all__]
        classes = {item for item in exported if inspect.isclass(item) and issubclass(item, kinds)}
        assert {item for item in classes if not inspect.isabstract(item)} <= tried | PUBLISHED_LOSSES
    assert {name.split(":")[0] for name in built_in()} == set(GROUPS)


@pytest.mark.parametrize("group", ["noise_schedule", "hyperschedule", "objective"])
def test_built_in_pieces_obey_laws(group):
    """The groups without tests in other files. Processes, parameterizations and samplers have their own tests."""
    for name, subject in built_in().items():
        if name.startswith(group):
            assert not violated_laws(subject), name


def test_every_law_has_a_docstring():
    laws = {law for subject in built_in().values() for law in laws_of(subject)}
    assert len(laws) > 40
    for law in laws:
        assert isinstance(law, FunctionType)
        assert len(law.__doc__.splitlines()[0]) >= 10


# --- processes that are wrong ------------------------------------------------------------------------------------
class WrongProcess(AbstractNoiseProcess):
    """A process with arbitrary weights."""

    num_words = 2

    def __init__(self, clean, uniform, mask=None, absorbs=True):
        self.parts, self.absorbs = (clean, uniform, mask or (lambda u: 1 - clean(u) - uniform(u))), absorbs

    def weights(self, u):
        return Weights(*(part(u) + 0 * u for part in self.parts))


def zero(u):
    return torch.zeros_like(u)


@pytest.mark.parametrize(
    ("process", "law"),
    [
        (WrongProcess(lambda u: 1 - u, zero, lambda u: 0.9 * u), "weights_are_a_distribution"),
        (WrongProcess(lambda u: 0.9 * (1 - u), zero), "noise_starts_from_clean_data"),
        (WrongProcess(lambda u: 1 - 0.9 * u, zero), "pure_noise_knows_nothing"),
        (WrongProcess(lambda u: (1 - u) * (1 + 5 * u * u), zero), "data_are_only_ever_lost"),
        (
            WrongProcess(lambda u: 1 - u, lambda u: u * u),
            "kernels_are_stochastic",
        ),  # masks would have to fall again
        (
            WrongProcess(lambda u: 1 - u, lambda u: u * (1 - u) ** 2, absorbs=False),
            "kernels_lead_to_the_marginals",
        ),
    ],
)
def test_verification_finds_wrong_weights(process, law):
    found = {name.__name__: name(process, QUICK) for name in laws_of(process)[:7]}
    assert not found[law].ok


def mutated_gamma_hybrid(method):
    """A gamma-hybrid with one replaced method. It bypasses `final` for the test."""
    cls = type("Mutant", (AbstractNoiseProcess,), {"weights": GammaHybrid.weights, **method})
    process = cls()
    process.num_words, process.gamma = 2, 0.4
    return process


GAMMA = GammaHybrid(2, 0.4)


def with_wrong_uniform_weight(kernel: Kernel) -> Kernel:
    return replace(kernel, uniform=kernel.uniform * 0.98, mask=kernel.mask + kernel.uniform * 0.02)


MUTANTS = {
    "rates_are_the_derivative_of_kernels": {
        "rates": lambda _, u: replace(GAMMA.rates(u), mask=0.99 * GAMMA.rates(u).mask)
    },
    "rates_integrate_to_kernels": {
        "rates": lambda _, u: replace(GAMMA.rates(u), uniform=1.01 * GAMMA.rates(u).uniform)
    },
    "kernels_compose": {"between": lambda _, s, t: with_wrong_uniform_weight(GAMMA.between(s, t))},
    "spread_is_the_kernel": {
        "spread": lambda _, p, kernel: GAMMA.spread(p, with_wrong_uniform_weight(kernel))
    },
    "unspread_inverts_spread": {
        "unspread": lambda _, p, kernel: GAMMA.unspread(p, with_wrong_uniform_weight(kernel))
    },
    "likelihood_reads_rows_of_the_kernel": {
        "likelihood": lambda _, x, kernel: GAMMA.likelihood(x, with_wrong_uniform_weight(kernel))
    },
    "corruption_follows_the_weights": {"corrupt": lambda _, x, u, draw: GAMMA.corrupt(x, 0.9 * u, draw)},
    "the_prior_is_drawn_as_it_says": {"draw_prior": lambda _, u, draw: GAMMA.draw_prior(0.8 * u, draw)},
    "the_posterior_is_bayes": {"posterior": lambda _, x, clean, s, t: GAMMA.posterior(x, clean, 0.99 * s, t)},
    "reverse_is_the_posterior": {"reverse": lambda _, x, own, s, t: GAMMA.reverse(x, own, 0.99 * s, t)},
    "scores_are_ratios": {
        "score_from_clean": lambda _, x, clean, u: GAMMA.score_from_clean(x, clean, 0.99 * u)
    },
    "scores_and_clean_predictions_are_one": {
        "clean_from_score": lambda _, x, score, u: GAMMA.clean_from_score(x, score, 0.99 * u)
    },
    "tweedie_is_the_posterior": {"tweedie": lambda _, x, score, s, t: GAMMA.tweedie(x, score, 0.99 * s, t)},
    "constant_rates_have_an_exponential": {
        "between": lambda _, s, t: with_wrong_uniform_weight(GAMMA.between(s, t))
    },
    "kernels_are_stochastic": {
        "between": lambda _, s, t: replace(GAMMA.between(s, t), mask=0.9 * GAMMA.between(s, t).mask)
    },
    "the_bound_is_what_the_steps_cost": {
        "posterior": lambda _, x, clean, s, t: GAMMA.posterior(x, clean, 0.9 * s, t)
    },
    "score_entropy_is_the_entropy": {
        "rates": lambda _, u: replace(GAMMA.rates(u), uniform=1.1 * GAMMA.rates(u).uniform)
    },
    "ancestral_sampling_is_its_own_chain": {
        "reverse": lambda _, x, own, s, t: GAMMA.reverse(x, own, 0 * s, t)
    },
    "one_position_is_exact_in_any_number_of_steps": {
        "posterior": lambda _, x, clean, s, t: GAMMA.posterior(x, clean, 0.9 * s, t)
    },
}


@pytest.mark.parametrize("name", MUTANTS)
def test_verification_finds_wrong_closed_forms(name):
    law = next(law for law in laws_of(GAMMA) if law.__name__ == name)
    assert law(GAMMA, QUICK).ok
    assert not law(mutated_gamma_hybrid(MUTANTS[name]), QUICK).ok


# --- other kinds that are wrong ----------------------------------------------------------------------------------
@dataclass(frozen=True)
class WrongSchedule(AbstractNoiseSchedule):
    fault: str

    def fraction(self, t):
        return 1 - t if self.fault == "falls" else t**2

    def rate(self, t):
        return t if self.fault == "rate" else 2 * t

    def time(self, u):
        return u if self.fault == "time" else u.sqrt()


@pytest.mark.parametrize(
    ("fault", "law"),
    [
        ("none", None),
        ("falls", "fractions_rise_inside_their_range"),
        ("rate", "the_rate_is_the_derivative"),
        ("time", "time_inverts_the_fraction"),
    ],
)
def test_verification_finds_wrong_noise_schedules(fault, law):
    broken = violated_laws(WrongSchedule(fault))
    assert law in broken if law else not broken


class WrongHyperschedule(AbstractHyperschedule):
    length, num_levels = 4, 3

    def __init__(self, levels, settles):
        self.rows, self.ends = torch.tensor(levels), torch.tensor(settles)

    def levels(self, n):
        return self.rows[torch.as_tensor(n).clamp(max=len(self.rows) - 1)]

    @property
    def settles(self):
        return self.ends


@pytest.mark.parametrize(
    ("levels", "settles", "law"),
    [
        ([[3, 3, 3, 3], [1, 2, 3, 3], [0, 0, 1, 1], [0, 0, 0, 0]], [2, 2, 3, 3], None),
        (
            [[3, 3, 3, 3], [1, 2, 3, 3], [0, 3, 1, 1], [0, 0, 0, 0]],
            [2, 3, 3, 3],
            "levels_fall_and_stay_in_range",
        ),
        (
            [[4, 3, 3, 3], [1, 2, 3, 3], [0, 0, 1, 1], [0, 0, 0, 0]],
            [2, 2, 3, 3],
            "levels_fall_and_stay_in_range",
        ),
        (
            [[3, 3, 3, 3], [1, 2, 3, 3], [0, 0, 1, 1], [0, 0, 0, 0]],
            [2, 2, 2, 3],
            "everything_settles_when_it_says",
        ),
        (
            [[3, 3, 3, 3], [1, 2, 3, 3], [0, 0, 1, 1], [0, 0, 0, 0]],
            [2, 2, 3, 4],
            "everything_settles_when_it_says",
        ),
    ],
)
def test_verification_finds_wrong_hyperschedules(levels, settles, law):
    broken = violated_laws(WrongHyperschedule(levels, settles))
    assert law in broken if law else not broken


def test_verification_finds_wrong_packing():
    class WrongPacking(AbstractCountdown):
        length, num_levels = 4, 2

        @property
        def starts(self):
            return torch.tensor([0, 0, 2, 2])

        def packed_steps(self, offsets):
            return super().packed_steps(offsets).flip(-1)

    assert violated_laws(WrongPacking()) == {"packed_steps_are_generation"}


@dataclass(frozen=True)
class WrongReading(AbstractParameterization):
    fault: str

    def inputs(self, u):
        return NetworkInputs(torch.log(u)) if self.fault == "inputs" else NetworkInputs()

    def log_clean(self, process, raw, x_t, u):
        if self.fault == "mask":
            return raw.log_softmax(-1)
        if self.fault == "rows":
            raw = raw + torch.arange(raw.shape[-1]) * len(raw) / 100
        return Mean().log_clean(process, raw, x_t, u)

    def log_score(self, process, raw, x_t, u):
        if self.fault == "own":
            return raw
        return Mean().log_score(process, 2 * raw if self.fault == "readings" else raw, x_t, u)


@pytest.mark.parametrize(
    ("fault", "law"),
    [
        ("none", None),
        ("mask", "clean_predictions_are_distributions"),
        ("own", "a_token_has_the_score_one"),
        ("readings", "both_readings_agree"),
        ("rows", "rows_are_independent"),
        ("inputs", "inputs_are_finite"),
    ],
)
def test_verification_finds_wrong_parameterizations(fault, law):
    broken = violated_laws(WrongReading(fault))
    assert law in broken if law else not broken


class OneCanvasOnly(AbstractObjective):
    """Costs a tenth more on one canvas than in two streams."""

    def terms(self, process, canvas):
        factor = 1.0 if canvas.num_clean else 1.1
        return tuple(replace(term, weight=factor * term.weight) for term in NELBO().terms(process, canvas))


@pytest.mark.parametrize(
    ("objective", "laws"),
    [
        (ScoreEntropy(ratios="published_code"), {"the_truth_is_the_best_answer", "wrong_answers_cost_more"}),
        (OneCanvasOnly(), {"two_streams_are_one_canvas"}),
        (WeightedCrossEntropy(unmasked=1.0), {"the_truth_is_the_best_answer", "wrong_answers_cost_more"}),
    ],
    ids=["published", "one canvas", "lambda"],
)
def test_verification_finds_wrong_objectives(objective, laws):
    """The lambda of the paper is also wrong: it weights words by whether they are wrong, which shifts the optimum."""
    broken = violated_laws(objective)
    assert broken
    assert broken <= laws


@dataclass(frozen=True)
class WrongStep:
    fault: str

    def __call__(self, x, move):
        new = Ancestral()(x, move)
        if self.fault == "prompt":
            return torch.where(move.moving, new, 0)
        if self.fault == "batch":
            return new.roll(1, 0)
        if self.fault == "law":
            return torch.where((new == 2) & move.masked & (move.uniform(9) < 0.5), 0, new)
        if self.fault == "early":
            draw = move.reading.draw(move.masked, move.uniform(3))
            return new.masked_scatter(move.masked, draw)
        return new


@pytest.mark.parametrize(
    ("fault", "law"),
    [
        ("none", None),
        ("prompt", "given_tokens_stay"),
        ("batch", "batches_do_not_matter"),
        ("law", "autoregression_is_exact"),
        ("early", "masks_follow_the_schedule"),
    ],
)
def test_verification_finds_wrong_steps(fault, law):
    """`early` unmasks everything in its first step, as the published gamma sampler did (FAULTS 3)."""
    sampler = Sampler(WrongStep(fault), GammaHybrid(3, 0.3))
    broken = violated_laws(sampler)
    assert law in broken if law else not broken


# --- the command -------------------------------------------------------------------------------------------------
def test_verify_prints_a_table(capsys):
    assert main(["verify", "noise_schedule"]) == 0
    printed = capsys.readouterr().out
    assert "time inverts the fraction" in printed
    assert "30 of 30 laws hold" in printed


def test_verify_accepts_user_class(tmp_path, monkeypatch, capsys):
    (tmp_path / "my_noise.py").write_text(
        "from hdlm.noise_schedule import AbstractNoiseSchedule\n"
        "class Power(AbstractNoiseSchedule):\n"
        "    def __init__(self, power): self.power = power\n"
        "    def fraction(self, t): return t ** self.power\n"
        "    def rate(self, t): return self.power * t ** (self.power - 1)\n"
        "    def time(self, u): return u ** (1 / self.power)\n"
        "class Forgetful(Power):\n"
        "    def rate(self, t): return t\n"
        "ready = Power(2)\n"
    )
    monkeypatch.chdir(tmp_path)
    assert main(["verify", "my_noise.Power", "--kwargs", "power=3.0"]) == 0
    assert main(["verify", "my_noise.ready"]) == 0
    capsys.readouterr()
    assert main(["verify", "my_noise.Forgetful", "--kwargs", "power=3.0", "--json"]) == 1
    verdicts = json.loads(capsys.readouterr().out)
    assert [v["law"] for v in verdicts if not v["ok"]] == ["the rate is the derivative"]
    assert {"subject", "statement", "measure", "value", "threshold"} < set(verdicts[0])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nonsense"], "neither a dotted path"),
        (["no_such_module.Thing"], "no module 'no_such_module'"),
        (["hdlm.process.Nothing"], "does not define 'Nothing'"),
        (["hdlm.process.EpsilonHybrid", "--kwargs", "num_words=3"], "epsilon"),
        (["hdlm.process.Absorbing", "--kwargs", "num_words=50"], "num_words=50"),
        (["hdlm.process.Absorbing", "--kwargs", "3"], "--kwargs"),
        (["process", "--kwargs", "num_words=3"], "none is given"),
        (["hdlm.vocabulary.GPT2"], "no laws"),
    ],
)
def test_verify_rejects_bad_target_in_one_line(words, says, capsys):
    assert main(["verify", *words]) == 2
    line = capsys.readouterr().err
    assert says in line
    assert line.count("\n") == 1


def test_verify_tries_single_step_with_absorbing_process():
    assert not violated_laws(Ancestral())
    assert violated_laws(WrongStep("early")) == {"masks_follow_the_schedule"}
    assert verify(Ancestral(), QUICK)[0].subject == "Ancestral(process=None)"
    assert not violated_laws(Block(4, 2, 2))
    assert verify(Linear(), name="mine")[0].subject == "mine"
    assert LogScore().lookback == 0
