"""The epsilon-hybrid losses as the published implementation computed them, from the same noisy batches.

Two things differ by intent and are named where they do. The published cross-entropy is over all rows, the mask's too,
which no token ever is; ours is over the words. And with a hyperschedule the published weights of visible tokens lack
`1 / (1 - p)` (FAULTS 7), which is our option `unmasked_weight="published_code"`. The gamma losses are FAULTS 1: their
oracle is in `test_golden_process`.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from hdlm.denoiser import Denoiser
from hdlm.hyperschedule import Block, PublishedSlide
from hdlm.objective import Canvas, WeightedCrossEntropy
from hdlm.parameterization import Mean
from hdlm.process import Absorbing, AbstractNoiseProcess, EpsilonHybrid
from tests.parity.test_golden_network import Golden

LENGTH, WORDS = 32, 97
FLAT = [f"hybrid_aligned_{k}" for k in range(6)]
SCHEDULED = [
    f"hybrid_aligned_annealing_{schedule}_{k}"
    for schedule in ("block_m", "simple_m", "block_r", "simple_r")
    for k in range(6)
]
MASKED = [f"standard_aligned_{k}" for k in range(2)]
MASKED += [
    f"standard_aligned_annealing_{s}_{k}"
    for s in ("block_m", "simple_m", "block_r", "simple_r")
    for k in range(2)
]
CLOSE = {"atol": 1e-4, "rtol": 1e-4}


@pytest.fixture(scope="module")
def network(shared):
    return Golden(shared / "golden" / "epsilon").network


class Case:
    """One recorded call of a published loss."""

    def __init__(self, arrays, tag: str) -> None:
        self.arrays, self.tag = arrays, tag
        listed: list[dict[str, Any]] = json.loads(str(arrays["index_json"]))
        self.settings = next(entry for entry in listed if entry["tag"] == tag)
        self.x_0 = torch.from_numpy(arrays["input_ids"])

    def __contains__(self, name: str) -> bool:
        return f"{self.tag}__{name}" in self.arrays

    def __getitem__(self, name: str) -> Tensor:
        return torch.from_numpy(self.arrays[f"{self.tag}__{name}"])

    @property
    def process(self) -> AbstractNoiseProcess:
        epsilon = self.settings.get("epsilon")
        return Absorbing(WORDS) if epsilon is None else EpsilonHybrid(WORDS, epsilon)

    @property
    def attention(self) -> Tensor | None:
        return ~self["attn_mask"] if "attn_mask" in self else None

    def canvas(self) -> Canvas:
        """The published noisy batch as ours; active positions weigh 1."""
        p = self["p_mask"].double()
        active = self["active_mask"].expand(p.shape).double() if "active_mask" in self else torch.ones_like(p)
        return Canvas(self.x_0, self["noisy_batch"], p, p, active, active, attention=self.attention)


@pytest.fixture(scope="module")
def arrays(shared):
    with np.load(shared / "golden" / "losses.npz") as file:
        return dict(file)


@pytest.fixture
def case(request, arrays) -> Case:
    return Case(arrays, request.param)


@pytest.mark.parametrize("case", FLAT + SCHEDULED, indirect=True, ids=str)
def test_loss_weights_equal_published(case):
    kind = "paper" if case.tag in FLAT else "published_code"
    objective = WeightedCrossEntropy(case.settings["lamb"], kind)
    canvas = case.canvas()
    ours = canvas.measure * objective.weights(case.process, canvas)
    torch.testing.assert_close(ours, case["weights"].double(), **CLOSE)


@pytest.mark.parametrize("case", FLAT + SCHEDULED, indirect=True, ids=str)
def test_token_losses_equal_published_without_mask_row(case, network):
    canvas = case.canvas()
    logits = network(canvas.x_t, attention=case.attention)
    published = cross_entropy(logits.flatten(0, 1), case.x_0.flatten(), reduction="none").view(case.x_0.shape)
    torch.testing.assert_close(published, case["token_losses"], **CLOSE)
    share_of_words = logits.log_softmax(-1)[..., :WORDS].logsumexp(-1)
    prediction = canvas.predict(Denoiser(network, case.process, Mean()))
    log_p = prediction.log_clean(prediction.everywhere()).view(*case.x_0.shape, -1)
    ours = -log_p.gather(-1, case.x_0[..., None])[..., 0]
    torch.testing.assert_close(ours, case["token_losses"] + share_of_words, **CLOSE)
    assert (ours < case["token_losses"]).all()


@pytest.mark.parametrize("case", FLAT + SCHEDULED, indirect=True, ids=str)
def test_weighted_losses_equal_published_without_mask_row(case, network):
    """Weight times cross-entropy, as the objective gives it; the mask's row is taken out of the published one."""
    kind = "paper" if case.tag in FLAT else "published_code"
    canvas = case.canvas()
    ours = WeightedCrossEntropy(case.settings["lamb"], kind)(Denoiser(network, case.process, Mean()), canvas)
    share_of_words = network(canvas.x_t, attention=case.attention).log_softmax(-1)[..., :WORDS].logsumexp(-1)
    expected = case["weights"] * (case["token_losses"] + share_of_words)
    torch.testing.assert_close(ours, expected.to(ours.dtype), **CLOSE)


def test_paper_weights_divide_by_visible_share(arrays):
    """FAULTS 7: the default weights of visible tokens are those of the code without a hyperschedule."""
    case = Case(arrays, "hybrid_aligned_annealing_block_m_3")
    canvas = case.canvas()
    published, paper = (
        WeightedCrossEntropy(1.0, kind).weights(case.process, canvas) for kind in ("published_code", "paper")
    )
    visible = canvas.x_t != case.process.mask_id
    torch.testing.assert_close((paper / published)[visible], (1 / (1 - canvas.t))[visible])
    torch.testing.assert_close(paper[~visible], published[~visible])


@pytest.mark.parametrize("case", [tag for tag in SCHEDULED + MASKED if "_m_" in tag], indirect=True, ids=str)
def test_level_times_equal_published(case):
    """MATH 4: where generation's own steps are trained, the map from levels to times is the published one.

    A published slide keeps a position at the least active time for the step in which its level is already 0; for us
    it is settled then. And positions that are about to leave pure noise are active for us, not yet for it.
    """
    eps = 1e-4
    family = Block if case.settings["schedule"] == "block" else PublishedSlide
    schedule = family(LENGTH, case.settings["width"], case.settings["tau"])
    step, t = int(case["current_step"]), case["t"].double()
    levels, active = schedule.levels(step), case["active_mask"].view(-1, LENGTH)[0]
    noisy = levels > 0
    torch.testing.assert_close(schedule.times(step, eps)[noisy], t[noisy], atol=1e-6, rtol=0)
    assert (t[~noisy] < 10.01 * eps).all()
    assert active[noisy & (levels < schedule.num_levels)].all()
    assert not active[levels == schedule.num_levels].any()
