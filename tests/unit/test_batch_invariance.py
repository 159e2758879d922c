"""Batch-invariant networks: no digit of a sequence depends on the other sequences of a call."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from hdlm.network import DDiT, DDiTConfig
from hdlm.network.packed import PackedLinear, block_rows, in_blocks
from hdlm.network.passes import Pass


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("packed", [False, True])
def test_rows_of_a_linear_layer_do_not_depend_on_other_rows(packed: bool, monkeypatch) -> None:
    monkeypatch.setattr("hdlm.network.packed._LARGE", 0 if packed else 2**40)
    torch.manual_seed(0)
    layer, rows = PackedLinear(96, 192), torch.randn(300, 96)
    layer.pack()
    layer.make_batch_invariant()
    whole = layer(rows)
    for begin, end in ((0, 1), (3, 5), (7, 24), (100, 300), (299, 300)):
        assert torch.equal(layer(rows[begin:end]), whole[begin:end])
    assert torch.allclose(whole, F.linear(rows, layer.weight, layer.bias), atol=1e-5)
    assert layer(rows[:0]).shape == (0, 192)
    assert layer(rows.view(3, 10, 10, 96)).shape == (3, 10, 10, 192)


def test_a_kernel_that_depends_on_the_number_of_rows_gets_blocks_of_one_size() -> None:
    sizes: list[int] = []

    def product(rows: torch.Tensor) -> torch.Tensor:
        sizes.append(len(rows))
        return rows[:, :1] * (1 + 1e-7 * len(rows))

    largest = block_rows(product, 4, torch.zeros(1))
    sizes.clear()
    in_blocks(product, torch.randn(50, 4), largest)
    assert set(sizes) == {16}


def test_a_sequence_has_the_same_digits_alone_and_in_company() -> None:
    torch.manual_seed(0)
    network = DDiT(DDiTConfig(50, 64, 2, 4, 32, timestep_embedding=True, condition_blocks=True)).eval()
    for parameter in network.parameters():
        parameter.copy_(0.2 * torch.randn(parameter.shape))
    network.speed_up(batch_invariant=True)
    passes = [
        Pass(torch.randint(50, (1, width)), condition=torch.rand(1, width)) for width in (1, 7, 3, 40, 16)
    ]
    together = [network.head(hidden) for hidden in network.features_of_many(passes)]
    for one, hidden in zip(passes, together, strict=True):
        assert torch.equal(network(one.tokens, condition=one.condition), hidden)


def test_a_batch_invariant_network_is_not_compiled() -> None:
    with pytest.raises(ValueError, match="choose one"):
        DDiT(DDiTConfig(5, 8, 1, 2, 4)).speed_up(batch_invariant=True, slots=2)
