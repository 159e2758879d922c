"""Speculative sampling has the distribution of autoregressive sampling, whatever the drafts are, with fewer calls."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any, Literal, final, get_args

import pytest
import torch
from torch import Tensor

from hdlm.attention import Active
from hdlm.denoiser import AbstractDenoiser, Denoiser, ForwardContext, Guided, Prediction
from hdlm.hyperschedule import autoregressive, flat
from hdlm.network import Decoder, DecoderConfig
from hdlm.parameterization import Mean, Shifted
from hdlm.process import Absorbing, EpsilonHybrid, Uniform
from hdlm.regime import Regime
from hdlm.sampling import (
    Ancestral,
    ApproximateCache,
    Execution,
    Frame,
    MinP,
    Move,
    Prompt,
    RepetitionPenalty,
    Speculative,
    Temperature,
    TopK,
    Trace,
    Transform,
    sample,
)
from hdlm.verification import FAILURE_RATE, chi_square
from hdlm.verification.enumeration import states

WORDS, LENGTH = 3, 5
REGIME = Regime(autoregressive(LENGTH), context="causal")
PROMPT = Prompt.prefix([1], LENGTH)
TRANSFORMS: dict[str, tuple[Transform, ...]] = {
    "none": (),
    "warm": (Temperature(1.7),),
    "cut": (Temperature(0.6), TopK(2)),
    "penalty": (RepetitionPenalty(1.5), MinP(0.05)),
}


@final
@dataclass(frozen=True)
class Drafter(AbstractDenoiser):
    """A table of next-word distributions, and drafts of a chosen quality at the masks.

    Attributes:
        process: Its process.
        quality: Whether drafts are the distributions of the world given all words before the masks, are never the
            likeliest words, or are equal for all words.
    """

    process: Absorbing
    quality: Literal["good", "bad", "uniform"]

    @property
    def lookback(self) -> int:
        return 1

    @property
    def noise_dependence(self) -> Literal["none"]:
        return "none"

    @functools.lru_cache(None)  # noqa: B019
    def next_word(self, words: tuple[int, ...]) -> Tensor:
        """The distribution of the word after some words; it depends on all of them."""
        seed = sum((word + 2) * 7**place for place, word in enumerate(words))
        numbers = torch.rand(WORDS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        return (3 * numbers).softmax(-1)

    @functools.lru_cache(None)  # noqa: B019
    def law(self, words: tuple[int, ...], num: int) -> Tensor:
        """The distribution of the word `num` places after some words."""
        here = self.next_word(words)
        if num == 1:
            return here
        later = [self.law((*words, word), num - 1) for word in range(WORDS)]
        return sum((p * law for p, law in zip(here, later, strict=True)), torch.zeros(WORDS))

    def predict(self, tokens: Tensor, noise: Tensor, context: ForwardContext) -> Prediction:
        rows = []
        for row in tokens.tolist():
            known = tuple(row[: row.index(WORDS)] if WORDS in row else row)
            for place in range(len(row)):
                law = self.law(known[: place + 1], 1 + max(0, place + 1 - len(known)))
                if place >= len(known) and self.quality != "good":
                    law = torch.ones(WORDS) if self.quality == "uniform" else (law < law.max()).double()
                rows.append(torch.cat([law.log(), torch.zeros(1)]))
        raw = torch.stack(rows)

        def before(at: Tensor) -> Tensor:
            return raw[at - (at % tokens.shape[1] > 0).long()]

        return Prediction(self.process, Shifted(Mean()), tokens, noise, before)


def tiny_decoder(seed: int = 0, scale: float = 0.6) -> Denoiser:
    """A float64 decoder network with random weights, shifted."""
    network = Decoder(DecoderConfig(WORDS + 1, 16, 2, 4, 2, 4, 32, max_length=64)).double().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.copy_(scale * noise + (1.0 if parameter.ndim == 1 else 0.0))
    return Denoiser(network, Absorbing(WORDS), Shifted(Mean()))


@torch.no_grad()
def law_of_autoregression(denoiser: AbstractDenoiser, transforms: tuple[Transform, ...]) -> Tensor:
    """The probability of every text after the prompt, by the chain rule."""
    texts = states(WORDS + 1, LENGTH - 1)
    texts = torch.nn.functional.pad(texts[(texts < WORDS).all(1)], (1, 0), value=1)
    total = torch.zeros(len(texts), dtype=torch.float64)
    noise = torch.zeros(texts.shape, dtype=torch.float64)
    causal = torch.ones(LENGTH, LENGTH).tril().bool()[None]
    for at in range(1, LENGTH):
        tokens = texts.clone()
        tokens[:, at:] = WORDS
        window = ForwardContext(torch.arange(LENGTH)[None], causal)
        log_p = denoiser.predict(tokens, noise, window).log_clean(torch.arange(len(texts)) * LENGTH + at)
        for transform in transforms:
            log_p = transform(log_p, tokens, torch.arange(len(texts)))
        total += log_p.log_softmax(-1).gather(1, texts[:, at : at + 1])[:, 0]
    return total.exp()


def counts_of(tokens: Tensor) -> Tensor:
    """How often each text was written."""
    index = (tokens[:, 1:] * WORDS ** torch.arange(LENGTH - 2, -1, -1)).sum(1)
    return torch.bincount(index, minlength=WORDS ** (LENGTH - 1))


DRAFTERS: dict[str, AbstractDenoiser] = {
    "good": Drafter(Absorbing(WORDS), "good"),
    "bad": Drafter(Absorbing(WORDS), "bad"),
    "uniform": Drafter(Absorbing(WORDS), "uniform"),
    "network": tiny_decoder(),
    "guided": Guided(tiny_decoder(1), PROMPT.fixed, 0.7),
}


def check_joint_law(drafter: str, chain: str, num: int) -> None:
    denoiser, transforms = DRAFTERS[drafter], TRANSFORMS[chain]
    wanted = law_of_autoregression(denoiser, transforms)
    assert float(wanted.sum()) == pytest.approx(1, abs=1e-6)
    active: Active = "causal" if chain == "warm" else "full"
    written = sample(
        denoiser,
        replace(REGIME, active=active),
        Speculative(3),
        num_sequences=num,
        prompt=PROMPT,
        transforms=transforms,
        seed=7,
    )
    assert chi_square(counts_of(written.tokens), wanted) > FAILURE_RATE


@pytest.mark.parametrize(
    ("drafter", "chain"),
    [("good", "none"), ("bad", "none"), ("bad", "penalty"), ("network", "cut")],
)
def test_joint_law_is_that_of_autoregression(drafter: str, chain: str) -> None:
    check_joint_law(drafter, chain, 200)


@pytest.mark.slow
@pytest.mark.parametrize("drafter", DRAFTERS)
@pytest.mark.parametrize("chain", TRANSFORMS)
def test_joint_law_of_many_texts_is_that_of_autoregression(drafter: str, chain: str) -> None:
    check_joint_law(drafter, chain, 800)


LONG = 24
LONG_REGIME = Regime(autoregressive(LONG), context="causal")
FIRST = Prompt.prefix([1, 0], LONG)


@pytest.mark.parametrize("width", [1, 3, 40])
@pytest.mark.parametrize("seed", [0, 1])
def test_greedy_text_is_that_of_autoregression(width: int, seed: int) -> None:
    denoiser = tiny_decoder(seed)
    for active in get_args(Active):
        regime = replace(LONG_REGIME, active=active)
        greedy: dict[str, Any] = {"prompt": FIRST, "transforms": (Temperature(0.0),)}
        wanted = sample(denoiser, regime, Ancestral(), **greedy)
        written = sample(denoiser, regime, Speculative(width), **greedy)
        assert written.tokens.tolist() == wanted.tokens.tolist()
        assert written.num_evaluations <= wanted.num_evaluations
        assert width > 1 or written.num_evaluations == LONG - 2


def test_context_between_blocks_of_one_word_is_causal() -> None:
    denoiser = tiny_decoder()
    causal, blocks = (
        sample(denoiser, regime, Speculative(4), prompt=FIRST, num_sequences=3)
        for regime in (LONG_REGIME, replace(LONG_REGIME, context="block_causal"))
    )
    assert causal.tokens.tolist() == blocks.tokens.tolist()


def test_good_drafts_save_calls_and_bad_ones_cost_none() -> None:
    calls = {
        name: sample(DRAFTERS[name], REGIME, Speculative(4), prompt=PROMPT, num_sequences=50).evaluations
        for name in ("good", "bad")
    }
    assert int(calls["bad"].max()) <= LENGTH - 1
    assert float(calls["good"].double().mean()) < float(calls["bad"].double().mean())


@pytest.mark.parametrize(
    "execution",
    [
        Execution(batch_size=1),
        Execution(batch_size=2),
        Execution(use_cache=False),
        Execution(together=True, batch_size=3),
    ],
    ids=str,
)
def test_texts_depend_neither_on_the_batch_nor_on_the_cache(execution: Execution) -> None:
    how: dict[str, Any] = {"num_sequences": 5, "prompt": FIRST, "seed": 3}
    once, again = (
        sample(tiny_decoder(), LONG_REGIME, Speculative(4), execution=one, **how)
        for one in (Execution(), execution)
    )
    assert once.tokens.tolist() == again.tokens.tolist()
    assert once.evaluations.tolist() == again.evaluations.tolist()
    last = sample(
        tiny_decoder(),
        LONG_REGIME,
        Speculative(4),
        prompt=FIRST,
        seed=3,
        execution=Execution(first_sequence=4),
    )
    assert last.tokens.tolist() == once.tokens[4:].tolist()


def test_ragged_prompts_give_the_texts_of_each_prompt_alone() -> None:
    prompts = [[1], [1, 2, 0], [0, 1]]
    together = sample(
        tiny_decoder(),
        Regime(autoregressive(11), context="causal"),
        Speculative(4),
        num_sequences=3,
        prompt=Prompt.ragged(prompts, 8),
        seed=5,
    )
    for index, given in enumerate(prompts):
        length = len(given) + 8
        alone = sample(
            tiny_decoder(),
            Regime(autoregressive(length), context="causal"),
            Speculative(4),
            seed=5,
            prompt=Prompt.prefix(given, length),
            execution=Execution(first_sequence=index),
        )
        assert together.tokens[index, :length].tolist() == alone.tokens[0].tolist()
        assert int(together.lengths[index]) == length


def test_given_words_are_kept_and_condition_later_words_only() -> None:
    fixed = torch.zeros(1, LENGTH, dtype=torch.bool)
    fixed[0, [0, 2]] = True
    prompt = Prompt(torch.full((1, LENGTH), 1), fixed)
    written = sample(DRAFTERS["bad"], REGIME, Speculative(3), num_sequences=400, prompt=prompt, seed=2).tokens
    assert bool((written[:, [0, 2]] == 1).all())
    law, table = torch.zeros(WORDS, WORDS, WORDS), DRAFTERS["bad"]
    assert isinstance(table, Drafter)
    for first in range(WORDS):
        for third in range(WORDS):
            before = table.next_word((1,))[first] * table.next_word((1, first, 1))[third]
            law[first, third] = before * table.next_word((1, first, 1, third))
    index = (written[:, [1, 3, 4]] * torch.tensor([WORDS**2, WORDS, 1])).sum(1)
    assert chi_square(torch.bincount(index, minlength=WORDS**3), law.flatten()) > FAILURE_RATE


def test_a_stop_keeps_the_tokens_before_it() -> None:
    def stop(_: int, tokens: Tensor) -> int | None:
        ends = (tokens[2:] == 2).nonzero()
        return int(ends[0]) + 3 if len(ends) else None

    how: dict[str, Any] = {"num_sequences": 6, "prompt": FIRST, "seed": 1}
    whole = sample(tiny_decoder(), LONG_REGIME, Speculative(4), **how)
    ended = sample(tiny_decoder(), LONG_REGIME, Speculative(4), stop=stop, **how)
    assert int(ended.lengths.min()) < LONG
    for tokens, cut, length in zip(whole.tokens, ended.tokens, ended.lengths.tolist(), strict=True):
        assert length == (stop(0, tokens) or LONG)
        assert torch.equal(cut[:length], tokens[:length])


def test_frames_show_every_word_once_with_its_causal_probability() -> None:
    denoiser, trace, frames = tiny_decoder(), Trace(WORDS, transformed=True), list[Frame]()

    def watch(frame: Frame) -> None:
        trace(frame)
        frames.append(frame)

    how: dict[str, Any] = {"num_sequences": 2, "prompt": FIRST, "transforms": (RepetitionPenalty(1.3),)}
    written = sample(denoiser, LONG_REGIME, Speculative(4), watch=watch, **how)
    for sequence in range(2):
        changes = [change for change in trace.changes if change.sequence == sequence]
        assert [change.position for change in changes] == list(range(2, LONG))
        assert [change.new for change in changes] == written.tokens[sequence, 2:].tolist()
        assert all(change.step >= change.position for change in changes)
    by_step = Trace(WORDS, transformed=True)
    sample(denoiser, LONG_REGIME, _Written(written.tokens), watch=by_step, **how)
    ordered = [sorted(one.changes, key=lambda c: (c.sequence, c.position)) for one in (trace, by_step)]
    for ours, theirs in zip(*ordered, strict=True):
        assert ours.p_new == pytest.approx(theirs.p_new, abs=1e-9)
    shares = [frame.share for frame in frames]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert max(frame.step for frame in frames) == LONG - 1


@final
@dataclass(frozen=True)
class _Written:
    """A step that writes given tokens, and reads their probabilities."""

    tokens: Tensor

    def __call__(self, x: Tensor, move: Move) -> Tensor:
        move.reading.log_clean(move.moving)
        return torch.where(move.moving, self.tokens[move.sequence], x)


@pytest.mark.parametrize(
    ("denoiser", "regime", "how", "message"),
    [
        (tiny_decoder(), Regime(flat(LENGTH, 2), context="causal"), {}, "an autoregressive hyperschedule; got Block"),
        (tiny_decoder(), Regime(autoregressive(LENGTH), context="full"), {}, "context='full' settled positions"),
        (Denoiser(tiny_decoder().backbone, Absorbing(WORDS), Mean()), REGIME, {}, "this network is aligned"),
        (Denoiser(tiny_decoder().backbone, Uniform(WORDS), Shifted(Mean())), REGIME, {}, "only in place of masks"),
        (tiny_decoder(), REGIME, {"prompt": None}, "begins with the begin-of-sequence token"),
        (tiny_decoder(), REGIME, {"prompt": replace(PROMPT, is_draft=True)}, "corrects no draft"),
        (
            tiny_decoder(),
            REGIME,
            {"execution": Execution(approximate=ApproximateCache(active=True))},
            "has an exact cache",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_read_causally_is_refused(
    denoiser: AbstractDenoiser, regime: Regime, how: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        sample(denoiser, regime, Speculative(2), **{"prompt": PROMPT, **how})


def test_width_is_at_least_one() -> None:
    with pytest.raises(ValueError, match="at least 1; got 0"):
        Speculative(0)


def test_a_hybrid_process_may_speculate() -> None:
    denoiser = Denoiser(tiny_decoder().backbone, EpsilonHybrid(WORDS, 0.2), Shifted(Mean()))
    assert sample(denoiser, REGIME, Speculative(2), prompt=PROMPT).tokens.max() < WORDS
