"""Data sets by name: a local copy, then the hub, otherwise an error that names both."""

from __future__ import annotations

import gzip
import json
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hdlm.data import NAMED, NamedDataset, corpus, tokenise, train_tokenizer
from hdlm.data.detokenizers import rows_are_lines
from hdlm.data.encoding import first_tokens
from hdlm.evaluation.text import Text, find_text


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HDLM_DATA_DIR", str(tmp_path))
    monkeypatch.setitem(sys.modules, "datasets", None)
    return tmp_path


def _write_text(path: Path, text: str) -> None:
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
def test_named_dataset_reads_local_copy(folder: Path, file: str) -> None:
    _write_text(folder / file, "a b")
    assert list(corpus("ptb").documents()) == ["a b"]


def test_named_dataset_selects_part(folder: Path) -> None:
    for part in ("train", "validation", "test"):
        _write_text(folder / "ptb" / f"{part}.txt", part)
    _write_text(folder / "ptb.txt", "whole")
    for part in ("train", "validation", "test"):
        assert list(corpus(f"ptb:{part}").documents()) == [part]
    assert list(corpus("ptb").documents()) == ["test"]


@pytest.mark.parametrize("name", NAMED)
def test_missing_named_dataset_names_file_and_package(name: str) -> None:
    with pytest.raises(
        ValueError, match=rf"{name}\.txt.*`datasets` is not installed.*Put a copy there, or fetch it"
    ):
        list(corpus(name).documents())


def test_named_dataset_rejects_unknown_name_and_part() -> None:
    with pytest.raises(ValueError, match="no data set 'ptc'; known: ptb"):
        NamedDataset("ptc")
    with pytest.raises(ValueError, match=r"the part.*'dev'"):
        corpus("ptb:dev")


class FakeDatasets:
    """A stand-in for the `datasets` library that records its arguments."""

    def __init__(self, rows: list[dict[str, str]] | OSError) -> None:
        self.rows, self.asked = rows, SimpleNamespace()

    def load_dataset(self, repository: str, config: str | None, **options: Any) -> list[dict[str, str]]:
        self.asked = SimpleNamespace(repository=repository, config=config, **options)
        if isinstance(self.rows, OSError):
            raise self.rows
        return self.rows


def test_named_dataset_requests_split_from_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = FakeDatasets([{"sentence": " a b "}, {"sentence": " "}])
    monkeypatch.setitem(sys.modules, "datasets", hub)
    assert list(NamedDataset("ptb", "validation", cache=tmp_path).documents()) == ["a b", ""]
    assert (hub.asked.config, hub.asked.split, hub.asked.cache_dir) == (
        "penn_treebank",
        "validation",
        str(tmp_path),
    )
    monkeypatch.setitem(sys.modules, "datasets", hub := FakeDatasets([{"text": "c"}]))
    assert list(NamedDataset("openwebtext-valid").documents()) == ["c"]
    assert hub.asked.split == "train[-100000:]"
    assert list(NamedDataset("lambada", "validation").documents()) == ["\nc"]
    assert hub.asked.split == "test"


def test_named_dataset_without_train_part_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", FakeDatasets([{"text": "c"}]))
    with pytest.raises(ValueError, match=r"lambada.*no part 'train', only test"):
        list(NamedDataset("lambada", "train").documents())


def test_named_dataset_reports_error_of_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", FakeDatasets(OSError("no route")))
    with pytest.raises(ValueError, match="the hub did not provide it: no route"):
        list(corpus("wikitext2").documents())


@pytest.mark.parametrize("file", ["ptb_test.txt", "ptb_raw_test.txt", "ptb_raw_test.jsonl"])
def test_named_dataset_reads_raw_copies(folder: Path, file: str) -> None:
    _write_text(folder / file, "it did n't")
    assert list(corpus("ptb").documents()) == ["it didn't"]
    with pytest.raises(ValueError, match=r"ptb_raw_train\.txt"):
        list(corpus("ptb:train").documents())


def test_named_dataset_reads_valid_file_as_validation(folder: Path) -> None:
    _write_text(folder / "wikitext2_raw_valid.txt", "a b")
    assert list(corpus("wikitext2:validation").documents()) == ["a b\n"]


def test_named_dataset_detokenizes_by_default(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mended, plain = NamedDataset("ptb"), NamedDataset("ptb", detokenize=False)
    assert (mended.detokenizer, plain.detokenizer) == ("ptb", None)
    monkeypatch.setitem(sys.modules, "datasets", FakeDatasets([{"sentence": "it did n't cost $ N a share"}]))
    assert list(mended.documents()) == ["it didn't cost $1 a share"]
    assert list(plain.documents()) == ["it did n't cost $ N a share"]
    monkeypatch.setitem(sys.modules, "datasets", FakeDatasets([{"text": "“Yes.”"}]))
    assert list(NamedDataset("lambada").documents()) == ['\n"Yes."']


def test_named_dataset_lines_of_file_equal_rows_of_hub(folder: Path) -> None:
    _write_text(folder / "wikitext2_test.txt", ' \n = A = \n \n A " day , he said . \n B " night . \n')
    _write_text(folder / "ptb.txt", " the fee is N \n N of them did n't \n")
    _write_text(folder / "text8.txt", "one\n\ntwo \n")
    assert list(corpus("wikitext2").documents()) == ["", "= A =\n", "", 'A " day, he said.\n', 'B " night.\n']
    assert list(corpus("ptb").documents()) == ["the fee is N", "N of them didn't"]
    assert list(corpus("text8").documents()) == ["one\n\ntwo"]
    _write_text(folder / "lm1b.txt", " \n\n")
    with pytest.raises(ValueError, match="holds no text"):
        list(corpus("lm1b").documents())


def test_wikitext_copy_is_detokenized(full_set: Path) -> None:
    dataset = NamedDataset("wikitext2", folder=full_set / "data")
    raw = list(NamedDataset("wikitext2", folder=full_set / "data", detokenize=False).documents())
    text = list(dataset.documents())
    assert dataset.local_copy() == full_set / "data" / "wikitext2_raw_test.txt"
    assert any(" @-@ " in row for row in raw)
    assert not any(" @-@ " in row for row in text)
    start = [
        "",
        "= Robert Boulter =\n",
        "",
        "Robert Boulter is an English film, television and theatre actor.",
    ]
    assert [row[: len(known)] for row, known in zip(text, start, strict=False)] == start
    assert (
        len(text) == len(raw) == len((full_set / "data" / "wikitext2_raw_test.txt").read_text().splitlines())
    )


ROWS: dict[str, list[str]] = {
    "wikitext2": ["", " = A = \n", "", "", ' A " day , he said 1 @,@ 000 . \n', "", " 漢字 ( 95 ° F ) \n"],
    "ptb": ["it did n't", "", "$ N a share"],
    "lm1b": ["He said : ' I am here . '", ""],
    "lambada": ["“Yes,” he said .", "", "  two\nlines  "],
    "ag_news": [" x ", "", "y\n\nz"],
}


@pytest.mark.parametrize("detokenize", [True, False])
@pytest.mark.parametrize("name", ROWS)
def test_named_dataset_documents_are_equal_for_hub_and_files(
    folder: Path, name: str, detokenize: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compares the hub, JSON lines and text files. Each row is a document, and an empty row is only an end token."""
    rows, tokenizer = ROWS[name], train_tokenizer(["a text"], 257)
    dataset = NamedDataset(name, detokenize=detokenize)
    monkeypatch.setitem(sys.modules, "datasets", FakeDatasets([{NAMED[name].column: row} for row in rows]))
    documents = list(dataset.documents())
    tokens = tokenise(tokenizer, documents)
    assert len(documents) == len(rows)
    assert int((tokens.tokens == tokenizer.vocabulary.eos).sum()) == len(rows)
    lines = "".join(json.dumps({"text": row}) + "\n" for row in rows).encode()
    copies = {"jsonl": lines, "jsonl.gz": gzip.compress(lines)}
    if rows_are_lines(name):
        text = "".join(f"{row.removesuffix(chr(10))}\n" for row in rows).encode()
        copies |= {"txt": text, "txt.gz": gzip.compress(text.replace(b"\n", b"\r\n"))}
    for ending, content in copies.items():
        path = folder / f"{name}.{ending}"
        path.write_bytes(content)
        assert list(dataset.documents()) == documents, ending
        found = first_tokens(dataset, tokenizer, 10**6)
        assert torch.equal(found.tokens, tokens.tokens)
        assert found.num_bytes == tokens.num_bytes
        path.unlink()


def test_named_dataset_keeps_empty_rows_as_published(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the published data each text has one end token, also a text without a word."""
    golden = json.loads((shared / "golden" / "group_texts.json").read_text(encoding="utf-8"))
    names = {"wikitext103": "wikitext103", "ptb": "ptb", "lambada": "lambada", "lm1b": "lm1b"}
    for short, name in names.items():
        case = golden[f"{short}_block16_eff0"]
        monkeypatch.setitem(
            sys.modules, "datasets", FakeDatasets([{NAMED[name].column: text} for text in case["texts"]])
        )
        documents = list(NamedDataset(name).documents())
        empty = [ids == [96] for ids in case["token_ids_per_text"]]
        assert [not document.strip() for document in documents] == empty
    assert sum(empty) < len(empty)


def test_named_dataset_rejects_row_without_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", FakeDatasets([{"text": "a"}, {"text": None}]))
    with pytest.raises(
        ValueError, match="row 1 of the data set 'text8' has no text under 'text', but NoneType"
    ):
        list(NamedDataset("text8").documents())


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=12), min_size=1, max_size=5))
def test_corpus_documents_are_equal_in_every_file_format(folder: Path, rows: list[str]) -> None:
    """JSON lines, compressed or not, a list of texts, and Parquet where `pyarrow` is installed."""
    tokenizer = train_tokenizer(["a text"], 257)
    lines = "".join(json.dumps({"text": row}, ensure_ascii=False) + "\n" for row in rows).encode()
    (folder / "a.jsonl").write_bytes(lines)
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(lines))
    files = ["a.jsonl", "a.jsonl.gz"]
    if find_spec("pyarrow") is not None:
        pyarrow = import_module("pyarrow")
        import_module("pyarrow.parquet").write_table(pyarrow.table({"text": rows}), folder / "a.parquet")
        files.append("a.parquet")
    expected = tokenise(tokenizer, rows)
    for name in files:
        found = corpus(str(folder / name))
        assert list(found.documents()) == rows
        assert torch.equal(first_tokens(found, tokenizer, 10**6).tokens, expected.tokens)


def test_named_dataset_revision_is_commit_of_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "0123456789" * 4
    rows = Rows([{"text": "c"}])
    rows.info = SimpleNamespace(download_checksums={f"hf://datasets/afmck/text8@{commit}/data/a.parquet": {}})
    monkeypatch.setitem(sys.modules, "datasets", FakeDatasets(rows))
    assert NamedDataset("text8").revision() == commit
    source = find_text("text8")
    data = source.describe(Text(tuple(source.corpus.documents()), torch.zeros(1, dtype=torch.long), (1,)))
    assert data["revision"] == commit
    monkeypatch.setitem(sys.modules, "datasets", FakeDatasets([{"text": "c"}]))
    assert NamedDataset("text8").revision() == "main"
    _write_text(folder / "text8.txt", "a")
    assert NamedDataset("text8").revision() is None


class Rows(list[dict[str, str]]):
    """Rows with the source information of the `datasets` library."""

    info: SimpleNamespace
