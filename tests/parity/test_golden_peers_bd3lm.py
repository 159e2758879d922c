"""BD3-LM's weights, masks of attention, losses and steps, as its own code computed them (arXiv 2503.09573).

Not compared, and why:
- `loss__*__clip`, `p__*__clip`: with a range of times set to begin above 1/2 their code puts 1 in the place of `1 / t`;
- `mean__*`: averages, with position 0 taken out of the attention mask in place;
- `step_weights_nucleus0.6`: their nucleus stops before the word that reaches 0.6, ours (`TopP`) behind it;
- `sigma_from_p`, `*sample_t*`: how their times are drawn and capped. The floor of `square` and the offset of `cosine`,
  1e-3 both, keep their masking probability from 0; ours begin at 0, and are compared above the one and under the
  other. `cosine__loss_scaling` adds the offset to the masking probability a second time.
Their `loss_scaling` is minus our `rate / fraction`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from hdlm import attention
from hdlm.hub import inspect
from hdlm.hyperschedule import Block
from hdlm.noise_schedule import LINEAR, CosinePower, Logarithmic, LogLinear, Power
from hdlm.objective import Canvas, WeightedCrossEntropy
from hdlm.parameterization import LeaveOneOut
from hdlm.process import Absorbing
from tests.peer import CLOSE, Peer, canvas, minus_infinity, normalised

WIDTHS = [1, 2, 4, 8, 16]
CPU = torch.device("cpu")
ZERO = torch.zeros(1, 1)
READING = LeaveOneOut("zero", shared=True)


@pytest.fixture(scope="module")
def peer(shared):
    return Peer(shared / "golden" / "peers" / "bd3lm")


def in_two_streams(theirs: Canvas, width: int) -> Canvas:
    """The same noisy batch as `[clean | noisy]`, with who sees whom in blocks of a width."""
    schedule = Block(theirs.x_0.shape[1], width, 1)
    steps = schedule.packed_steps(torch.zeros(schedule.num_epochs, dtype=torch.long))
    seen = attention.two_stream(schedule, steps).on(CPU)
    window = steps.expand(theirs.x_0.shape)
    return replace(theirs, num_clean=schedule.length, attention=seen, window=window)


def test_bd3lm_checkpoint_loads_expected_pieces(peer):
    found = inspect(peer.folder)
    assert (found.card, found.blueprint.unknown) == ("BD3-LM", ())
    assert peer.checkpoint.hyperschedules[0] == Block(16, int(peer["block_size"]), 4)
    assert (peer.process, peer.noise_schedule) == (Absorbing(61), LINEAR)
    assert peer.denoiser.parameterization == READING


@pytest.mark.parametrize("width", WIDTHS)
def test_bd3lm_attention_equals_peer_code(peer, width):
    """Theirs is `[noisy | clean]`."""
    schedule = Block(16, width, 1)
    steps = schedule.packed_steps(torch.zeros(schedule.num_epochs, dtype=torch.long))
    ours = attention.two_stream(schedule, steps).dense().roll((16, 16), (0, 1))
    torch.testing.assert_close(ours, peer[f"mask_two_stream__bs{width}"])
    last = attention.generation_attention(schedule, schedule.num_steps - 1).dense()
    torch.testing.assert_close(last, peer[f"mask_sample__bs{width}"])


@pytest.mark.parametrize("width", WIDTHS)
def test_bd3lm_two_stream_outputs_equal_peer_code(peer, width):
    times = torch.full((3,), 0.5)
    theirs = in_two_streams(canvas(peer["x0"], peer["xt"], times, LINEAR), width)
    with torch.no_grad():
        prediction = theirs.predict(peer.denoiser)
        raw = prediction.raw(prediction.everywhere()).view(3, 16, -1)
        log_p = prediction.log_clean(prediction.everywhere()).view(3, 16, -1)
    torch.testing.assert_close(raw, peer[f"logits_two_stream__bs{width}"], **CLOSE)
    torch.testing.assert_close(log_p, minus_infinity(peer[f"log_p_two_stream__bs{width}"]), **CLOSE)


@pytest.mark.parametrize("width", WIDTHS)
@torch.no_grad()
def test_bd3lm_generation_outputs_equal_peer_code(peer, width):
    """All blocks up to one that is being written, in one pass and with the earlier ones in a cache."""
    x_t, schedule = peer["xt"], Block(16, width, 1)
    for length in {width, 2 * width, 16} - {32}:
        seen = attention.generation_attention(schedule, length // width - 1)
        shown = torch.arange(length)
        raw = peer.network(x_t[:, :length], condition=ZERO, attention=seen.select(shown, shown).on(CPU))
        torch.testing.assert_close(raw, peer[f"logits_sample__bs{width}_len{length}"], **CLOSE)
        if length == 16:
            log_p = READING.log_clean(peer.process, raw, x_t, torch.full(x_t.shape, 0.5))
            torch.testing.assert_close(log_p, minus_infinity(peer[f"log_p_sample__bs{width}"]), **CLOSE)


@pytest.mark.parametrize("width", WIDTHS[:-1])
@torch.no_grad()
def test_bd3lm_outputs_with_cache_equal_peer_code(peer, width):
    cache, blocks = peer.network.new_cache(), []
    for clean, noisy in zip(peer["x0"].split(width, 1), peer["xt"].split(width, 1), strict=True):
        blocks.append(peer.network(noisy, condition=ZERO, cache=cache))
        peer.network.features(clean, condition=ZERO, cache=cache, store=torch.arange(width))
    torch.testing.assert_close(torch.cat(blocks, 1), peer[f"logits_kvcache__bs{width}"], **CLOSE)


@torch.no_grad()
def test_bd3lm_outputs_of_other_options_equal_peer_code(peer):
    plain = peer.network(peer["xt"], condition=ZERO)
    torch.testing.assert_close(plain, peer["logits_no_cross_attn"], **CLOSE)
    streams = in_two_streams(canvas(peer["x0"], peer["xt"], peer["timesteps"], LINEAR), 4)
    for name, factor in (("timecond", 1), ("timecond_sigma2", 2)):
        told: dict[str, Any] = {
            "condition": factor * peer["timesteps"][:, None],
            "attention": streams.attention,
        }
        both = torch.cat([peer["x0"], peer["xt"]], 1)
        raw = peer.network(both, positions=torch.arange(16).repeat(2)[None], **told)[:, 16:]
        torch.testing.assert_close(raw, peer[f"logits_two_stream_{name}"], **CLOSE)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(
    ("variant", "schedule"), [("", LINEAR), ("__ignorebos0", LINEAR), ("__mdlmscale", LogLinear())]
)
def test_bd3lm_losses_equal_peer_code(peer, width, variant, schedule):
    """`-log p / t`; by default the first token is not noised."""
    x_0, x_t, times = peer["x0"], peer["xt"].clone(), peer[f"t__bs{width}"]
    if not variant:
        x_t[:, 0] = x_0[:, 0]
    theirs = in_two_streams(canvas(x_0, x_t, times, schedule), width)
    expected: Tensor = peer[f"p__bs{width}{variant}"].expand(x_0.shape)
    torch.testing.assert_close(theirs.t.float(), expected, **CLOSE)
    with torch.no_grad():
        ours = WeightedCrossEntropy(0.0)(peer.denoiser, theirs).float()
    torch.testing.assert_close(ours, peer[f"loss__bs{width}{variant}"], **CLOSE)


def test_bd3lm_step_weights_equal_peer_code(peer):
    """The last block, from `t` to `t - dt`."""
    t = peer["step_t"].double()
    s = t - peer["step_dt"].double()
    x_t, raw = peer["xt"][:, 12:], peer["logits_sample__bs4_len16"][:, 12:]
    s, t = (torch.full(x_t.shape, float(time), dtype=torch.float64) for time in (s, t))
    clean = READING.log_clean(peer.process, raw, x_t, t).double().exp()
    masked = x_t == peer.process.mask_id
    ours = peer.process.posterior(x_t, clean, s, t)
    torch.testing.assert_close(ours[masked], normalised(peer["step_weights"])[masked], **CLOSE)


@pytest.mark.parametrize(
    ("name", "schedule"),
    [
        ("loglinear", LINEAR),
        ("square", Power(2.0)),
        ("square_root", Power(0.5)),
        ("log", Logarithmic()),
        ("cosine", CosinePower(floor=0.0)),
    ],
)
def test_bd3lm_noise_schedules_equal_peer_code(peer, name, schedule):
    t, least = peer.grid("t").double(), 1e-3
    u, rate = schedule.fraction(t), schedule.rate(t)
    clear = u > least if name == "square" else t > 0
    if name == "cosine":
        u = least + (1 - least) * u
    torch.testing.assert_close(u.float()[clear], peer.grid(f"{name}__move_chance")[clear], **CLOSE)
    if name != "cosine":
        scaling = -(rate / u).float()
        torch.testing.assert_close(scaling[clear], peer.grid(f"{name}__loss_scaling")[clear], **CLOSE)


def test_bd3lm_corruption_equals_peer_code(peer):
    x_0, draw = peer.grid("q_xt__x0"), peer.grid("q_xt__u").double()
    ours = peer.process.corrupt(x_0, peer.grid("q_xt__p").double(), 1 - draw)
    torch.testing.assert_close(ours, peer.grid("q_xt__xt"))
