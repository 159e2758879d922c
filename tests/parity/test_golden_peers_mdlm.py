"""MDLM's weights, schedules, losses and steps, as its own code computed them (arXiv 2406.07524).

Not compared, and why:
- `log_p_x0_d3pm__timecond1` and `loss__d3pm_T1000`: that softmax runs over the mask's row too, which no clean token is
  (with the row left out, `*_d3pm_submask*`, both are compared);
- `loss__subs_importance` and `loss__subs_changevar_tc1`: `-log p` times a constant that stands for a change of times;
  the second tells the network `t` where sigma is meant;
- visible rows of `score__timecond1`: they give all other words the score 0, which is no ratio of marginals; no rate
  leads there;
- visible rows of `step_ddpm_*` and `step_cache_*`: the sampler overwrites them with the words that stand there;
- `mean__*`: averages with their attention mask. `*__importance_t`, `*sample_t*`: how they draw times.
`step_cache_*` uses `t` itself for the masking probability: up to normalisation this is the same step.
"""

from __future__ import annotations

import pytest
import torch

import hdlm.hub.cards.mdlm as card
from hdlm.hub import inspect, load
from hdlm.noise_schedule import ConstantRate, CosinePower, Geometric, LogLinear, total_noise
from hdlm.objective import NELBO, ScoreEntropy, WeightedCrossEntropy
from hdlm.parameterization import LeaveOneOut, LogScore, Mean
from hdlm.process import Absorbing
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
    tweedie,
)

SCHEDULES = {
    "loglinear": LogLinear(),
    "cosine": CosinePower(1.0),
    "cosinesqr": CosinePower(2.0),
    "linear": ConstantRate(1e-3, 7.0),
    "geometric": Geometric(1e-3, 5.0),
}
TOLD, UNTOLD = LeaveOneOut("sigma", shared=True), LeaveOneOut("zero", shared=True)
SEDD = LogScore(shared=True)


@pytest.fixture(scope="module")
def peer(shared):
    return Peer(shared / "golden" / "peers" / "mdlm")


@pytest.fixture
def u(peer):
    """The noise fraction of each row."""
    return peer.noise_schedule.fraction(peer["t"].double())


def test_mdlm_checkpoint_loads_expected_pieces(peer):
    found = inspect(peer.folder)
    assert found.card == "MDLM"
    assert not found.blueprint.unknown
    checkpoint = peer.checkpoint
    assert checkpoint.vocabulary.num_words == int(peer["mask_id"]) == 61
    assert (checkpoint.network.config.cond_dim, checkpoint.length) == (16, 16)
    assert (peer.process, peer.noise_schedule) == (Absorbing(61), LogLinear())
    assert peer.denoiser.parameterization == UNTOLD


def test_mdlm_logits_equal_peer_code(peer, u):
    ids = peer["input_ids"]
    torch.testing.assert_close(logits(peer.denoiser, ids, u), peer["logits__hub"], **CLOSE)
    for name in ("short", "roll"):
        ours = logits(peer.denoiser, peer[f"input_ids__{name}"], u)
        torch.testing.assert_close(ours, peer[f"logits__hub_{name}"], **CLOSE)


def test_mdlm_logits_with_sigma_condition_equal_peer_code(peer, u):
    told, ids = peer.read_by(TOLD), peer["input_ids"]
    torch.testing.assert_close(logits(told, ids, u), peer["logits__backbone_sigma"], **CLOSE)
    one = -torch.expm1(-torch.ones(4, dtype=torch.float64))
    torch.testing.assert_close(logits(told, ids, one), peer["logits__backbone_sigma_one"], **CLOSE)


def test_mdlm_lightning_checkpoint_holds_raw_and_averaged_weights(peer, u):
    path, ids = peer.folder / "mdlm.ckpt", peer["input_ids"]
    raw, averaged = (load(path, weights=which).denoiser for which in ("raw", "averaged"))
    torch.testing.assert_close(logits(raw, ids, u), peer["logits__hub_ckpt_raw"], **CLOSE)
    torch.testing.assert_close(logits(averaged, ids, u), peer["logits__hub"], **CLOSE)


def test_mdlm_clean_predictions_equal_peer_code(peer, u):
    ids = peer["input_ids"]
    for reading, name in ((UNTOLD, "timecond0"), (TOLD, "timecond1")):
        ours = log_clean(peer.read_by(reading), ids, u)
        torch.testing.assert_close(ours, minus_infinity(peer[f"log_p_x0__{name}"]), **CLOSE)
    without_carry_over = log_clean(peer.read_by(Mean("sigma")), ids, u)
    expected = minus_infinity(peer["log_p_x0_d3pm_submask__timecond1"])
    torch.testing.assert_close(without_carry_over, expected, **CLOSE)


def test_mdlm_scores_equal_peer_code(peer, u):
    ids = peer["input_ids"]
    masked = ids == peer.process.mask_id
    score = log_score(peer.read_by(TOLD), ids, u).exp()
    torch.testing.assert_close(score[masked], peer["score__timecond1"].double()[masked], **CLOSE)
    ours = log_score(peer.read_by(SEDD), ids, u)
    torch.testing.assert_close(ours.float(), peer["log_score_sedd__timecond1"], **CLOSE)


def test_mdlm_mask_inside_vocabulary_is_moved_to_the_end(peer, monkeypatch):
    """BERT's mask stands inside its vocabulary; that is known by the size alone, here a small one's."""
    theirs = int(peer["midmask_id"])
    monkeypatch.setattr(card, "_BERT_ROWS", 62)
    monkeypatch.setattr(card, "_BERT_MASK", theirs)
    monkeypatch.setattr(card, "_BERT", Vocabulary(61))
    moved = load(peer.folder).denoiser
    order = torch.tensor([*range(theirs), *range(theirs + 1, 62), theirs])
    ids = order.argsort()[peer["midmask_input_ids"]]
    some = torch.full((4,), 0.5)
    torch.testing.assert_close(logits(moved, ids, some), peer["midmask_logits"][..., order], **CLOSE)
    expected = minus_infinity(peer["midmask_log_p_x0"])[..., order]
    torch.testing.assert_close(log_clean(moved, ids, some), expected, **CLOSE)


@pytest.mark.parametrize(
    ("case", "reading", "grid"),
    [
        ("subs_tc0", UNTOLD, None),
        ("subs_tc1", TOLD, None),
        ("subs_T1000_tc0", UNTOLD, 1000),
        ("subs_T10_tc1", TOLD, 10),
    ],
)
def test_mdlm_losses_equal_peer_code(peer, case, reading, grid):
    """`-log p / t`: the weighted cross-entropy, which is the score entropy of the same reading."""
    t = peer["t"] if grid is None else (peer["t"] * grid).floor() / grid + 1 / grid
    theirs = canvas(peer["x0"], peer["input_ids"], t, LogLinear())
    torch.testing.assert_close(theirs.t[:, :1].float(), peer[f"move_chance__{case}"], **CLOSE)
    denoiser = peer.read_by(reading)
    for objective in (WeightedCrossEntropy(0.0), ScoreEntropy(floor=1e-12)):
        with torch.no_grad():
            ours = objective(denoiser, theirs).float()
        torch.testing.assert_close(ours, peer[f"loss__{case}"], **CLOSE)
        torch.testing.assert_close(ours * peer["attention_mask"], peer[f"nlls__{case}"], **CLOSE)


@pytest.mark.parametrize("name", [name for name in SCHEDULES if name != "loglinear"])
def test_mdlm_losses_of_other_noise_schedules_equal_peer_code(peer, name):
    theirs = canvas(peer["x0"], peer["input_ids"], peer["t"], SCHEDULES[name])
    with torch.no_grad():
        ours = WeightedCrossEntropy(0.0)(peer.read_by(UNTOLD), theirs)
    torch.testing.assert_close(ours.float(), peer[f"loss__subs_noise_{name}"], **CLOSE)
    torch.testing.assert_close(theirs.t[:, :1].float(), peer[f"move_chance__subs_noise_{name}"], **CLOSE)


def test_mdlm_loss_of_score_variant_equals_peer_code(peer):
    theirs = canvas(peer["x0"], peer["input_ids"], peer["t"], LogLinear())
    with torch.no_grad():
        ours = ScoreEntropy(floor=1e-12)(peer.read_by(SEDD), theirs)
    torch.testing.assert_close(ours.float(), peer["loss__sedd"], **CLOSE)


def test_mdlm_d3pm_loss_of_ten_steps_equals_peer_code(peer):
    """D3PM: the bound of ten steps, and a reconstruction of clean words that no mask hides."""
    denoiser, x_0 = peer.read_by(Mean("sigma", floor=1e-9)), peer["x0"]
    t = (peer["t"] * 10).floor() / 10 + 0.1
    theirs = canvas(x_0, peer["input_ids"], t, LogLinear(), later=t - 0.1, steps=10)
    with torch.no_grad():
        bound = NELBO()(denoiser, theirs)
    again = log_clean(denoiser, x_0, torch.zeros(4)).gather(-1, x_0[..., None])[..., 0]
    torch.testing.assert_close((bound - again).float(), peer["loss__d3pm_submask_T10"], **CLOSE)


@pytest.mark.parametrize("kind", ["ddpm", "cache"])
def test_mdlm_ancestral_step_equals_peer_code(peer, kind):
    t, dt, ids = peer["step_t"].double(), peer["step_dt"].double(), peer["input_ids"]
    s, t = (peer.noise_schedule.fraction(time) for time in (t - dt, t))
    masked = ids == peer.process.mask_id
    expected = normalised(peer[f"step_{kind}_weights__timecond0"])
    ours = posterior(peer.denoiser, ids, s, t)
    torch.testing.assert_close(ours[masked], expected[masked], **CLOSE)
    kept = torch.nn.functional.one_hot(ids, ours.shape[-1]).double()
    torch.testing.assert_close(ours[~masked], kept[~masked])


def test_mdlm_analytic_steps_equal_peer_code(peer):
    t, dt, ids = peer["step_t"].double(), peer["step_dt"].double(), peer["input_ids"]
    s, t = (peer.noise_schedule.fraction(time) for time in (t - dt, t))
    for reading, name in ((UNTOLD, "analytic_weights__timecond0"), (SEDD, "analytic_weights__sedd")):
        ours = tweedie(peer.read_by(reading), ids, s, t)
        torch.testing.assert_close(ours, normalised(peer[f"step_{name}"]), **CLOSE)
    last = tweedie(peer.denoiser, ids, torch.zeros_like(t), t)
    torch.testing.assert_close(last, normalised(peer["step_denoiser_weights__timecond0"]), **CLOSE)


@pytest.mark.parametrize("name", SCHEDULES)
def test_mdlm_noise_schedules_equal_peer_code(peer, name):
    schedule, t = SCHEDULES[name], peer.grid("t").double()
    u, rate = schedule.fraction(t), schedule.rate(t)
    for ours, theirs in ((u, "move_chance"), (total_noise(u), "sigma"), (1 - u, "alpha")):
        torch.testing.assert_close(ours.float(), peer.grid(f"{name}__{theirs}"), **CLOSE)
    before = t < 1  # at 1, the cosine of a right angle is what rounding makes of it
    slope, weight = (rate / (1 - u)).float(), (rate / u).float()
    torch.testing.assert_close(slope[before], peer.grid(f"{name}__dsigma")[before], **CLOSE)
    inside = before & (t > 0.01)
    torch.testing.assert_close(weight[inside], peer.grid(f"{name}__loss_weight")[inside], **CLOSE)


def test_mdlm_corruption_and_kernel_equal_peer_code(peer):
    """Their rule: a mask where a uniform number is below the masking probability; ours keeps below its complement."""
    x_0, draw = peer.grid("q_xt__x0"), peer.grid("q_xt__u").double()
    u = peer.grid("q_xt__move_chance").double().expand(x_0.shape)
    ours = peer.process.corrupt(x_0, u, 1 - draw)
    torch.testing.assert_close(ours, peer.grid("q_xt__xt"))
    ids = peer["input_ids"]
    u = -torch.expm1(-spread_over(peer.grid("transp_transition__sigma"), ids))
    kernel = peer.process.between(torch.zeros_like(u), u)
    torch.testing.assert_close(
        peer.process.likelihood(ids, kernel).float(), peer.grid("transp_transition"), **CLOSE
    )
