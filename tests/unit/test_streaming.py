"""Streaming: text that is tokenised during training, and prefetched batches."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
import torch

from hdlm.data import AbstractWindows, Tokenizer, corpus, train_tokenizer
from hdlm.data.encoding import split_pieces
from hdlm.data.prefetch import Prefetch
from hdlm.data.streaming import StreamedText, StreamedWindows

DOCUMENTS = tuple(
    f"In the beginning was word {number}, and the word was {number * 7}." for number in range(60)
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(DOCUMENTS, 300)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hdlm.data.streaming.BLOCK", 8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(6):
        rows = DOCUMENTS[number * 10 : number * 10 + 10]
        file = tmp_path / f"{number}.jsonl"
        file.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    return tmp_path


def _stream(folder: Path, tokenizer: Tokenizer, share: float = 0.0) -> StreamedText:
    return StreamedText(corpus(str(folder)), tokenizer, share)


def test_streamed_epoch_has_every_document_once_in_shuffled_order(folder, tokenizer) -> None:
    stream = _stream(folder, tokenizer)
    epochs = [
        tokenizer.documents([id for ids in stream.epoch(number, seed=0) for id in ids.tolist()])
        for number in range(3)
    ]
    assert all(sorted(epoch) == sorted(DOCUMENTS) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_streamed_windows_cover_text_without_gap(folder, tokenizer) -> None:
    stream = _stream(folder, tokenizer)
    tokens = [id for number in range(2) for ids in stream.epoch(number, 5) for id in ids.tolist()]
    windows = StreamedWindows(stream, 10, 5)
    for block in range(len(tokens) // 80):
        rows = windows.batch(block * 8, 8)
        straight = torch.tensor(tokens[block * 80 : block * 80 + 80]).view(8, 10)
        assert sorted(rows.tolist()) == sorted(straight.tolist())
        assert block == 0 or not torch.equal(rows, straight) or block > 3


def test_streamed_blocks_have_different_orders(folder, tokenizer) -> None:
    stream = _stream(folder, tokenizer)
    tokens = [id for ids in stream.epoch(0, 5) for id in ids.tolist()]
    windows, orders = StreamedWindows(stream, 10, 5), set()
    for block in range(4):
        straight = [tokens[at : at + 10] for at in range(block * 80, block * 80 + 80, 10)]
        orders.add(tuple(straight.index(row) for row in windows.batch(block * 8, 8).tolist()))
    assert len(orders) == 4


@pytest.mark.parametrize("size", [1, 3, 8, 13])
def test_streamed_batch_depends_on_window_number_only(folder, tokenizer, size) -> None:
    whole = StreamedWindows(_stream(folder, tokenizer), 10, 2).batch(0, 400)
    windows = StreamedWindows(_stream(folder, tokenizer), 10, 2)
    for first in range(0, 60, size):
        assert torch.equal(windows.batch(first, size), whole[first : first + size])
    resumed = StreamedWindows(_stream(folder, tokenizer), 10, 2)
    assert torch.equal(resumed.batch(333, 20), whole[333:353])
    assert torch.equal(resumed.batch(7, 3), whole[7:10])
    assert not torch.equal(StreamedWindows(_stream(folder, tokenizer), 10, 3).batch(0, 400), whole)


def test_streamed_windows_ignore_file_added_later(folder, tokenizer) -> None:
    whole = StreamedWindows(_stream(folder, tokenizer), 10, 2).batch(0, 400)
    windows = StreamedWindows(_stream(folder, tokenizer), 10, 2)
    windows.batch(0, 8)
    (folder / "9.jsonl").write_text('{"text": "late"}\n' * 50)
    assert torch.equal(windows.batch(8, 392), whole[8:])


def test_streamed_text_excludes_validation_documents(folder, tokenizer) -> None:
    ids = [id for ids in _stream(folder, tokenizer, 0.2).epoch(0, 0) for id in ids.tolist()]
    pieces = corpus(str(folder)).pieces()
    aside = {piece.text for piece, is_aside in split_pieces(pieces, 0.2) if is_aside}
    assert aside
    assert set(tokenizer.documents(ids)) == set(DOCUMENTS) - aside


def test_streamed_fingerprint_distinguishes_streams(folder, tokenizer) -> None:
    def fingerprint(length: int = 10, seed: int = 0, share: float = 0.0) -> str:
        return StreamedWindows(_stream(folder, tokenizer, share), length, seed).fingerprint

    seen = {fingerprint(), fingerprint(), fingerprint(11), fingerprint(seed=1), fingerprint(share=0.1)}
    (folder / "0.jsonl").write_text('{"text": "other"}\n')
    assert len({*seen, fingerprint()}) == 5


def test_streamed_windows_of_empty_text_raise(tmp_path, tokenizer) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="no documents"):
        StreamedWindows(_stream(tmp_path, tokenizer), 10, 0).batch(0, 1)


# -- ahead of time --------------------------------------------------------------------------------------------


class NumberedWindows(AbstractWindows):
    """Window `n` is filled with `n`. Windows from 4 on raise the given error."""

    length = 3
    fingerprint = "numbers"

    def __init__(self, error: BaseException | None = None) -> None:
        self.asked: list[tuple[int, int]] = []
        self.threads: set[int] = set()
        self.error = error

    def batch(self, first: int, count: int) -> torch.Tensor:
        self.asked.append((first, count))
        self.threads.add(threading.get_ident())
        if self.error is not None and first >= 4:
            raise self.error
        return torch.arange(first, first + count)[:, None].expand(count, self.length).clone()


def test_prefetch_makes_expected_batches_in_one_thread() -> None:
    numbers = NumberedWindows()
    with Prefetch(numbers) as windows:
        assert (windows.length, windows.fingerprint) == (3, "numbers")
        windows.expect(0, 2)
        windows.expect(2, 2)
        assert windows.batch(0, 2).tolist() == [[0] * 3, [1] * 3]
        assert windows.batch(2, 2)[0, 0] == 2
        assert windows.batch(9, 1)[0, 0] == 9
        windows.expect(10, 1)
        windows.expect(12, 2)
        assert windows.batch(12, 2)[1, 0] == 13
        assert not windows._expected
        assert windows.batch(10, 1)[0, 0] == 10
    assert numbers.asked[:3] == [(0, 2), (2, 2), (9, 1)]
    assert len(numbers.threads) == 1
    assert threading.get_ident() not in numbers.threads
    assert numbers.threads.isdisjoint(thread.ident for thread in threading.enumerate())


@pytest.mark.parametrize(
    ("error", "complaint"),
    [
        (ValueError("bad line"), "^bad line$"),
        (OSError("disk gone"), "windows 4 to 5 cannot be read: OSError: disk gone"),
        (SystemExit(3), "windows 4 to 5 cannot be read: SystemExit: 3"),
        (MemoryError("full"), "windows 4 to 5 cannot be read: MemoryError: full"),
    ],
)
def test_prefetch_raises_error_of_its_thread(error: BaseException, complaint: str) -> None:
    with Prefetch(NumberedWindows(error)) as windows:
        windows.expect(4, 2)
        assert windows.batch(0, 1)[0, 0] == 0
        with pytest.raises(ValueError, match=complaint):
            windows.batch(4, 2)


def test_closed_prefetch_raises() -> None:
    windows = Prefetch(NumberedWindows())
    windows.close()
    with pytest.raises(ValueError, match="closed"):
        windows.batch(0, 1)


def test_prefetch_keeps_batches_of_stream(folder, tokenizer) -> None:
    straight = StreamedWindows(_stream(folder, tokenizer), 10, 2)
    with Prefetch(StreamedWindows(_stream(folder, tokenizer), 10, 2)) as windows:
        for first in range(0, 40, 4):
            windows.expect(first + 4, 4)
            assert torch.equal(windows.batch(first, 4), straight.batch(first, 4))
