"""Export to the published layout: the round trip, and models without a published form."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from hdlm import hub
from hdlm.checkpoint import Checkpoint
from hdlm.denoiser import Denoiser
from hdlm.generation import Settings, write
from hdlm.hyperschedule import (
    AbstractHyperschedule,
    Block,
    PublishedSlide,
    PublishedWave,
    Slide,
    Wave,
    autoregressive,
    flat,
)
from hdlm.network import DDiT, DDiTConfig
from hdlm.noise_schedule import AbstractNoiseSchedule, Cosine, Geometric, Linear, LogLinear
from hdlm.parameterization import AbstractParameterization, LogScore, Mean, Shifted
from hdlm.process import GIDD, Absorbing, AbstractNoiseProcess, EpsilonHybrid, GammaHybrid, Uniform
from hdlm.sharing.export import export, published_config
from hdlm.sharing.push import save_pretrained
from hdlm.training import Recipe, Session, StopRequest, build_setup
from hdlm.vocabulary import GPT2, Vocabulary
from tests.tiny import tiny_denoiser

WORDS, LENGTH = 11, 16
LOG_LINEAR = LogLinear(5e-3)


def _checkpoint(
    process: AbstractNoiseProcess | None = None,
    reading: AbstractParameterization | None = None,
    *,
    trained: tuple[AbstractHyperschedule, ...] = (Block(LENGTH, 4, 3),),
    **changes: Any,
) -> Checkpoint:
    process, reading = process or EpsilonHybrid(WORDS, 0.1), reading or Mean()
    scores = isinstance(getattr(reading, "inner", reading), LogScore)
    denoiser = tiny_denoiser(process, reading, conditioned=scores).float()
    denoiser.backbone.config = dataclasses.replace(denoiser.backbone.config, max_length=LENGTH)
    changes.setdefault("noise_schedule", LOG_LINEAR if scores else Linear())
    return Checkpoint(denoiser, Vocabulary(WORDS), hyperschedules=trained, **changes)


def _gamma(noise_schedule: AbstractNoiseSchedule = LOG_LINEAR, **changes: Any) -> Checkpoint:
    """The published setting: no position has a time below 1e-4."""
    floor = float(noise_schedule.fraction(torch.tensor(1e-4, dtype=torch.float64)))
    reading = LogScore(blend_rate=0.05, floor=floor)
    return _checkpoint(GammaHybrid(WORDS, 0.05), reading, noise_schedule=noise_schedule, **changes)


def _denoiser_outputs(checkpoint: Checkpoint) -> torch.Tensor:
    """Denoiser outputs on canvases with masks and wrong words at several noise levels."""
    words = checkpoint.vocabulary.num_words
    generator = torch.Generator().manual_seed(0)
    length = checkpoint.length
    tokens = torch.randint(0, words + 1, (4, length), generator=generator)
    noise = torch.rand(4, length, generator=generator)
    with torch.no_grad():
        return checkpoint.denoiser(tokens, noise)


def _dotted_keys(table: Mapping[str, Any], above: str = "") -> Iterator[str]:
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield from _dotted_keys(value, f"{above}{name}.")
        else:
            yield above + name


FAMILIES = {
    "epsilon": lambda **o: _checkpoint(**o),
    "epsilon, shifted": lambda **o: _checkpoint(reading=Shifted(Mean()), **o),
    "epsilon 0": lambda **o: _checkpoint(EpsilonHybrid(WORDS, 0.0), **o),
    "gamma": lambda **o: _gamma(**o),
    "gamma, shifted": lambda **o: _checkpoint(GammaHybrid(WORDS, 0.05), Shifted(LogScore()), **o),
    "gamma, plain scores": lambda **o: _checkpoint(
        GammaHybrid(WORDS, 0.05), LogScore(scale_by_sigma=False), **o
    ),
    "gamma, geometric": lambda **o: _gamma(noise_schedule=Geometric(1e-3, 5.0), **o),
    "gamma, floor": lambda **o: _checkpoint(GammaHybrid(WORDS, 0.05), LogScore(floor=0.01), **o),
    "absorbing scores": lambda **o: _checkpoint(Absorbing(WORDS), LogScore(blend_rate=0.2), **o),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_export_round_trip_keeps_outputs_and_config(tmp_path: Path, family: str) -> None:
    ours = FAMILIES[family](context="causal", active="causal")
    export(ours, tmp_path)
    read = hub.load(tmp_path)
    assert torch.equal(_denoiser_outputs(read), _denoiser_outputs(ours))
    for name, value in ours.config().items():
        assert name == "training" or read.config()[name] == value
    assert hub.inspect(tmp_path).blueprint.unknown == ()


def test_export_of_uniform_process_without_mask_row_round_trip(tmp_path: Path) -> None:
    ours = _checkpoint(Uniform(WORDS), LogScore())
    shape = dataclasses.replace(ours.network.config, vocab_size=WORDS)
    ours.denoiser.backbone = DDiT(shape).eval()
    export(ours, tmp_path)
    assert torch.equal(
        _denoiser_outputs_without_masks(hub.load(tmp_path)), _denoiser_outputs_without_masks(ours)
    )


def _denoiser_outputs_without_masks(checkpoint: Checkpoint) -> torch.Tensor:
    tokens = torch.arange(LENGTH)[None] % WORDS
    with torch.no_grad():
        return checkpoint.denoiser(tokens, torch.full((1, LENGTH), 0.4))


def test_export_of_absorbing_loads_as_epsilon_hybrid_of_0(tmp_path: Path) -> None:
    ours = _checkpoint(Absorbing(WORDS))
    export(ours, tmp_path)
    read = hub.load(tmp_path)
    assert read.denoiser.process == EpsilonHybrid(WORDS, 0.0)
    assert torch.equal(_denoiser_outputs(read), _denoiser_outputs(ours))


SCHEDULES = {
    Block(LENGTH, 4, 3): "block",
    autoregressive(LENGTH): "block",
    flat(LENGTH, 6): "none",
    PublishedSlide(LENGTH, 4, 6): "simple",
    Slide(LENGTH, 4, 4): "simple",
    PublishedWave(LENGTH, 4, 3): "hybrid",
}


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_export_round_trip_keeps_hyperschedule(tmp_path: Path, schedule: AbstractHyperschedule) -> None:
    ours = _checkpoint(trained=(schedule,))
    assert published_config(ours)["annealing"]["type"] == SCHEDULES[schedule]
    export(ours, tmp_path)
    assert hub.load(tmp_path).hyperschedules == (schedule,)


@pytest.mark.parametrize("width", [1, 2, 5, LENGTH])
def test_export_of_slide_with_width_levels_equals_published_slide(tmp_path: Path, width: int) -> None:
    ours = Slide(LENGTH, width, width)
    export(_checkpoint(trained=(ours,)), tmp_path)
    (read,) = hub.load(tmp_path).hyperschedules
    assert read == ours
    steps = torch.arange(ours.num_steps + 2)
    assert torch.equal(read.levels(steps), PublishedSlide(LENGTH, width, width).levels(steps))


def test_export_writes_tau_and_eval_tau(tmp_path: Path) -> None:
    trained = (Block(LENGTH, 4, 8), Wave(LENGTH, 4, 2), Block(LENGTH, 4, 3))
    export(_checkpoint(trained=trained), tmp_path)
    annealing = json.loads((tmp_path / "config.json").read_text())["annealing"]
    assert (annealing["tau"], annealing["eval_tau"]) == (3, 8)
    assert hub.load(tmp_path).hyperschedules == (Block(LENGTH, 4, 8), Block(LENGTH, 4, 3))


@pytest.mark.parametrize("family", ["epsilon", "gamma"])
def test_the_config_has_the_keys_of_published_ones(shared: Path, family: str) -> None:
    published = json.loads((shared / "golden" / family / "config.json").read_text())
    ours = published_config(FAMILIES[family](trained=(Block(LENGTH, 8, 4),)))
    assert set(_dotted_keys(ours)) == set(_dotted_keys(published))
    for key in ("model_type", "annealing", "data", "experiment"):
        assert ours[key] == published[key]
    assert {key: type(value) for key, value in ours["model"].items()} == {
        key: type(value) for key, value in published["model"].items()
    }


GOLDEN = ("epsilon", "gamma", "epsilon_vocab50257", "gamma_vocab50257")


@pytest.mark.parametrize("name", GOLDEN)
def test_export_of_published_checkpoint_reproduces_its_files(shared: Path, tmp_path: Path, name: str) -> None:
    source = shared / "golden" / name
    export(hub.load(source), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()) == json.loads(
        (source / "config.json").read_text()
    )
    written, published = (load_file(folder / "model.safetensors") for folder in (tmp_path, source))
    assert written.keys() == published.keys()
    for tensor, value in published.items():
        torch.testing.assert_close(written[tensor], value, atol=1e-7, rtol=1e-6)


def test_export_writes_published_tensor_names(shared: Path, tmp_path: Path) -> None:
    for family in ("epsilon", "gamma"):
        export(FAMILIES[family](), tmp_path)
        published = load_file(shared / "golden" / family / "model.safetensors")
        assert load_file(tmp_path / "model.safetensors").keys() == published.keys()


def test_exported_files_hold_the_same_content(tmp_path: Path) -> None:
    export(_gamma(), tmp_path, pickled=True)
    names = {file.name for file in tmp_path.iterdir()}
    assert names == {"config.json", "config.yaml", "model.safetensors", "pytorch_model.bin", "README.md"}
    config = json.loads((tmp_path / "config.json").read_text())
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == config
    pickled = torch.load(tmp_path / "pytorch_model.bin", weights_only=True)
    tensors = load_file(tmp_path / "model.safetensors")
    assert pickled.keys() == tensors.keys()
    assert all(torch.equal(pickled[name], value) for name, value in tensors.items())
    by_file = hub.load(tmp_path / "pytorch_model.bin")
    assert torch.equal(_denoiser_outputs(by_file), _denoiser_outputs(_gamma()))


@pytest.mark.parametrize("tokenizer", [None, '{"model": {}}'])
def test_published_config_names_gpt2_or_tokenizer_file(tokenizer: str | None) -> None:
    with torch.device("meta"):
        network = DDiT(DDiTConfig(GPT2.size, hidden_size=4, num_blocks=1, num_heads=1, max_length=LENGTH))
    denoiser = Denoiser(network, EpsilonHybrid(GPT2.num_words, 0.1), Mean())
    for vocabulary, name in ((GPT2, "gpt2"), (Vocabulary(GPT2.num_words), tokenizer and "tokenizer.json")):
        ours = Checkpoint(denoiser, vocabulary, tokenizer_json=tokenizer)
        assert published_config(ours)["tokenizer"] == {"tokens": GPT2.num_words, "model": name}


def _with_network(**changes: Any) -> Checkpoint:
    ours = _gamma()
    shape = dataclasses.replace(ours.network.config, **changes)
    ours.denoiser.backbone = DDiT(shape)
    return ours


FORMLESS = {
    "process": (lambda: _checkpoint(GIDD(WORDS, 0.2)), r"GIDD.*have no published form.*layout of hdlm"),
    "reading": (lambda: _checkpoint(GammaHybrid(WORDS, 0.1)), r"GammaHybrid.*Mean.*no published form"),
    "told": (lambda: _checkpoint(reading=LogScore()), r"EpsilonHybrid.*LogScore.*no published form"),
    "blend": (
        lambda: _checkpoint(GammaHybrid(WORDS, 0.1), LogScore(blend_rate=0.2)),
        r"blend_rate=0\.2.*published is a `blend_rate` of gamma=0\.1, or none",
    ),
    "shared": (
        lambda: _checkpoint(GammaHybrid(WORDS, 0.1), LogScore(shared=True)),
        r"shared=True.*published is one in which every position gets its own",
    ),
    "noise": (lambda: _gamma(noise_schedule=Cosine()), r"Cosine\(.*\) has no published form.*LogLinear"),
    "noise of epsilon": (
        lambda: _checkpoint(noise_schedule=LOG_LINEAR),
        r"LogLinear.*published is `Linear\(\)`.*dataclasses\.replace",
    ),
    "output": (lambda: _with_network(condition_output=True), r"condition_output=False"),
    "feed-forward": (lambda: _with_network(mlp_ratio=2), r"mlp_ratio=2.*published is one of `mlp_ratio=4`"),
    "wave": (lambda: _checkpoint(trained=(Wave(LENGTH, 4, 3),)), r"Wave.*no published form.*PublishedWave"),
    "slide": (
        lambda: _checkpoint(trained=(Slide(LENGTH, 2, 3), Wave(LENGTH, 4, 3), Slide(LENGTH, 4, 4))),
        r"Slide\(length=16, width=2, num_levels=3\).*choose by number: 2: Slide\(length=16, width=4",
    ),
    "length": (lambda: _checkpoint(trained=(Block(8, 4, 2),)), r"Block\(length=8.*over the whole context"),
}


@pytest.mark.parametrize("fault", FORMLESS)
def test_export_rejects_and_names_what_has_no_published_form(tmp_path: Path, fault: str) -> None:
    make, complaint = FORMLESS[fault]
    with pytest.raises(ValueError, match=complaint):
        export(make(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_export_selects_hyperschedule_by_index(tmp_path: Path) -> None:
    ours = _checkpoint(trained=(Wave(LENGTH, 4, 3), Slide(LENGTH, 4, 4)))
    export(ours, tmp_path, hyperschedule=1)
    assert hub.load(tmp_path).hyperschedules == (Slide(LENGTH, 4, 4),)
    for index in (2, -1):
        with pytest.raises(ValueError, match=rf"lists 2 hyperschedules, from 0 to 1; got {index}"):
            published_config(ours, index)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A model that was trained for a few steps on a rhyme."""
    folder = tmp_path_factory.mktemp("run")
    text = folder / "rhyme.txt"
    text.write_text("the cat sat on the mat and the dog sat on the log . " * 60)
    recipe = {
        "data": {"corpus": [str(text)], "vocabulary": 270, "context": 16, "validation": 0.1},
        "network": {"hidden_size": 16, "num_blocks": 1, "num_heads": 2, "shifted": True},
        "mixture": [{"hyperschedule": {"type": "Block", "width": 4, "num_levels": 4}}],
        "optimizer": {"name": "adamw", "matrix_rate": 0.01, "weight_decay": 0.02, "warmup": 0.2, "ema": 0.9},
        "run": {"steps": 10, "batch_size": 4, "precision": "no"},
    }
    Session(build_setup(Recipe.from_table(recipe), torch.device("cpu")), folder / "out").execute(
        StopRequest()
    )
    return hub.load(folder / "out")


def test_trained_model_exports_and_loads_with_same_outputs(trained: Checkpoint, tmp_path: Path) -> None:
    export(trained, tmp_path)
    read = hub.load(tmp_path)
    assert torch.equal(_denoiser_outputs(read), _denoiser_outputs(trained))
    assert read.tokenizer_json == trained.tokenizer_json
    settings = Settings("acs", eta=0.2)
    assert write(read, "the cat", settings, seed=3) == write(trained, "the cat", settings, seed=3)


def test_published_config_records_training_options(trained: Checkpoint) -> None:
    config = published_config(trained)
    assert config["type"] == "shifted"
    assert config["training"]["n_iters"] == 10
    assert config["training"]["warmup_iter"] == 2
    assert config["training"]["ema"] == 0.9
    assert config["training"]["lambda"] == trained.training["recipe"]["objective"]["unmasked"]
    assert config["optim"]["lr"] == 0.01
    assert config["optim"]["weight_decay"] == 0.02
    assert config["tokenizer"] == {"tokens": trained.vocabulary.num_words, "model": "tokenizer.json"}


def test_hdlm_and_published_layouts_hold_the_same_model(trained: Checkpoint, tmp_path: Path) -> None:
    save_pretrained(trained, tmp_path / "ours")
    export(hub.load(tmp_path / "ours"), tmp_path / "published")
    assert torch.equal(
        _denoiser_outputs(hub.load(tmp_path / "published")), _denoiser_outputs(hub.load(tmp_path / "ours"))
    )
