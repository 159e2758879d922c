"""Low-rank adapters: they begin without an effect, only they are trained, and checkpoints have them merged."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

import hdlm
from hdlm.network import Decoder, DecoderConfig
from hdlm.network.build import build_network
from hdlm.training import Recipe, build_setup
from hdlm.training.lora import adapters_of, add_adapters, merged
from hdlm.training.recipe import LoraSettings
from tests.unit.test_open_recipes import TEXT, _table, _trained

# To import peft takes three seconds, which each worker would spend.
pytestmark = pytest.mark.skipif(find_spec("peft") is None, reason="pip install 'hdlm[lora]'")
CONFIG = DecoderConfig(20, 16, 2, 4, 2, 4, 32, qkv_bias=True)
LORA = {"rank": 2, "alpha": 4}


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text(TEXT * 40)
    return file


@torch.no_grad()
def test_new_adapters_change_no_logit() -> None:
    network = Decoder(CONFIG).eval()
    ids = torch.arange(12).view(2, 6)
    before, plain = network(ids), {name: v.clone() for name, v in network.state_dict().items()}
    add_adapters(network, LoraSettings(2))
    assert torch.equal(network(ids), before)
    again = merged(network, network.state_dict())
    assert again.keys() == plain.keys()
    assert all(torch.equal(again[name], value) for name, value in plain.items())


@torch.no_grad()
def test_merged_weights_have_the_logits_of_the_adapters() -> None:
    network = Decoder(CONFIG).eval()
    add_adapters(network, LoraSettings(2, layers=("qkv", "down")))
    for name, parameter in network.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter)
    ids = torch.arange(12).view(2, 6)
    other = build_network(CONFIG).eval()
    other.load_state_dict(merged(network, network.state_dict()))
    torch.testing.assert_close(other(ids), network(ids), rtol=1e-3, atol=1e-3)
    layers = {name.split(".")[2] for name in adapters_of(network.state_dict())}
    assert layers == {"qkv", "down"}


def test_only_adapters_are_trained() -> None:
    network = Decoder(CONFIG)
    add_adapters(network, LoraSettings(2))
    assert all(p.requires_grad == ("lora_" in name) for name, p in network.named_parameters())
    other = Decoder(CONFIG)
    add_adapters(other, LoraSettings(2, embeddings=True))
    trained = {name for name, p in other.named_parameters() if p.requires_grad and "lora_" not in name}
    assert trained == {"vocab_embed.weight", "output_layer.weight"}
    with pytest.raises(ValueError, match=r"lora\.layers"):
        add_adapters(Decoder(CONFIG), LoraSettings(2, layers=("nothing",)))


@pytest.mark.parametrize("optimizer", ["adamw", pytest.param("muon", marks=pytest.mark.slow)])
def test_run_with_adapters_resumes_to_the_bit(optimizer: str, text: Path, tmp_path: Path) -> None:
    embeddings = {"embeddings": True}  # the output layer of this network begins at 0
    changes: dict[str, Any] = {"lora": LORA | embeddings, "optimizer": {"name": optimizer}}
    table = _table(text, **changes)
    through = _trained(table, tmp_path / "through")
    interrupted = _trained(table, tmp_path / "interrupted", pause=2)
    assert all(torch.equal(value, interrupted[name]) for name, value in through.items())
    model = hdlm.load(tmp_path / "through")
    start = build_setup(Recipe.from_table(table), torch.device("cpu")).denoiser.backbone
    own = merged(start, start.state_dict())
    assert own.keys() == through.keys() == model.network.state_dict().keys()
    moved = {name for name, value in through.items() if not torch.equal(own[name], value)}
    assert "vocab_embed.embedding" in moved
    assert any(name.startswith("blocks.") for name in moved)
    assert not any("norm" in name for name in moved)


def test_model_with_adapters_is_finetuned_and_exported(shared: Path, tmp_path: Path) -> None:
    from hdlm.sharing.export import export

    source = shared / "golden" / "modern" / "causal" / "qwen3"
    made = hdlm.finetune(
        source,
        [TEXT * 20] * 4,
        output=tmp_path / "run",
        steps=2,
        to="diffusion",
        recipe={"data": {"context": 16}, "run": {"batch_size": 2, "precision": "no"}, "lora": LORA},
        progress=False,
    )
    export(made, tmp_path / "exported")
    again = hdlm.load(tmp_path / "exported")
    for name, value in made.network.state_dict().items():
        assert torch.equal(again.network.state_dict()[name], value), name
