"""Evaluation of likelihood: what is counted, what is exact, what is refused."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hdlm.checkpoint import describe
from hdlm.denoiser import Denoiser
from hdlm.evaluation import (
    AbsorbingBound,
    EvaluationProgress,
    HybridBound,
    LikelihoodResult,
    estimate_likelihood,
    windows,
)
from hdlm.evaluation.likelihood.bounds import masking_fraction
from hdlm.evaluation.likelihood.windows import WindowedText
from hdlm.hyperschedule import (
    AbstractHyperschedule,
    Block,
    PublishedWave,
    Slide,
    Table,
    Wave,
    autoregressive,
    flat,
)
from hdlm.network import DDiT, DDiTConfig
from hdlm.noise_schedule import Linear
from hdlm.parameterization import AbstractParameterization, Mean, Shifted
from hdlm.process import Absorbing, AbstractNoiseProcess, EpsilonHybrid, GammaHybrid, Uniform
from hdlm.regime import Regime
from hdlm.verification.exact import ExactDenoiser
from hdlm.verification.world import random_world
from tests.covering import cases

WORDS, LENGTH = 5, 4
TOKENS = torch.tensor([3, 1, 4, 1, 0, 2, 2, 4, 0, 3])  # two windows of four, and one of two
WORLD = random_world(2, 3, seed=1)
PUBLISHED = PublishedWave(4, 2, 2).levels(torch.arange(7))
TABLE = Table(torch.cat([torch.full((1, 4), 2), PUBLISHED]))
"""A table that is not a countdown: the published levels after a first row of pure noise."""
ALONG = describe(flat(4, 4)), describe(Linear())
RESULT = LikelihoodResult((20.0, 22.0, 24.0), 10, 33, "absorbing", "count", 0, 3, 4, *ALONG, "full", "full")


def network(
    parameterization: AbstractParameterization | None = None, process: AbstractNoiseProcess | None = None
) -> Denoiser:
    torch.manual_seed(0)
    told = parameterization is not None and parameterization.inputs(torch.zeros(1)).condition is not None
    config = DDiTConfig(
        vocab_size=WORDS + 1,
        hidden_size=16,
        num_blocks=2,
        num_heads=2,
        max_length=LENGTH,
        timestep_embedding=told,
    )
    model = DDiT(config)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return Denoiser(model, process or Absorbing(WORDS), parameterization or Mean()).eval()


@pytest.mark.parametrize("length", [1, 3, 4, 10, 11])
def test_windows_cover_every_token_once(length: int) -> None:
    stacks = windows(TOKENS, length)
    assert torch.equal(torch.cat([stack.tokens.flatten() for stack in stacks]), TOKENS)
    assert not any(stack.given for stack in stacks)
    assert [stack.tokens.shape[1] for stack in stacks] == [min(length, 10)] * (length <= 10) + [
        10 % length
    ] * (10 % length > 0)


@pytest.mark.parametrize("size", range(1, 11))
@pytest.mark.parametrize(("length", "stride"), [(4, 1), (4, 3), (4, 4), (3, 2), (10, 1), (12, 5), (1, 1)])
def test_windows_that_overlap_count_every_token_once(size: int, length: int, stride: int) -> None:
    text = TOKENS[:size]
    stacks = windows(text, length, stride)
    counted = torch.cat([stack.tokens[:, stack.given :].flatten() for stack in stacks])
    assert torch.equal(counted, text)
    given = torch.cat([stack.tokens[:, : stack.given].flatten() for stack in stacks])
    assert len(given) == (sum(len(stack.tokens) for stack in stacks) - 1) * (length - stride)


@pytest.mark.parametrize(
    ("schedule", "bound"),
    cases([flat(3, 2), autoregressive(3), Block(3, 2, 2), Slide(3, 2, 2)], ["absorbing", "hybrid"]),
    ids=repr,
)
def test_likelihood_with_stride_1_conditions_on_given_tokens(
    schedule: AbstractHyperschedule, bound: str
) -> None:
    """Four tokens in windows of three: the last token is conditioned on the two tokens before it."""
    text = torch.tensor([1, 0, 1, 1])
    log_p = {tuple(row): float(p.log()) for row, p in zip(WORLD.sequences.tolist(), WORLD.law, strict=True)}
    before = math.log(sum(math.exp(log_p[0, 1, word]) for word in range(2)))
    truth = -log_p[1, 0, 1] - log_p[0, 1, 1] + before
    found = estimate_likelihood(
        ExactDenoiser(WORLD, Absorbing(2)),
        WindowedText(text, schedule.length, stride=1),
        Regime(schedule),
        bound=bound,
        replicates=400,
        seed=1,
    )
    assert found.nats == pytest.approx(truth, abs=5 * found.standard_error + 1e-9)
    assert found.stride == 1
    assert found.num_windows == 2


def test_uniform_model_has_same_nats_with_any_stride() -> None:
    model = Denoiser(DDiT(DDiTConfig(WORDS + 1, 16, 1, 2)), Absorbing(WORDS), Mean()).eval()
    for stride in (1, 2, 3, 4):
        found = estimate_likelihood(
            model, WindowedText(TOKENS, flat(LENGTH, 2).length, stride=stride), Regime(flat(LENGTH, 2))
        )
        assert found.nats == pytest.approx(10 * math.log(WORDS))
        assert found.num_tokens == 10


def test_shifted_uniform_model_with_stride_1_counts_every_token_once() -> None:
    model = Denoiser(DDiT(DDiTConfig(WORDS + 1, 16, 1, 2)), Absorbing(WORDS), Shifted(Mean())).eval()
    found = estimate_likelihood(
        model, WindowedText(TOKENS, autoregressive(LENGTH).length, stride=1), Regime(autoregressive(LENGTH))
    )
    assert found.nats == pytest.approx(10 * math.log(WORDS))


@pytest.mark.parametrize(
    "schedule",
    [flat(6, 3), Block(6, 2, 3), Slide(6, 4, 8), Wave(6, 3, 2), autoregressive(6), PublishedWave(6, 3, 4)],
    ids=repr,
)
def test_first_positions_keeps_levels(schedule: AbstractHyperschedule) -> None:
    cut = schedule.first_positions(4)
    n = torch.arange(schedule.num_steps + 1)
    assert cut.length == 4
    assert cut.num_levels == schedule.num_levels
    assert torch.equal(cut.levels(n), schedule.levels(n)[:, :4])


def left_to_right_nats(denoiser: Denoiser, window: Tensor) -> float:
    """`-log p` of a window, one token at a time from known tokens and a mask, without `hdlm.evaluation`."""
    total, shift = 0.0, denoiser.lookback
    for i in range(len(window)):
        seen = torch.cat([window[:i], torch.tensor([WORDS])])[None]
        causal = torch.ones(1, i + 1, i + 1, dtype=torch.bool).tril()
        hidden = denoiser.backbone.features(seen, attention=causal)
        if i < shift:
            total += math.log(WORDS)
            continue
        logits = denoiser.backbone.head(hidden[0, i - shift])[:WORDS]
        total += float(F.cross_entropy(logits, window[i]))
    return total


@pytest.mark.parametrize("parameterization", [Mean(), Shifted(Mean())], ids=repr)
@pytest.mark.parametrize("batch_size", [1, 16])
def test_autoregressive_likelihood_equals_left_to_right_sum(
    parameterization: AbstractParameterization, batch_size: int
) -> None:
    denoiser = network(parameterization)
    result = estimate_likelihood(denoiser, TOKENS, Regime(autoregressive(LENGTH)), batch_size=batch_size)
    with torch.no_grad():
        expected = sum(left_to_right_nats(denoiser, window) for window in TOKENS.split(LENGTH))
    assert result.nats == pytest.approx(expected, rel=1e-5)
    assert (result.estimator, result.replicates, result.standard_error) == ("exact", 1, 0.0)
    assert (result.num_tokens, result.num_windows) == (10, 3)


@pytest.mark.parametrize("parameterization", [Mean(), Shifted(Mean())], ids=repr)
def test_count_estimator_with_width_1_equals_exact(
    parameterization: AbstractParameterization,
) -> None:
    exact, counted = (
        estimate_likelihood(network(parameterization), TOKENS, Regime(Block(LENGTH, 1, 3)), estimator=each)
        for each in ("exact", "count")
    )
    assert counted.estimates == pytest.approx(exact.estimates * 4, rel=1e-5)


def every_count(block: int) -> list[tuple[float, tuple[float, ...]]]:
    """Every number of masks and every order of the draws of a block, each as likely as any other."""
    orders = itertools.permutations([(place + 0.5) / block for place in range(block)])
    return [((count + 0.5) / block, order) for order in orders for count in range(block)]


@pytest.mark.parametrize(("schedule", "blocks"), [(flat(3, 2), [3]), (Block(3, 2, 2), [2, 1])], ids=str)
def test_count_bound_mean_over_all_draws_equals_likelihood(
    schedule: AbstractHyperschedule, blocks: list[int]
) -> None:
    """For the exact model, unmasking in any order is the chain rule. The test enumerates all draws."""
    cases = list(itertools.product(*map(every_count, blocks)))
    times = torch.tensor([[time for time, _ in case] for case in cases], dtype=torch.float64)
    draw = torch.tensor([[d for _, order in case for d in order] for case in cases], dtype=torch.float64)
    bound = AbsorbingBound(ExactDenoiser(WORLD, Absorbing(2)), Regime(schedule), "count")
    for x_0, p in zip(WORLD.sequences, WORLD.law, strict=True):
        nats = bound(x_0.expand(len(cases), 3), times, draw)
        assert float(nats.mean()) == pytest.approx(-math.log(p), rel=1e-9)


@pytest.mark.parametrize("schedule", [flat(4, 3), Block(4, 2, 3)], ids=repr)
@pytest.mark.parametrize("bound", ["absorbing", "hybrid"])
def test_likelihood_depends_on_active_visibility(schedule: AbstractHyperschedule, bound: str) -> None:
    denoiser = network()
    full, causal = (
        estimate_likelihood(denoiser, TOKENS, Regime(schedule, active=active), bound=bound)
        for active in ("full", "causal")
    )
    assert full.estimates != pytest.approx(causal.estimates, rel=1e-5)
    assert (full.active, causal.active) == ("full", "causal")


@pytest.mark.parametrize("schedule", [flat(4, 2), Block(4, 2, 2), Slide(4, 2, 3)], ids=repr)
@pytest.mark.parametrize("bound", ["absorbing", "hybrid"])
def test_likelihood_does_not_depend_on_batch_size(schedule: AbstractHyperschedule, bound: str) -> None:
    denoiser = network(process=EpsilonHybrid(WORDS, 0.1))
    one, many = (
        estimate_likelihood(denoiser, TOKENS, Regime(schedule), bound=bound, batch_size=size, seed=3)
        for size in (1, 7)
    )
    assert one.estimates == pytest.approx(many.estimates, rel=1e-5)
    assert one.standard_error > 0
    other = estimate_likelihood(denoiser, TOKENS, Regime(schedule), bound=bound, seed=4)
    assert other.estimates != pytest.approx(one.estimates, rel=1e-5)


@pytest.mark.parametrize(
    "parameterization", [Mean("sigma"), Shifted(Mean()), Shifted(Mean("fraction"))], ids=repr
)
@pytest.mark.parametrize("process", [EpsilonHybrid(WORDS, 0.1), GammaHybrid(WORDS, 0.1)], ids=repr)
@pytest.mark.parametrize("schedule", [flat(4, 2), Block(4, 2, 2), TABLE], ids=repr)
@pytest.mark.parametrize("bound", ["absorbing", "hybrid"])
def test_likelihood_is_finite_for_every_combination(
    parameterization: AbstractParameterization,
    process: AbstractNoiseProcess,
    schedule: AbstractHyperschedule,
    bound: str,
) -> None:
    result = estimate_likelihood(
        network(parameterization, process), TOKENS, Regime(schedule), bound=bound, replicates=2
    )
    assert 0 < result.nats_per_token < 20 * math.log(WORDS)


def test_shifted_network_pays_uniform_nats_for_first_token() -> None:
    """A window of one word gives the network no information."""
    for bound in ("absorbing", "hybrid"):
        result = estimate_likelihood(network(Shifted(Mean())), TOKENS, Regime(autoregressive(1)), bound=bound)
        assert result.nats == pytest.approx(10 * math.log(WORDS), rel=1e-9)


@pytest.mark.parametrize("process", [Absorbing(3), EpsilonHybrid(3, 0.2), GammaHybrid(3, 0.3)], ids=repr)
def test_masking_fraction_inverts_mask_weight(process: AbstractNoiseProcess) -> None:
    mask = torch.linspace(0, 1, 11, dtype=torch.float64)
    torch.testing.assert_close(process.weights(masking_fraction(process, mask)).mask, mask)


def test_likelihood_reports_progress_to_the_end() -> None:
    seen: list[EvaluationProgress] = []
    estimate_likelihood(
        network(), TOKENS, Regime(flat(LENGTH, 2)), replicates=2, batch_size=3, watch=seen.append
    )
    assert [report.done for report in seen] == [3, 4, 6]
    assert {report.total for report in seen} == {6}


def test_likelihood_result_converts_units_and_errors() -> None:
    error = 2 / math.sqrt(3)
    assert (RESULT.nats, RESULT.replicates) == (22.0, 3)
    assert RESULT.standard_error == pytest.approx(error)
    assert RESULT.perplexity == pytest.approx(math.exp(2.2))
    assert RESULT.bits_per_token == pytest.approx(2.2 / math.log(2))
    assert RESULT.bits_per_byte == pytest.approx(22 / 33 / math.log(2))
    step = 1e-6
    for name in ("perplexity", "bits_per_token", "bits_per_byte"):
        moved = replace(RESULT, estimates=tuple(estimate + step for estimate in RESULT.estimates))
        slope = (getattr(moved, name) - getattr(RESULT, name)) / step
        assert getattr(RESULT, f"{name}_error") == pytest.approx(slope * error, rel=1e-4)


def test_likelihood_result_interval_uses_student_quantile() -> None:
    low, high = RESULT.interval()
    assert (low + high) / 2 == pytest.approx(22)
    assert (high - low) / 2 == pytest.approx(4.3026527 * RESULT.standard_error)  # two degrees of freedom
    narrow = RESULT.interval(0.5)
    assert (narrow[1] - narrow[0]) / 2 == pytest.approx(0.8164966 * RESULT.standard_error)
    assert replace(RESULT, estimates=(22.0,)).interval() is None
    assert replace(RESULT, estimates=(22.0,), estimator="exact").interval() == (22.0, 22.0)
    with pytest.raises(ValueError, match=r"between 0 and 1; got 95\.0"):
        RESULT.interval(95.0)


def test_likelihood_result_of_one_replicate_has_no_error() -> None:
    alone = replace(RESULT, estimates=(22.0,), num_bytes=None)
    assert alone.standard_error is None
    assert alone.perplexity_error is None
    assert alone.bits_per_byte is None
    assert alone.bits_per_byte_error is None


def test_likelihood_result_rejects_perplexity_overflow() -> None:
    lost = replace(RESULT, estimates=(710.0 * RESULT.num_tokens,) * 2)
    assert lost.nats_per_token == pytest.approx(710)
    with pytest.raises(
        ValueError, match="710 nats a token, and its exponential, the perplexity, is too large"
    ):
        lost.to_dict()


def test_likelihood_result_dict_holds_protocol() -> None:
    written = json.loads(json.dumps(RESULT.to_dict()))
    assert written["perplexity"] == pytest.approx(math.exp(2.2))
    assert written["standard_error"] == RESULT.standard_error
    assert {"bound", "estimator", "seed", "replicates", "estimates", "num_windows", "hyperschedule"} <= set(
        written
    )


@pytest.mark.parametrize("estimates", [(), (1.0, math.nan), (math.inf,)], ids=str)
def test_likelihood_result_rejects_empty_or_infinite_estimates(estimates: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="estimate"):
        replace(RESULT, estimates=estimates)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"replicates": 0}, "replicates"),
        ({"batch_size": 0}, "batch_size"),
        ({"bound": "tight"}, "bound"),
        ({"estimator": "exact"}, "left to right"),
        ({"bound": "hybrid", "estimator": "count"}, "hybrid bound"),
        ({"num_bytes": 0}, "num_bytes"),
        ({"seed": -1}, "seed"),
    ],
    ids=str,
)
def test_estimate_likelihood_rejects_bad_options(options: dict[str, object], message: str) -> None:
    num_bytes = options.get("num_bytes")
    others = {name: value for name, value in options.items() if name != "num_bytes"}
    text = WindowedText(TOKENS, LENGTH, num_bytes=num_bytes)
    with pytest.raises((ValueError, TypeError), match=message):  # while tests run, types are enforced besides
        estimate_likelihood(network(), text, Regime(flat(LENGTH, 2)), **others)


@pytest.mark.parametrize("schedule", [Slide(4, 2, 2), Wave(4, 2, 2), TABLE], ids=repr)
def test_count_estimator_requires_positions_that_start_together(schedule: AbstractHyperschedule) -> None:
    with pytest.raises(ValueError, match="start together"):
        AbsorbingBound(network(), Regime(schedule), "count")
    assert estimate_likelihood(network(), TOKENS, Regime(schedule), replicates=1).estimator == "stratified"


def test_hybrid_bound_rejects_schedule_that_begins_settled() -> None:
    prompted = Table(torch.tensor([[0, 2], [0, 1], [0, 0]]))
    for schedule in (prompted, PublishedWave(4, 2, 2)):
        with pytest.raises(ValueError, match="begin as pure noise"):
            HybridBound(network(), Regime(schedule), "random")


def test_absorbing_bound_rejects_process_without_masks() -> None:
    with pytest.raises(ValueError, match="all masks"):
        estimate_likelihood(network(process=Uniform(WORDS)), TOKENS, Regime(flat(LENGTH, 2)))


@pytest.mark.parametrize("tokens", [[], [0, WORDS], [-1]], ids=str)
def test_estimate_likelihood_rejects_tokens_that_are_not_words(tokens: list[int]) -> None:
    with pytest.raises(ValueError, match="tokens"):
        estimate_likelihood(network(), torch.tensor(tokens, dtype=torch.long), Regime(flat(LENGTH, 2)))


def test_estimate_likelihood_rejects_network_in_training_mode() -> None:
    with pytest.raises(ValueError, match="training mode"):
        estimate_likelihood(network().train(), TOKENS, Regime(flat(LENGTH, 2)))


def test_windows_rejects_bad_length_and_stride() -> None:
    with pytest.raises(ValueError, match="length"):
        windows(TOKENS, 0)
    with pytest.raises(ValueError, match="stride"):
        windows(TOKENS, 4, 5)
    with pytest.raises(ValueError, match="length"):
        flat(4, 1).first_positions(5)
