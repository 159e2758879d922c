"""Sharing: folders for the hub, and uploads to a fake hub."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import yaml

from hdlm import hub
from hdlm.checkpoint import Checkpoint
from hdlm.data import train_tokenizer
from hdlm.hyperschedule import Block, Wave
from hdlm.parameterization import LogScore
from hdlm.process import EpsilonHybrid, GammaHybrid
from hdlm.sharing.model_card import model_card
from hdlm.sharing.push import Shared, push_to_hub, save_pretrained
from hdlm.vocabulary import Vocabulary
from tests.hub_cache import publish, use
from tests.tiny import tiny_denoiser

NAME = "somebody/some-model"


def _checkpoint(**changes: Any) -> Checkpoint:
    tokenizer = train_tokenizer(["some words, and some more"], 270)
    denoiser = tiny_denoiser(EpsilonHybrid(tokenizer.vocabulary.num_words, 0.1)).float()
    given: dict[str, Any] = {
        "hyperschedules": (Block(denoiser.backbone.config.max_length, 4, 3),),
        "tokenizer_json": tokenizer.to_json(),
        "training": {"recipe": {"run": {"steps": 7}}, "note": "```fenced```"},
    }
    return Checkpoint(denoiser, tokenizer.vocabulary, **{**given, **changes})


class FakeHfApi:
    """The part of `HfApi` that `push_to_hub` uses. It records every call."""

    calls: list[tuple[str, dict[str, Any]]]
    public = False

    def __init__(self, token: str | None = None) -> None:
        type(self).calls = [("token", {"token": token})]

    def create_repo(self, repo_id: str, **options: Any) -> str:
        self.calls.append(("create_repo", {"repo_id": repo_id, **options}))
        return f"https://hub/{repo_id}"

    def repo_info(self, repo_id: str) -> SimpleNamespace:
        return SimpleNamespace(private=not self.public)

    def create_branch(self, repo_id: str, **options: Any) -> None:
        self.calls.append(("create_branch", {"repo_id": repo_id, **options}))

    def upload_folder(self, **options: Any) -> None:
        there = {file.name: file.read_bytes() for file in Path(options["folder_path"]).iterdir()}
        self.calls.append(("upload_folder", {**options, "there": there}))


@pytest.fixture
def fake_hub(monkeypatch: pytest.MonkeyPatch) -> type[FakeHfApi]:
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeHfApi)
    return FakeHfApi


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError("a dry run must not touch the network")

    monkeypatch.setattr(huggingface_hub, "HfApi", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_push_creates_private_repository_by_default(fake_hub: type[FakeHfApi]) -> None:
    sent = push_to_hub(_checkpoint(), NAME, token="secret")
    assert fake_hub.calls[0] == ("token", {"token": "secret"})
    assert fake_hub.calls[1] == ("create_repo", {"repo_id": NAME, "private": True, "exist_ok": True})
    assert [name for name, _ in fake_hub.calls] == ["token", "create_repo", "upload_folder"]
    assert sent.private
    assert sent.url == f"https://hub/{NAME}"
    assert str(sent).startswith(f"sent to https://hub/{NAME} (private):")
    assert not push_to_hub(_checkpoint(), NAME, private=False).private
    assert fake_hub.calls[1][1]["private"] is False


def test_push_refuses_existing_public_repository_by_default(
    fake_hub: type[FakeHfApi], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake_hub, "public", True)
    with pytest.raises(ValueError, match=r"exists and is public.*--public"):
        push_to_hub(_checkpoint(), NAME)
    assert "upload_folder" not in [name for name, _ in fake_hub.calls]
    push_to_hub(_checkpoint(), NAME, private=False)
    assert fake_hub.calls[-1][0] == "upload_folder"


def test_push_creates_branch_for_revision(fake_hub: type[FakeHfApi]) -> None:
    push_to_hub(_checkpoint(), NAME, revision="v2")
    assert fake_hub.calls[2] == ("create_branch", {"repo_id": NAME, "branch": "v2", "exist_ok": True})
    assert fake_hub.calls[3][1]["revision"] == "v2"


@pytest.mark.parametrize("layout", ["hdlm", "published"])
def test_pushed_files_load_from_hub(
    fake_hub: type[FakeHfApi], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    ours = _checkpoint()
    sent = push_to_hub(ours, NAME, layout=layout)
    there = fake_hub.calls[-1][1]["there"]
    assert dict(sent.files) == {name: len(content) for name, content in there.items()}
    assert sent.card.encode() == there["README.md"]
    publish(tmp_path, NAME, there)
    use(monkeypatch, tmp_path)
    read = hub.load(NAME)
    assert read.denoiser.process == ours.denoiser.process
    assert read.hyperschedules == ours.hyperschedules
    assert read.tokenizer_json == ours.tokenizer_json


@pytest.mark.parametrize("layout", ["hdlm", "published"])
def test_push_dry_run_lists_files_without_network(no_network: None, layout: str) -> None:
    planned = push_to_hub(_checkpoint(), NAME, layout=layout, dry_run=True)
    names = {"hdlm": {"tokenizer_config.json"}, "published": {"config.yaml"}}[layout]
    assert {name for name, _ in planned.files} == names | {
        "README.md",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    }
    assert planned.url is None
    assert dict(planned.files)["model.safetensors"] > 10_000
    assert "would be sent to somebody/some-model (private):" in str(planned)
    assert planned.card.count(NAME) >= 2


@pytest.mark.parametrize(
    ("name", "options", "complaint"),
    [
        ("nobody", {}, "must be named `owner/name`; got 'nobody'"),
        ("a/b/c", {}, "a/b/c"),
        ("some body/x", {}, "some body/x"),
        (NAME, {"licence": "My Own\nlicense: none"}, "identifier of the hub"),
    ],
)
def test_push_rejects_bad_arguments_before_sending(
    no_network: None, name: str, options: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        push_to_hub(_checkpoint(), name, **options)


def test_push_rejects_what_has_no_published_form(no_network: None) -> None:
    ours = _checkpoint()
    wave = (Wave(ours.length, 4, 3),)
    with pytest.raises(ValueError, match="no published form"):
        push_to_hub(_checkpoint(hyperschedules=wave), NAME, layout="published")
    both = _checkpoint(hyperschedules=wave + ours.hyperschedules)
    assert push_to_hub(both, NAME, layout="published", hyperschedule=1, dry_run=True).files


def test_push_offline_error_names_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, tmp_path)
    with pytest.raises(OSError, match=r"was not sent to the hub \(.*hdlm export"):
        push_to_hub(_checkpoint(), NAME, token="hf_none")


def test_push_with_failed_connection_raises_os_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, tmp_path, offline=False)
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    nowhere = huggingface_hub.HfApi(endpoint=f"http://127.0.0.1:{port}", token="hf_none")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda token: nowhere)
    with pytest.raises(OSError, match="was not sent to the hub"):
        push_to_hub(_checkpoint(), NAME)


def test_save_pretrained_writes_checkpoint_and_card(tmp_path: Path) -> None:
    ours = _checkpoint()
    save_pretrained(ours, tmp_path, source=NAME)
    read = hub.load(tmp_path)
    assert read.config() == ours.config()
    assert read.tokenizer_json == ours.tokenizer_json
    assert f'hdlm.load("{NAME}")' in (tmp_path / "README.md").read_text()
    bare = _checkpoint(tokenizer_json=None)
    save_pretrained(bare, tmp_path / "bare")
    assert not (tmp_path / "bare" / "tokenizer_config.json").exists()


def _sections(card: str) -> dict[str, str]:
    return {part.partition("\n")[0]: part.partition("\n")[2] for part in card.split("\n## ")[1:]}


def test_model_card_describes_model_training_and_results() -> None:
    ours = _checkpoint()
    results = {"perplexity": 34.5, "kjv | held out": {"bits per byte": "1.24 ± 0.01", "tokens": 1000}}
    card = model_card(ours, NAME, licence="apache-2.0", evaluation=results)
    front = yaml.safe_load(card.split("---")[1])
    assert front["license"] == "apache-2.0"
    assert front["library_name"] == "hdlm"
    assert "epsilon-hybrid" in front["tags"]
    sections = _sections(card)
    parameters = sum(weight.numel() for weight in ours.network.parameters())
    assert f"| parameters | {parameters:,} |" in card
    assert f"EpsilonHybrid(num_words={ours.vocabulary.num_words}, epsilon=0.1)" in card
    assert f"the mask is id {ours.vocabulary.mask_id}" in card
    assert "| perplexity | 34.5 |" in sections["Evaluation"]
    assert "| kjv \\| held out | bits per byte 1.24 ± 0.01, tokens 1000 |" in sections["Evaluation"]
    recipe = sections["Training"].partition("````json\n")[2].partition("\n````")[0]
    assert json.loads(recipe) == ours.training
    assert "apache-2.0" in sections["Licence"]
    assert "arXiv:2504.06416" in sections["Citation"]


def test_model_card_without_records_states_it() -> None:
    card = model_card(_checkpoint(training={}, tokenizer_json=None), NAME)
    assert "No results were recorded" in card
    assert "The training of these weights is not recorded" in card
    assert "hdlm.sample(" in _sections(card)["Use"]


def test_model_card_snippet_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, changes in enumerate(({}, {"tokenizer_json": None})):
        ours = _small(**changes)
        folder = tmp_path / str(number)
        save_pretrained(ours, folder)
        snippet = (folder / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
        exec(compile(snippet, "README.md", "exec"), {})
        assert capsys.readouterr().out.strip()


def _small(**changes: Any) -> Checkpoint:
    """A checkpoint with a short canvas, so that a test can sample from it."""
    import dataclasses

    ours = _checkpoint()
    ours.denoiser.backbone.config = dataclasses.replace(ours.network.config, max_length=8)
    return dataclasses.replace(ours, hyperschedules=(Block(8, 4, 2),), **changes)


def test_published_model_card_has_published_imports() -> None:
    assert "from hdlm.epsilon_hybrid.sample import full_diff\n" in model_card(
        _checkpoint(), NAME, layout="published"
    )
    gamma = Checkpoint(tiny_denoiser(GammaHybrid(5, 0.1), LogScore(), conditioned=True), Vocabulary(5))
    card = model_card(gamma, NAME, layout="published")
    assert "from hdlm.gamma_hybrid.sampling import get_sa_sampling_fn\n" in card
    assert f'model_path="{NAME}"' in card


def test_shared_prints_list_of_files() -> None:
    shared = Shared(NAME, False, (("config.json", 1234),), "card")
    assert str(shared) == f"would be sent to {NAME} (public):\n          1,234  config.json"
