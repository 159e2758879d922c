"""Data sets by their published names: a copy of your own first, then the hub, else an error that names both ways."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hdlm.data import NAMED, NamedDataset, corpus


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HDLM_DATA_DIR", str(tmp_path))
    monkeypatch.setitem(sys.modules, "datasets", None)
    return tmp_path


def _put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name.endswith(".jsonl"):
        text = json.dumps({"text": text}) + "\n"
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


@pytest.mark.parametrize(
    "file",
    [
        "ptb.txt",
        "ptb.txt.gz",
        "ptb.jsonl",
        "ptb-test.txt",
        "ptb/test.txt",
        "ptb/test.jsonl",
        "ptb/a.txt",
        "ptb/a.jsonl",
    ],
)
def test_a_copy_is_found(folder: Path, file: str) -> None:
    _put(folder / file, "a b")
    assert list(corpus("ptb").documents()) == ["a b"]


def test_parts_are_told_apart(folder: Path) -> None:
    for part in ("train", "validation", "test"):
        _put(folder / "ptb" / f"{part}.txt", part)
    _put(folder / "ptb.txt", "whole")
    for part in ("train", "validation", "test"):
        assert list(corpus(f"ptb:{part}").documents()) == [part]
    assert list(corpus("ptb").documents()) == ["test"]


@pytest.mark.parametrize("name", NAMED)
def test_an_absent_data_set_says_both_ways(name: str) -> None:
    with pytest.raises(
        ValueError, match=rf"{name}\.txt.*`datasets` is not installed.*Put a copy there, or fetch it"
    ):
        list(corpus(name).documents())


def test_unknown_names_and_parts() -> None:
    with pytest.raises(ValueError, match="no data set 'ptc'; known: ptb"):
        NamedDataset("ptc")
    with pytest.raises(ValueError, match=r"the part.*'dev'"):
        corpus("ptb:dev")


class Hub:
    """A stand-in for the `datasets` library that remembers what it was asked."""

    def __init__(self, rows: list[dict[str, str]] | OSError) -> None:
        self.rows, self.asked = rows, SimpleNamespace()

    def load_dataset(self, repository: str, config: str | None, **options: Any) -> list[dict[str, str]]:
        self.asked = SimpleNamespace(repository=repository, config=config, **options)
        if isinstance(self.rows, OSError):
            raise self.rows
        return self.rows


def test_the_hub_is_asked_for_the_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub([{"sentence": " a b "}, {"sentence": " "}])
    monkeypatch.setitem(sys.modules, "datasets", hub)
    assert list(NamedDataset("ptb", "validation", cache=tmp_path).documents()) == ["a b"]
    assert (hub.asked.config, hub.asked.split, hub.asked.cache_dir) == (
        "penn_treebank",
        "validation",
        str(tmp_path),
    )
    monkeypatch.setitem(sys.modules, "datasets", hub := Hub([{"text": "c"}]))
    assert list(NamedDataset("openwebtext-valid").documents()) == ["c"]
    assert hub.asked.split == "train[-100000:]"
    assert list(NamedDataset("lambada", "validation").documents()) == ["c"]
    assert hub.asked.split == "test"


def test_nobody_trains_on_what_is_kept_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", Hub([{"text": "c"}]))
    with pytest.raises(ValueError, match=r"lambada.*no part 'train', only test"):
        list(NamedDataset("lambada", "train").documents())


def test_a_hub_that_fails_is_an_error_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", Hub(OSError("no route")))
    with pytest.raises(ValueError, match="the hub did not give it: no route"):
        list(corpus("wikitext2").documents())
