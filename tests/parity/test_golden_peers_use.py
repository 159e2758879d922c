"""A loaded peer model can sample with its own hyperschedule and be evaluated."""

from __future__ import annotations

import math

import pytest
import torch

from hdlm.evaluation import estimate_likelihood
from hdlm.hub import load
from hdlm.hyperschedule import flat
from hdlm.parameterization import LeaveOneOut
from hdlm.process import Absorbing
from hdlm.regime import Regime
from hdlm.sampling import Prompt, algorithm, sample

FOLDERS = {
    "mdlm": ("original", "first_hitting", "acs"),
    "sedd": ("analytic", "euler", "original"),
    "sedd_uniform": ("analytic", "euler"),
    "bd3lm": ("original", "first_hitting"),
    "gidd": ("exact", "gibbs"),
    "duo": ("exact", "gibbs"),
}
LENGTH = 16


@pytest.fixture(scope="module")
def models(shared):
    return {name: load(shared / "golden" / "peers" / name) for name in FOLDERS}


@pytest.mark.parametrize(
    ("name", "method"), [(name, method) for name, methods in FOLDERS.items() for method in methods]
)
def test_peer_model_samples_with_each_algorithm(models, name, method):
    checkpoint = models[name]
    process = checkpoint.denoiser.process
    trained = checkpoint.hyperschedules[0]
    plan = trained if trained.width < LENGTH else flat(LENGTH, 8)
    prompt = Prompt.prefix([3, 1, 4], LENGTH)
    written = [
        sample(
            checkpoint.denoiser,
            Regime(
                plan,
                noise_schedule=checkpoint.noise_schedule,
                context=checkpoint.context,
                active=checkpoint.active,
            ),
            algorithm(method, process),
            num_sequences=2,
            seed=seed,
            prompt=prompt,
        ).tokens
        for seed in (0, 0, 1)
    ]
    torch.testing.assert_close(written[0], written[1])
    assert not torch.equal(written[0], written[2])
    assert not torch.equal(written[0][0], written[0][1])
    assert written[0].shape == (2, LENGTH)
    assert int(written[0].max()) < process.num_words
    assert written[0][:, :3].tolist() == [[3, 1, 4]] * 2


@pytest.mark.parametrize("name", FOLDERS)
def test_peer_model_likelihood_is_measured(models, name):
    """Random weights do worse than a uniform guess; the two bounds of clean predictions under masks alone agree."""
    checkpoint = models[name]
    denoiser, words = checkpoint.denoiser, checkpoint.vocabulary.num_words
    tokens = torch.randint(words, (40,), generator=torch.Generator().manual_seed(0))
    absorbs = isinstance(denoiser.process, Absorbing)
    found = {
        bound: estimate_likelihood(
            denoiser,
            tokens,
            Regime(
                checkpoint.hyperschedules[0],
                noise_schedule=checkpoint.noise_schedule,
                context=checkpoint.context,
                active=checkpoint.active,
            ),
            bound=bound,
            replicates=16,
            batch_size=64,
        )
        for bound in (("absorbing", "hybrid") if absorbs else ("hybrid",))
    }
    assert all(math.log(words) < result.nats_per_token < math.inf for result in found.values())
    if absorbs and isinstance(denoiser.parameterization, LeaveOneOut):
        masks, whole = found["absorbing"], found["hybrid"]
        assert masks.standard_error is not None
        assert whole.standard_error is not None
        assert abs(masks.nats - whole.nats) < 4 * math.hypot(masks.standard_error, whole.standard_error)


def test_mdlm_acs_does_not_change_visible_words(models):
    """ACS redraws words from `p(x_0 | x_t)`; of a mask that absorbs, a visible word is its own origin."""
    checkpoint = models["mdlm"]
    tokens = [
        sample(
            checkpoint.denoiser,
            Regime(flat(LENGTH, 8), noise_schedule=checkpoint.noise_schedule),
            algorithm(method, checkpoint.denoiser.process, eta=0.9),
            num_sequences=2,
        ).tokens
        for method in ("original", "acs")
    ]
    torch.testing.assert_close(*tokens)
