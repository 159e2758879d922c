"""Checkpoints: saving and loading are inverse, and errors name the fault."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hdlm import checkpoint as module
from hdlm import hyperschedule, noise_schedule, parameterization, process
from hdlm.checkpoint import Checkpoint, build, describe, load_checkpoint, save_checkpoint
from hdlm.denoiser import Denoiser
from hdlm.hyperschedule import Block, Slide
from hdlm.network import DDiT, DDiTConfig
from hdlm.noise_schedule import Cosine
from hdlm.parameterization import LogScore, Mean, Shifted
from hdlm.process import EpsilonHybrid, GammaHybrid
from hdlm.vocabulary import Vocabulary

WORDS = 11


def _checkpoint(**changes: object) -> Checkpoint:
    torch.manual_seed(0)
    network = DDiT(DDiTConfig(vocab_size=WORDS + 1, hidden_size=8, num_blocks=2, num_heads=2, max_length=16))
    torch.nn.init.normal_(network.output_layer.linear.weight)
    whole = Checkpoint(
        Denoiser(network, EpsilonHybrid(WORDS, 0.1), Shifted(Mean())),
        Vocabulary(WORDS, eos=3),
        Cosine(),
        (Block(16, 4, 8), Slide(16, 4, 4)),
        tokenizer_json='{"model": null}',
        training={"steps": 7},
    )
    return dataclasses.replace(whole, **changes)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "model", _checkpoint())
    return tmp_path / "model"


def test_checkpoint_round_trip_keeps_config_and_weights(folder: Path) -> None:
    saved, loaded = _checkpoint(), load_checkpoint(folder)
    assert loaded.config() == saved.config()
    assert loaded.tokenizer_json == saved.tokenizer_json
    assert loaded.hyperschedules == saved.hyperschedules
    assert not loaded.denoiser.training
    tokens = torch.randint(WORDS + 1, (3, 16), generator=torch.Generator().manual_seed(1))
    assert torch.equal(loaded.network(tokens), saved.network(tokens))


def test_saving_loaded_checkpoint_writes_identical_files(folder: Path) -> None:
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    save_checkpoint(folder, load_checkpoint(folder))
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_load_checkpoint_selects_averaged_or_raw_weights(tmp_path: Path) -> None:
    whole = _checkpoint()
    averaged = dict(whole.network.state_dict())
    averaged |= {name: value.detach() + 1 for name, value in whole.network.named_parameters()}
    save_checkpoint(tmp_path, whole, averaged=averaged)
    for weights, shift in (("averaged", 1.0), ("raw", 0.0)):
        loaded = dict(load_checkpoint(tmp_path, weights=weights).network.named_parameters())
        for name, value in whole.network.named_parameters():
            assert torch.equal(loaded[name], value + shift)


def test_checkpoint_saved_in_bfloat16_loads_as_float32(tmp_path: Path) -> None:
    whole = _checkpoint()
    save_checkpoint(tmp_path, whole, dtype=torch.bfloat16)
    assert {value.dtype for value in load_file(tmp_path / "model.safetensors").values()} == {torch.bfloat16}
    for name, value in load_checkpoint(tmp_path).network.state_dict().items():
        assert value.dtype == torch.float32
        written = whole.network.state_dict()[name]
        frequencies = name == "rotary_emb.inv_freq"  # recomputed on load, because rounded frequencies drift
        assert torch.equal(value, written if frequencies else written.bfloat16().float())


def test_interrupted_save_keeps_previous_checkpoint(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (folder / "model.safetensors").read_bytes()

    def killed(self: Path, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(folder, _checkpoint(training={"steps": 8}))
    assert (folder / "model.safetensors").read_bytes() == before
    assert load_checkpoint(folder).training == {"steps": 7}


@pytest.mark.parametrize(
    ("offered", "piece"),
    [
        (process, GammaHybrid(5, 0.3)),
        (hyperschedule, hyperschedule.PublishedWave(32, 8, 4)),
        (noise_schedule, noise_schedule.Geometric(1e-3, 5.0)),
        (parameterization, Shifted(LogScore(blend_rate=0.1))),
    ],
)
def test_describe_and_build_round_trip(offered: object, piece: object) -> None:
    assert build(offered, json.loads(json.dumps(describe(piece)))) == piece


def test_describe_rejects_objects_that_are_not_dataclasses() -> None:
    for piece in (3, object(), Cosine):
        with pytest.raises(ValueError, match="only dataclasses can be described"):
            describe(piece)


def _rewrite(folder: Path, change: Callable[[dict], object]) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


CONFIG_FAULTS = {
    "another format": (lambda c: c.update(format=99), "`format` 1; got 99"),
    "a missing piece": (lambda c: c.pop("process"), "lacks process"),
    "an unknown process": (lambda c: c["process"].update(type="Sparkling"), "no process 'Sparkling'"),
    "a function for a class": (lambda c: c["process"].update(type="os.system"), "no process 'os.system'"),
    "a misspelt option": (lambda c: c["process"].update(epsilom=0.1), "did you mean epsilon"),
    "a missing option": (lambda c: c["process"].pop("epsilon"), "epsilon"),
    "an impossible option": (lambda c: c["process"].update(epsilon=2), "epsilon"),
    "an impossible hyperschedule": (lambda c: c["hyperschedules"][0].update(width=99), "width"),
    "a bad network": (lambda c: c["network"].update(num_heads=3), "num_heads"),
    "no network": (lambda c: c.update(network=None), "config.json"),
    "another vocabulary": (lambda c: c["vocabulary"].update(num_words=12), "vocabulary does not match"),
    "a vocabulary of other things": (lambda c: c["vocabulary"].update(spam=1), "spam"),
    "other shapes": (
        lambda c: c["network"].update(hidden_size=16),
        r"has shape \[.*\], but the config needs",
    ),
    "more blocks": (lambda c: c["network"].update(num_blocks=3), r"missing blocks\.2"),
    "fewer blocks": (lambda c: c["network"].update(num_blocks=1), r"unexpected blocks\.1"),
}


@pytest.mark.parametrize("fault", CONFIG_FAULTS)
def test_load_checkpoint_rejects_config_that_contradicts_weights_or_format(folder: Path, fault: str) -> None:
    change, complaint = CONFIG_FAULTS[fault]
    _rewrite(folder, change)
    with pytest.raises(ValueError, match=complaint):
        load_checkpoint(folder)


@pytest.mark.parametrize("content", [b"", b"not json", b"[]", b"\xff\xfe"])
def test_load_checkpoint_names_damaged_config(folder: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"config\.json"):
        load_checkpoint(folder)


@pytest.mark.parametrize("keep", [0, 4, 200, -1])
def test_load_checkpoint_names_truncated_weights(folder: Path, keep: int) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        load_checkpoint(folder)


def test_load_checkpoint_names_unexpected_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "stowaway": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(ValueError, match="unexpected stowaway"):
        load_checkpoint(folder)


def test_load_checkpoint_names_missing_files(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"raw\.safetensors is missing"):
        load_checkpoint(folder, weights="raw")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"model\.safetensors is missing"):
        load_checkpoint(folder)
    with pytest.raises(ValueError, match="no checkpoint folder"):
        load_checkpoint(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"no config\.json"):
        load_checkpoint(tmp_path)


def test_checkpoint_rejects_vocabulary_of_other_size() -> None:
    with pytest.raises(ValueError, match="vocabulary does not match"):
        _checkpoint(vocabulary=Vocabulary(WORDS + 1))


def test_checkpoint_format_source_uses_no_pickle() -> None:
    files = sorted(Path(module.__file__).parent.glob("*.py"))
    assert len(files) > 3
    assert not [file.name for file in files if re.search(r"import pickle|torch\.load", file.read_text())]
