"""Text to batches: corpora, tokenizer, packing, baselines."""

from __future__ import annotations

import gzip
import json
import math
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hdlm.data import (
    CORPORA,
    END_OF_TEXT,
    Bigram,
    JSONLines,
    TextFiles,
    Tokenizer,
    Unigram,
    Windows,
    corpus,
    encoding,
    split,
    tokenise,
    train_tokenizer,
)
from hdlm.data.corpora.base import pieces_of

VERSES = (
    "In the beginning was the Word.",
    "And the Word was with God.",
    "And the light shineth in darkness.",
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(VERSES * 3, 280)


# -- corpora --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CORPORA)
def test_named_corpora_are_text_and_repeatable(name: str) -> None:
    documents = list(corpus(name).documents())
    assert len(documents) > 50
    assert sum(map(len, documents)) > 400_000
    assert all(document.strip() for document in documents)
    assert documents == list(corpus(name).documents())


def test_kjv_corpus_has_one_document_per_chapter() -> None:
    documents = list(corpus("kjv").documents())
    assert len(documents) == 1189
    assert documents[0].startswith("In the beginning God created the heaven and the earth. And the earth")
    assert documents[-1].endswith("Amen.")


def test_corpus_reads_files_folders_and_globs(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "b.txt").write_text("second")
    (tmp_path / "deep" / "c.txt.gz").write_bytes(gzip.compress(b"third", mtime=0))
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "ignored.md").write_text("never")
    assert list(corpus(str(tmp_path)).documents()) == ["first", "second", "third"]
    assert list(corpus(str(tmp_path / "?.txt")).documents()) == ["first", "second"]
    assert list(corpus(str(tmp_path / "ignored.md")).documents()) == ["never"]


def test_corpus_reads_json_lines_and_gzip(tmp_path: Path) -> None:
    rows = [{"text": "one", "body": "1"}, {"text": "two", "body": "2"}]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n\n".join(map(json.dumps, rows)))
    assert list(corpus(str(file)).documents()) == ["one", "two"]
    assert list(JSONLines((str(file),), key="body").documents()) == ["1", "2"]
    assert list(corpus(str(tmp_path), key="body").documents()) == ["1", "2"]
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress('{"text": "a\u2028b"}\n'.encode(), mtime=0))
    assert list(corpus(str(tmp_path / "*.gz")).documents()) == ["a\u2028b"]


@pytest.mark.parametrize("pack", [bytes, lambda raw: gzip.compress(raw, mtime=0)])
def test_corpus_normalises_bom_and_crlf(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    ending = "" if pack is bytes else ".gz"
    rows = '{"text": "one\\ntwo"}\n{"text": "three"}\n'
    for name, text in (("a.txt", "one\ntwo"), ("b.jsonl", rows)):
        file = tmp_path / f"{name}{ending}"
        file.write_bytes(pack(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode()))
        assert next(corpus(str(file)).documents()) == "one\ntwo"
        assert next(corpus(str(file)).pieces()).text == "one\ntwo"


def test_json_lines_names_line_of_unpaired_surrogate(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "\\ud83d\\ude00"}\n{"text": "\\ud83d"}\n')
    documents = corpus(str(file)).documents()
    assert next(documents) == "\U0001f600"
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 2 has half of a surrogate pair under 'text'"):
        next(documents)


def test_corpus_reads_parquet_and_names_faults(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pip install 'hdlm[data]'")
    parquet = pytest.importorskip("pyarrow.parquet")
    texts = [f"document {number}" for number in range(700)]
    file = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.table({"text": texts, "number": range(700)}), file)
    assert list(corpus(str(tmp_path)).documents()) == texts
    for key, complaint in (("body", "it has: text, number"), ("number", "row 1 has no text")):
        with pytest.raises(ValueError, match=complaint):
            list(corpus(str(file), key=key).documents())
    file.write_text("no table")
    with pytest.raises(ValueError, match="not a Parquet file"):
        list(corpus(str(file)).documents())


def test_parquet_without_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "rows.parquet").write_text("rows")
    with pytest.raises(ValueError, match=r"hdlm\[data\]"):
        list(corpus(str(tmp_path)).documents())


PLACES = st.text(st.sampled_from("ab \n\t\r\x1c\x85\xa0\u3000.'1é"), max_size=40)


@given(text=PLACES, longest=st.integers(1, 12), chunk=st.integers(1, 9))
@settings(max_examples=200, deadline=None)
def test_pieces_join_to_the_document_and_to_its_tokens(
    tokenizer: Tokenizer, text: str, longest: int, chunk: int
) -> None:
    pieces = list(pieces_of((text[at : at + chunk] for at in range(0, len(text), chunk)), longest))
    assert "".join(piece.text for piece in pieces) == text
    assert max(len(piece.text) for piece in pieces) <= longest
    assert [piece.first for piece in pieces] == [True] + [False] * (len(pieces) - 1)
    assert [piece.last for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    if all(piece.first or piece.text[0] in " \n\t\r" for piece in pieces):
        ids = [id for piece in tokenizer.encode_pieces(pieces) for id in piece.tolist()]
        assert ids == [*tokenizer.encode(text), tokenizer.vocabulary.eos]


def test_corpus_reads_long_file_in_pieces(tmp_path: Path) -> None:
    text = "word " * 60_000
    (tmp_path / "long.txt").write_text(f" \n{text}\n\n")
    found = corpus(str(tmp_path))
    pieces = list(found.pieces())
    assert len(pieces) == 5
    assert "".join(piece.text for piece in pieces) == text.strip() == next(found.documents())


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("empty.txt", b"  \n", "no text"),
        ("latin.txt", "caf\xe9".encode("latin-1"), "not UTF-8"),
        ("cut.txt.gz", gzip.compress(b"whole text here", mtime=0)[:-9], "gzip"),
        ("fake.txt.gz", b"no gzip at all", "gzip"),
        ("bad.jsonl", b"{", "line 1"),
        ("other.jsonl", b'{"body": "x"}', "no text under 'text'"),
        ("list.jsonl", b"[1]", "no text under 'text'"),
    ],
)
def test_corpus_names_unusable_file(tmp_path: Path, name: str, content: bytes, complaint: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=complaint) as raised:
        list(corpus(str(tmp_path / name)).documents())
    assert name in str(raised.value)


def test_corpus_names_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.txt"):
        list(TextFiles((str(tmp_path / "nowhere.txt"),)).documents())


def test_corpus_rejects_mixed_kinds_and_no_names(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mixed"):
        corpus("a.txt", "b.jsonl")
    for name in ("a.txt", "b.jsonl"):
        (tmp_path / name).write_text("text")
    with pytest.raises(ValueError, match="mixed"):
        corpus(str(tmp_path))
    with pytest.raises(ValueError, match="kjv"):
        corpus()


# -- tokenizer ------------------------------------------------------------------------------------------------


@given(text=st.text(max_size=60).filter(lambda text: END_OF_TEXT not in text))
@settings(max_examples=60, deadline=None)
def test_tokenizer_decodes_any_text_except_leading_space(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text.removeprefix(" ")


def test_tokenizer_encodes_word_alike_at_any_place(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("the Word")[: len(tokenizer.encode("the"))] == tokenizer.encode("the")
    assert tokenizer.encode("And the")[len(tokenizer.encode("And")) :] == tokenizer.encode("the")


def test_tokenizer_glued_text_joins_previous_word(tokenizer: Tokenizer) -> None:
    whole = tokenizer.encode("the Word, and")
    assert tokenizer.encode("the Word") + tokenizer.encode(", and", "glued") == whole
    assert tokenizer.encode("the Word") + tokenizer.encode(", and") != whole


def test_tokenizer_round_trip(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_json())
    again = Tokenizer.load(tmp_path / "tokenizer.json")
    assert again.vocabulary == tokenizer.vocabulary
    assert again.encode(VERSES[0]) == tokenizer.encode(VERSES[0])


def test_train_tokenizer_has_requested_vocabulary_size(tokenizer: Tokenizer) -> None:
    assert tokenizer.vocabulary.num_words == 280
    assert tokenizer.vocabulary.mask_id == 280


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"model": {"type": "Unigram"}}'])
def test_tokenizer_from_json_rejects_other_content(text: str) -> None:
    with pytest.raises(ValueError, match="tokenizer"):
        Tokenizer.from_json(text)


def test_train_tokenizer_rejects_small_vocabulary_and_empty_text() -> None:
    with pytest.raises(ValueError, match="at least 257"):
        train_tokenizer(VERSES, 256)
    with pytest.raises(ValueError, match="no text"):
        train_tokenizer(["", " "], 300)


# -- split and packing ----------------------------------------------------------------------------------------


def test_split_keeps_every_document_once() -> None:
    documents = [str(number) for number in range(100)]
    parts = split(documents, 0.1)
    assert len(parts.validation) == 10
    assert sorted(parts.train + parts.validation, key=int) == documents


def test_split_of_one_document_cuts_tail_at_word_boundary() -> None:
    text = "one two three four five six seven eight nine ten"
    parts = split([text], 0.2)
    assert f"{parts.train[0]} {parts.validation[0]}" == text
    assert parts.validation[0].endswith("ten")


@pytest.mark.parametrize(("documents", "share"), [(["x"], 0.1), ([], 0.1), (["a b"], 0.0), (["a b"], 0.6)])
def test_split_rejects_too_few_documents_and_bad_share(documents: list[str], share: float) -> None:
    with pytest.raises(ValueError, match="validation"):
        split(documents, share)


def test_documents_end_with_the_end_token(tokenizer: Tokenizer) -> None:
    stream = tokenise(tokenizer, VERSES)
    ends = (stream.tokens == tokenizer.vocabulary.eos).nonzero()[:, 0]
    assert len(ends) == 3
    assert ends[-1] == len(stream.tokens) - 1
    assert stream.num_bytes == sum(len(verse.encode()) + 1 for verse in VERSES)
    assert tokenizer.decode(stream.tokens[: ends[0]].tolist()) == VERSES[0]


def test_tokenise_takes_less_than_40_bytes_per_token(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding, "_BATCH", 2**15)
    documents = VERSES * 4000
    tracemalloc.start()
    stream = tokenise(tokenizer, documents)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert stream.tokens.dtype == torch.int64
    assert peak < 40 * len(stream.tokens)  # a list of Python's numbers takes more


@given(size=st.integers(5, 60), length=st.integers(1, 5), seed=st.integers(0, 9), epoch=st.integers(0, 3))
@settings(max_examples=50, deadline=None)
def test_windows_epoch_covers_every_token(size: int, length: int, seed: int, epoch: int) -> None:
    windows = Windows(torch.arange(size), length, seed)
    seen = windows.batch(epoch * len(windows), len(windows))
    assert len(windows) == math.ceil(size / length)
    assert set(seen.flatten().tolist()) == set(range(size))


def test_windows_epochs_start_at_different_offsets() -> None:
    windows = Windows(torch.arange(40), 5, 0)
    cuts = {int(windows.batch(epoch * len(windows), 1)[0, 0]) % 5 for epoch in range(20)}
    assert cuts == set(range(5))


@given(first=st.integers(0, 40), count=st.integers(1, 30))
@settings(max_examples=50, deadline=None)
def test_windows_batch_depends_on_window_number_only(first: int, count: int) -> None:
    windows = Windows(torch.arange(37), 4, seed=3)
    one_by_one = torch.cat([windows.batch(number, 1) for number in range(first, first + count)])
    assert torch.equal(windows.batch(first, count), one_by_one)


def test_order_depends_on_seed_and_epoch() -> None:
    tokens = torch.arange(400)
    windows = Windows(tokens, 4, seed=0)
    assert not torch.equal(windows.batch(0, 100), windows.batch(100, 100))
    assert not torch.equal(windows.batch(0, 100), Windows(tokens, 4, seed=1).batch(0, 100))
    assert torch.equal(windows.batch(0, 100), Windows(tokens, 4, seed=0).batch(0, 100))


def test_windows_rejects_text_shorter_than_window() -> None:
    with pytest.raises(ValueError, match="less than one window"):
        Windows(torch.arange(3), 4, 0)


# -- baselines ------------------------------------------------------------------------------------------------


def test_unigram_and_bigram_probabilities_sum_to_one() -> None:
    tokens = torch.tensor([0, 1, 2, 0, 1, 0, 3, 3, 0, 1])
    bigram = Bigram.fit(tokens, 5)
    assert bigram.unigram.probabilities.sum() == pytest.approx(1)
    for head in range(5):
        pairs = torch.stack([torch.full((5,), head), torch.arange(5)], 1)
        p = [math.exp(-float(bigram.nats(pair)[1])) for pair in pairs]
        assert sum(p) == pytest.approx(1)


def test_bigram_predicts_periodic_text() -> None:
    tokens = torch.arange(4).repeat(200)
    assert float(Unigram.fit(tokens, 4).nats(tokens).mean()) == pytest.approx(math.log(4), rel=1e-3)
    assert float(Bigram.fit(tokens, 4).nats(tokens)[1:].mean()) < 0.02


def test_train_tokenizer_on_text_without_spaces_takes_less_than_5_seconds() -> None:
    """Training time grows with the square of the longest word, and a file of DNA or Base64 is one word."""
    text = "".join("ACGT"[(number * number) % 7 % 4] for number in range(400_000))
    began = time.process_time()
    tokenizer = train_tokenizer([text], 300)
    assert time.process_time() - began < 5
    assert tokenizer.decode(tokenizer.encode(text[:5000])) == text[:5000]


def test_windows_epochs_have_different_orders() -> None:
    """Epochs also shift the windows, so the test compares the window numbers of the first tokens."""
    tokens, length = torch.arange(4000), 4
    windows = Windows(tokens, length, 0)
    orders = [windows.batch(epoch * len(windows), len(windows))[:, 0] // length for epoch in range(2)]
    assert float((orders[0] == orders[1]).double().mean()) < 0.05
