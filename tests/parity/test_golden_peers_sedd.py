"""SEDD's weights, noise, score entropies and steps, as its own code computed them (arXiv 2310.16834).

Not compared, and why:
- `step_euler_weights` of the uniform model: rates times `dt dsigma`, where ours steps by the noise fraction, to the
  same first order. For log-linear noise both are one, which is compared with the absorbing model;
- `score_entropy` and `loss*` of the uniform model at small sigma: `1 - N / (e^sigma - 1 + N)` cancels in float32, by
  0.7 % at sigma 2.7e-4. There their formula is evaluated in float64, and gives the recorded numbers in float32.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hdlm.hub import inspect
from hdlm.noise_schedule import Geometric, LogLinear, total_noise
from hdlm.objective import Canvas, ScoreEntropy
from hdlm.parameterization import LogScore
from hdlm.process import Absorbing, Uniform
from tests.peer import CLOSE, Peer, canvas, log_score, logits, normalised, spread_over, tweedie
from tests.tiny import FixedAnswer

BOTH = ["sedd", "sedd_uniform"]
EXACT = ScoreEntropy(floor=1e-12)


@pytest.fixture(scope="module")
def peers(shared):
    return {name: Peer(shared / "golden" / "peers" / name) for name in BOTH}


@pytest.fixture(params=BOTH)
def peer(request, peers):
    return peers[request.param]


@pytest.fixture
def absorbing(peers):
    return peers["sedd"]


@pytest.fixture
def uniform(peers):
    return peers["sedd_uniform"]


def fraction(sigma: Tensor) -> Tensor:
    return -torch.expm1(-sigma.double())


def without_mask_column(peer: Peer, values: Tensor) -> Tensor:
    """Without the column of a mask that their uniform model does not have."""
    return values[..., : peer.network.config.vocab_size].float()


def test_sedd_checkpoint_loads_expected_pieces(absorbing, uniform):
    for peer, process, schedule in (
        (absorbing, Absorbing(59), LogLinear()),
        (uniform, Uniform(59), Geometric(1e-4, 20.0)),
    ):
        found = inspect(peer.folder)
        assert (found.card, found.blueprint.unknown) == ("SEDD", ())
        assert (peer.process, peer.noise_schedule) == (process, schedule)
        assert peer.checkpoint.vocabulary.num_words == 59
    assert (absorbing.network.config.vocab_size, uniform.network.config.vocab_size) == (60, 59)
    assert absorbing.denoiser.parameterization.scale_by_sigma
    assert not uniform.denoiser.parameterization.scale_by_sigma


def test_sedd_log_scores_equal_peer_code(peer):
    sigma = peer["sigma"]
    for name, ids, at in (
        ("log_score", "input_ids", sigma),
        ("log_score__short", "input_ids__short", sigma),
        ("log_score__roll", "input_ids__roll", sigma),
        ("log_score__sigma_one", "input_ids", torch.ones(4)),
        ("log_score__sigma_small", "input_ids", torch.full((4,), 0.3)),
    ):
        ours = without_mask_column(peer, log_score(peer.denoiser, peer[ids], fraction(at)))
        torch.testing.assert_close(ours, peer[name], **CLOSE)


def test_sedd_unscaled_and_raw_outputs_equal_peer_code(absorbing):
    ids, u = absorbing["input_ids"], fraction(absorbing["sigma"])
    torch.testing.assert_close(logits(absorbing.denoiser, ids, u), absorbing["raw_output"], **CLOSE)
    unscaled = absorbing.read_by(LogScore(scale_by_sigma=False, floor=1e-9))
    torch.testing.assert_close(log_score(unscaled, ids, u).float(), absorbing["log_score__noscale"], **CLOSE)
    score = log_score(absorbing.denoiser, ids, u).exp().float()
    torch.testing.assert_close(score, absorbing["score_fn__sampling"], **CLOSE)


def test_sedd_losses_equal_peer_code(peer):
    theirs = canvas(peer["x0"], peer["input_ids"], peer["t"], peer.noise_schedule)
    with torch.no_grad():
        ours = EXACT(peer.denoiser, theirs)
    exact = slice(None) if peer.process.mask_id in peer["input_ids"] else peer["sigma"] > 0.1
    for entropy, name in (
        (ours, "loss_per_token"),
        (ours / peer["dsigma"][:, None], "score_entropy"),
        (ours.sum(1), "loss_fn"),
    ):
        torch.testing.assert_close(entropy.float()[exact], peer[name][exact], **CLOSE)


def test_sedd_uniform_losses_at_small_sigma_are_exact(uniform):
    """Their own formula gives their numbers in float32 and ours in float64."""
    theirs = canvas(uniform["x0"], uniform["input_ids"], uniform["t"], uniform.noise_schedule)
    with torch.no_grad():
        ours = EXACT(uniform.denoiser, theirs) / uniform["dsigma"][:, None]
    torch.testing.assert_close(published_entropy(uniform, torch.float32), uniform["score_entropy"], **CLOSE)
    torch.testing.assert_close(published_entropy(uniform, torch.float64), ours, **CLOSE)


def published_entropy(peer: Peer, dtype: torch.dtype) -> Tensor:
    """Score entropy under uniform noise through `r = 1 - N / (e^sigma - 1 + N)`, the ratio at a word that was kept."""
    log_s, x_0, x_t = peer["log_score"].to(dtype), peer["x0"], peer["input_ids"]
    n, odds = log_s.shape[-1], torch.expm1(peer["sigma"].to(dtype))[:, None]
    own, true = (log_s.gather(-1, ids[..., None])[..., 0] for ids in (x_t, x_0))
    ratio, kept = 1 - n / (odds + n), x_t == x_0
    mean_log, mean = log_s.mean(-1) - own / n, log_s.exp().mean(-1) - own.exp() / n
    of_kept = -ratio * mean_log + (n - 1) / n * ratio * (ratio.log() - 1)
    of_wrong = -true / odds - mean_log + ((-ratio.log() - 1) / ratio - (n - 2)) / n
    return mean + torch.where(kept, of_kept, of_wrong)


def test_sedd_analytic_steps_equal_peer_code(peer):
    t, dt, ids = peer["t"].double(), peer["step_dt"].double(), peer["input_ids"]
    s, t = (peer.noise_schedule.fraction(time) for time in (t - dt, t))
    ours = without_mask_column(peer, tweedie(peer.denoiser, ids, s, t))
    torch.testing.assert_close(ours, normalised(peer["step_analytic_weights"]).float(), **CLOSE)
    last = normalised(peer["step_denoiser_weights"]).float()
    ours = tweedie(peer.denoiser, ids, torch.zeros_like(t), t)[..., : last.shape[-1]]
    torch.testing.assert_close(ours.float(), last, **CLOSE)


def test_sedd_reverse_rates_and_euler_step_equal_peer_code(absorbing):
    ids = absorbing["input_ids"]
    t, dt = absorbing["t"].double(), absorbing["step_dt"].double()
    u, process = spread_over(absorbing.noise_schedule.fraction(t), ids), absorbing.process
    rates = process.rates(u)
    jump = log_score(absorbing.denoiser, ids, u[:, 0]).exp() * rates.mask[..., None]
    jump[..., -1] = 0  # nothing becomes a mask on the way back
    jump = jump * (ids == process.mask_id)[..., None]
    rate = (jump * (1 - u)[..., None]).scatter_add(-1, ids[..., None], -(jump.sum(-1) * (1 - u))[..., None])
    torch.testing.assert_close(rate.float(), absorbing["reverse_rate"], **CLOSE)
    step = u - spread_over(absorbing.noise_schedule.fraction(t - dt), ids)
    here = torch.nn.functional.one_hot(ids, 60).double()
    leave = (jump.sum(-1) * step)[..., None]
    ours = (jump * step[..., None] + here).scatter_add(-1, ids[..., None], -leave)
    torch.testing.assert_close(ours.float(), absorbing["step_euler_weights"], **CLOSE)


def test_sedd_staggered_scores_and_transitions_equal_peer_code(absorbing):
    ids, sigma, process = absorbing["input_ids"], absorbing["sigma"].double(), absorbing.process
    u, s = (spread_over(fraction(share * sigma), ids) for share in (1.0, 0.7))
    score = log_score(absorbing.denoiser, ids, u[:, 0]).exp()
    ours = process.unspread(score, process.between(s, u))
    torch.testing.assert_close(ours.float(), absorbing["staggered_score"], **CLOSE)
    ours = process.likelihood(ids, process.between(torch.zeros_like(u), u))
    torch.testing.assert_close(ours.float(), absorbing["transp_transition"], **CLOSE)


@pytest.mark.parametrize(
    ("name", "schedule"),
    [
        ("loglinear", LogLinear()),
        ("geometric_1e4_20", Geometric(1e-4, 20.0)),
        ("geometric_1e3_1", Geometric(1e-3, 1.0)),
    ],
)
def test_sedd_noise_schedules_equal_peer_code(absorbing, name, schedule):
    t = absorbing.grid("t").double()
    u, rate = schedule.fraction(t), schedule.rate(t)
    for ours, theirs in (
        (total_noise(u), "sigma"),
        (rate / (1 - u), "dsigma"),
        (u, "move_chance"),
        (u / (1 - u), "esigm1"),
    ):
        torch.testing.assert_close(ours.float(), absorbing.grid(f"{name}__{theirs}"), **CLOSE)


@pytest.mark.parametrize(("tag", "process", "tokens"), [("uni", Uniform(6), "i"), ("abs", Absorbing(6), "x")])
def test_sedd_processes_of_six_words_equal_peer_code(absorbing, tag, process, tokens):
    x_t, x_0, sigma = (absorbing.grid(f"{tag}__{name}") for name in (tokens, "x0", "sigma"))
    log_s = absorbing.grid(f"{tag}__log_score").double()
    width = log_s.shape[-1]
    u = spread_over(fraction(sigma), x_t)
    kernel = process.between(torch.zeros_like(u), u)
    transition = "uni__transition" if tag == "uni" else "abs__transp_transition"
    ours = process.likelihood(x_t, kernel)[..., :width]
    torch.testing.assert_close(ours.float(), absorbing.grid(transition), **CLOSE)
    padded = torch.nn.functional.pad(log_s, (0, 7 - width), value=-torch.inf)
    staggered = process.unspread(padded.exp(), kernel)[..., :width]
    torch.testing.assert_close(staggered.float(), absorbing.grid(f"{tag}__staggered"), **CLOSE)
    denoiser = FixedAnswer(process, LogScore(scale_by_sigma=False, floor=1e-9), padded)
    per_noise = Canvas(x_0, x_t, u, u, 1 - u, torch.zeros_like(u))
    ours = EXACT(denoiser, per_noise)
    torch.testing.assert_close(ours.float(), absorbing.grid(f"{tag}__score_entropy"), **CLOSE)
