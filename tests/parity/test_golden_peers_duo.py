"""Duo's weights, schedules, bound and steps, as its own code computed them (arXiv 2506.10892).

Not compared, and why:
- `logits__soft`, `logits__topk`: mixtures of words as input, which its curriculum trains with; ours takes words;
- `gaussian_*`, `usdm_*`, `gpt2_*`: the noise of that curriculum;
- `cosine_dalpha_t`, `cosine__dalpha`: they lack the factor `1 - eps` of the derivative of their own alpha. The loss is
  compared with the derivative that they used;
- `step_weights__psi_kappa0.5`: a sampler that is not offered here;
- `q_xt__*`: the recorded random numbers are not those that made the recorded words;
- `loss_sum`, `loss_mean`, `sample_t*`: averages, and how their times are drawn.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from hdlm.hub import inspect, load
from hdlm.noise_schedule import Cosine, LogLinear, total_noise
from hdlm.objective import ScoreEntropy, WeightedCrossEntropy
from hdlm.parameterization import LeaveOneOut, LogScore, Mean
from hdlm.process import Absorbing, Uniform
from hdlm.vocabulary import Vocabulary
from tests.peer import (
    CLOSE,
    Peer,
    canvas,
    log_clean,
    log_score,
    logits,
    minus_infinity,
    normalised,
    posterior,
    spread_over,
)
from tests.tiny import FixedAnswer

EXACT = ScoreEntropy(floor=1e-12)
ROWS = 59
COSINE = Cosine(1e-3)


@pytest.fixture(scope="module")
def peer(shared):
    return Peer(shared / "golden" / "peers" / "duo")


@pytest.fixture
def u(peer):
    """The noise fraction of each row."""
    return peer.noise_schedule.fraction(peer["t"].double())


def test_duo_checkpoint_loads_expected_pieces(peer):
    found = inspect(peer.folder)
    assert (found.card, found.blueprint.unknown) == ("Duo", ())
    assert peer.checkpoint.vocabulary == Vocabulary(ROWS)
    assert peer.network.config.vocab_size == ROWS
    assert (peer.process, peer.noise_schedule) == (Uniform(ROWS), LogLinear())
    assert peer.denoiser.parameterization == LeaveOneOut("sigma", shared=True)


def test_duo_logits_equal_peer_code(peer, u):
    ids = peer["input_ids"]
    one = -torch.expm1(-torch.ones(4, dtype=torch.float64))
    for name, denoiser, tokens, at in (
        ("logits", peer.denoiser, ids, u),
        ("logits__sigma_one", peer.denoiser, ids, one),
        ("logits__sigma0", peer.read_by(LeaveOneOut("zero")), ids, u),
        ("logits__short", peer.denoiser, peer["input_ids__short"], u),
        ("logits__roll", peer.denoiser, peer["input_ids__roll"], u),
    ):
        torch.testing.assert_close(logits(denoiser, tokens, at), peer[name], **CLOSE)


def test_duo_lightning_checkpoint_holds_raw_and_averaged_weights(peer, u):
    path, ids = peer.folder / "duo.ckpt", peer["input_ids"]
    raw, averaged = (load(path, weights=which).denoiser for which in ("raw", "averaged"))
    torch.testing.assert_close(logits(raw, ids, u), peer["logits__ckpt_raw"], **CLOSE)
    torch.testing.assert_close(logits(averaged, ids, u), peer["logits"], **CLOSE)


def test_duo_clean_predictions_equal_peer_code(peer, u):
    """Their softmax is p(x_0 | all other positions): our `LeaveOneOut` before Bayes' rule."""
    before_bayes = peer.read_by(Mean("sigma"))
    for name, at in (("log_p_x0", u), ("cosine_log_p_x0", COSINE.fraction(peer["t"].double()))):
        ours = log_clean(before_bayes, peer["input_ids"], at)[..., :ROWS]
        torch.testing.assert_close(ours, peer[name], **CLOSE)


def test_duo_bounds_equal_peer_code(peer, u):
    x_0, x_t = peer["x0"], peer["input_ids"]
    theirs = canvas(x_0, x_t, peer["t"], peer.noise_schedule)
    curved = canvas(x_0, x_t, peer["t"], COSINE)
    curved = replace(curved, measure=spread_over(-peer["cosine_dalpha_t"], x_0))
    free = torch.nn.functional.pad(peer["free_log_x_theta"], (0, 1))
    with torch.no_grad():
        for denoiser, noisy, name in (
            (peer.denoiser, theirs, "loss_per_token"),
            (peer.denoiser, curved, "cosine_loss_per_token"),
            (FixedAnswer(peer.process, LeaveOneOut(), free), theirs, "free_loss"),
        ):
            torch.testing.assert_close(EXACT(denoiser, noisy).float(), peer[name], **CLOSE)


def test_duo_posteriors_and_steps_equal_peer_code(peer, u):
    ids, x_0, process = peer["input_ids"], peer["x0"], peer.process
    s, t = 1 - peer["alpha_s"].double(), 1 - peer["alpha_t"].double()
    ours = posterior(peer.denoiser, ids, s, t)[..., :ROWS]
    for name in ("posterior_model", "step_weights__ancestral"):
        torch.testing.assert_close(ours, normalised(peer[name]), **CLOSE)
    last = posterior(peer.denoiser, ids, torch.zeros_like(t), t)[..., :ROWS]
    torch.testing.assert_close(last, normalised(peer["step_weights__ancestral_last"]), **CLOSE)
    origin = torch.nn.functional.one_hot(x_0, ROWS + 1).double()
    s, t = spread_over(s, ids), spread_over(t, ids)
    true = process.posterior(ids, origin, s, t)[..., :ROWS]
    torch.testing.assert_close(true, peer["posterior_true"], **CLOSE)
    noisy = process.spread(origin, process.between(torch.zeros_like(t), t))[..., :ROWS]
    torch.testing.assert_close(noisy.float(), peer["forward_marginal"], **CLOSE)


def test_mdlm_and_sedd_losses_equal_duo_code(peer, u):
    """MDLM, told nothing of time, and SEDD; the mask is the last row."""
    absorbing = Absorbing(ROWS - 1)
    masked, scored = (
        peer.read_by(LeaveOneOut("zero"), absorbing),
        peer.read_by(LogScore(floor=1e-9), absorbing),
    )
    ids = peer["mdlm_input_ids"]
    torch.testing.assert_close(log_clean(masked, ids, u), minus_infinity(peer["mdlm_log_out"]), **CLOSE)
    theirs = canvas(peer["mdlm_x0"], ids, peer["t"], peer.noise_schedule)
    with torch.no_grad():
        ours = WeightedCrossEntropy(0.0)(masked, theirs)
    torch.testing.assert_close(ours.float(), peer["mdlm_loss_per_token"], **CLOSE)
    ids = peer["sedd_input_ids"]
    torch.testing.assert_close(log_score(scored, ids, u).float(), peer["sedd_log_out"], **CLOSE)
    theirs = canvas(peer["sedd_x0"], ids, peer["t"], peer.noise_schedule)
    with torch.no_grad():
        ours = EXACT(scored, theirs)
    torch.testing.assert_close(ours.float(), peer["sedd_loss_per_token"], **CLOSE)


def test_duo_noise_schedules_equal_peer_code(peer):
    t = peer.grid("t").double()
    for name, schedule in (("loglinear", LogLinear()), ("cosine", COSINE)):
        u = schedule.fraction(t)
        torch.testing.assert_close((1 - u).float(), peer.grid(f"{name}__alpha"), **CLOSE)
        before = u < 1 - 1e-5  # behind it, sigma is what float32 makes of it
        sigma = total_noise(u).float()[before]
        torch.testing.assert_close(sigma, peer.grid(f"{name}__sigma")[before], **CLOSE)
        back = peer.grid(f"{name}__t_for_alpha").double()
        torch.testing.assert_close(schedule.time(u)[before].float(), back[before].float(), atol=1e-3, rtol=0)
    slope = -LogLinear().rate(t).float()
    torch.testing.assert_close(slope, peer.grid("loglinear__dalpha"), **CLOSE)
    slope = -COSINE.rate(t).float() / (1 - COSINE.floor)
    torch.testing.assert_close(slope, peer.grid("cosine__dalpha"), **CLOSE)
