"""Shards: their tokens and manifest, resuming, damaged folders, and `hdlm tokenize`."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock, Timeout
from hypothesis import given, settings
from hypothesis import strategies as st

from hdlm.cli import main
from hdlm.data import Tokenizer, Windows, corpus, tokenise, train_tokenizer
from hdlm.data.corpora.base import PIECE, Piece, pieces_of
from hdlm.data.encoding import encoded, first_tokens, sample_of, split_pieces
from hdlm.data.mapped import MappedTokens
from hdlm.data.order import shuffled
from hdlm.data.shards import Manifest, Shards, TokenizationProgress, write_shards

DOCUMENTS = tuple(
    f"In the beginning was word {number}, and the word was {number * 7}." for number in range(200)
)
SHARD = 600


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(DOCUMENTS, 300)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.jsonl"
    file.write_text("".join(json.dumps({"text": document}) + "\n" for document in DOCUMENTS))
    return file


@pytest.fixture
def write(tokenizer: Tokenizer, text: Path, tmp_path: Path) -> Callable[..., Shards]:
    def written(**options) -> Shards:
        options = {"shard_tokens": SHARD, **options}
        return write_shards(corpus(str(text)), tokenizer, tmp_path / "shards", **options)

    return written


# -- what is in them ------------------------------------------------------------------------------------------


def test_write_shards_holds_tokens_of_text(write, tokenizer, tmp_path) -> None:
    shards = write()
    whole = tokenise(tokenizer, DOCUMENTS)
    assert torch.equal(shards.tokens("train")[:], whole.tokens)
    count = shards.manifest.count("train")
    assert (count.documents, count.tokens, count.bytes) == (200, len(whole.tokens), whole.num_bytes)
    assert len(shards.manifest.shards) > 3
    assert shards.head("train", 500).num_bytes == round(500 * whole.num_bytes / len(whole.tokens))
    assert np.load(tmp_path / "shards" / "00000.npy").dtype == np.uint16
    assert shards.tokenizer().to_json() == tokenizer.to_json()
    with pytest.raises(ValueError, match="is set aside for validation"):
        shards.head("validation", 10)


def test_validation_share_depends_on_text_of_documents(write, tokenizer) -> None:
    shards = write(share=0.2)
    parts = {side: shards.tokens(side)[:].tolist() for side in ("train", "validation")}
    found = {side: set(tokenizer.documents(ids)) for side, ids in parts.items()}
    assert found["train"] | found["validation"] == set(DOCUMENTS)
    assert not found["train"] & found["validation"]
    assert 20 <= len(found["validation"]) <= 60
    again = split_pieces([Piece(document, True, True) for document in reversed(DOCUMENTS)], 0.2)
    assert {piece.text for piece, aside in again if aside} == found["validation"]


def test_split_pieces_splits_long_document_in_stretches(tokenizer) -> None:
    text = " ".join(DOCUMENTS)
    pieces = list(pieces_of([text], 16))
    sided = list(split_pieces(pieces, 0.3))
    assert "".join(piece.text for piece, _ in sided) == text
    assert {aside for _, aside in sided} == {False, True}
    for (piece, aside), (_, other) in itertools.pairwise(sided):
        assert piece.last == (aside != other)
    assert sided[-1].piece.last


def test_first_tokens_gives_one_side_of_the_split(text, tokenizer, write) -> None:
    shards = write(share=0.2)
    for side in ("train", "validation"):
        head = first_tokens(corpus(str(text)), tokenizer, 10**6, 0.2, aside=side == "validation")
        assert torch.equal(head.tokens, shards.tokens(side)[:])
        assert head.num_bytes == shards.manifest.count(side).bytes == shards.head(side, 10**6).num_bytes
    assert len(first_tokens(corpus(str(text)), tokenizer, 30).tokens) < 10**4


def test_sample_of_covers_whole_text(text) -> None:
    sample = list(sample_of(corpus(str(text)), 2000))
    assert 1000 < sum(map(len, sample)) < 2100
    assert set(sample) & set(DOCUMENTS[100:])


def test_encoded_keeps_order_for_any_batch_size(tokenizer, monkeypatch) -> None:
    pieces = [Piece(document, True, True) for document in DOCUMENTS]
    monkeypatch.setattr("hdlm.data.encoding._MOST", 7)
    ids = [row.tolist() for _, row in encoded(tokenizer, split_pieces(pieces, 0.0))]
    assert ids == tokenizer.encode_documents(DOCUMENTS)


# -- going on -------------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from pathlib import Path
from hdlm.data import Tokenizer, corpus
from hdlm.data.shards import write_shards

folder = Path(sys.argv[1])
calls = 0
def watch(progress):
    global calls
    calls += 1
    if calls == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)

tokenizer = Tokenizer.load(folder / "tokenizer.json")
write_shards(corpus(str(folder / "text.jsonl")), tokenizer, folder / "shards", share=0.2, shard_tokens=600, watch=watch)
"""


def test_write_shards_resumes_after_sigkill(text, tokenizer, tmp_path, write) -> None:
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_json())
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), "150"], capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    folder = tmp_path / "shards"
    before = {file.name: file.stat().st_mtime_ns for file in folder.glob("0*.npy")}
    manifest = Manifest.read(folder)
    assert manifest.shards
    assert not manifest.complete
    with pytest.raises(ValueError, match="not finished"):
        Shards.open(folder)
    lines: list[str] = []
    shards = write(share=0.2, say=lines.append)
    assert lines == [f"resuming after {len(manifest.shards)} shards"]
    assert before.items() <= {file.name: file.stat().st_mtime_ns for file in folder.glob("0*.npy")}.items()
    fresh = write_shards(corpus(str(text)), tokenizer, tmp_path / "fresh", share=0.2, shard_tokens=SHARD)
    for side in ("train", "validation"):
        assert torch.equal(shards.tokens(side)[:], fresh.tokens(side)[:])
    assert shards.manifest == fresh.manifest


def test_write_shards_writes_tokenizer_before_first_manifest(write, tokenizer, tmp_path, monkeypatch) -> None:
    def dies(manifest: Manifest, folder: Path) -> None:
        assert Tokenizer.load(folder / "tokenizer.json").to_json() == tokenizer.to_json()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Manifest, "write", dies)
        with pytest.raises(KeyboardInterrupt):
            write()
    assert len(write().tokens("train")) > 0


def test_write_shards_detects_text_changed_while_writing(write, text) -> None:
    def grows(progress: TokenizationProgress) -> None:
        if progress.tokens > SHARD:
            text.write_text("".join(f'{{"text": "{number}"}}\n' for number in range(9)))

    with pytest.raises(ValueError, match=r"was made, its source has changed: .*text\.jsonl"):
        write(watch=grows, shard_tokens=10**6)
    with pytest.raises(ValueError, match="holds another text"):
        write()
    assert write(renew=True).manifest.complete


def test_write_shards_locks_its_folder(write, tmp_path) -> None:
    def looks(progress: TokenizationProgress) -> None:
        with pytest.raises(Timeout):
            FileLock(tmp_path / "shards" / ".lock").acquire(timeout=0)

    write(watch=looks)
    FileLock(tmp_path / "shards" / ".lock").acquire(timeout=0)


def test_write_shards_reuses_finished_shards(write, monkeypatch) -> None:
    first = write()
    monkeypatch.setattr("hdlm.data.shards.encoded", None)
    monkeypatch.setattr("hdlm.data.shards._hash", None)
    assert write().manifest == first.manifest


def test_truncated_shard_is_detected_and_rewritten(write, tmp_path) -> None:
    whole = write()
    file = tmp_path / "shards" / "00001.npy"
    with file.open("r+b") as opened:
        opened.truncate(file.stat().st_size - 2)
    with pytest.raises(ValueError, match=r"00001\.npy is missing or incomplete"):
        Shards.open(tmp_path / "shards")
    lines: list[str] = []
    assert write(say=lines.append).manifest == whole.manifest
    assert lines[0].startswith("00001.npy is missing or incomplete")
    file.write_bytes(file.read_bytes()[:-2] + b"\xff\xff")
    with pytest.raises(ValueError, match="damaged"):
        Shards.open(tmp_path / "shards").verify()


def test_write_shards_refuses_shards_of_other_text_or_tokenizer(write, text, tokenizer, tmp_path) -> None:
    folder = tmp_path / "shards"
    before = write().manifest
    other = train_tokenizer(DOCUMENTS, 290)
    with pytest.raises(ValueError, match="another tokenizer"):
        write_shards(corpus(str(text)), other, folder)
    with pytest.raises(ValueError, match=r"0 of it is set aside, not 0\.1"):
        write(share=0.1)
    with pytest.raises(ValueError, match="made by another tokenizer"):
        Shards.open(folder).check(other, "mine")
    os.utime(text, ns=(1, 1))
    assert write().manifest == before
    text.write_text(text.read_text().replace("beginning", "ending"))
    with pytest.raises(ValueError, match=r"source has changed: .*text\.jsonl"):
        write()
    renewed = write(renew=True)
    assert renewed.manifest != before
    assert "ending" in tokenizer.decode(renewed.tokens("train")[:10].tolist())


def test_write_shards_refuses_folder_of_other_files(write, tmp_path) -> None:
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "thesis.tex").write_text("mine")
    with pytest.raises(ValueError, match="other files"):
        write()
    (tmp_path / "shards" / "thesis.tex").unlink()
    for content, complaint in (("{", "cannot be used"), ('{"format": 7}', "format 7")):
        (tmp_path / "shards" / "manifest.json").write_text(content)
        with pytest.raises(ValueError, match=complaint):
            write()
    assert write(renew=True).manifest.complete


# -- windows of them ------------------------------------------------------------------------------------------


@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(lambda sizes: sum(sizes) > 4),
    start=st.integers(0, 40),
    stop=st.integers(0, 40),
)
@settings(max_examples=25, deadline=None)
def test_mapped_tokens_equal_one_tensor(sizes, start, stop) -> None:
    row = torch.arange(sum(sizes))
    mapped = MappedTokens([part.numpy().astype(np.uint16) for part in row.split(sizes)], "x")
    assert len(mapped) == len(row)
    assert torch.equal(mapped[start:stop], row[start:stop])
    assert torch.equal(Windows(mapped, 4, 1).batch(start, 5), Windows(row, 4, 1).batch(start, 5))


@pytest.mark.parametrize(
    ("size", "seed", "epoch"), [(1, 0, 0), (2, 5, 1), (3, 0, 2), (64, 0, 0), (129, 2**64 - 1, 3)]
)
def test_shuffled_of_long_order_is_permutation(size, seed, epoch, monkeypatch) -> None:
    monkeypatch.setattr("hdlm.data.order.SORTED", 0)
    parts = torch.arange(size).split(50)
    order = torch.cat([shuffled(seed, epoch, size, part, 1) for part in parts])
    assert order.sort().values.tolist() == list(range(size))


def test_shuffled_of_long_order_is_random_and_fast() -> None:
    size = 10**12
    began = time.perf_counter()
    order = shuffled(3, 0, size, torch.arange(2000), 1)
    assert time.perf_counter() - began < 1
    assert order.unique().numel() == 2000
    assert abs(float(order.double().mean()) / size - 0.5) < 4 * 0.2887 / 2000**0.5
    assert abs(float(torch.corrcoef(torch.stack([order[1:], order[:-1]]).double())[0, 1])) < 4 / 2000**0.5
    for other in ((4, 0, 1), (3, 1, 1), (3, 0, 2)):
        seed, epoch, stream = other
        assert not torch.equal(order, shuffled(seed, epoch, size, torch.arange(2000), stream)), other


def test_windows_fingerprint_distinguishes_texts(write, tmp_path) -> None:
    tokens = write().tokens("train")
    same = Windows(Shards.open(tmp_path / "shards").tokens("train"), 8, 0)
    assert Windows(tokens, 8, 0).fingerprint == same.fingerprint
    others = [
        Windows(tokens, 9, 0),
        Windows(tokens, 8, 1),
        Windows(tokens[:-1], 8, 0),
        Windows(tokens[:], 8, 0),
    ]
    assert len({windows.fingerprint for windows in [same, *others]}) == 5


# -- the command ----------------------------------------------------------------------------------------------


def test_tokenize_command_writes_shards(text, tokenizer, tmp_path, capsys) -> None:
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_json())
    words = ["tokenize", str(text), "-o", str(tmp_path / "out"), "--validation", "0.1"]
    assert main([*words, "--tokenizer", str(tmp_path / "tokenizer.json"), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["train"]["documents"] + printed["validation"]["documents"] == len(DOCUMENTS)
    assert main([*words, "--tokenizer", "train"]) == 0
    assert "1 shards of uint16" in capsys.readouterr().out
    assert main(["tokenize", str(text), "-o", str(tmp_path / "out"), "--tokenizer", "train"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


GIGABYTE = """
import sys
from hdlm.cli import main

status = main(sys.argv[1:])
print(next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) // 1024)
sys.exit(status)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_tokenize_command_of_gigabyte_takes_less_than_1_gib(tmp_path: Path) -> None:
    """Writes the Bible about 260 times. `ru_maxrss` is not usable, because a program inherits it from its parent."""
    chapters = list(corpus("kjv").documents())
    bible = "".join(json.dumps({"text": chapter}) + "\n" for chapter in chapters)
    copies = -(-(2**30) // len(bible))
    with (tmp_path / "big.jsonl").open("w") as file:
        for _ in range(copies):
            file.write(bible)
    tokenizer = train_tokenizer(chapters, 4096)
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_json())
    words = ["tokenize", str(tmp_path / "big.jsonl"), "-o", str(tmp_path / "shards"), "--validation", "0.01"]
    words += ["--tokenizer", str(tmp_path / "tokenizer.json")]
    done = subprocess.run(
        [sys.executable, "-c", GIGABYTE, *words], capture_output=True, text=True, check=True
    )
    assert int(done.stdout.split()[-1]) < 1024, "MiB at the peak"
    shards = Shards.open(tmp_path / "shards")
    once = tokenise(tokenizer, chapters)
    counts = [shards.manifest.count(side) for side in ("train", "validation")]
    assert sum(count.tokens for count in counts) == copies * len(once.tokens)
    assert sum(count.bytes for count in counts) == copies * once.num_bytes


def test_mapped_tokens_keep_no_open_files(write) -> None:
    """A program may open 1024 files, and a corpus of 2^36 tokens has twice as many shards."""
    shards = write(shard_tokens=50)
    open_files = Path("/proc/self/fd")
    if not open_files.is_dir():
        pytest.skip("there is no /proc")
    before = len(list(open_files.iterdir()))
    tokens = shards.tokens("train")
    assert len(shards.manifest.shards) > 10
    assert len(list(open_files.iterdir())) == before
    stored = np.concatenate([np.load(shards.folder / shard.file) for shard in shards.manifest.shards])
    assert tokens[:].tolist() == stored.tolist()


def test_split_pieces_of_one_large_file_has_validation_pieces() -> None:
    """The file has 4 MB and the share is 5 %, so stretches of 1 MB would rarely be selected."""
    pieces = list(pieces_of([f"line {number} of a long book\n" for number in range(160_000)]))
    assert any(aside for _, aside in split_pieces(pieces, 0.05))
    assert max(len(piece.text) for piece, aside in split_pieces(pieces, 0.05) if aside) <= PIECE


def test_write_shards_keeps_split_of_earlier_version(text, tokenizer, tmp_path) -> None:
    folder = tmp_path / "shards"
    made = write_shards(corpus(str(text)), tokenizer, folder, share=0.2)
    dataclasses.replace(made.manifest, pieces=(PIECE, 16)).write(folder)
    again = write_shards(corpus(str(text)), tokenizer, folder, share=0.2)
    assert again.manifest.pieces == (PIECE, 16)
    dataclasses.replace(made.manifest, pieces=(PIECE, 16), complete=False).write(folder)
    with pytest.raises(ValueError, match=r"an earlier version.*--renew"):
        write_shards(corpus(str(text)), tokenizer, folder, share=0.2)


def test_sample_of_excludes_validation_text(text) -> None:
    whole = corpus(str(text))
    aside = {piece.text for piece, is_aside in split_pieces(whole.pieces(), 0.2) if is_aside}
    sample = set(sample_of(whole, 10**9, 0.2))
    assert aside
    assert sample
    assert not aside & sample
