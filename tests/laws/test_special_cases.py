"""MDLM, SEDD, GPT and BD3-LM are special cases: their losses, written independently, equal the compositions."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import cross_entropy, log_softmax

from hdlm.denoiser import ForwardContext
from hdlm.hyperschedule import (
    Block,
    PublishedSlide,
    PublishedWave,
    Slide,
    Table,
    Wave,
    autoregressive,
    flat,
)
from hdlm.hyperschedule.packing import ABSENT
from hdlm.noise_schedule import LogLinear
from hdlm.objective import NELBO, Canvas, Corruption, ScoreEntropy, WeightedCrossEntropy
from hdlm.parameterization import LogScore, Mean, Shifted
from hdlm.process import Absorbing, EpsilonHybrid, GammaHybrid, Uniform
from hdlm.regime import Regime
from hdlm.verification.enumeration import generator_matrix
from tests.tiny import FixedAnswer, tiny_denoiser

BATCH, LENGTH, WORDS = 5, 8, 6
MASK = WORDS
TIGHT = {"atol": 1e-11, "rtol": 1e-11}


@pytest.fixture
def numbers() -> torch.Generator:
    return torch.Generator().manual_seed(3)


@pytest.fixture
def x_0(numbers):
    return torch.randint(WORDS, (BATCH, LENGTH), generator=numbers)


def uniform(numbers, *shape):
    return torch.rand(*shape, generator=numbers, dtype=torch.float64)


@pytest.mark.parametrize("process", [Absorbing(WORDS), EpsilonHybrid(WORDS, 0.0), GammaHybrid(WORDS, 0.0)])
@pytest.mark.parametrize("objective", [WeightedCrossEntropy(unmasked=0.0), ScoreEntropy()])
def test_flat_masking_is_mdlm(process, objective, x_0, numbers):
    """MDLM (arXiv 2406.07524, equation 10) with a linear schedule: `1/t` times the cross-entropy of the masked."""
    denoiser = tiny_denoiser(process)
    times, draw = uniform(numbers, BATCH, 1), uniform(numbers, BATCH, LENGTH)
    masked = draw >= 1 - times
    logits = denoiser.backbone(torch.where(masked, MASK, x_0))[..., :WORDS]
    nats = cross_entropy(logits.flatten(0, 1), x_0.flatten(), reduction="none").view(x_0.shape)
    expected = torch.where(masked, nats / times, 0.0)
    corruption = Corruption(process, Regime(flat(LENGTH, 1)), two_stream=False)
    loss = objective(denoiser, corruption(x_0, 1 - times, draw))  # time in generation runs from noise to data
    torch.testing.assert_close(loss, expected, **TIGHT)


def sedd_canvas(process, x_0, numbers):
    schedule = LogLinear(5e-3)
    corruption = Corruption(process, Regime(flat(LENGTH, 1), schedule), two_stream=False)
    times = uniform(numbers, BATCH, 1)
    canvas = corruption(x_0, 1 - times, uniform(numbers, BATCH, LENGTH))
    sigma = -torch.log1p(-(1 - 5e-3) * times)
    rate = (1 - 5e-3) / (1 - (1 - 5e-3) * times)
    return canvas, sigma, rate


def log_scores(denoiser, canvas, sigma):
    told = sigma.expand(canvas.x_t.shape)
    raw = denoiser.backbone(canvas.x_t, condition=told, blend=None)
    return raw - torch.log(torch.expm1(told))[..., None] - math.log(WORDS)


def test_gamma_zero_is_sedd_absorb(x_0, numbers):
    """The denoising score entropy of SEDD's absorbing graph (arXiv 2310.16834), as its authors write it."""
    process = GammaHybrid(WORDS, 0.0)
    denoiser = tiny_denoiser(process, LogScore(), conditioned=True)
    canvas, sigma, rate = sedd_canvas(process, x_0, numbers)
    log_score = log_scores(denoiser, canvas, sigma)[..., :WORDS]
    ratio = 1 / torch.expm1(sigma)
    positive = log_score.exp().sum(-1)
    negative = ratio * log_score.gather(-1, x_0[..., None])[..., 0]
    expected = torch.where(canvas.x_t == MASK, positive - negative + ratio * (ratio.log() - 1), 0.0)
    torch.testing.assert_close(ScoreEntropy()(denoiser, canvas), rate * expected, **TIGHT)


def test_gamma_one_is_sedd_uniform(x_0, numbers):
    """The denoising score entropy of SEDD's uniform graph: a sum over all words except the current one."""
    process = GammaHybrid(WORDS, 1.0)
    denoiser = tiny_denoiser(process, LogScore(), conditioned=True)
    canvas, sigma, rate = sedd_canvas(process, x_0, numbers)
    log_score = log_scores(denoiser, canvas, sigma)[..., :WORDS]
    expected = torch.zeros(BATCH, LENGTH, dtype=torch.float64)
    for b in range(BATCH):
        stay = math.exp(-float(sigma[b]))
        for i in range(LENGTH):
            chance = torch.full((WORDS,), (1 - stay) / WORDS, dtype=torch.float64)
            chance[x_0[b, i]] += stay
            for y in set(range(WORDS)) - {int(canvas.x_t[b, i])}:
                r, log_s = float(chance[y] / chance[canvas.x_t[b, i]]), log_score[b, i, y]
                expected[b, i] += (log_s.exp() - r * log_s + r * math.log(r) - r) / WORDS
    torch.testing.assert_close(ScoreEntropy()(denoiser, canvas), rate * expected, **TIGHT)
    named = ScoreEntropy()(tiny_denoiser(Uniform(WORDS), LogScore(), conditioned=True), canvas)
    torch.testing.assert_close(named, rate * expected, **TIGHT)


def next_token_cross_entropy(denoiser, x_0):
    """`-log p(x_i | x_<i)` of a causal network with the clean text as input, and 0 for the first token."""
    causal = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()[None]
    log_p = log_softmax(denoiser.backbone(x_0, attention=causal)[..., :WORDS], -1)
    nats = -log_p[:, :-1].gather(-1, x_0[:, 1:, None])[..., 0]
    return torch.cat([torch.zeros(BATCH, 1, dtype=nats.dtype), nats], 1)


@pytest.mark.parametrize("objective", [NELBO(), WeightedCrossEntropy(unmasked=0.0)])
def test_shifted_autoregression_is_next_token_prediction(objective, x_0, numbers):
    """In two streams one pass predicts every token from the clean text before it."""
    process = Absorbing(WORDS)
    denoiser = tiny_denoiser(process, Shifted(Mean()))
    corruption = Corruption(process, Regime(autoregressive(LENGTH)), continuous=False)
    times = torch.zeros(BATCH, corruption.num_times, dtype=torch.float64)
    loss = objective(denoiser, corruption(x_0, times, uniform(numbers, BATCH, LENGTH)))
    torch.testing.assert_close(loss, next_token_cross_entropy(denoiser, x_0), **TIGHT)


def test_shifted_autoregressive_nelbo_on_one_canvas_is_next_token_loss(x_0, numbers):
    """At step `n` the canvas has a loss for token `n`. The mean over all steps is the next-token loss."""
    process = Absorbing(WORDS)
    denoiser = tiny_denoiser(process, Shifted(Mean()))
    corruption = Corruption(process, Regime(autoregressive(LENGTH)), two_stream=False, continuous=False)
    total = torch.zeros(BATCH, LENGTH, dtype=torch.float64)
    for n in range(LENGTH):
        times = torch.full((BATCH, 1), (n + 0.5) / LENGTH, dtype=torch.float64)
        total += NELBO()(denoiser, corruption(x_0, times, uniform(numbers, BATCH, LENGTH))) / LENGTH
    torch.testing.assert_close(total, next_token_cross_entropy(denoiser, x_0), **TIGHT)


@pytest.mark.parametrize("width", [2, 4, 8])
def test_blocks_of_masks_are_block_diffusion(width, x_0, numbers):
    """BD3-LM (arXiv 2503.09573): `-log p(x_0 | noisy block, clean blocks before it) / t`, one pass a block."""
    process = EpsilonHybrid(WORDS, 0.0)
    denoiser = tiny_denoiser(process)
    corruption = Corruption(process, Regime(Block(LENGTH, width, 4)))
    times, draw = uniform(numbers, BATCH, LENGTH // width), uniform(numbers, BATCH, LENGTH)
    canvas = corruption(x_0, times, draw)
    block = torch.arange(LENGTH) // width
    t = 1 - times[:, block]
    masked = draw >= 1 - t
    expected = torch.zeros(BATCH, LENGTH, dtype=torch.float64)
    for b in range(LENGTH // width):
        shown = torch.where(masked & (block == b), MASK, x_0)[:, : (b + 1) * width]
        of_shown = block[: (b + 1) * width]
        before = of_shown[None, :] <= of_shown[:, None]
        logits = denoiser.backbone(shown, attention=before[None])[..., :WORDS]
        nats = -log_softmax(logits, -1).gather(-1, x_0[:, : (b + 1) * width, None])[..., 0]
        expected[:, block == b] = nats[:, of_shown == b]
    expected = torch.where(masked, expected / t, 0.0)
    loss = WeightedCrossEntropy(unmasked=0.0)(denoiser, canvas)
    torch.testing.assert_close(loss, expected, **TIGHT)


PACKED = [
    Block(LENGTH, 4, 3),
    Slide(LENGTH, 4, 4),
    Wave(LENGTH, 4, 3),
    PublishedSlide(LENGTH, 5, 3),
    PublishedSlide(LENGTH, 4, 2),
    PublishedWave(LENGTH, 4, 3),
    autoregressive(LENGTH),
    flat(LENGTH, 3),
]


@pytest.mark.parametrize("shifted", [False, True], ids=["aligned", "shifted"])
@pytest.mark.parametrize("views", [("block_causal", "full"), ("causal", "full"), ("block_causal", "causal")])
@pytest.mark.parametrize("hyperschedule", PACKED, ids=repr)
def test_two_stream_outputs_equal_one_pass_per_window(hyperschedule, views, shifted, x_0, numbers):
    """MATH, proof 6: every noisy position gets the output that generation's canvas at its own step would give it."""
    process = GammaHybrid(WORDS, 0.4)
    denoiser = tiny_denoiser(process, Shifted(Mean()) if shifted else Mean())
    corruption = Corruption(process, Regime(hyperschedule, context=views[0], active=views[1]))
    times = uniform(numbers, BATCH, corruption.num_times)
    canvas = corruption(x_0, times, uniform(numbers, BATCH, LENGTH))
    prediction = canvas.predict(denoiser)
    packed = prediction.log_clean(prediction.everywhere()).view(BATCH, LENGTH, -1)
    steps = canvas.window
    compared = torch.zeros(LENGTH, dtype=torch.long)
    for b in range(BATCH):
        for n in set(steps[b].tolist()) - {ABSENT}:
            here = steps[b] == n
            assert torch.equal(here, hyperschedule.regions(n).active)
            settled = hyperschedule.regions(n).settled
            tokens = torch.where(settled, x_0[b], canvas.x_t[b])[None]
            noise = torch.where(settled, 0.0, canvas.t[b])[None]
            alone = denoiser.predict(
                tokens, noise, ForwardContext(attention=generation_mask(hyperschedule, n, *views))
            )
            speaks = here & (torch.arange(LENGTH) >= denoiser.lookback)
            torch.testing.assert_close(packed[b, speaks], alone.log_clean(speaks.nonzero()[:, 0]), **TIGHT)
            compared += speaks
    assert (compared[denoiser.lookback :] > (0 if ABSENT in steps else BATCH - 1)).all()


@pytest.mark.parametrize("x_t", range(4), ids=["kept", "other word", "other word too", "mask"])
def test_published_score_entropy_mixes_absorbing_and_uniform_ratios(x_t):
    """`sum_y R(y -> x_t) [s - r log s + r log r - r]`: the hybrid's R; at masks absorbing r, at words uniform r."""
    words, x_0, u = 3, torch.zeros(1, 1, dtype=torch.long), torch.tensor(0.4, dtype=torch.float64)
    hybrid = GammaHybrid(words, 0.3)
    scores = torch.tensor([0.3, 1.7, 0.6, 2.1], dtype=torch.float64)
    law = [1 - u, 0 * u, 0 * u, u] if x_t == words else [1 - 2 * u / 3, u / 3, u / 3, 0 * u]
    rates = generator_matrix(hybrid, hybrid.rates(u))
    expected = 0.0
    for y in set(range(words + 1)) - {x_t}:
        s, r = scores[y], law[y] / law[x_t]
        expected += rates[x_t, y] * (s - r * s.log() + torch.xlogy(r, r) - r)
    x, noise, one = torch.tensor([[x_t]]), u.expand(1, 1), torch.ones(1, 1, dtype=torch.float64)
    canvas = Canvas(x_0, x, t=noise, s=noise, measure=one, steps=one)
    denoiser = FixedAnswer(hybrid, LogScore(scale_by_sigma=False), scores.log())
    found = ScoreEntropy(ratios="published_code")(denoiser, canvas)
    torch.testing.assert_close(found.squeeze(), expected, **TIGHT)


def test_shifted_network_rejects_right_to_left_two_stream(x_0, numbers):
    """From right to left the previous clean token has attended to the target, so two streams would leak it."""
    levels = torch.tensor([[2] * LENGTH] + [[2] * (LENGTH - n) + [0] * n for n in range(1, LENGTH + 1)])
    corruption = Corruption(Absorbing(WORDS), Regime(Table(levels, 2)), num_given=1)
    canvas = corruption(x_0, uniform(numbers, BATCH, corruption.num_times), uniform(numbers, BATCH, LENGTH))
    canvas.predict(tiny_denoiser(Absorbing(WORDS)))
    with pytest.raises(ValueError, match="left to right"):
        canvas.predict(tiny_denoiser(Absorbing(WORDS), Shifted(Mean())))


def generation_mask(hyperschedule, n, context="block_causal", company="full"):
    """Visibility at step `n` from the levels: settled positions see earlier settled ones, active ones all but noise."""
    levels, later, settles = hyperschedule.levels(n), hyperschedule.levels(n + 1), hyperschedule.settles
    settled, place = levels == 0, torch.arange(LENGTH)
    active = ~settled & ~((levels == hyperschedule.num_levels) & (later == levels))
    earlier = (place[None, :] <= place[:, None]) | (context != "causal")
    order = (settles[None, :] < settles[:, None]) | ((settles[None, :] == settles[:, None]) & earlier)
    past = settled[:, None] & settled[None, :] & (order | (context == "full"))
    together = active[None, :] & ((place[None, :] <= place[:, None]) | (company == "full"))
    return (past | (active[:, None] & (settled[None, :] | together)))[None]


@pytest.mark.parametrize("company", ["full", "causal"])
@pytest.mark.parametrize("context", ["full", "causal", "block_causal"])
def test_one_canvas_attention_equals_generation_attention(context, company, x_0, numbers):
    hyperschedule = Slide(LENGTH, 4, 4)
    corruption = Corruption(
        Absorbing(WORDS), Regime(hyperschedule, context=context, active=company), two_stream=False
    )
    times = uniform(numbers, BATCH, 1)
    canvas = corruption(x_0, times, uniform(numbers, BATCH, LENGTH))
    for row, time in zip(canvas.attention, times[:, 0], strict=True):
        n = int(time * hyperschedule.num_steps)
        assert torch.equal(row, generation_mask(hyperschedule, n, context, company)[0])


def test_two_stream_with_full_context_is_refused_unless_flat(x_0):
    """With a full context the clean stream would leak the target, so two streams are refused unless flat."""
    Corruption(Absorbing(WORDS), Regime(flat(LENGTH, 3), context="full"))
    for hyperschedule in PACKED[:-1]:
        with pytest.raises(ValueError, match="reveal the tokens to predict"):
            Corruption(Absorbing(WORDS), Regime(hyperschedule, context="full"))


def test_first_token_of_shifted_network_has_no_loss(x_0, numbers):
    """No output predicts the first token, so it has loss zero."""
    for objective, process in [
        (WeightedCrossEntropy(), EpsilonHybrid(WORDS, 0.1)),
        (ScoreEntropy(), GammaHybrid(WORDS, 0.1)),
        (NELBO(), GammaHybrid(WORDS, 0.1)),
    ]:
        denoiser = tiny_denoiser(process, Shifted(Mean()))
        for two_stream in (False, True):
            corruption = Corruption(process, Regime(autoregressive(LENGTH)), two_stream=two_stream)
            times = torch.full((BATCH, corruption.num_times), 0.01, dtype=torch.float64)
            loss = objective(denoiser, corruption(x_0, times, uniform(numbers, BATCH, LENGTH)))
            assert (loss[:, 0] == 0).all()
            assert two_stream == bool((loss[:, 1:] != 0).any())


@pytest.mark.parametrize("two_stream", [False, True], ids=["one canvas", "two streams"])
def test_documents_in_one_window_do_not_affect_each_other(two_stream, numbers):
    """The predictions for a document do not depend on other documents in its window."""
    end, cut = 0, LENGTH // 2
    x_0 = torch.randint(1, WORDS, (2, LENGTH), generator=numbers)
    x_0[:, cut - 1] = end
    x_0[1, cut:] = x_0[0, cut:]
    process = Absorbing(WORDS)
    times, draw = uniform(numbers, 1, LENGTH // 2), uniform(numbers, 1, LENGTH)
    denoiser = tiny_denoiser(process)
    answers = []
    for document_end in (None, end):
        corruption = Corruption(
            process, Regime(Block(LENGTH, 2, 3)), two_stream=two_stream, document_end=document_end
        )
        late = torch.full_like(times, 0.99) if not two_stream else times
        canvas = corruption(x_0, late[:, : corruption.num_times].repeat(2, 1), draw.repeat(2, 1))
        prediction = canvas.predict(denoiser)
        answers.append(prediction.log_clean(prediction.everywhere()).view(2, LENGTH, -1)[:, cut:])
    (mixed, mixed_too), (apart, apart_too) = answers
    assert not torch.allclose(mixed[..., :WORDS], mixed_too[..., :WORDS])
    torch.testing.assert_close(apart, apart_too, **TIGHT)
