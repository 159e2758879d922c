"""Packed layers give the products of plain ones, use the copy only where it fits, and never an old one."""

from __future__ import annotations

import copy
import io

import pytest
import torch
import torch.nn.functional as F

from hdlm.network import DDiT, DDiTConfig
from hdlm.network.packed import PackedLinear

NEAR = {"atol": 1e-5, "rtol": 1e-5}


@pytest.fixture(autouse=True)
def small_matrices_are_large(monkeypatch):
    monkeypatch.setattr("hdlm.network.packed._LARGE", 0)


def packed(bias: bool = True) -> PackedLinear:
    torch.manual_seed(0)
    layer = PackedLinear(48, 80, bias=bias)
    layer.pack()
    if not layer.packs:
        pytest.skip("this build of torch has no oneDNN")
    return layer


@pytest.fixture
def copies_read(monkeypatch):
    """How often products have been made with a copy."""
    reads = []
    original = PackedLinear._copy
    monkeypatch.setattr(PackedLinear, "_copy", lambda layer: reads.append(1) or original(layer))
    return reads


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1,), (5,), (2, 3), (128,), (1, 16)])
def test_few_rows_are_multiplied_by_the_copy(bias, shape, copies_read):
    layer, x = packed(bias), torch.randn(*shape, 48)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias), **NEAR)
        slanted = torch.randn(48, 6).t()
        torch.testing.assert_close(layer(slanted), F.linear(slanted, layer.weight, layer.bias), **NEAR)
        assert layer(x[..., 0:1].expand(*shape, 48)).shape == (*shape, 80)
    assert len(copies_read) == 3


def test_what_the_copy_is_not_for_is_multiplied_as_ever(copies_read):
    layer, x = packed(), torch.randn(5, 48)
    layer(x).sum().backward()
    assert layer.weight.grad is not None
    with torch.no_grad():
        assert layer(x[:0]).shape == (0, 80)
        assert layer(torch.randn(129, 48)).shape == (129, 80)
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
        for other in (torch.float64, torch.bfloat16):
            torch.testing.assert_close(
                layer.to(other)(x.to(other)), F.linear(x.to(other), layer.weight, layer.bias), rtol=0, atol=0
            )
    assert not copies_read


def test_a_changed_weight_is_never_read_from_an_old_copy():
    layer, x = packed(), torch.randn(3, 48)
    with torch.no_grad():
        layer(x)
        layer.weight.mul_(2)
        torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias), **NEAR)
        layer.weight.data = torch.randn(80, 48)
        torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias), **NEAR)
        layer.load_state_dict({"weight": torch.randn(80, 48), "bias": torch.randn(80)}, assign=True)
        torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias), **NEAR)


def test_copies_are_neither_saved_nor_copied():
    layer, x = packed(), torch.randn(3, 48)
    with torch.no_grad():
        expected = layer(x)
        assert set(layer.state_dict()) == {"weight", "bias"}
        torch.testing.assert_close(copy.deepcopy(layer)(x), expected, rtol=0, atol=0)
        torch.save(layer, file := io.BytesIO())
        file.seek(0)
        torch.testing.assert_close(torch.load(file, weights_only=False)(x), expected, rtol=0, atol=0)


def test_small_matrices_are_left_alone(monkeypatch, copies_read):
    layer = packed()
    monkeypatch.setattr("hdlm.network.packed._LARGE", layer.weight.nbytes)
    layer.pack()
    with torch.no_grad():
        layer(torch.randn(3, 48))
    assert not copies_read


@pytest.mark.parametrize("told", [False, True])
def test_a_network_made_ready_says_the_same(told, copies_read):
    packed()
    switches = dict.fromkeys(("timestep_embedding", "condition_blocks", "condition_output"), told)
    network = DDiT(DDiTConfig(vocab_size=31, hidden_size=32, num_blocks=2, num_heads=2, **switches)).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    tokens, condition = torch.arange(14).view(2, 7), torch.rand(2, 7) if told else None
    with torch.no_grad():
        expected = network(tokens, condition=condition)
        assert not copies_read
        network.speed_up()
        torch.testing.assert_close(network(tokens, condition=condition), expected, atol=1e-4, rtol=1e-4)
    assert len(copies_read) == (4 + told) * 2 + 1 + told
