"""Hostile and broken files are refused with one line, and no code in them runs.

Each hostile file creates a marker if its code runs. Some tests load them unsafely to prove this.
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


class CallsOnLoad:
    """An object whose pickle calls a function on load."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "the payload ran"


def refused(path: Path, *, match: str) -> None:
    """Assert that `load` and `inspect` refuse the file with a message of one line."""
    for function in (load, inspect):
        with pytest.raises(ValueError, match=match) as caught:
            function(path)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 1000


def weights_path(tmp_path: Path, suffix: str = ".bin") -> Path:
    """The path for a file of weights beside a matching config."""
    folder(tmp_path / "model", EPSILON)
    (tmp_path / "model" / "model.safetensors").unlink()
    return tmp_path / "model" / f"pytorch_model{suffix}"


def rewrite_zip(path: Path, change: Callable[[str, bytes], bytes], **how: Any) -> None:
    """Rewrite a zip with changed contents."""
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", **how) as archive:
        for name, content in files.items():
            archive.writestr(name, change(name, content))


def save_with_pickle(path: Path, program: bytes) -> None:
    """A file of torch.save with another pickle."""
    torch.save(tensors(EPSILON), path)
    rewrite_zip(path, lambda name, old: program if name.endswith("data.pkl") else old)


# -- programs in pickles ----------------------------------------------------------------------------------


def payloads(marker: Path) -> dict[str, Any]:
    touch = f"touch '{marker}'"
    return {
        "os.system": CallsOnLoad(os.system, touch),
        "exec": CallsOnLoad(exec, f"open({str(marker)!r}, 'w')"),
        "eval": CallsOnLoad(eval, f"open({str(marker)!r}, 'w')"),
        "open": CallsOnLoad(open, str(marker), "w"),
        "getattr": CallsOnLoad(getattr, "text", "upper"),
        "torch.load": CallsOnLoad(torch.load, str(marker)),
        "import": CallsOnLoad(__import__, "antigravity"),
        "bytearray": CallsOnLoad(bytearray, 10**12),
    }


@pytest.mark.parametrize("name", payloads(Path()))
@pytest.mark.parametrize("where", ["alone", "in a state dict", "in an optimizer"])
def test_load_refuses_pickles_that_call_functions(tmp_path, marker, name, where):
    payload = payloads(marker)[name]
    content = {
        "alone": payload,
        "in a state dict": {**tensors(EPSILON), "extra": payload},
        "in an optimizer": {"model": tensors(EPSILON), "optimizer": {"state": payload}, "step": 1},
    }[where]
    path = weights_path(tmp_path)
    torch.save(content, path)
    refused(path, match="is refused, because it asks to run or build [^;]+; only tensors")
    assert not marker.exists()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_load_refuses_hostile_pickle_under_any_suffix(tmp_path, marker, suffix):
    path = weights_path(tmp_path, suffix)
    torch.save(payloads(marker)["os.system"], path)
    refused(path, match=r"asks to run or build (posix|nt|os)\.system")
    assert not marker.exists()


def test_payload_runs_with_unsafe_torch_load(tmp_path, marker):
    """Unsafe loading runs the payload, which proves that the other tests can fail."""
    path = weights_path(tmp_path)
    torch.save(payloads(marker)["os.system"], path)
    torch.load(path, weights_only=False)
    assert marker.exists()


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_load_refuses_hostile_pickle_of_every_protocol(tmp_path, marker, protocol):
    path = weights_path(tmp_path)
    save_with_pickle(path, pickle.dumps(payloads(marker)["os.system"], protocol=protocol))
    refused(path, match="is refused, because it asks to run or build")
    assert not marker.exists()


def handwritten_pickles(marker: Path) -> dict[str, bytes]:
    """Handwritten pickles that no standard pickler writes."""
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


@pytest.mark.parametrize("name", handwritten_pickles(Path()))
def test_load_refuses_handwritten_pickles(tmp_path, marker, name):
    path = weights_path(tmp_path)
    save_with_pickle(path, handwritten_pickles(marker)[name])
    refused(path, match="is refused|damaged or holds more than tensors|holds no weights by name")
    assert not marker.exists()


class Trap:
    """An object that creates the marker whenever it is constructed or changed."""

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


class CustomReduce:
    """An object that is pickled with the given reduce value."""

    def __init__(self, *parts: Any) -> None:
        self.parts = parts

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.parts


def foreign_objects(marker: Path) -> dict[str, Any]:
    """Objects of code that is foreign to `torch`, which are built by running it."""
    Trap.marker = marker
    built = CustomReduce(Trap, (1, 2), {"state": 1}, iter([1, 2, 3]), iter([("a", 1)]))
    return {
        "a path": marker,
        "a call": CustomReduce(Trap, (1,)),
        "a function": Trap,
        "state, items and entries": built,
        "a chain": CustomReduce(
            Trap, (CustomReduce(Trap, (built,), {"x": built}),), {"y": CustomReduce(Trap, ())}
        ),
        "a key of a table": {CustomReduce(Trap, (1,)): 1, (1, CustomReduce(Trap, (2,))): 2},
        "an item of a set": {
            1: [
                CustomReduce(frozenset, ([CustomReduce(Trap, (1,))],)),
                CustomReduce(set, ([CustomReduce(Trap, (1,))],)),
            ]
        },
        "numbers of numpy": [np.float64(3), np.arange(3), np.dtype("int64")],
        "a partial function": functools.partial(max, 1),
        "a counter": collections.Counter("text"),
        "a generic type": list[int] | None,
        "nothing foreign": collections.defaultdict(list, {"a": [1]}),
    }


@pytest.mark.parametrize("name", foreign_objects(Path()))
def test_foreign_objects_become_inert_stand_ins(tmp_path, marker, name):
    path, weights = weights_path(tmp_path), tensors(EPSILON)
    shadow = [value for key, value in weights.items() if not key.startswith("rotary")]
    content = {
        "model": weights,
        "ema": {"shadow_params": shadow},
        "step": 3,
        "more": foreign_objects(marker)[name],
    }
    torch.save(content, path)
    loaded = dict(load(path).network.named_parameters())
    assert all(torch.equal(value, weights[key]) for key, value in loaded.items())
    assert inspect(path).step == 3
    assert not marker.exists()


@pytest.mark.parametrize(
    "name", sorted(set(foreign_objects(Path())) - {"a path", "numbers of numpy", "nothing foreign"})
)
def test_foreign_objects_run_with_unsafe_torch_load(tmp_path, marker, name):
    """Unsafe loading runs the payloads, which proves that the test above can fail."""
    torch.save(foreign_objects(marker)[name], tmp_path / "file")
    torch.load(tmp_path / "file", weights_only=False)
    runs = name not in ("a function", "a partial function", "a counter", "a generic type")
    assert marker.exists() == runs


def test_stand_in_keeps_name_arguments_state_and_items(tmp_path, marker):
    path = weights_path(tmp_path)
    torch.save({"it": foreign_objects(marker)["state, items and entries"], "class": Trap}, path)
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
        (b"}" + TENSOR + b"K\x01s.", "a Tensor cannot be a key"),
        (b"]" + TENSOR + b"}ba.", None),
        (b")K\x01a.", "puts items into a tuple"),
        (b"}K\x01a.", "puts items into a dict"),
        (b"]K\x01K\x02s.", "puts items into a list"),
        (b"}]K\x01s.", "a list cannot be a key"),
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
def test_load_pickle_handles_or_refuses_misused_opcodes(tmp_path, marker, program, message):
    """Each opcode acts on plain data or on stand-ins, or the file is refused."""
    path = weights_path(tmp_path)
    torch.save(torch.zeros(12), path)
    rewrite_zip(path, lambda name, old: b"\x80\x02" + program if name.endswith("data.pkl") else old)
    if message is None:
        load_pickle(path)
        return
    with pytest.raises(ValueError, match=message) as caught:
        load_pickle(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def bombs(depth: int = 2000) -> dict[str, tuple[bytes, str | None]]:
    """Short pickles whose data are large or slow to build."""
    long = b"X" + struct.pack("<I", 2**20) + b"a" * 2**20
    pairs = b"](" + b"".join(b"K" + bytes([index]) + b"N\x86" for index in range(256)) * 100 + b"eq\x01"
    return {
        "tuples in tuples as a key": (b"}N\x85" + b"q\x00h\x00\x86" * 99 + b"Ns.", "a tuple cannot be a key"),
        "a deep tuple as a key": (b"}N" + b"\x85" * depth + b"Ns.", "a tuple cannot be a key"),
        "a long tuple as a key": (b"}(" + b"N" * 100 + b"tNs.", "a tuple cannot be a key"),
        "a large number as a key": (b"}\x8aP" + b"\x7f" * 80 + b"Ns.", "a int cannot be a key"),
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
def test_load_refuses_pickle_bombs_in_bounded_time(tmp_path, name):
    program, message = bombs()[name]
    path = weights_path(tmp_path)
    save_with_pickle(path, b"\x80\x02" + program)
    begin = time.process_time()
    refused(path, match=message or "holds no weights by name|holds no weights that hdlm can read")
    assert time.process_time() - begin < 40


def test_load_refuses_pickle_of_too_many_steps(tmp_path, monkeypatch):
    monkeypatch.setattr("hdlm.hub.pickles.MOST_STEPS", 1000)
    path = weights_path(tmp_path)
    save_with_pickle(path, b"\x80\x02" + b"N0" * 500 + b"N.")
    refused(path, match="has more than 1000 steps")


@pytest.mark.slow
def test_load_pickle_handles_deeply_nested_bombs(tmp_path):
    """Deep pickles do not crash or hang. The test runs in a subprocess without type checks."""
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


def test_error_message_truncates_long_keys(tmp_path):
    path = weights_path(tmp_path)
    torch.save({"x" * 10**6: 1, "model": {"y" * 10**6: torch.zeros(2)}}, path)
    refused(path, match="no format")
    torch.save({"x" * 10**6: 1}, path)
    refused(path, match="its keys are x+")


def test_corrupted_pickle_gives_data_or_value_error(tmp_path):
    """A corrupted pickle gives data or a ValueError, for any bytes."""
    path = weights_path(tmp_path)
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


def test_pickle_build_cannot_set_attributes_of_ordered_dict(tmp_path, marker):
    """BUILD on an OrderedDict would set attributes. The loader does not set them."""
    program = b"\x80\x02ccollections\nOrderedDict\n)R}X\x07\x00\x00\x00__len__K\x01sb."
    path = weights_path(tmp_path)
    save_with_pickle(path, program)
    refused(path, match="holds no weights|damaged")


@pytest.mark.parametrize("form", ["legacy", "plain", "tar"])
def test_load_refuses_weights_that_are_not_a_zip(tmp_path, marker, form):
    path, payload = weights_path(tmp_path), payloads(marker)["os.system"]
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


def test_load_refuses_torchscript(tmp_path):
    path = weights_path(tmp_path)
    torch.save(tensors(EPSILON), path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/constants.pkl", b"")
    refused(path, match="holds a program")


# -- zips -------------------------------------------------------------------------------------------------


def test_load_refuses_compressed_zip(tmp_path):
    """A compressed bomb is small on disk and large in memory."""
    path = weights_path(tmp_path)
    torch.save({"weight": torch.zeros(2_000_000)}, path)
    rewrite_zip(path, lambda name, content: content, compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 100_000
    refused(path, match=r"is compressed; torch stores|claims to hold more than the file has")


def test_load_refuses_zip_with_overlapping_entries(tmp_path):
    """Every entry of the zip directory points at one range of bytes."""
    path = weights_path(tmp_path)
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
def test_load_refuses_zip_with_path_traversal(tmp_path, name):
    path = weights_path(tmp_path)
    torch.save(tensors(EPSILON), path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, b"evil")
    refused(path, match="reaches out of it")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_load_refuses_zip_with_two_pickles(tmp_path):
    for name, message in (("archive/data.pkl", "two files of one name"), ("other/data.pkl", "or several")):
        path = weights_path(tmp_path)
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", b"\x80\x02N.")
            archive.writestr(name, b"\x80\x02N.")
        refused(path, match=message)


def test_load_refuses_zip_without_pickle(tmp_path):
    path = weights_path(tmp_path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("word/document.xml", b"<xml/>")
    refused(path, match=r"its zip has no FOLDER/data\.pkl")


# -- tensors that lie -------------------------------------------------------------------------------------


def tensor_pickle(size: str, stride: str, storage: int = 12) -> bytes:
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
def test_load_refuses_tensor_larger_than_its_storage(tmp_path, size, stride):
    """Sizes in the file are checked before any allocation or read."""
    path = weights_path(tmp_path)
    torch.save(torch.zeros(12), path)
    rewrite_zip(path, lambda name, old: tensor_pickle(size, stride) if name.endswith("data.pkl") else old)
    refused(
        path, match="damaged or holds more than tensors|contradicts itself|has shape|does not fit|no format"
    )


def test_load_refuses_expanded_tensor(tmp_path):
    """An expanded tensor has the right shape but stores only one number."""
    path, weights = weights_path(tmp_path), tensors(EPSILON)
    weights["vocab_embed.embedding"] = torch.zeros(1).expand(12, 8)
    torch.save(weights, path)
    assert_load_refuses(path, match=r"vocab_embed\.embedding claims 96 numbers, but holds fewer")


def assert_load_refuses(path: Path, *, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        load(path)


def test_load_refuses_sparse_and_complex_tensors(tmp_path):
    path = weights_path(tmp_path)
    for odd in (torch.zeros(12, 8, dtype=torch.complex64), torch.zeros(12, 8).to_sparse(), [1, 2]):
        weights: dict[str, Any] = {**tensors(EPSILON), "vocab_embed.embedding": odd}
        torch.save(weights, path)
        assert_load_refuses(path, match="is of type|is refused|holds no weights")


# -- damage -----------------------------------------------------------------------------------------------


def test_load_refuses_text_file_with_weights_suffix(tmp_path):
    for suffix in SUFFIXES:
        path = weights_path(tmp_path, suffix)
        path.write_text("version https://git-lfs.github.com/spec/v1\n")
        refused(path, match=r"damaged or not a file of torch\.save")
    path = path.with_name("model.safetensors")
    path.write_text("version https://git-lfs.github.com/spec/v1\n")
    refused(path, match="damaged or no safetensors file")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_load_refuses_truncated_weights(tmp_path, share, name):
    whole = folder(tmp_path, EPSILON)
    torch.save(tensors(EPSILON), whole / "pytorch_model.bin")
    path = whole / name
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    refused(path, match="damaged")


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_load_of_flipped_bytes_gives_weights_or_value_error(tmp_path, name):
    """Damaged bytes give weights or a ValueError that names the file, and no other error."""
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
    """The error message of `load`, or an empty string if it loads."""
    try:
        load(path)
    except ValueError as error:
        return str(error)
    return ""


def safetensors_content(table: Any, data: bytes = b"") -> bytes:
    text = table if isinstance(table, bytes) else json.dumps(table).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize(
    "content",
    [
        struct.pack("<Q", 2**60) + b"{}",
        safetensors_content(b"[1, 2]"),
        safetensors_content({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, b"\0" * 8),
        safetensors_content({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 8]}}, b"\0" * 8),
        safetensors_content(
            {"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 8]}}, b"\0" * 8
        ),
        safetensors_content({"a": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}}, b"\0" * 8),
        safetensors_content({"a": {"dtype": "X9", "shape": [2], "data_offsets": [0, 8]}}, b"\0" * 8),
        safetensors_content(b"[" * 100_000),
    ],
)
def test_load_refuses_safetensors_with_false_header(tmp_path, content):
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
        ("- 1\n- 2", "not a table but a list"),
        ("just text", "not a table but a str"),
        ("", "not a table but a NoneType"),
        ("a: 1\n---\nb: 2", "damaged"),
        ("a: '${b}'\nb: '${a}'", "in a circle"),
        ("[" * 5000, "damaged"),
        ("a: {[1]: 2}", "damaged"),
        ("a: \x00", "damaged"),
    ],
)
def test_load_refuses_hostile_yaml_config(tmp_path, marker, text, message):
    whole = folder(tmp_path / "model", EPSILON)
    (whole / "config.json").unlink()
    (whole / "config.yaml").write_text(text.replace("MARKER", str(marker)))
    refused(whole, match=message)
    assert not marker.exists()


@pytest.mark.parametrize(
    "text", ["{", "[1]", "7", "nul", '{"a": "\udcff"}', "[" * 100_000, "9" * 5000, "\x00"]
)
def test_load_refuses_malformed_json_config(tmp_path, text):
    whole = folder(tmp_path, EPSILON)
    (whole / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    refused(whole, match=r"config\.json is damaged or not a config")


def test_load_refuses_hdlm_config_of_too_many_blocks(tmp_path):
    save_checkpoint(tmp_path / "own", load(folder(tmp_path / "model", EPSILON)))
    path = tmp_path / "own" / "config.json"
    config = json.loads(path.read_text())
    config["network"]["num_blocks"] = 10**9
    path.write_text(json.dumps(config))
    refused(tmp_path / "own", match=r"has 1000000000 blocks: the file holds only \d+ tensors")


@pytest.mark.parametrize("peer", ["mdlm", "sedd", "bd3lm", "gidd", "duo"])
def test_load_refuses_peer_config_of_too_many_blocks(tmp_path, shared, peer):
    """The error is raised before any memory of that size is allocated."""
    golden = shared / "golden" / "peers" / peer
    config = json.loads((golden / "config.json").read_text())
    for table in (config, config.get("model", {})):
        for name in table.keys() & {"n_blocks", "num_hidden_layers"}:
            table[name] = 10**9
    (tmp_path / "config.json").write_text(json.dumps(config))
    shutil.copy(golden / "model.safetensors", tmp_path)
    refused(tmp_path, match=r"is 1000000000, but it has only \d+ tensors")


def test_read_config_refuses_huge_file(tmp_path):
    path = tmp_path / "config.json"
    with path.open("wb") as file:
        file.truncate(2**33)
    with pytest.raises(ValueError, match="a config has at most"):
        read_config(path)


def test_code_beside_weights_is_not_run(tmp_path, marker, monkeypatch):
    """Other loaders import files of a repository because of `auto_map`. This loader does not."""
    config = {**EPSILON, "auto_map": {"AutoModel": "modeling.Model", "AutoConfig": "modeling.Config"}}
    whole = folder(tmp_path / "model", config)
    (whole / "modeling.py").write_text(f"open({str(marker)!r}, 'w')\n")
    for name in ("__init__.py", "conftest.py", "torch.py", "yaml.py"):
        shutil.copy(whole / "modeling.py", whole / name)
    monkeypatch.chdir(whole)
    assert "auto_map" in load(whole).training["unknown"]
    assert not marker.exists()


def test_load_pickle_reads_training_state_of_torch(tmp_path):
    """The safe loader accepts optimizers, schedulers, flags, dtypes and sizes of a training state."""
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
