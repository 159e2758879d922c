"""Output files: writing changes only their content, and unwritable paths are refused before work."""

from __future__ import annotations

import argparse
import errno
import json
import os
import shutil
import stat
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from hdlm import atomic
from hdlm.atomic import NotKeptError, check_file, check_folder, keeping, replacing
from hdlm.cli import main
from hdlm.cli._outputs import PICTURES, Output
from hdlm.cli._registry import verbs

ONLY_ROOT = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away and makes nodes"
)
METRICS = '{"step": 1, "loss": 3.0}\n{"step": 2, "loss": 2.5}\n'


def _raise_disk_full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def _write(target: Path, content: bytes = b"new") -> None:
    with replacing(target) as path:
        path.write_bytes(content)


class _FifoReader:
    """Reads a FIFO to its end in a thread."""

    def __init__(self, fifo: Path) -> None:
        os.mkfifo(fifo)
        self._fifo, self._content = fifo, b""
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        self._content = self._fifo.read_bytes()

    def content(self) -> bytes:
        """All that was written."""
        self._thread.join(timeout=30)
        assert not self._thread.is_alive(), "nobody wrote to the FIFO, or did not close it"
        return self._content


# what lies at the target


def test_replacing_writes_to_fifo_and_keeps_it(tmp_path: Path) -> None:
    reader = _FifoReader(tmp_path / "fifo.bin")
    _write(tmp_path / "fifo.bin", bytes(range(256)) * 1000)
    assert reader.content() == bytes(range(256)) * 1000
    assert stat.S_ISFIFO((tmp_path / "fifo.bin").stat().st_mode)
    assert [path.name for path in tmp_path.iterdir()] == ["fifo.bin"]


def test_replacing_writes_nothing_to_fifo_after_error(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    handle = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "fifo") as path:
        path.write_bytes(b"half" * (1 // 0))
    assert os.read(handle, 10) == b""
    os.close(handle)


def test_replacing_follows_link_to_fifo(tmp_path: Path) -> None:
    reader = _FifoReader(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("fifo")
    _write(tmp_path / "link")
    assert reader.content() == b"new"
    assert (tmp_path / "link").is_symlink()


@ONLY_ROOT
def test_replacing_writes_to_device_and_keeps_it(tmp_path: Path) -> None:
    node = tmp_path / "node"
    try:
        os.mknod(node, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        node.open("ab").close()
    except OSError as error:
        pytest.skip(f"no nodes can be made or used here: {error}")
    _write(node)
    assert stat.S_ISCHR(node.lstat().st_mode)
    assert node.stat().st_rdev == os.makedev(1, 3)
    check_file(node)


@pytest.mark.parametrize("depth", [1, 3])
def test_replacing_keeps_link_and_replaces_its_target(tmp_path: Path, depth: int) -> None:
    (tmp_path / "elsewhere").mkdir()
    target = tmp_path / "elsewhere" / "file.txt"
    target.write_text("old")
    number, before = target.stat().st_ino, target
    for place in range(depth):
        link = tmp_path / f"link-{place}"
        link.symlink_to(os.path.relpath(before, tmp_path))
        before = link
    _write(before)
    assert target.read_bytes() == b"new"
    assert not target.is_symlink()
    assert target.stat().st_ino != number, "the file was written in place, not replaced in one step"
    assert all((tmp_path / f"link-{place}").is_symlink() for place in range(depth))
    assert [path.name for path in target.parent.iterdir()] == ["file.txt"]


def test_replacing_creates_target_of_dangling_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("missing/file")
    check_file(tmp_path / "link")
    _write(tmp_path / "link")
    assert (tmp_path / "missing" / "file").read_bytes() == b"new"
    assert (tmp_path / "link").is_symlink()


def test_replacing_names_link_loop(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="loop") as caught:
        _write(tmp_path / "loop")
    assert caught.value.errno == errno.ELOOP
    with pytest.raises(ValueError, match="loop cannot be written"):
        check_file(tmp_path / "loop")
    assert (tmp_path / "loop").is_symlink()


def test_replacing_rejects_folder(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError, match="folder"):
        _write(tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644, 0o664, 0o755, 0o444])
def test_replacing_keeps_file_mode(tmp_path: Path, mode: int) -> None:
    target = tmp_path / "file"
    target.write_text("old")
    target.chmod(mode)
    _write(target)
    assert stat.S_IMODE(target.stat().st_mode) == mode
    assert target.read_bytes() == b"new"


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_replacing_creates_file_with_mode_of_umask(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        _write(tmp_path / "file")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o666 & ~mask


@ONLY_ROOT
def test_replacing_keeps_file_owner(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("old")
    os.chown(target, 4321, 5432)
    target.chmod(0o640)
    _write(target)
    found = target.stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (4321, 5432, 0o640)


def test_replacing_writes_content_if_chown_fails(tmp_path: Path, monkeypatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(errno.EPERM, "not yours")

    target = tmp_path / "file"
    target.write_text("old")
    state = target.stat()
    monkeypatch.setattr(os, "chown", refused)
    monkeypatch.setattr(atomic, "_state", lambda _: os.stat_result((*state[:4], 4321, *state[5:])))
    _write(target)
    assert target.read_bytes() == b"new"


@pytest.mark.parametrize("name", ["x" * 255, "x" * 250 + ".json", "é" * 127, "a." + "b" * 253])
def test_replacing_writes_name_of_maximal_length(tmp_path: Path, name: str) -> None:
    check_file(tmp_path / name)
    _write(tmp_path / name)
    assert (tmp_path / name).read_bytes() == b"new"


def test_failed_write_names_target_and_keeps_old_content(tmp_path: Path, monkeypatch) -> None:
    target = tmp_path / "folder" / "file"
    _write(target, b"old")
    with pytest.raises(OSError, match="No space") as caught, replacing(target):
        _raise_disk_full()
    assert caught.value.filename == str(target)
    assert target.read_bytes() == b"old"
    with pytest.raises(FileNotFoundError) as caught, replacing(target):
        shutil.rmtree(target.parent)
    assert caught.value.filename == str(target)


def test_write_to_dev_stdout_goes_to_standard_output(tmp_path: Path, capfd) -> None:
    """Otherwise `-o /dev/stdout > file` would replace the file and lose later output."""
    state = os.fstat(1)
    assert atomic._standard(state) == 1
    print("before")
    atomic._pour(_written(tmp_path / "source", b"content\n"), tmp_path / "no-matter", state)
    print("after")
    sys.stdout.flush()
    assert capfd.readouterr().out == "before\ncontent\nafter\n"


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


# checks before the work


def _unwritable_paths(tmp_path: Path) -> dict[str, tuple[Path, str]]:
    """Paths that cannot be written, with the expected messages."""
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    return {
        "below a file": (tmp_path / "file" / "a.png", "Not a directory|not a folder"),
        "far below a file": (tmp_path / "file" / "a" / "b" / "c.png", "Not a directory|not a folder"),
        "long name": (tmp_path / ("x" * 252 + ".png"), "name"),
        "long name in a missing folder": (tmp_path / "missing" / ("x" * 252 + ".png"), "255 bytes"),
        "long path": (tmp_path.joinpath(*["y" * 200] * 30, "a.png"), "long|bytes"),
        "loop": (tmp_path / "loop" / "a.png", "symbolic links|cannot be written"),
    }


KINDS = (
    "below a file",
    "far below a file",
    "long name",
    "long name in a missing folder",
    "long path",
    "loop",
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("check", [check_file, check_folder])
def test_check_refuses_unwritable_path_and_creates_nothing(tmp_path: Path, kind, check) -> None:
    path, words = _unwritable_paths(tmp_path)[kind]
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=words) as caught:
        check(path)
    assert str(caught.value).startswith(str(path))
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(OSError, match=r"."):  # writing fails, as the check states
        _write(path if check is check_file else path / "result")


@pytest.mark.parametrize("name", ["new.json", "a/b/new.json", "old.json", "link.json"])
def test_check_accepts_writable_path_and_creates_nothing(tmp_path: Path, name: str) -> None:
    (tmp_path / "old.json").write_text("old")
    (tmp_path / "link.json").symlink_to("old.json")
    before = sorted(tmp_path.rglob("*"))
    check_file(tmp_path / name)
    check_folder((tmp_path / name).with_suffix(".d"), "results.json")
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "old.json").read_text() == "old"
    _write(tmp_path / name)


def test_check_folder_rejects_folder_in_place_of_file(tmp_path: Path) -> None:
    (tmp_path / "results.json").mkdir()
    check_folder(tmp_path, "report.md")
    with pytest.raises(ValueError, match=r"results\.json is a folder; give the name of a file"):
        check_folder(tmp_path, "report.md", "results.json")


def test_check_refuses_read_only_paths(tmp_path: Path, monkeypatch) -> None:
    """Root can write everywhere, so the test replaces the answers of the system."""
    (tmp_path / "file").write_text("old")
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "file")
    with pytest.raises(ValueError, match="file is read-only; make it writable"):
        check_file(tmp_path / "file")

    def refused(**_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(tempfile, "TemporaryFile", refused)
    for check in (check_file, check_folder):
        with pytest.raises(ValueError, match=r"other cannot be written: Read-only file system"):
            check(tmp_path / "other")
    with pytest.raises(ValueError, match="Read-only file system"):
        check_folder(tmp_path)


def test_check_file_refuses_fifo_for_resumed_output(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    check_file(tmp_path / "fifo")  # the check must not open the FIFO, because it would wait for a reader
    with pytest.raises(ValueError, match="must be a regular file, because its content is read again"):
        check_file(tmp_path / "fifo", resumed=True)


# the law of all verbs

INPUTS = {
    "config",
    "config_dir",
    "cache_dir",
    "chat_template",
    "data_dir",
    "include_path",
    "evaluation",
    "runs",
    "traces",
    "metrics",
}
"""Options of type `Path` that are read."""


def _parsers(
    parser: argparse.ArgumentParser, words: list[str]
) -> Iterator[tuple[list[str], argparse.ArgumentParser]]:
    nested = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not nested:
        yield words, parser
    for action in nested:
        for name, inner in action.choices.items():
            yield from _parsers(inner, [*words, name])


def _commands() -> list[tuple[list[str], argparse.ArgumentParser]]:
    """Every command of every verb: its words, and its parser."""
    found = []
    for name, verb in verbs().items():
        parser = argparse.ArgumentParser(prog=f"hdlm {name}")
        verb.load().add_arguments(parser)
        found += _parsers(parser, [name])
    return found


def _outputs() -> list[pytest.param]:
    return [
        pytest.param(words, parser, action, id=f"{' '.join(words)} {action.option_strings[-1]}")
        for words, parser in _commands()
        for action in parser._actions
        if isinstance(action.type, Output)
    ]


def _least_words(parser: argparse.ArgumentParser, without: argparse.Action) -> list[str]:
    """The required arguments of a command, with names of things that do not exist."""
    words = []
    for action in parser._actions:
        if action is without or not (action.required or (not action.option_strings and action.nargs != "*")):
            continue
        value = "absent/absent" if action.choices is None else str(next(iter(action.choices)))
        words += [*action.option_strings[-1:], value]
    for group in parser._mutually_exclusive_groups:
        if group.required:
            words += [group._group_actions[0].option_strings[-1], "1"]
    return words


def test_every_path_option_is_input_or_output() -> None:
    for words, parser in _commands():
        for action in parser._actions:
            if action.type is Path:
                assert action.dest in INPUTS, (
                    f"hdlm {' '.join(words)}: {action.dest} is of type Path: use Output"
                )
            names = {"output", "markdown", "output_dir", "work_dir"}
            assert action.dest not in names or isinstance(action.type, Output), words


def test_output_checks_cover_every_writing_verb() -> None:
    covered = {param.values[0][0] for param in _outputs()}
    assert covered == {
        "compare",
        "demo",
        "eval",
        "export",
        "finetune",
        "plot",
        "sample",
        "show",
        "study",
        "tokenize",
        "train",
        "tune",
        "verify",
        "view",
    }


@pytest.mark.parametrize("kind", ["below a file", "long name", "loop", "wrong kind", "empty"])
@pytest.mark.parametrize(("words", "parser", "action"), _outputs())
def test_every_verb_refuses_unwritable_output_before_work(
    tmp_path: Path, capsys, monkeypatch, words, parser, action, kind
) -> None:
    """The model, run and text do not exist, so a command that reads them first gives another error."""
    monkeypatch.chdir(tmp_path)
    places = {name: place for name, (place, _) in _unwritable_paths(tmp_path).items()}
    folder = action.type.kind == "folder"
    wrong = tmp_path / "wrong.png"
    wrong.write_text("") if folder else wrong.mkdir()
    path = "" if kind == "empty" else str({**places, "wrong kind": wrong}[kind])
    before = sorted(tmp_path.rglob("*"))
    try:
        status = main([*words, *_least_words(parser, action), action.option_strings[-1], path])
    except SystemExit as leaving:
        status = leaving.code
    said = capsys.readouterr()
    assert (status, said.out, said.err.count("\n")) == (2, "", 1), said.err
    assert action.option_strings[-1] in said.err
    assert path[:200] in said.err
    assert sorted(tmp_path.rglob("*")) == before


def test_picture_suffixes_cover_matplotlib_file_types() -> None:
    from matplotlib.figure import Figure

    assert {f".{name}" for name in Figure().canvas.get_supported_filetypes()} <= PICTURES


def test_show_writes_a_picture_to_a_fifo(tmp_path: Path, capsys) -> None:
    reader = _FifoReader(tmp_path / "picture.png")
    assert main(["show", "hyperschedule", "block", "--output", str(tmp_path / "picture.png")]) == 0
    assert reader.content().startswith(b"\x89PNG")


def test_sample_refuses_fifo_as_output(tmp_path: Path, capsys) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert main(["sample", "kjv-epsilon-4m", "-o", str(tmp_path / "fifo")]) == 2
    assert "must be a regular file" in capsys.readouterr().err


# results that cannot be written


def test_not_kept_error_holds_innermost_content(tmp_path: Path) -> None:
    with pytest.raises(NotKeptError) as caught, keeping(lambda: "outer"), keeping(lambda: "inner"):
        raise OSError(errno.ENOSPC, "No space left on device", "file")
    assert (caught.value.content, caught.value.filename, caught.value.errno) == (
        "inner",
        "file",
        errno.ENOSPC,
    )


def test_sample_prints_samples_if_disk_is_full(tmp_path: Path, capsys, monkeypatch) -> None:
    from hdlm.evaluation.generation import samples

    monkeypatch.setattr(samples._Kept, "_append", _raise_disk_full)
    words = ["sample", "kjv-epsilon-4m", "--num", "2", "--length", "8", "--steps", "1"]
    assert main([*words, "-o", str(tmp_path / "samples.jsonl")]) == 2
    said = capsys.readouterr()
    assert [json.loads(line)["index"] for line in said.out.split("\n") if line] == [0, 1]
    assert said.err == f"hdlm sample: {tmp_path / 'samples.jsonl'}: No space left on device\n"


@pytest.mark.parametrize("verb", ["eval likelihood", "eval generation", "tune"])
def test_verbs_print_result_if_disk_is_full(tmp_path: Path, capsys, monkeypatch, verb) -> None:
    """The disk is full when the verb writes its result."""
    from hdlm.evaluation.records import protocol

    text = tmp_path / "text.txt"
    text.write_text("In the beginning God created the heaven and the earth.\n" * 20)
    options = {
        "eval likelihood": f"--data {text} --limit 64 --length 32 --replicates 1 --steps 2",
        "eval generation": "--num 1 --length 8 --steps 1 --judge none",
        "tune": f"--data {text} --limit 64 --length 16 --steps 2",
    }[verb]
    monkeypatch.setattr(protocol, "write_result", _raise_disk_full)
    words = [*verb.split(), "kjv-epsilon-4m", *options.split(), "--output", str(tmp_path / "out")]
    assert main(words) == 2
    said = capsys.readouterr()
    found = json.loads(said.out)
    document = found[str(text)] if verb == "eval likelihood" else found
    assert document["kind"] in ("likelihood", "generation", "grids")
    assert "No space left on device" in said.err
    assert said.err.count("\n") == 1


def test_plot_prints_table_if_picture_cannot_be_written(tmp_path: Path, capsys, monkeypatch) -> None:
    from matplotlib.figure import Figure

    (tmp_path / "metrics.jsonl").write_text(METRICS)
    monkeypatch.setattr(Figure, "savefig", _raise_disk_full)
    assert main(["plot", str(tmp_path), "--json", "-o", str(tmp_path / "curves.png")]) == 2
    said = capsys.readouterr()
    assert json.loads(said.out)[tmp_path.name]["step"] == 2
    assert said.err == f"hdlm plot: {tmp_path / 'curves.png'}: No space left on device\n"
