"""The likelihood of WikiText-2 under the shipped model, compared with independent plain loops."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hdlm.checkpoint import Checkpoint, load_checkpoint
from hdlm.denoiser import Denoiser
from hdlm.evaluation import LikelihoodResult, estimate_likelihood
from hdlm.evaluation.likelihood.windows import WindowedText
from hdlm.evaluation.text import Text, find_text, tokenize_documents
from hdlm.hyperschedule import AbstractHyperschedule, Block, autoregressive, flat
from hdlm.package_data import pretrained
from hdlm.process import Absorbing
from hdlm.regime import Regime
from hdlm.verification.statistics import FAILURE_RATE, mean_p_value

LENGTH, WINDOWS = 64, 6


@pytest.fixture(scope="module")
def model() -> Checkpoint:
    return load_checkpoint(pretrained() / "kjv-epsilon-4m")


@pytest.fixture(scope="module")
def text(model: Checkpoint, full_set: Path) -> Text:
    """Six windows of 64 tokens and a short one."""
    source = find_text("wikitext2", folder=full_set / "data")
    assert source.detokenizer == "wikitext"
    return tokenize_documents(model.tokenizer, source.corpus.documents(), LENGTH * WINDOWS + 20)


def p_value_of_equal_means(a: LikelihoodResult, b: LikelihoodResult) -> float:
    assert a.standard_error is not None
    assert b.standard_error is not None
    return math.erfc(abs(a.nats - b.nats) / math.hypot(a.standard_error, b.standard_error) / math.sqrt(2))


@pytest.mark.parametrize(
    "plan", [flat(LENGTH, 8), pytest.param(Block(LENGTH, 16, 8), marks=pytest.mark.slow)], ids=repr
)
def test_likelihood_estimators_agree_on_wikitext(
    model: Checkpoint, text: Text, plan: AbstractHyperschedule
) -> None:
    """The count estimator also has a smaller error than random times."""
    found = {
        name: estimate_likelihood(
            model.denoiser, text.tokens, Regime(plan), estimator=name, replicates=16, batch_size=64
        )
        for name in ("count", "stratified", "random")
    }
    assert LENGTH * WINDOWS < found["count"].num_tokens <= LENGTH * WINDOWS + 20
    for one, other in itertools.combinations(found.values(), 2):
        assert p_value_of_equal_means(one, other) > FAILURE_RATE
    assert found["count"].standard_error < found["random"].standard_error
    assert 0.002 < found["count"].bits_per_token_error < 0.2


def test_random_estimators_have_mean_of_exact_likelihood(model: Checkpoint, text: Text) -> None:
    """Where the truth is known: one position at a time."""
    tokens, plan = text.tokens[: LENGTH + 20], Block(LENGTH, 1, 8)
    found = {
        name: estimate_likelihood(
            model.denoiser, tokens, Regime(plan), estimator=name, replicates=16, batch_size=32
        )
        for name in ("exact", "count", "stratified", "random")
    }
    truth = found["exact"].nats
    assert found["count"].nats == pytest.approx(truth, rel=1e-6)
    for name in ("stratified", "random"):
        assert mean_p_value(torch.tensor(found[name].estimates), truth) > FAILURE_RATE


def masked_diffusion_loss(model: Checkpoint, window: Tensor, draws: int) -> Tensor:
    """As MDLM estimates it (arXiv:2406.07524, equation 11), in so many words: draw t, mask, cross-entropy over t.

    The network is shifted, so it does not predict the first token: that is given, and counts `log N`.
    """
    network, words = model.network, model.vocabulary.num_words
    generator = torch.Generator().manual_seed(7)
    found = []
    for _ in range(draws):
        t = float(torch.rand((), generator=generator, dtype=torch.float64))
        masked = torch.rand(len(window), generator=generator) < t
        masked[0] = False
        x_t = torch.where(masked, words, window)
        with torch.no_grad():
            logits = network.head(network.features(x_t[None]))[0, :-1]
        logits = logits[:, :words].double()
        loss = F.cross_entropy(logits[masked[1:]], window[1:][masked[1:]], reduction="sum")
        found.append(float(loss) / t + math.log(words))
    return torch.tensor(found, dtype=torch.float64)


def test_absorbing_bound_equals_independent_mdlm_loop(model: Checkpoint, text: Text) -> None:
    """Epsilon = 0 is absorption: our bound and an independent loop estimate one number."""
    denoiser = Denoiser(model.network, Absorbing(model.vocabulary.num_words), model.denoiser.parameterization)
    window = text.tokens[:24]
    ours = estimate_likelihood(denoiser.eval(), window, Regime(flat(24, 8)), replicates=200, batch_size=64)
    theirs = masked_diffusion_loss(model, window, 300)
    error = math.hypot(ours.standard_error, float(theirs.std()) / math.sqrt(len(theirs)))
    assert error < 0.05 * ours.nats
    assert math.erfc(abs(ours.nats - float(theirs.mean())) / error / math.sqrt(2)) > FAILURE_RATE


@pytest.mark.parametrize("within_documents", [False, True])
def test_autoregressive_likelihood_equals_next_token_cross_entropy(
    model: Checkpoint, text: Text, *, within_documents: bool
) -> None:
    """A shifted network on the hyperschedule of autoregression is a causal language model: one plain pass says it."""
    words, tokens = model.vocabulary.num_words, text.tokens
    documents = (100, len(tokens) - 100) if within_documents else None
    nats = 0.0
    for document in tokens.split(list(documents or [len(tokens)])):
        for window in document.split(LENGTH):
            causal = torch.ones(len(window), len(window), dtype=torch.bool).tril()
            with torch.no_grad():
                logits = model.network(window[None], attention=causal[None])[0, :-1, :words]
            nats += math.log(words) + float(F.cross_entropy(logits.double(), window[1:], reduction="sum"))
    ours = estimate_likelihood(
        model.denoiser,
        WindowedText(tokens, autoregressive(LENGTH).length, documents=documents),
        Regime(autoregressive(LENGTH)),
    )
    assert ours.estimator == "exact"
    assert ours.standard_error == 0
    assert ours.nats == pytest.approx(nats, rel=1e-6)
