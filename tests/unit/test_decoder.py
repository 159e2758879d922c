"""The decoder: caches, packing, recomputation and masks change no number; rotary scalings are those of transformers."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

import hdlm
from hdlm.hyperschedule import autoregressive
from hdlm.network import Decoder, DecoderConfig, Pass, RotaryScaling, build_network, read_network_config
from hdlm.network.rotary import Rotary

LLAMA = DecoderConfig(30, 32, 2, 4, 2, 8, 48, max_length=64)
FAMILIES = {
    "llama": LLAMA,
    "llama3": dataclasses.replace(LLAMA, rotary_scaling=RotaryScaling("llama3", 8.0, 16)),
    "yarn": dataclasses.replace(LLAMA, rotary_scaling=RotaryScaling("yarn", 4.0, 16)),
    "qwen2": dataclasses.replace(LLAMA, qkv_bias=True, tied=True, num_kv_heads=1),
    "qwen3": dataclasses.replace(LLAMA, qk_norm=True, head_dim=16),
    "gpt2": dataclasses.replace(
        LLAMA,
        num_kv_heads=4,
        norm="layer",
        activation="gelu_tanh",
        gated=False,
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        learned_positions=True,
        tied=True,
    ),
}


@pytest.fixture(params=FAMILIES)
def network(request: pytest.FixtureRequest) -> Decoder:
    torch.manual_seed(0)
    made = Decoder(FAMILIES[request.param])
    for parameter in made.parameters():  # biases and norms too
        torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.3)
    return made.eval()


def tokens(rows: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(30, (rows, length), generator=torch.Generator().manual_seed(seed))


def causal(length: int) -> Tensor:
    return torch.ones(1, length, length, dtype=torch.bool).tril()


@torch.no_grad()
def test_a_cache_changes_no_logit(network: Decoder) -> None:
    x, mask = tokens(2, 12), causal(12)
    cache = network.new_cache()
    network(x[:, :5], attention=mask[:, :5, :5], cache=cache, store=torch.arange(5))
    first = network(x[:, 5:9], attention=mask[:, 5:9, :9], cache=cache, store=torch.arange(2))
    second = network(x[:, 7:], attention=mask[:, 7:], cache=cache)
    whole = network(x, attention=mask)
    torch.testing.assert_close(first, whole[:, 5:9], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(second, whole[:, 7:], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_positions_are_honoured_in_any_order(network: Decoder) -> None:
    x, order = tokens(2, 9), torch.randperm(9, generator=torch.Generator().manual_seed(1))
    shuffled = network(x[:, order], positions=order[None], attention=causal(9)[:, order][:, :, order])
    torch.testing.assert_close(shuffled, network(x, attention=causal(9))[:, order], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_several_passes_in_one_equal_each_alone(network: Decoder) -> None:
    passes = [Pass(tokens(1, 7, 1), attention=causal(7)), Pass(tokens(2, 4, 2), torch.arange(3, 7)[None])]
    together = network.features_of_many(passes)
    for hidden, one in zip(together, passes, strict=True):
        alone = network.features(one.tokens, positions=one.positions, attention=one.attention)
        torch.testing.assert_close(hidden, alone, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_static_buffers_change_no_logit(network: Decoder) -> None:
    x = tokens(1, 10)
    plain = network.features(x[:, 4:], positions=torch.arange(4, 10)[None], attention=causal(6))
    network.speed_up(slots=2)
    cache = network.new_cache()
    static = network.features(x[:, 4:], positions=torch.arange(4, 10)[None], attention=causal(6), cache=cache)
    assert network.static is not None
    assert network.static.num_calls == 1
    torch.testing.assert_close(static, plain, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("recomputation", ["selective", "full"])
def test_recomputation_changes_no_gradient(network: Decoder, recomputation: str) -> None:
    def gradients(how: str) -> list[Tensor]:
        network.checkpoint_activations = how  # type: ignore[assignment]
        network.zero_grad()
        network(tokens(2, 8), attention=causal(8)).square().mean().backward()
        return [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]

    plain, recomputed = gradients("none"), gradients(recomputation)
    assert len(plain) == len(list(network.parameters()))
    torch.testing.assert_close(recomputed, plain, atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_a_query_that_may_attend_to_nothing_attends_to_all_keys_equally(network: Decoder) -> None:
    x = tokens(1, 6)
    closed = torch.ones(1, 6, 6, dtype=torch.bool)
    closed[:, 3] = False
    assert network(x, attention=closed).isfinite().all()
    other = network(x.flip(1).roll(3, 1), attention=closed)
    assert other.isfinite().all()


@torch.no_grad()
def test_full_blend_replaces_every_token_by_the_last_row(network: Decoder) -> None:
    blended = network(tokens(1, 6), blend=torch.ones(1, 6))
    torch.testing.assert_close(blended, network(torch.full((1, 6), 29)), atol=1e-5, rtol=1e-5)


def test_a_condition_is_refused(network: Decoder) -> None:
    with pytest.raises(ValueError, match="no noise level"):
        network(tokens(1, 3), condition=torch.ones(1, 3))


@pytest.mark.parametrize("name", list(FAMILIES))
def test_a_config_survives_as_a_table(name: str) -> None:
    config = FAMILIES[name]
    assert read_network_config(config.to_dict()) == config
    assert build_network(config).config == config


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("num_kv_heads", 3),
        ("head_dim", 7),
        ("norm", "batch"),
        ("activation", "tanh"),
        ("tied", 1),
        ("norm_epsilon", 0.0),
        ("dropout", 1.0),
        ("hidden_size", 0),
    ],
)
def test_a_wrong_option_is_named(option: str, value: object) -> None:
    with pytest.raises(ValueError, match=option):
        read_network_config({**LLAMA.to_dict(), option: value})


def test_an_unknown_network_type_is_named() -> None:
    with pytest.raises(ValueError, match="'Mamba'"):
        read_network_config({"type": "Mamba"})


@pytest.mark.parametrize(
    ("scaling", "table"),
    [
        (RotaryScaling("linear", 4.0), {"rope_type": "linear", "factor": 4.0}),
        (
            RotaryScaling("llama3", 8.0, 512, 1.0, 4.0),
            {
                "rope_type": "llama3",
                "factor": 8.0,
                "original_max_position_embeddings": 512,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
            },
        ),
        (
            RotaryScaling("yarn", 4.0, 1024),
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024},
        ),
    ],
    ids=lambda value: value.type if isinstance(value, RotaryScaling) else "",
)
def test_rotary_scalings_are_those_of_transformers(scaling: RotaryScaling, table: dict[str, object]) -> None:
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = transformers.LlamaConfig(
        hidden_size=256,
        num_attention_heads=4,
        rope_theta=500_000.0,
        rope_scaling=table,
        max_position_embeddings=4096,
    )
    frequencies, magnitude = ROPE_INIT_FUNCTIONS[table["rope_type"]](config, torch.device("cpu"))
    ours = Rotary(64, 500_000.0, scaling)
    torch.testing.assert_close(ours.inv_freq, frequencies, rtol=1e-6, atol=0)
    assert ours.magnitude == pytest.approx(magnitude)


def test_a_checkpoint_with_a_decoder_is_saved_and_loaded(network: Decoder, tmp_path: Path) -> None:
    denoiser = hdlm.Denoiser(network, hdlm.Absorbing(29), hdlm.Shifted(hdlm.Mean()))
    checkpoint = hdlm.Checkpoint(denoiser, hdlm.Vocabulary(29, bos=0), hyperschedules=(autoregressive(16),))
    checkpoint.save(tmp_path / "model")
    loaded = hdlm.load(tmp_path / "model")
    assert loaded.network.config == network.config
    x = tokens(2, 9)
    with torch.no_grad():
        torch.testing.assert_close(loaded.network(x), network(x), atol=0, rtol=0)
