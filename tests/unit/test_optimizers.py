"""Optimizers: the parameter groups, and Muon compared with `torch.optim.Muon`."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from hdlm.network import DDiT, DDiTConfig
from hdlm.training import Muon, make_optimizers, orthogonalise
from hdlm.training.recipe import OptimizerSettings


def _network() -> DDiT:
    sizes = {"vocab_size": 11, "hidden_size": 8, "num_blocks": 2, "num_heads": 2, "cond_dim": 4}
    return DDiT(DDiTConfig(**sizes, timestep_embedding=True, condition_blocks=True))


def _groups(network: DDiT, settings: OptimizerSettings) -> dict[str, dict[str, float]]:
    """The group of each weight, by its name."""
    names = {id(weight): name for name, weight in network.named_parameters()}
    return {
        names[id(weight)]: group
        for optimizer in make_optimizers(network, settings)
        for group in optimizer.param_groups
        for weight in group["params"]
    }


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_make_optimizers_covers_every_weight_once(name: str) -> None:
    network = _network()
    optimizers = make_optimizers(network, OptimizerSettings(name=name))
    moved = [id(w) for one in optimizers for group in one.param_groups for w in group["params"]]
    assert sorted(moved) == sorted(map(id, network.parameters()))


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_weight_decay_skips_vectors_and_embeddings_by_default(name: str) -> None:
    network = _network()
    groups = _groups(network, OptimizerSettings(name=name, weight_decay=0.3))
    spared = {one for one, group in groups.items() if group["weight_decay"] == 0}
    vectors = {one for one, weight in network.named_parameters() if weight.ndim < 2}
    assert spared == vectors | {"vocab_embed.embedding"}
    assert {group["weight_decay"] for one, group in groups.items() if one not in spared} == {0.3}
    everything = _groups(network, OptimizerSettings(name=name, weight_decay=0.3, decay="all"))
    assert {group["weight_decay"] for group in everything.values()} == {0.3}


def test_parameter_groups_have_their_learning_rates() -> None:
    settings = OptimizerSettings(name="adamw", matrix_rate=1.0, embedding_rate=2.0, head_rate=3.0)
    rates = {name: group["lr"] for name, group in _groups(_network(), settings).items()}
    assert rates["blocks.1.attn_qkv.weight"] == 1.0
    assert rates["vocab_embed.embedding"] == 2.0
    assert {rates[name] for name in ("output_layer.linear.weight", "blocks.0.norm1.weight")} == {3.0}


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 24, 8), (2, 8, 32)])
def test_orthogonalise_gives_singular_values_near_one(shape: tuple[int, ...]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalise(matrices))
    assert values.min() > 0.3
    assert values.max() < 1.3
    same = orthogonalise(matrices.flatten(0, 1)[: shape[1]][None])[0]
    torch.testing.assert_close(same, orthogonalise(matrices)[0])


@pytest.mark.parametrize("shape", [(8, 6), (4, 12)])
@pytest.mark.parametrize("scale", ["original", "match_rms_adamw"])
def test_muon_equals_torch_muon_without_bfloat16(
    shape: tuple[int, int], scale: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)
    generator = torch.Generator().manual_seed(0)
    start, gradients = torch.randn(shape, generator=generator), torch.randn(6, *shape, generator=generator)
    weights = [nn.Parameter(start.clone()) for _ in range(3)]
    settings = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.05, "adjust_lr_fn": scale}
    ours, theirs = Muon([weights[0]], **settings), torch.optim.Muon([weights[1]], **settings)
    taken_over = Muon([weights[2]], lr=1.0)

    def step(optimizer: torch.optim.Optimizer, weight: nn.Parameter, number: int) -> None:
        weight.grad = gradients[number].clone()
        optimizer.step()

    for number in range(6):
        step(ours, weights[0], number)
        if number < 3:
            step(theirs, weights[1], number)
    with torch.no_grad():
        weights[2].copy_(weights[1])
    taken_over.load_state_dict(copy.deepcopy(theirs.state_dict()))
    for number in range(3, 6):
        step(theirs, weights[1], number)
        step(taken_over, weights[2], number)
    torch.testing.assert_close(weights[0], weights[1])
    torch.testing.assert_close(weights[2], weights[1])


def test_muon_rejects_vectors() -> None:
    with pytest.raises(ValueError, match="2D"):
        Muon([nn.Parameter(torch.zeros(3))], lr=0.1)


def test_muon_step_on_cpu_stays_in_float32() -> None:
    """In bfloat16 the singular values of this update would deviate beyond the tolerance."""
    weight = nn.Parameter(torch.zeros(6, 6))
    weight.grad = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    expected = orthogonalise(0.0975 * weight.grad[None])[0]
    settings = OptimizerSettings(name="muon", matrix_rate=1.0)
    network = _network()
    network.blocks[0].attn_out.weight = weight
    make_optimizers(network, settings)[0].step()
    torch.testing.assert_close(weight.detach(), -expected, atol=1e-6, rtol=1e-6)
