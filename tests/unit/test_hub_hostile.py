"""Hostile and broken files are refused in one clear line, and nothing that they carry runs.

Each hostile file would leave a marker behind if it were obeyed; without `load` between, some of them do.
"""

from __future__ import annotations

import collections
import functools
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hdlm.checkpoint import save_checkpoint
from hdlm.hub import inspect, load
from hdlm.hub.configs import read_config
from hdlm.hub.pickles import StandIn, load_pickle
from tests.hub_folders import EPSILON, folder, tensors

SUFFIXES = (".bin", ".pth", ".ckpt", ".pt")


class Runs:
    """A pickle of this calls a function when it is read."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "the payload ran"


def refused(path: Path, *, match: str) -> None:
    """`load` refuses it with one line."""
    for function in (load, inspect):
        with pytest.raises(ValueError, match=match) as caught:
            function(path)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 1000


def place(tmp_path: Path, suffix: str = ".bin") -> Path:
    """A file of weights to be, beside a config that fits."""
    folder(tmp_path / "model", EPSILON)
    (tmp_path / "model" / "model.safetensors").unlink()
    return tmp_path / "model" / f"pytorch_model{suffix}"


def rewritten(path: Path, change: Callable[[str, bytes], bytes], **how: Any) -> None:
    """The same zip with other files in it."""
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", **how) as archive:
        for name, content in files.items():
            archive.writestr(name, change(name, content))


def with_pickle(path: Path, program: bytes) -> None:
    """A file of torch.save with another pickle."""
    torch.save(tensors(EPSILON), path)
    rewritten(path, lambda name, old: program if name.endswith("data.pkl") else old)


# -- programs in pickles ----------------------------------------------------------------------------------


def payloads(marker: Path) -> dict[str, Any]:
    touch = f"touch '{marker}'"
    return {
        "os.system": Runs(os.system, touch),
        "exec": Runs(exec, f"open({str(marker)!r}, 'w')"),
        "eval": Runs(eval, f"open({str(marker)!r}, 'w')"),
        "open": Runs(open, str(marker), "w"),
        "getattr": Runs(getattr, "text", "upper"),
        "torch.load": Runs(torch.load, str(marker)),
        "import": Runs(__import__, "antigravity"),
        "bytearray": Runs(bytearray, 10**12),
    }


@pytest.mark.parametrize("name", payloads(Path()))
@pytest.mark.parametrize("where", ["alone", "in a state dict", "in an optimizer"])
def test_programs_are_refused(tmp_path, marker, name, where):
    payload = payloads(marker)[name]
    content = {
        "alone": payload,
        "in a state dict": {**tensors(EPSILON), "extra": payload},
        "in an optimizer": {"model": tensors(EPSILON), "optimizer": {"state": payload}, "step": 1},
    }[where]
    path = place(tmp_path)
    torch.save(content, path)
    refused(path, match="is refused, for it asks to run or build [^;]+; only tensors")
    assert not marker.exists()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_under_any_name(tmp_path, marker, suffix):
    path = place(tmp_path, suffix)
    torch.save(payloads(marker)["os.system"], path)
    refused(path, match=r"asks to run or build (posix|nt|os)\.system")
    assert not marker.exists()


def test_the_payload_does_run_if_nobody_looks(tmp_path, marker):
    """So these tests can fail."""
    path = place(tmp_path)
    torch.save(payloads(marker)["os.system"], path)
    torch.load(path, weights_only=False)
    assert marker.exists()


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_programs_of_every_protocol(tmp_path, marker, protocol):
    path = place(tmp_path)
    with_pickle(path, pickle.dumps(payloads(marker)["os.system"], protocol=protocol))
    refused(path, match="is refused, for it asks to run or build")
    assert not marker.exists()


def by_hand(marker: Path) -> dict[str, bytes]:
    """Pickles that no pickler writes."""
    command = f"touch '{marker}'".encode()
    text = b"X" + struct.pack("<I", len(command)) + command
    return {
        "INST": b"(S'" + command.replace(b"'", b'"') + b"'\nios\nsystem\n.",
        "OBJ": b"(cos\nsystem\n" + text + b"o.",
        "STACK_GLOBAL": b"\x80\x04\x8c\x02os\x8c\x06system\x93" + text + b"\x85R.",
        "STACK_GLOBAL from memory": b"\x80\x04\x8c\x06system\x94\x8c\x02os\x94h\x01h\x00\x93" + text + b"\x85R.",
        "EXT1": b"\x80\x02\x82\x01" + text + b"\x85R.",
        "after the end": b"\x80\x02N.cos\nsystem\n" + text + b"\x85R.",
        "a submodule": b"\x80\x02ctorch.serialization\nos.system\n" + text + b"\x85R.",
        "an attribute": b"\x80\x02ctorch\nSize.__class__\n" + text + b"\x85R.",
    }  # fmt: skip


@pytest.mark.parametrize("name", by_hand(Path()))
def test_programs_by_hand(tmp_path, marker, name):
    path = place(tmp_path)
    with_pickle(path, by_hand(marker)[name])
    refused(path, match="is refused|damaged or holds more than tensors|holds no weights by name")
    assert not marker.exists()


class Trap:
    """An object whose every way of being built leaves the marker behind."""

    marker: Path

    def __init__(self, *_: Any) -> None:
        self.spring()

    def __setstate__(self, state: Any) -> None:
        self.spring()

    def __hash__(self) -> int:
        return self.spring()

    def append(self, item: Any) -> None:
        self.spring()

    extend = append

    def __setitem__(self, key: Any, value: Any) -> None:
        self.spring()

    @classmethod
    def spring(cls, *_: Any) -> int:
        cls.marker.touch()
        return 0


class Reduced:
    """An object that is pickled as its `__reduce__` says."""

    def __init__(self, *parts: Any) -> None:
        self.parts = parts

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.parts


def objects(marker: Path) -> dict[str, Any]:
    """Objects of code that is foreign to `torch`, which are built by running it."""
    Trap.marker = marker
    built = Reduced(Trap, (1, 2), {"state": 1}, iter([1, 2, 3]), iter([("a", 1)]))
    return {
        "a path": marker,
        "a call": Reduced(Trap, (1,)),
        "a function": Trap,
        "state, items and entries": built,
        "a chain": Reduced(Trap, (Reduced(Trap, (built,), {"x": built}),), {"y": Reduced(Trap, ())}),
        "a key of a table": {Reduced(Trap, (1,)): 1, (1, Reduced(Trap, (2,))): 2},
        "an item of a set": {
            1: [Reduced(frozenset, ([Reduced(Trap, (1,))],)), Reduced(set, ([Reduced(Trap, (1,))],))]
        },
        "numbers of numpy": [np.float64(3), np.arange(3), np.dtype("int64")],
        "a partial function": functools.partial(max, 1),
        "a counter": collections.Counter("text"),
        "a generic type": list[int] | None,
        "nothing foreign": collections.defaultdict(list, {"a": [1]}),
    }


@pytest.mark.parametrize("name", objects(Path()))
def test_foreign_objects_become_inert_stand_ins(tmp_path, marker, name):
    path, weights = place(tmp_path), tensors(EPSILON)
    shadow = [value for key, value in weights.items() if not key.startswith("rotary")]
    content = {"model": weights, "ema": {"shadow_params": shadow}, "step": 3, "more": objects(marker)[name]}
    torch.save(content, path)
    loaded = dict(load(path).network.named_parameters())
    assert all(torch.equal(value, weights[key]) for key, value in loaded.items())
    assert inspect(path).step == 3
    assert not marker.exists()


@pytest.mark.parametrize(
    "name", sorted(set(objects(Path())) - {"a path", "numbers of numpy", "nothing foreign"})
)
def test_foreign_objects_do_run_if_nobody_looks(tmp_path, marker, name):
    """So the test above can fail, where there is something to run."""
    torch.save(objects(marker)[name], tmp_path / "file")
    torch.load(tmp_path / "file", weights_only=False)
    runs = name not in ("a function", "a partial function", "a counter", "a generic type")
    assert marker.exists() == runs


def test_stand_ins_keep_what_the_file_says(tmp_path, marker):
    path = place(tmp_path)
    torch.save({"it": objects(marker)["state, items and entries"], "class": Trap}, path)
    content = load_pickle(path)
    it = content["it"]
    assert isinstance(it, StandIn)
    assert it.name == content["class"].name == f"{Trap.__module__}.Trap"
    assert (it.arguments, it.state, it.items) == ((1, 2), {"state": 1}, [1, 2, 3, "a", 1])
    assert not callable(it)
    assert not hasattr(it, "__dict__")


TENSOR = (
    b"ctorch._utils\n_rebuild_tensor_v2\n(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000"
    b"X\x03\x00\x00\x00cpuK\x0ctQK\x00(K\x0ct(K\x01t\x89NtR"
).replace(b"_v2\n(X", b"_v2\n((X")
CLASS, TEXT = b"cforeign\nClass\n", b"X\x01\x00\x00\x00a"


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (CLASS + b"}" + TEXT + b"K\x01sb.", None),
        (CLASS + b")\x81}" + TEXT + b"K\x01sb.", None),
        (CLASS + b"K\x01a.", None),
        (b"(K\x01iforeign\nClass\n.", None),
        (b"(cforeign\nClass\nK\x01o.", None),
        (b"}" + CLASS + b"K\x01s.", None),
        (b"}" + CLASS + b")\x81K\x01s.", None),
        (b"ctorch._utils\n_rebuild_tensor_v2\n}" + TEXT + b"K\x01sb.", "sets the state of a _Maker"),
        (b"ctorch._utils\n_rebuild_tensor_v2\nN}" + TEXT + b"K\x01s\x86b.", "sets the state of a _Maker"),
        (b"ctorch\nfloat32\n}b.", "sets the state of a dtype"),
        (b"ctorch\nfloat32\n)R.", "calls a dtype"),
        (TENSOR + b")R.", "calls a Tensor"),
        (TENSOR + b"K\x00K\x01s.", "puts items into a Tensor"),
        (TENSOR + b"K\x01a.", "puts items into a Tensor"),
        (b"}" + TENSOR + b"K\x01s.", "a Tensor is no key"),
        (b"]" + TENSOR + b"}ba.", None),
        (b")K\x01a.", "puts items into a tuple"),
        (b"}K\x01a.", "puts items into a dict"),
        (b"]K\x01K\x02s.", "puts items into a list"),
        (b"}]K\x01s.", "a list is no key"),
        (b"cos\nsystem\n)\x81.", r"asks to run or build os\.system"),
        (b"cbuiltins\neval\n(Vprint(1)\ntR.", r"asks to run or build builtins\.eval"),
        (b"c__builtin__\neval\n(Vprint(1)\ntR.", r"asks to run or build builtins\.eval"),
        (b"c__builtin__\neval.__call__\n(Vprint(1)\ntR.", r"asks to run or build builtins\.eval"),
        (b"Pstorage\n.", r"asks to run or build \(PERSID\)"),
        (b"K\x07Q.", "refers to an object outside"),
        (b"(X\x07\x00\x00\x00storageK\x01K\x01K\x01K\x01tQ.", "storage of an unknown type"),
        (b"((((.", None),
        (b"t.", "damaged"),
        (b"K\x01", "damaged"),
        (b"", "damaged"),
        (b".", "damaged"),
        (b"h\x07.", "damaged"),
        (b"K\x01\x86.", "a tuple lacks items"),
        (b"(K\x01\x86.", "a tuple lacks items"),
        (b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x03\x00\x00\x00bz2tR.", "bytes are written"),
        (b"ctorch\nSize\n(((K\x01ttR.", "damaged"),
        (b"ccollections\nOrderedDict\n(]K\x05atR.", "damaged"),
    ],
)
def test_steps_that_misuse_what_is_there(tmp_path, marker, program, message):
    """A step does what it does to plain data, or the file is refused."""
    path = place(tmp_path)
    torch.save(torch.zeros(12), path)
    rewritten(path, lambda name, old: b"\x80\x02" + program if name.endswith("data.pkl") else old)
    if message is None:
        load_pickle(path)
        return
    with pytest.raises(ValueError, match=message) as caught:
        load_pickle(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def bombs(depth: int = 2000) -> dict[str, tuple[bytes, str | None]]:
    """Programs that are short, and whose data are large or slow."""
    long = b"X" + struct.pack("<I", 2**20) + b"a" * 2**20
    pairs = b"](" + b"".join(b"K" + bytes([index]) + b"N\x86" for index in range(256)) * 100 + b"eq\x01"
    return {
        "tuples in tuples as a key": (b"}N\x85" + b"q\x00h\x00\x86" * 99 + b"Ns.", "a tuple is no key"),
        "a deep tuple as a key": (b"}N" + b"\x85" * depth + b"Ns.", "a tuple is no key"),
        "a long tuple as a key": (b"}(" + b"N" * 100 + b"tNs.", "a tuple is no key"),
        "a large number as a key": (b"}\x8aP" + b"\x7f" * 80 + b"Ns.", "a int is no key"),
        "a deep list": (b"]" * depth + b"a" * (depth - 1) + b".", None),
        "tables in tables": (b"}" * 2 + b"".join(b"q\x00N}h\x00" for _ in range(9)) + b".", None),
        "stand-ins in stand-ins": (CLASS * depth + b"b" * (depth - 1) + b".", None),
        "one text as bytes, often": (
            long + b"q\x00](" + b"c_codecs\nencode\n(h\x00X\x06\x00\x00\x00latin1tR" * 99 + b"e.",
            "copies the same data too often",
        ),
        "one table, often": (
            pairs + b"](" + b"ccollections\nOrderedDict\n(h\x01tR" * 50 + b"e.",
            "copies the same data too often",
        ),
    }


@pytest.mark.parametrize("name", bombs())
def test_programs_whose_data_are_large_or_slow(tmp_path, name):
    program, message = bombs()[name]
    path = place(tmp_path)
    with_pickle(path, b"\x80\x02" + program)
    begin = time.process_time()
    refused(path, match=message or "holds no weights by name|holds no weights that hdlm can read")
    assert time.process_time() - begin < 40


def test_programs_of_many_steps(tmp_path, monkeypatch):
    monkeypatch.setattr("hdlm.hub.pickles.MOST_STEPS", 1000)
    path = place(tmp_path)
    with_pickle(path, b"\x80\x02" + b"N0" * 500 + b"N.")
    refused(path, match="has more than 1000 steps")


@pytest.mark.slow
def test_programs_of_the_largest_depth(tmp_path):
    """They end neither the process nor the patience; in a process of its own, without checks of types."""
    files = []
    for index, (program, message) in enumerate(bombs(500_000).values()):
        files.append((tmp_path / str(index), message))
        with zipfile.ZipFile(files[-1][0], "w") as archive:
            archive.writestr("a/data.pkl", b"\x80\x02" + program)
    code = """
import sys
from pathlib import Path
from hdlm.hub.pickles import load_pickle
for name in sys.argv[1:]:
    try:
        load_pickle(Path(name))
        print("data")
    except ValueError as error:
        print(error)
"""
    command = [sys.executable, "-c", code, *(str(path) for path, _ in files)]
    lines = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=120
    ).stdout.splitlines()
    for line, (_, message) in zip(lines, files, strict=True):
        assert (message or "data") in line


def test_keys_without_end_do_not_fill_the_error(tmp_path):
    path = place(tmp_path)
    torch.save({"x" * 10**6: 1, "model": {"y" * 10**6: torch.zeros(2)}}, path)
    refused(path, match="no format")
    torch.save({"x" * 10**6: 1}, path)
    refused(path, match="its keys are x+")


def test_spoiled_programs_never_escape(tmp_path):
    """Any bytes in the program end as data or as a ValueError."""
    path = place(tmp_path)
    torch.save({"model": {"a": torch.zeros(3)}, "more": [{1: (2.0, "b")}, {3}, Path("c"), b"d"]}, path)
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    (program,) = (name for name in files if name.endswith("data.pkl"))
    generator, outcomes = torch.Generator().manual_seed(0), set()
    for round_ in range(300):
        spoiled = bytearray(files[program])
        for _ in range(1 + round_ % 4):
            at, byte = (int(torch.randint(limit, (), generator=generator)) for limit in (len(spoiled), 256))
            spoiled[at] = byte
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, bytes(spoiled) if name == program else content)
        try:
            load_pickle(path)
            outcomes.add("data")
        except ValueError as error:
            outcomes.add("refused" if str(path) in str(error) else f"no path in {error}")
    assert outcomes == {"data", "refused"}


def test_build_cannot_reach_into_objects(tmp_path, marker):
    """BUILD on an OrderedDict sets attributes; nothing comes of it."""
    program = b"\x80\x02ccollections\nOrderedDict\n)R}X\x07\x00\x00\x00__len__K\x01sb."
    path = place(tmp_path)
    with_pickle(path, program)
    refused(path, match="holds no weights|damaged")


@pytest.mark.parametrize("form", ["legacy", "plain", "tar"])
def test_files_that_are_no_zip(tmp_path, marker, form):
    path, payload = place(tmp_path), payloads(marker)["os.system"]
    match form:
        case "legacy":
            torch.save(payload, path, _use_new_zipfile_serialization=False)
        case "plain":
            path.write_bytes(pickle.dumps(payload))
        case "tar":
            other = tmp_path / "other"
            other.mkdir()
            (other / "pickle").write_bytes(pickle.dumps(payload))
            shutil.move(shutil.make_archive(str(tmp_path / "made"), "tar", other), path)
    refused(path, match=r"damaged or not a file of torch\.save")
    assert not marker.exists()


def test_torchscript(tmp_path):
    path = place(tmp_path)
    torch.save(tensors(EPSILON), path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/constants.pkl", b"")
    refused(path, match="holds a program")


# -- zips -------------------------------------------------------------------------------------------------


def test_compressed_zips(tmp_path):
    """A bomb is small in the file and large in memory."""
    path = place(tmp_path)
    torch.save({"weight": torch.zeros(2_000_000)}, path)
    rewritten(path, lambda name, content: content, compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 100_000
    refused(path, match=r"is compressed; torch stores|claims to hold more than the file has")


def test_zips_whose_parts_overlap(tmp_path):
    """Every entry of the directory points at the same bytes."""
    path = place(tmp_path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02N.")
        archive.writestr("archive/data/0", b"\0" * 10_000)
        first = archive.filelist[1]
        for index in range(1, 50):
            copy = zipfile.ZipInfo(f"archive/data/{index}")
            for name in ("header_offset", "CRC", "compress_size", "file_size", "compress_type"):
                setattr(copy, name, getattr(first, name))
            archive.filelist.append(copy)
            archive.NameToInfo[copy.filename] = copy
            archive._didModify = True
    refused(path, match="claims to hold more than the file has")


@pytest.mark.parametrize("name", ["../../evil", "/tmp/evil", "archive/../../evil", "a\\..\\evil", "C:/evil"])
def test_names_that_reach_out(tmp_path, name):
    path = place(tmp_path)
    torch.save(tensors(EPSILON), path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, b"evil")
    refused(path, match="reaches out of it")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_pickles(tmp_path):
    for name, message in (("archive/data.pkl", "two files of one name"), ("other/data.pkl", "or several")):
        path = place(tmp_path)
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", b"\x80\x02N.")
            archive.writestr(name, b"\x80\x02N.")
        refused(path, match=message)


def test_a_zip_of_something_else(tmp_path):
    path = place(tmp_path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("word/document.xml", b"<xml/>")
    refused(path, match=r"its zip has no FOLDER/data\.pkl")


# -- tensors that lie -------------------------------------------------------------------------------------


def rebuilt(size: str, stride: str, storage: int = 12) -> bytes:
    """A pickle of one tensor over storage `0`, of any size."""
    return (
        b"\x80\x02}X\x16\x00\x00\x00vocab_embed.embeddingX"[:-1].replace(b"\x16", bytes([21]))
        + b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000"
        + b"X\x03\x00\x00\x00cpuK"
        + bytes([storage])
        + b"tQK\x00("
        + pickle.dumps(None)[:0]
        + _numbers(size)
        + b"t("
        + _numbers(stride)
        + b"t\x89ccollections\nOrderedDict\n)RtRs."
    )


def _numbers(text: str) -> bytes:
    return b"".join(b"J" + struct.pack("<i", int(part)) for part in text.split())


@pytest.mark.parametrize(
    ("size", "stride"),
    [("2000000000 2000000000", "0 0"), ("1000 1000", "1000 1"), ("-3 4", "4 1"), ("12 8", "-8 1")],
)
def test_tensors_larger_than_their_file(tmp_path, size, stride):
    """Claimed sizes cost nothing, and are no reason to read past the end of anything."""
    path = place(tmp_path)
    torch.save(torch.zeros(12), path)
    rewritten(path, lambda name, old: rebuilt(size, stride) if name.endswith("data.pkl") else old)
    refused(
        path, match="damaged or holds more than tensors|contradicts itself|has shape|does not fit|no format"
    )


def test_one_number_for_a_whole_matrix(tmp_path):
    """An expanded tensor has the right shape and next to no numbers."""
    path, weights = place(tmp_path), tensors(EPSILON)
    weights["vocab_embed.embedding"] = torch.zeros(1).expand(12, 8)
    torch.save(weights, path)
    refused_by_load(path, match=r"vocab_embed\.embedding claims 96 numbers, but holds fewer")


def refused_by_load(path: Path, *, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        load(path)


def test_sparse_and_complex_tensors(tmp_path):
    path = place(tmp_path)
    for odd in (torch.zeros(12, 8, dtype=torch.complex64), torch.zeros(12, 8).to_sparse(), [1, 2]):
        weights: dict[str, Any] = {**tensors(EPSILON), "vocab_embed.embedding": odd}
        torch.save(weights, path)
        refused_by_load(path, match="is of type|is refused|holds no weights")


# -- damage -----------------------------------------------------------------------------------------------


def test_a_text_under_the_name_of_weights(tmp_path):
    for suffix in SUFFIXES:
        path = place(tmp_path, suffix)
        path.write_text("version https://git-lfs.github.com/spec/v1\n")
        refused(path, match=r"damaged or not a file of torch\.save")
    path = path.with_name("model.safetensors")
    path.write_text("version https://git-lfs.github.com/spec/v1\n")
    refused(path, match="damaged or no safetensors file")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_truncated_files(tmp_path, share, name):
    whole = folder(tmp_path, EPSILON)
    torch.save(tensors(EPSILON), whole / "pytorch_model.bin")
    path = whole / name
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    refused(path, match="damaged")


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_flipped_bytes_never_escape(tmp_path, name):
    """Whatever the damage, it is a ValueError or it is seen in the numbers; it is no crash."""
    whole = folder(tmp_path, EPSILON)
    torch.save(tensors(EPSILON), whole / "pytorch_model.bin")
    path = whole / name
    content = path.read_bytes()
    generator = torch.Generator().manual_seed(0)
    survived = 0
    for _ in range(60):
        spoiled = bytearray(content)
        for place_ in torch.randint(len(content), (40,), generator=generator).tolist():
            spoiled[place_] ^= 0x5A
        path.write_bytes(spoiled)
        complaint = complaint_about(path)
        survived += not complaint
        assert not complaint or str(tmp_path) in complaint
    assert survived < 60


def complaint_about(path: Path) -> str:
    """What `load` says; nothing if it loads."""
    try:
        load(path)
    except ValueError as error:
        return str(error)
    return ""


def header(table: Any, data: bytes = b"") -> bytes:
    text = table if isinstance(table, bytes) else json.dumps(table).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize(
    "content",
    [
        struct.pack("<Q", 2**60) + b"{}",
        header(b"[1, 2]"),
        header({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, b"\0" * 8),
        header({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 8]}}, b"\0" * 8),
        header({"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 8]}}, b"\0" * 8),
        header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}}, b"\0" * 8),
        header({"a": {"dtype": "X9", "shape": [2], "data_offsets": [0, 8]}}, b"\0" * 8),
        header(b"[" * 100_000),
    ],
)
def test_safetensors_that_lie(tmp_path, content):
    path = folder(tmp_path, EPSILON) / "model.safetensors"
    path.write_bytes(content)
    refused(path, match="damaged or no safetensors file")


# -- configs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: !!python/object/apply:os.system ['touch MARKER']", "python/object/apply:os.system"),
        ("a: !!python/object/new:os.system ['touch MARKER']", "python/object/new"),
        ("a: !!python/name:os.system", "python/name"),
        ("a: !!python/module:antigravity", "python/module"),
        ("a: !!python/tuple [1, 2]", "python/tuple"),
        ("a: !!binary aGVsbG8=", "it holds a bytes"),
        ("a: !!set {1, 2}", "it holds a set"),
        ("a: &a [x, x]\nb: [*a, *a]", "YAML anchors"),
        ("a: &a [*a]", "YAML anchors"),
        ("a: [1, 2", "damaged"),
        ("- 1\n- 2", "no table but a list"),
        ("just text", "no table but a str"),
        ("", "no table but a NoneType"),
        ("a: 1\n---\nb: 2", "damaged"),
        ("a: '${b}'\nb: '${a}'", "in a circle"),
        ("[" * 5000, "damaged"),
        ("a: {[1]: 2}", "damaged"),
        ("a: \x00", "damaged"),
    ],
)
def test_yaml_that_would_do_more(tmp_path, marker, text, message):
    whole = folder(tmp_path / "model", EPSILON)
    (whole / "config.json").unlink()
    (whole / "config.yaml").write_text(text.replace("MARKER", str(marker)))
    refused(whole, match=message)
    assert not marker.exists()


@pytest.mark.parametrize(
    "text", ["{", "[1]", "7", "nul", '{"a": "\udcff"}', "[" * 100_000, "9" * 5000, "\x00"]
)
def test_json_that_is_none(tmp_path, text):
    whole = folder(tmp_path, EPSILON)
    (whole / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    refused(whole, match=r"config\.json is damaged or no config")


def test_an_own_config_that_asks_for_a_deep_network(tmp_path):
    save_checkpoint(tmp_path / "own", load(folder(tmp_path / "model", EPSILON)))
    path = tmp_path / "own" / "config.json"
    config = json.loads(path.read_text())
    config["network"]["num_blocks"] = 10**9
    path.write_text(json.dumps(config))
    refused(tmp_path / "own", match=r"has 1000000000 blocks: the file holds only \d+ tensors")


@pytest.mark.parametrize("peer", ["mdlm", "sedd", "bd3lm", "gidd", "duo"])
def test_a_config_of_the_field_that_asks_for_a_deep_network(tmp_path, shared, peer):
    """Told before anything of that size is laid out."""
    golden = shared / "golden" / "peers" / peer
    config = json.loads((golden / "config.json").read_text())
    for table in (config, config.get("model", {})):
        for name in table.keys() & {"n_blocks", "num_hidden_layers"}:
            table[name] = 10**9
    (tmp_path / "config.json").write_text(json.dumps(config))
    shutil.copy(golden / "model.safetensors", tmp_path)
    refused(tmp_path, match=r"is 1000000000, but it has only \d+ tensors")


def test_a_config_of_gigabytes(tmp_path):
    path = tmp_path / "config.json"
    with path.open("wb") as file:
        file.truncate(2**33)
    with pytest.raises(ValueError, match="a config has at most"):
        read_config(path)


def test_code_beside_weights_is_not_run(tmp_path, marker, monkeypatch):
    """`auto_map` is what makes other loaders import files of a repository."""
    config = {**EPSILON, "auto_map": {"AutoModel": "modeling.Model", "AutoConfig": "modeling.Config"}}
    whole = folder(tmp_path / "model", config)
    (whole / "modeling.py").write_text(f"open({str(marker)!r}, 'w')\n")
    for name in ("__init__.py", "conftest.py", "torch.py", "yaml.py"):
        shutil.copy(whole / "modeling.py", whole / name)
    monkeypatch.chdir(whole)
    assert "auto_map" in load(whole).training["unknown"]
    assert not marker.exists()


def test_what_torch_writes_is_read(tmp_path):
    """The gates let through what training leaves behind: optimizers, schedulers, flags, dtypes, sizes."""
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.zeros(1, 3)).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 5)
    content = {
        "model": model.state_dict(),
        "weight": model.weight,
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "step": 3,
        "more": [None, True, 1.5, "text", b"bytes", (1, 2), 2**80],
        "torch": [torch.Size([2]), torch.bfloat16, torch.device("cpu")],
    }
    path = tmp_path / "x.pth"
    torch.save(content, path)
    again = load_pickle(path)
    assert again["more"] == content["more"]
    assert again["torch"] == content["torch"]
    assert torch.equal(again["model"]["weight"], model.weight)
    assert again["optimizer"]["param_groups"] == optimizer.state_dict()["param_groups"]
