"""Denoisers: selected positions, shifted outputs, guidance, and the exact denoiser under an attention mask."""

from __future__ import annotations

import pytest
import torch

from hdlm.attention import generation_attention
from hdlm.denoiser import ForwardContext, Guided
from hdlm.hyperschedule import Block
from hdlm.noise_schedule import total_noise
from hdlm.parameterization import LogScore, Mean, Shifted
from hdlm.process import Absorbing, EpsilonHybrid, GammaHybrid, Uniform
from hdlm.verification import ExactDenoiser, agreeing_world, random_world
from tests.tiny import tiny_denoiser

WORDS, LENGTH, BATCH = 5, 6, 3
EXACT = {"atol": 1e-12, "rtol": 1e-12}


@pytest.fixture
def canvas():
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(WORDS + 1, (BATCH, LENGTH), generator=generator)
    return tokens, 0.1 + 0.8 * torch.rand(BATCH, LENGTH, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("reading", [Mean(), Shifted(Mean()), LogScore(), Shifted(LogScore())], ids=repr)
def test_prediction_of_chosen_positions_equals_that_of_all(reading, canvas):
    conditioned = "LogScore" in repr(reading)
    denoiser = tiny_denoiser(GammaHybrid(WORDS, 0.2), reading, conditioned=conditioned)
    prediction = denoiser.predict(*canvas, ForwardContext())
    chosen = torch.tensor([17, 0, 5, 6, 6, 11])
    for read in (prediction.log_clean, prediction.log_score):
        torch.testing.assert_close(read(chosen), read(prediction.everywhere())[chosen], **EXACT)
    torch.testing.assert_close(
        denoiser(*canvas), prediction.log_clean(prediction.everywhere()).view(BATCH, LENGTH, -1), **EXACT
    )


def test_output_projection_runs_only_for_requested_positions(canvas):
    denoiser = tiny_denoiser(Absorbing(WORDS))
    projected = []
    denoiser.backbone.output_layer.linear.register_forward_hook(
        lambda _, inputs, __: projected.append(len(inputs[0]))
    )
    prediction = denoiser.predict(*canvas, ForwardContext())
    assert projected == []
    prediction.log_clean(torch.tensor([3, 14]))
    assert projected == [2]


def test_shifted_denoiser_reads_output_of_previous_position(canvas):
    """Position `i` reads output `i - 1`. The first position of a row does not read the previous row."""
    process = Absorbing(WORDS)
    aligned, shifted = tiny_denoiser(process), tiny_denoiser(process, Shifted(Mean()))
    one, other = aligned(*canvas), shifted(*canvas)
    torch.testing.assert_close(other[:, 1:], one[:, :-1], **EXACT)
    torch.testing.assert_close(other[:, 0], one[:, 0], **EXACT)
    assert (aligned.lookback, shifted.lookback) == (0, 1)


def test_denoiser_passes_sigma_and_blend_of_log_score_to_network(canvas):
    tokens, noise = canvas
    denoiser = tiny_denoiser(
        GammaHybrid(WORDS, 0.2), LogScore(scale_by_sigma=False, blend_rate=0.2), conditioned=True
    )
    sigma = total_noise(noise)
    raw = denoiser.backbone(tokens, condition=sigma, blend=1 - torch.exp(-0.2 * sigma))
    prediction = denoiser.predict(tokens, noise, ForwardContext())
    torch.testing.assert_close(prediction.raw(prediction.everywhere()), raw.flatten(0, 1), **EXACT)


def test_guidance_of_scale_zero_equals_plain_denoiser(canvas):
    denoiser = tiny_denoiser(Absorbing(WORDS))
    prompt = torch.tensor([[True, True, False, False, False, False]])
    guided = Guided(denoiser, prompt, 0.0)
    ours, plain = (d.predict(*canvas, ForwardContext()) for d in (guided, denoiser))
    torch.testing.assert_close(
        ours.log_clean(ours.everywhere()), plain.log_clean(plain.everywhere()), **EXACT
    )


def test_guidance_extrapolates_from_the_masked_prompt(canvas):
    tokens, noise = canvas
    denoiser = tiny_denoiser(Absorbing(WORDS))
    prompt = torch.tensor([[True, True, False, False, False, False]])
    guided = Guided(denoiser, prompt, 1.5).predict(tokens, noise, ForwardContext())
    blank = torch.where(prompt, denoiser.process.mask_id, tokens)
    expected = 2.5 * denoiser.backbone(tokens) - 1.5 * denoiser.backbone(blank)
    torch.testing.assert_close(guided.raw(guided.everywhere()), expected.flatten(0, 1), **EXACT)
    with pytest.raises(ValueError, match="-1"):
        Guided(denoiser, prompt, -1.0)
    with pytest.raises(ValueError, match="has no mask"):
        Guided(ExactDenoiser(random_world(3, 2), Uniform(3)), prompt, 1.0)


def test_guidance_of_exact_denoiser_gives_power_of_posterior_ratio():
    """For an enumerated distribution the result is `p(x | prompt)^(1 + w) / p(x)^w`, normalised."""
    world, process = agreeing_world(3, 2), Absorbing(3)
    guided = Guided(ExactDenoiser(world, process), torch.tensor([[True, False]]), 2.0)
    tokens, noise = torch.tensor([[1, process.mask_id]]), torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    found = guided.predict(tokens, noise, ForwardContext()).log_clean(torch.tensor([1]))[0, :3].exp()
    given, alone = world.joint[1] / world.joint[1].sum(), world.joint.sum(0)
    expected = given**3 / alone**2
    torch.testing.assert_close(found, expected / expected.sum(), **EXACT)


def enumerated_posterior(world, process, tokens, noise, query, seen):
    """`p(x_0 of the query | visible tokens)`, computed by a sum over all sequences."""
    p = torch.zeros(world.num_words, dtype=torch.float64)
    for sequence, prior in zip(world.sequences.tolist(), world.law.tolist(), strict=True):
        chance = prior
        for place in seen:
            w = process.weights(torch.tensor(float(noise[place]), dtype=torch.float64))
            if tokens[place] == process.mask_id:
                chance *= float(w.mask)
            else:
                chance *= float(w.uniform) / world.num_words + float(w.clean) * (
                    tokens[place] == sequence[place]
                )
        p[sequence[query]] += chance
    return p / p.sum()


@pytest.mark.parametrize("reading", ["mean", "score"])
@pytest.mark.parametrize("process", [EpsilonHybrid(3, 0.2), GammaHybrid(3, 0.4)], ids=repr)
def test_exact_denoiser_equals_enumerated_posterior(process, reading):
    world = random_world(3, 3, seed=2)
    generator = torch.Generator().manual_seed(0)
    denoiser = ExactDenoiser(world, process, reading)
    tokens = torch.randint(4, (6, 3), generator=generator)
    noise = 0.1 + 0.8 * torch.rand(6, 3, generator=generator, dtype=torch.float64)
    mask = torch.rand(6, 3, 3, generator=generator) < 0.5
    prediction = denoiser.predict(tokens, noise, ForwardContext(attention=mask))
    found = prediction.log_clean(prediction.everywhere()).exp().view(6, 3, 4)
    assert (found[..., 3] == 0).all()
    for b in range(6):
        for query in range(3):
            seen = [key for key in range(3) if mask[b, query, key] or key == query]
            expected = enumerated_posterior(world, process, tokens[b].tolist(), noise[b], query, seen)
            torch.testing.assert_close(found[b, query, :3], expected, atol=1e-9, rtol=1e-9)


def test_exact_denoiser_score_equals_enumerated_probability_ratio():
    """`p_u(canvas with y at i) / p_u(canvas)`, by summing over all sequences."""
    world, process, u = random_world(2, 2, seed=4), GammaHybrid(2, 0.4), 0.35
    denoiser = ExactDenoiser(world, process, "score")

    def chance(tokens):
        total = 0.0
        for sequence, prior in zip(world.sequences.tolist(), world.law.tolist(), strict=True):
            for token, clean in zip(tokens, sequence, strict=True):
                w = process.weights(torch.tensor(u, dtype=torch.float64))
                word = float(w.uniform) / 2 + float(w.clean) * (token == clean)
                prior *= float(w.mask) if token == 2 else word
            total += prior
        return total

    tokens = torch.tensor([[0, 2]])
    prediction = denoiser.predict(tokens, torch.full((1, 2), u, dtype=torch.float64), ForwardContext())
    scores = prediction.log_score(prediction.everywhere()).exp()
    for place in range(2):
        for y in range(3):
            changed = tokens[0].tolist()
            changed[place] = y
            expected = chance(changed) / chance(tokens[0].tolist())
            assert float(scores[place, y]) == pytest.approx(expected, rel=1e-10)


def test_exact_denoiser_cache_keeps_predictions():
    """A cache of settled positions changes no prediction, in any order and window."""
    world, process, schedule = random_world(3, 3, seed=2), GammaHybrid(3, 0.4), Block(3, 1, 2)
    denoiser = ExactDenoiser(world, process)
    tokens = torch.tensor([[0, 2, 3], [1, 1, 0]])
    noise = torch.tensor([[0.0, 0.0, 0.5]] * 2, dtype=torch.float64)
    seen = generation_attention(schedule, 5)
    whole = denoiser.predict(tokens, noise, ForwardContext(attention=seen.dense()[None]))
    cache = denoiser.new_cache()
    first = torch.tensor([0, 1])
    denoiser.predict(
        tokens[:, first],
        noise[:, first],
        ForwardContext(
            first[None], seen.select(first, first).dense()[None], cache, store=torch.tensor([1, 0])
        ),
    )
    assert len(cache) == 2
    last, keys = torch.tensor([2]), torch.tensor([1, 0, 2])
    asked = ForwardContext(last[None], seen.select(last, keys).dense()[None], cache)
    windowed = denoiser.predict(tokens[:, last], noise[:, last], asked)
    at = torch.tensor([2, 5])
    torch.testing.assert_close(windowed.log_clean(torch.tensor([0, 1])), whole.log_clean(at), **EXACT)
    cache.select(torch.tensor([1]))
    alone = denoiser.predict(tokens[1:, last], noise[1:, last], asked)
    torch.testing.assert_close(alone.log_clean(torch.tensor([0])), whole.log_clean(at[1:]), **EXACT)


def test_exact_denoiser_ignores_tokens_of_probability_zero():
    """A word at noise 1 or a mask at noise 0 has probability zero, so the denoiser ignores it."""
    world, process = agreeing_world(3, 2), Absorbing(3)
    denoiser = ExactDenoiser(world, process)
    tokens, noise = (
        torch.tensor([[1, 3], [3, 3]]),
        torch.tensor([[1.0, 1.0], [0.0, 1.0]], dtype=torch.float64),
    )
    p = denoiser.predict(tokens, noise, ForwardContext())
    found = p.log_clean(p.everywhere()).exp()[:, :3].view(2, 2, 3)
    torch.testing.assert_close(found[:, 1], world.joint.sum(0).expand(2, -1), **EXACT)
    torch.testing.assert_close(found[:, 0], world.joint.sum(1).expand(2, -1), **EXACT)


def test_exact_denoiser_rejects_wrong_vocabulary_and_attention_shape():
    world = random_world(3, 2)
    with pytest.raises(ValueError, match="4 words and the world 3"):
        ExactDenoiser(world, Absorbing(4))
    tokens, noise = torch.tensor([[0, 3]]), torch.tensor([[0.5, 0.5]], dtype=torch.float64)
    with pytest.raises(ValueError, match="2 queries and 2 keys"):
        ExactDenoiser(world, Absorbing(3)).predict(
            tokens, noise, ForwardContext(attention=torch.ones(1, 2, 3).bool())
        )
