"""Training text from memory, shards, the cache and a stream."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hdlm.cli import main
from hdlm.data import train_tokenizer
from hdlm.data.streaming import StreamedText, StreamedWindows
from hdlm.training import Recipe
from hdlm.training.recipe import DataSettings
from hdlm.training.text import TrainingText, read_training_text, refuse_idle

DOCUMENTS = tuple(
    f"In the beginning was word {number}, and the word was {number * 7}." for number in range(200)
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = "".join(json.dumps({"body": document}) + "\n" for document in DOCUMENTS)
    (tmp_path / "text.jsonl").write_text(rows)
    (tmp_path / "tokenizer.json").write_text(train_tokenizer(DOCUMENTS, 300).to_json())
    (tmp_path / "other.jsonl").write_text('{"body": "And the word was made flesh."}\n')
    return tmp_path


def _read(folder: Path, lines: list[str] | None = None, **data: Any) -> TrainingText:
    table = {
        "corpus": [str(folder / "text.jsonl")],
        "key": "body",
        "tokenizer": str(folder / "tokenizer.json"),
        "vocabulary": 300,
        "validation": 0.2,
        "context": 16,
        **data,
    }
    part = {"hyperschedule": {"type": "Block", "width": 4, "num_levels": 4}}
    recipe = Recipe.from_table({"data": table, "run": {"steps": 1}, "mixture": [part]})
    return read_training_text(recipe, (lines if lines is not None else []).append)


@pytest.fixture
def cache_short_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hdlm.training.text._SHORT", 0)


def test_cached_text_gives_same_batches_as_text_in_memory(folder: Path, cache_short_text: None) -> None:
    other = {"validation_corpus": [str(folder / "other.jsonl")], "validation": 0.025}
    memory, lines = _read(folder, **other), list[str]()
    cached = _read(folder, lines, cache=str(folder / "cache"), **other)
    assert torch.equal(memory.windows(16, 3).batch(0, 300), cached.windows(16, 3).batch(0, 300))
    assert torch.equal(memory.validation.tokens, cached.validation.tokens)
    assert memory.validation.num_bytes == cached.validation.num_bytes
    assert memory.train.num_bytes == cached.train.num_bytes
    assert lines[0].startswith(f"text: tokenised once, in {folder}/cache/hdlm-")
    (shard,) = (folder / "cache").rglob("*.npy")
    before = shard.stat().st_mtime_ns
    _read(folder, cache=str(folder / "cache"), **other)
    assert shard.stat().st_mtime_ns == before
    _read(folder, cache=str(folder / "cache"), tokenizer="train", vocabulary=280, **other)
    assert len(list((folder / "cache").rglob("manifest.json"))) == 2
    (folder / "text.jsonl").write_text('{"body": "all is new"}\n' * 9)
    renewed = _read(folder, lines, cache=str(folder / "cache"), **other)
    assert "source has changed" in lines[-2]
    assert renewed.tokenizer.decode(renewed.source[:9].tolist()).startswith("all")


def test_short_text_is_not_cached(folder: Path) -> None:
    _read(folder, cache=str(folder / "cache"))
    assert not (folder / "cache").exists()


def test_long_text_without_cache_or_streaming_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hdlm.training.text._LONG", 1000)
    with pytest.raises(ValueError, match=r"data\.cache.*hdlm tokenize.*data\.streaming"):
        _read(folder)
    assert isinstance(_read(folder, streaming=True).windows(16, 0), StreamedWindows)


def test_shards_cache_and_stream_have_same_validation_documents(folder: Path, cache_short_text: None) -> None:
    out = folder / "shards"
    words = ["tokenize", str(folder / "text.jsonl"), "-o", str(out), "--key", "body", "--validation", "0.2"]
    assert main([*words, "--tokenizer", str(folder / "tokenizer.json")]) == 0
    ways = [
        _read(folder, corpus=[str(out)]),
        _read(folder, corpus=[str(out)], tokenizer="train"),
        _read(folder, cache=str(folder / "cache")),
        _read(folder, streaming=True),
    ]
    for text in ways:
        assert torch.equal(text.validation.tokens, ways[0].validation.tokens)
        assert torch.equal(text.train.tokens, ways[0].train.tokens)
        rows = text.windows(16, 0).batch(0, 2)
        assert rows.shape == (2, 16)
    aside = set(ways[0].tokenizer.documents(ways[0].validation.tokens.tolist()))
    assert aside
    for text in ways:
        source = text.source
        pieces = source.epoch(0, 0) if isinstance(source, StreamedText) else [source[:]]
        learnt = [id for ids in pieces for id in ids.tolist()]
        assert not aside & set(text.tokenizer.documents(learnt))


def test_training_text_refuses_shards_of_other_tokenizer(folder: Path) -> None:
    out = folder / "shards"
    words = ["tokenize", str(folder / "text.jsonl"), "-o", str(out), "--key", "body"]
    assert main([*words, "--tokenizer", "train", "--vocabulary", "280"]) == 0
    with pytest.raises(ValueError, match="made by another tokenizer"):
        _read(folder, corpus=[str(out)])
    with pytest.raises(ValueError, match="is set aside for validation"):
        _read(folder, corpus=[str(out)], tokenizer="train")
    other = [str(folder / "other.jsonl")]
    assert len(
        _read(
            folder, corpus=[str(out)], tokenizer="train", validation=0.025, validation_corpus=other
        ).validation.tokens
    )


def test_refuse_idle_names_data_options_without_effect(folder: Path) -> None:
    out = folder / "shards"
    words = ["tokenize", str(folder / "text.jsonl"), "-o", str(out), "--key", "body", "--validation", "0.2"]
    assert main([*words, "--tokenizer", "train", "--vocabulary", "280"]) == 0
    shards = {"corpus": (str(out),)}
    plain = folder / "plain.txt"
    plain.write_text("In the beginning was the word.")
    for options, named in (
        (shards | {"validation": 0.1}, "data.validation.*0.2 set aside"),
        (shards | {"cache": str(folder)}, "data.cache.*tokenised already"),
        (shards | {"vocabulary": 300}, "data.vocabulary.*has 280 words"),
        (shards | {"key": "body"}, "data.key.*JSON lines"),
        ({"corpus": (str(plain),), "key": "body"}, "data.key.*JSON lines"),
    ):
        with pytest.raises(ValueError, match=named):
            refuse_idle(DataSettings(**options))
    for options in (
        shards | {"validation": 0.2, "vocabulary": 280},
        {"corpus": (str(plain),), "validation_corpus": (str(folder / "other.jsonl"),), "key": "body"},
    ):
        refuse_idle(DataSettings(**options))


def test_tokenizer_is_trained_for_cached_and_streamed_text(folder: Path, cache_short_text: None) -> None:
    for way in ({"cache": str(folder / "cache")}, {"streaming": True}):
        assert _read(folder, tokenizer="train", **way).tokenizer.vocabulary.num_words == 300
