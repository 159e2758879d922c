"""Row-wise costs: values and gradients equal the plain formulas, without a tensor of all rows."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from hdlm.denoiser import Denoiser
from hdlm.hyperschedule import Block, Wave
from hdlm.network import DDiT, DDiTConfig
from hdlm.objective import (
    NELBO,
    Combination,
    Corruption,
    CrossEntropy,
    ScoreEntropy,
    WeightedCrossEntropy,
    rows,
)
from hdlm.parameterization import LeaveOneOut, LogScore, Mean, Shifted
from hdlm.process import GIDD, EpsilonHybrid, GammaHybrid
from hdlm.regime import Regime
from hdlm.training import NextToken
from tests.tiny import tiny_denoiser

BATCH, LENGTH, WORDS = 2, 8, 6
TIGHT = {"atol": 1e-10, "rtol": 1e-10}
CASES = {
    "paper": (EpsilonHybrid(WORDS, 0.1), Mean(), WeightedCrossEntropy(0.3)),
    "masks only": (EpsilonHybrid(WORDS, 0.1), Shifted(Mean()), WeightedCrossEntropy(0.0)),
    "cavity": (GIDD(WORDS, 0.2), LeaveOneOut(), WeightedCrossEntropy(0.3)),
    "scores": (GammaHybrid(WORDS, 0.2), LogScore(), ScoreEntropy()),
    "released": (GIDD(WORDS, 0.2), Mean(), ScoreEntropy()),
    "published": (GammaHybrid(WORDS, 0.2), Shifted(LogScore()), ScoreEntropy(ratios="published_code")),
    "bound": (GammaHybrid(WORDS, 0.2), Mean(), NELBO()),
    "both": (
        GammaHybrid(WORDS, 0.2),
        LogScore(),
        Combination(((0.7, ScoreEntropy()), (0.5, CrossEntropy()))),
    ),
}


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Process five rows per piece."""
    monkeypatch.setattr(rows, "PIECE", 5 * (WORDS + 1))


def made(case: str, two_stream: bool):
    process, parameterization, objective = CASES[case]
    denoiser = tiny_denoiser(process, parameterization, conditioned=isinstance(objective, ScoreEntropy))
    if isinstance(objective, ScoreEntropy) and isinstance(parameterization, Mean):
        denoiser = tiny_denoiser(process, parameterization)
    if isinstance(objective, Combination):
        denoiser = tiny_denoiser(process, parameterization, conditioned=True)
    schedule = Wave(LENGTH, 4, 3) if two_stream else Block(LENGTH, 4, 3)
    corruption = Corruption(
        process,
        Regime(schedule),
        two_stream=two_stream,
        continuous=not isinstance(objective, NELBO),
        num_given=denoiser.lookback,
    )
    numbers = torch.Generator().manual_seed(8)
    x_0 = torch.randint(WORDS, (BATCH, LENGTH), generator=numbers)
    times, draw = (
        torch.rand(BATCH, size, generator=numbers, dtype=torch.float64)
        for size in (corruption.num_times, LENGTH)
    )
    return denoiser, objective, corruption(x_0, times, draw)


def plain_loss(objective, denoiser, canvas):
    """The loss with every term on all rows at once, differentiated by autograd."""
    canvas = canvas.without_lookback_positions(denoiser)
    prediction = canvas.predict(denoiser)
    total = torch.zeros((), dtype=torch.float64)
    for term in objective.terms(denoiser.process, canvas):
        at = (term.weight > 0).flatten().nonzero()[:, 0]
        total = total + (term.weight.flatten()[at] * term.cost(prediction, canvas, at)).sum()
    return total


def gradients_of(loss, denoiser):
    return torch.autograd.grad(loss, list(denoiser.parameters()), allow_unused=True)


@pytest.mark.parametrize(
    ("case", "two_stream"), list(zip(CASES, itertools.cycle([True, False]), strict=False))
)
def test_objective_in_pieces_equals_plain_formula(case, two_stream, small_pieces):
    denoiser, objective, canvas = made(case, two_stream)
    expected = plain_loss(objective, denoiser, canvas)
    wanted = gradients_of(expected, denoiser)
    assert float(expected.detach().abs()) > 0.1
    positions = canvas.x_0.numel()
    for loss in (objective(denoiser, canvas).sum(), positions * objective.mean(denoiser, canvas)):
        torch.testing.assert_close(loss, expected, **TIGHT)
        for found, slope in zip(gradients_of(loss, denoiser), wanted, strict=True):
            torch.testing.assert_close(found, slope, **TIGHT)


def test_rows_cross_entropy_equals_torch(small_pieces):
    """Weighted rows, words only, with and without bias. The gradient includes the upstream gradient."""
    numbers = torch.Generator().manual_seed(1)
    hidden, matrix = (torch.randn(size, 4, generator=numbers).double() for size in (17, WORDS + 1))
    bias, weight = (torch.randn(size, generator=numbers).double() for size in (WORDS + 1, 17))
    targets = torch.randint(WORDS, (17,), generator=numbers)
    for offset in (bias, None):
        leaves = [leaf.requires_grad_() for leaf in (hidden, matrix, *([] if offset is None else [offset]))]
        raw = torch.nn.functional.linear(hidden, matrix, offset)[:, :WORDS]
        expected = weight @ cross_entropy(raw, targets, reduction="none")
        found = rows.cross_entropy(hidden, matrix, offset, targets, weight, WORDS)
        torch.testing.assert_close(found, expected, **TIGHT)
        pairs = zip(
            torch.autograd.grad(found**2, leaves), torch.autograd.grad(expected**2, leaves), strict=True
        )
        for ours, theirs in pairs:
            torch.testing.assert_close(ours, theirs, **TIGHT)


def test_rows_cross_entropy_rejects_second_backward(small_pieces):
    """The gradient is not stored, so a second backward pass is refused."""
    hidden, matrix = torch.randn(5, 4).requires_grad_(), torch.randn(WORDS, 4)
    loss = rows.cross_entropy(hidden, matrix, None, torch.zeros(5, dtype=torch.long), torch.ones(5), WORDS)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="compute the loss again"):
        loss.backward()


def test_next_token_loss_equals_cross_entropy(small_pieces):
    denoiser = tiny_denoiser(EpsilonHybrid(WORDS, 0.1))
    x_0 = torch.randint(WORDS, (BATCH, LENGTH), generator=torch.Generator().manual_seed(2))
    causal = torch.ones(LENGTH - 1, LENGTH - 1, dtype=torch.bool).tril()[None]
    logits = denoiser.backbone(x_0[:, :-1], attention=causal)[..., :WORDS]
    expected = cross_entropy(logits.flatten(0, 1), x_0[:, 1:].flatten())
    nothing = torch.zeros(BATCH, 1, dtype=torch.float64)
    found = NextToken(BATCH).loss(denoiser, x_0, nothing, nothing.expand(x_0.shape))
    torch.testing.assert_close(found, expected, **TIGHT)
    for ours, theirs in zip(gradients_of(found, denoiser), gradients_of(expected, denoiser), strict=True):
        torch.testing.assert_close(ours, theirs, **TIGHT)


@pytest.mark.parametrize("end", [None, 3])
def test_next_token_loss_is_bit_identical_to_causal_pass(small_pieces, end):
    """Loss and gradients are bit-identical to those of a pass with a handmade mask."""
    denoiser = tiny_denoiser(EpsilonHybrid(WORDS, 0.1))
    x_0 = torch.randint(WORDS, (BATCH, LENGTH), generator=torch.Generator().manual_seed(4))
    before, after = x_0[:, :-1], x_0[:, 1:]
    mask = torch.ones(LENGTH - 1, LENGTH - 1, dtype=torch.bool).tril()[None]
    if end is not None:
        ends = (before == end).long()
        own = ends.cumsum(-1) - ends
        mask = mask & (own[:, None, :] == own[:, :, None])
    hidden = denoiser.backbone.features(before, attention=mask).flatten(0, 1)
    share = torch.full((len(hidden),), 1 / len(hidden), dtype=torch.float64)
    expected = rows.cross_entropy(hidden, *denoiser.backbone.projection(), after.flatten(), share, WORDS)
    nothing = torch.zeros(BATCH, 1, dtype=torch.float64)
    found = NextToken(BATCH, end).loss(denoiser, x_0, nothing, nothing.expand(x_0.shape))
    assert torch.equal(found, expected)
    for ours, theirs in zip(gradients_of(found, denoiser), gradients_of(expected, denoiser), strict=True):
        assert torch.equal(ours, theirs)


class LargestTensor(TorchDispatchMode):
    """Remembers the largest tensor that any operation made, in bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor) and not func.is_view:
                self.bytes = max(self.bytes, tensor.untyped_storage().nbytes())
        return out


@pytest.mark.parametrize("family", ["epsilon", "gamma"])
def test_loss_makes_no_tensor_of_positions_times_vocabulary(family, monkeypatch):
    """Also no tensor holds all pairs of positions of every head, in the forward and backward passes."""
    words, length, heads, batch = 2000, 128, 16, 2
    monkeypatch.setattr(rows, "PIECE", 16 * words)
    process = EpsilonHybrid(words, 0.01) if family == "epsilon" else GammaHybrid(words, 0.05)
    told = family == "gamma"
    config = DDiTConfig(
        vocab_size=words + 1,
        hidden_size=32,
        num_blocks=1,
        num_heads=heads,
        timestep_embedding=told,
        condition_blocks=told,
    )
    objective = ScoreEntropy() if told else WeightedCrossEntropy(1.0)
    denoiser = Denoiser(DDiT(config), process, LogScore() if told else Mean())
    corruption = Corruption(process, Regime(Block(length, 32, 16)))
    x_0 = torch.randint(words, (batch, length), generator=torch.Generator().manual_seed(0))
    times, draw = (
        torch.rand(batch, n, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        for n in (corruption.num_times, length)
    )
    with LargestTensor() as largest:
        objective.mean(denoiser, corruption(x_0, times, draw)).backward()
    everybody = batch * length * (words + 1) * 4
    pairs = batch * heads * (2 * length) ** 2 * 4
    assert largest.bytes < min(everybody, pairs) / 2
    with LargestTensor() as plain:
        plain_loss(objective, denoiser, corruption(x_0, times, draw)).backward()
    assert plain.bytes > everybody / 2
