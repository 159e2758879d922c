"""Packed layers equal plain layers, use the packed copy only where it applies, and never an outdated copy."""

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
def pack_matrices_of_any_size(monkeypatch):
    monkeypatch.setattr("hdlm.network.packed._LARGE", 0)


def packed(bias: bool = True) -> PackedLinear:
    torch.manual_seed(0)
    layer = PackedLinear(48, 80, bias=bias)
    layer.pack()
    if not layer.packs:
        pytest.skip("this build of torch has no oneDNN")
    return layer


@pytest.fixture
def packed_copy_reads(monkeypatch):
    """Records each product that uses the packed copy."""
    reads = []
    original = PackedLinear._copy
    monkeypatch.setattr(PackedLinear, "_copy", lambda layer: reads.append(1) or original(layer))
    return reads


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1,), (5,), (2, 3), (128,), (1, 16)])
def test_packed_linear_uses_copy_for_few_rows(bias, shape, packed_copy_reads):
    layer, x = packed(bias), torch.randn(*shape, 48)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias), **NEAR)
        slanted = torch.randn(48, 6).t()
        torch.testing.assert_close(layer(slanted), F.linear(slanted, layer.weight, layer.bias), **NEAR)
        assert layer(x[..., 0:1].expand(*shape, 48)).shape == (*shape, 80)
    assert len(packed_copy_reads) == 3


def test_packed_linear_uses_plain_weight_in_other_cases(packed_copy_reads):
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
    assert not packed_copy_reads


def test_packed_linear_discards_copy_of_changed_weight():
    layer, x = packed(), torch.randn(3, 48)
    with torch.no_grad():
        layer(x)
        layer.weight.mul_(2)
        torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias), **NEAR)
        layer.weight.data = torch.randn(80, 48)
        torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias), **NEAR)
        layer.load_state_dict({"weight": torch.randn(80, 48), "bias": torch.randn(80)}, assign=True)
        torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias), **NEAR)


def test_packed_copy_is_excluded_from_state_dict_and_deepcopy():
    layer, x = packed(), torch.randn(3, 48)
    with torch.no_grad():
        expected = layer(x)
        assert set(layer.state_dict()) == {"weight", "bias"}
        torch.testing.assert_close(copy.deepcopy(layer)(x), expected, rtol=0, atol=0)
        torch.save(layer, file := io.BytesIO())
        file.seek(0)
        torch.testing.assert_close(torch.load(file, weights_only=False)(x), expected, rtol=0, atol=0)


def test_small_matrices_are_not_packed(monkeypatch, packed_copy_reads):
    layer = packed()
    monkeypatch.setattr("hdlm.network.packed._LARGE", layer.weight.nbytes)
    layer.pack()
    with torch.no_grad():
        layer(torch.randn(3, 48))
    assert not packed_copy_reads


@pytest.mark.parametrize("told", [False, True])
def test_speed_up_keeps_network_outputs(told, packed_copy_reads):
    packed()
    switches = dict.fromkeys(("timestep_embedding", "condition_blocks", "condition_output"), told)
    network = DDiT(DDiTConfig(vocab_size=31, hidden_size=32, num_blocks=2, num_heads=2, **switches)).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    tokens, condition = torch.arange(14).view(2, 7), torch.rand(2, 7) if told else None
    with torch.no_grad():
        expected = network(tokens, condition=condition)
        assert not packed_copy_reads
        network.speed_up()
        torch.testing.assert_close(network(tokens, condition=condition), expected, atol=1e-4, rtol=1e-4)
    embedding = 2 * told  # its two layers
    assert len(packed_copy_reads) == embedding + (4 + told) * 2 + 1 + told
