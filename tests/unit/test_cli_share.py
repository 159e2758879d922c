"""`hdlm export`, `hdlm push` and `hdlm info`, and that every verb takes every kind of checkpoint."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from hdlm import hub
from hdlm.checkpoint import Checkpoint, save_checkpoint
from hdlm.cli import main
from hdlm.data import train_tokenizer
from hdlm.hyperschedule import Block, Slide, Wave
from hdlm.process import EpsilonHybrid
from hdlm.sharing.export import export
from tests.hub_cache import publish, use
from tests.tiny import tiny_denoiser

LENGTH = 8
NAME = "somebody/some-model"


@pytest.fixture
def hdlm(capsys):
    """Run `hdlm`; the answer is (exit status, standard output, standard error)."""

    def run(*words: object) -> tuple[int, str, str]:
        return main([str(word) for word in words]), *capsys.readouterr()

    return run


@pytest.fixture
def ours() -> Checkpoint:
    tokenizer = train_tokenizer(["some words, and some more"], 270)
    denoiser = tiny_denoiser(EpsilonHybrid(tokenizer.vocabulary.num_words, 0.1)).float()
    denoiser.backbone.config = dataclasses.replace(denoiser.backbone.config, max_length=LENGTH)
    trained = (Slide(LENGTH, 4, 4), Wave(LENGTH, 4, 2), Block(LENGTH, 4, 2))
    return Checkpoint(
        denoiser, tokenizer.vocabulary, hyperschedules=trained, tokenizer_json=tokenizer.to_json()
    )


@pytest.fixture
def folder(ours: Checkpoint, tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "ours", ours)
    return tmp_path / "ours"


@pytest.fixture
def published(ours: Checkpoint, tmp_path: Path) -> Path:
    export(ours, tmp_path / "published")
    config = json.loads((tmp_path / "published" / "config.json").read_text())
    config["hdlm"] = {"note": "a key of their own"}
    (tmp_path / "published" / "config.json").write_text(json.dumps(config))
    return tmp_path / "published"


@pytest.fixture
def repository(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    publish(tmp_path / "cache", NAME, {file.name: file for file in published.iterdir()})
    use(monkeypatch, tmp_path / "cache")
    return NAME


def test_export_lists_written_files(hdlm, folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    status, out, err = hdlm("export", folder, "--output", output, "--bin", "--license", "apache-2.0")
    assert (status, err) == (0, "")
    assert all(f"  {file}\n" in out for file in output.iterdir())
    assert (output / "pytorch_model.bin").is_file()
    assert "license: apache-2.0" in (output / "README.md").read_text()
    assert hub.inspect(output).card == "published epsilon-hybrid"
    again = hdlm("export", folder, "--output", output)
    assert again[0] == 2
    assert "already holds a checkpoint" in again[2]


def test_export_selects_hyperschedule_by_number(hdlm, folder: Path, tmp_path: Path) -> None:
    status, out, _ = hdlm("export", folder, "--output", tmp_path / "2", "--hyperschedule", 2, "--json")
    assert status == 0
    assert set(json.loads(out)["files"]) >= {"config.json", "model.safetensors"}
    assert hub.load(tmp_path / "2").hyperschedules == (Block(LENGTH, 4, 2),)
    status, _, err = hdlm("export", folder, "--output", tmp_path / "1", "--hyperschedule", 1)
    assert status == 2
    assert "Wave" in err
    assert "choose by number: 0: Slide" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("verb", ["sample", "info"])
def test_rows_of_a_vocabulary_are_arguments_of_load(hdlm, folder: Path, verb: str) -> None:
    status, _, err = hdlm(verb, folder, "--num-words", 5, "--mask-id", 0)
    assert status == 2
    assert "leave `num_words` and `mask_id` out" in err


@pytest.mark.parametrize("source", ["folder", "published", "file", "repository"])
def test_sample_and_info_accept_every_kind_of_source(hdlm, request, published: Path, source: str) -> None:
    name: Any = published / "model.safetensors" if source == "file" else request.getfixturevalue(source)
    options = ["--length", LENGTH, "--seed", 1]
    status, out, err = hdlm("sample", name, "--json", *options)
    assert (status, err) == (0, "")
    own = hdlm("sample", request.getfixturevalue("folder"), "--json", *options)[1]
    assert json.loads(out)["passages"] == json.loads(own)["passages"]
    said = json.loads(hdlm("info", name, "--json")[1])
    foreign = source != "folder"
    assert said["format"] == ("published epsilon-hybrid" if foreign else "hdlm")
    assert said["unknown config keys"] == (["hdlm"] if foreign else [])
    assert said["process"]["type"] == "EpsilonHybrid"
    assert said["weights"].startswith("the only ones in the file" if foreign else "the moving average")


def test_info_prints_table_for_published_checkpoint(hdlm, published: Path) -> None:
    status, out, _ = hdlm("info", published)
    assert status == 0
    for part in ("published epsilon-hybrid", "Mean", "Slide(", "hidden_size=16", "270 words"):
        assert part in out
    assert "snapshot_freq" not in out


def test_info_names_averaged_or_raw_weights_of_run(hdlm, shared: Path) -> None:
    run = shared / "golden" / "local_run" / "gamma"
    for weights, words in (("averaged", "the moving average"), ("raw", "raw, of the last step")):
        said = json.loads(hdlm("info", run, "--weights", weights, "--json")[1])
        assert said["weights"].startswith(words)
        assert said["format"] == "published gamma-hybrid"
        assert said["noise_schedule"]["type"] == "LogLinear"
        assert said["tokenizer"] == "none here; trained with gpt2"


def test_push_dry_run_lists_files_and_card_without_network(
    hdlm, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda **options: pytest.fail("touched the network"))
    status, out, err = hdlm("push", folder, NAME, "--dry-run")
    assert (status, err) == (0, "")
    assert f"would be sent to {NAME} (private)" in out
    assert "model.safetensors" in out
    assert f"# {NAME.partition('/')[2]}\n" in out
    said = json.loads(
        hdlm("push", folder, NAME, "--dry-run", "--public", "--layout", "published", "--json")[1]
    )
    assert said["private"] is False
    assert "config.yaml" in said["files"]


def test_push_evaluation_results_appear_in_card(hdlm, folder: Path, tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    results.write_text('{"kjv": {"bits per byte": 1.5}}')
    assert (
        "| kjv | bits per byte 1.5 |" in hdlm("push", folder, NAME, "--dry-run", "--evaluation", results)[1]
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("nobody", "--dry-run"), "must be named `owner/name`; got 'nobody'"),
        ((NAME, "--hyperschedule", "1"), "--hyperschedule is for --layout published"),
        ((NAME, "--evaluation", "absent.json"), "absent.json: No such file or directory"),
        ((NAME, "--evaluation", "list.json"), "must hold a table of names and numbers; got list"),
        ((NAME, "--evaluation", "broken.json"), "broken.json is not JSON"),
        ((NAME, "--dry-run", "--license", "a b"), "identifier of the hub"),
        ((NAME,), "was not sent to the hub"),
    ],
)
def test_push_rejects_bad_arguments_in_one_line(
    hdlm, folder: Path, tmp_path, monkeypatch, words, message: str
) -> None:
    use(monkeypatch, tmp_path)
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    monkeypatch.chdir(tmp_path)
    Path("list.json").write_text("[]")
    Path("broken.json").write_text("{")
    status, out, err = hdlm("push", folder, *words)
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
