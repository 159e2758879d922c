"""Files that are written: only their content changes, and a place that cannot be written is found before work."""

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


def _full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def _write(target: Path, content: bytes = b"new") -> None:
    with replacing(target) as path:
        path.write_bytes(content)


class _Reader:
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


def test_a_fifo_gets_the_content_and_stays_a_fifo(tmp_path: Path) -> None:
    reader = _Reader(tmp_path / "fifo.bin")
    _write(tmp_path / "fifo.bin", bytes(range(256)) * 1000)
    assert reader.content() == bytes(range(256)) * 1000
    assert stat.S_ISFIFO((tmp_path / "fifo.bin").stat().st_mode)
    assert [path.name for path in tmp_path.iterdir()] == ["fifo.bin"]


def test_a_fifo_gets_nothing_of_a_file_that_was_not_finished(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    handle = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "fifo") as path:
        path.write_bytes(b"half" * (1 // 0))
    assert os.read(handle, 10) == b""
    os.close(handle)


def test_a_link_to_a_fifo_is_followed(tmp_path: Path) -> None:
    reader = _Reader(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("fifo")
    _write(tmp_path / "link")
    assert reader.content() == b"new"
    assert (tmp_path / "link").is_symlink()


@ONLY_ROOT
def test_a_device_is_written_to_and_stays_a_device(tmp_path: Path) -> None:
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
def test_a_link_is_kept_and_its_file_is_replaced(tmp_path: Path, depth: int) -> None:
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


def test_a_link_to_nothing_makes_the_file_that_it_names(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("missing/file")
    check_file(tmp_path / "link")
    _write(tmp_path / "link")
    assert (tmp_path / "missing" / "file").read_bytes() == b"new"
    assert (tmp_path / "link").is_symlink()


def test_a_link_to_itself_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="loop") as caught:
        _write(tmp_path / "loop")
    assert caught.value.errno == errno.ELOOP
    with pytest.raises(ValueError, match="loop cannot be written"):
        check_file(tmp_path / "loop")
    assert (tmp_path / "loop").is_symlink()


def test_a_folder_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError, match="folder"):
        _write(tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644, 0o664, 0o755, 0o444])
def test_permissions_of_a_file_are_kept(tmp_path: Path, mode: int) -> None:
    target = tmp_path / "file"
    target.write_text("old")
    target.chmod(mode)
    _write(target)
    assert stat.S_IMODE(target.stat().st_mode) == mode
    assert target.read_bytes() == b"new"


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_a_new_file_has_the_permissions_of_the_umask(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        _write(tmp_path / "file")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o666 & ~mask


@ONLY_ROOT
def test_the_owner_of_a_file_is_kept(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("old")
    os.chown(target, 4321, 5432)
    target.chmod(0o640)
    _write(target)
    found = target.stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (4321, 5432, 0o640)


def test_an_owner_that_cannot_be_kept_does_not_lose_the_content(tmp_path: Path, monkeypatch) -> None:
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
def test_a_name_as_long_as_the_system_allows_can_be_written(tmp_path: Path, name: str) -> None:
    check_file(tmp_path / name)
    _write(tmp_path / name)
    assert (tmp_path / name).read_bytes() == b"new"


def test_a_write_that_fails_names_the_target_and_leaves_nothing(tmp_path: Path, monkeypatch) -> None:
    target = tmp_path / "folder" / "file"
    _write(target, b"old")
    with pytest.raises(OSError, match="No space") as caught, replacing(target):
        _full()
    assert caught.value.filename == str(target)
    assert target.read_bytes() == b"old"
    with pytest.raises(FileNotFoundError) as caught, replacing(target):
        shutil.rmtree(target.parent)
    assert caught.value.filename == str(target)


def test_standard_output_by_another_name_gets_the_content(tmp_path: Path, capfd) -> None:
    """`-o /dev/stdout > file` would else replace the file, and what is printed later is lost."""
    state = os.fstat(1)
    assert atomic._standard(state) == 1
    print("before")
    atomic._pour(_made(tmp_path / "source", b"content\n"), tmp_path / "no-matter", state)
    print("after")
    sys.stdout.flush()
    assert capfd.readouterr().out == "before\ncontent\nafter\n"


def _made(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


# checks before the work


def _unwritable(tmp_path: Path) -> dict[str, tuple[Path, str]]:
    """Places that cannot be written, and what is said of them."""
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
def test_a_place_that_cannot_be_written_is_refused_and_nothing_is_made(tmp_path: Path, kind, check) -> None:
    path, words = _unwritable(tmp_path)[kind]
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=words) as caught:
        check(path)
    assert str(caught.value).startswith(str(path))
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(OSError, match=r"."):  # the check tells the truth
        _write(path if check is check_file else path / "result")


@pytest.mark.parametrize("name", ["new.json", "a/b/new.json", "old.json", "link.json"])
def test_a_place_that_can_be_written_is_accepted_and_nothing_is_made(tmp_path: Path, name: str) -> None:
    (tmp_path / "old.json").write_text("old")
    (tmp_path / "link.json").symlink_to("old.json")
    before = sorted(tmp_path.rglob("*"))
    check_file(tmp_path / name)
    check_folder((tmp_path / name).with_suffix(".d"), "results.json")
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "old.json").read_text() == "old"
    _write(tmp_path / name)


def test_files_of_a_folder_are_checked_too(tmp_path: Path) -> None:
    (tmp_path / "results.json").mkdir()
    check_folder(tmp_path, "report.md")
    with pytest.raises(ValueError, match=r"results\.json is a folder; give the name of a file"):
        check_folder(tmp_path, "report.md", "results.json")


def test_read_only_places_are_refused(tmp_path: Path, monkeypatch) -> None:
    """As root every place can be written, so what the system says is replaced."""
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


def test_a_fifo_holds_nothing_that_is_resumed(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    check_file(tmp_path / "fifo")  # opens nothing, else it would wait for a reader
    with pytest.raises(ValueError, match="must be a regular file, because its content is read again"):
        check_file(tmp_path / "fifo", resumed=True)


# the law of all verbs

INPUTS = {
    "config",
    "config_dir",
    "cache_dir",
    "data_dir",
    "include_path",
    "evaluation",
    "runs",
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
    """The fewest words that a command takes: names of things that do not exist."""
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


def test_every_path_is_declared_as_read_or_written() -> None:
    for words, parser in _commands():
        for action in parser._actions:
            if action.type is Path:
                assert action.dest in INPUTS, (
                    f"hdlm {' '.join(words)}: {action.dest} is of type Path: use Output"
                )
            names = {"output", "markdown", "output_dir", "work_dir"}
            assert action.dest not in names or isinstance(action.type, Output), words


def test_the_law_covers_every_verb_that_writes() -> None:
    covered = {param.values[0][0] for param in _outputs()}
    assert covered == {
        "compare",
        "demo",
        "eval",
        "export",
        "plot",
        "sample",
        "show",
        "tokenize",
        "train",
        "tune",
    }


@pytest.mark.parametrize("kind", ["below a file", "long name", "loop", "wrong kind", "empty"])
@pytest.mark.parametrize(("words", "parser", "action"), _outputs())
def test_every_verb_refuses_a_place_before_it_works(
    tmp_path: Path, capsys, monkeypatch, words, parser, action, kind
) -> None:
    """The model, the run and the text of the command do not exist: whoever reads them first says so."""
    monkeypatch.chdir(tmp_path)
    places = {name: place for name, (place, _) in _unwritable(tmp_path).items()}
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


def test_pictures_are_those_of_matplotlib() -> None:
    from matplotlib.figure import Figure

    assert {f".{name}" for name in Figure().canvas.get_supported_filetypes()} <= PICTURES


def test_show_writes_a_picture_to_a_fifo(tmp_path: Path, capsys) -> None:
    reader = _Reader(tmp_path / "picture.png")
    assert main(["show", "hyperschedule", "block", "--output", str(tmp_path / "picture.png")]) == 0
    assert reader.content().startswith(b"\x89PNG")


def test_samples_are_not_kept_in_a_fifo(tmp_path: Path, capsys) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert main(["sample", "kjv-epsilon-4m", "-o", str(tmp_path / "fifo")]) == 2
    assert "must be a regular file" in capsys.readouterr().err


# results that cannot be written


def test_an_error_of_keeping_has_the_content_of_the_innermost_result(tmp_path: Path) -> None:
    with pytest.raises(NotKeptError) as caught, keeping(lambda: "outer"), keeping(lambda: "inner"):
        raise OSError(errno.ENOSPC, "No space left on device", "file")
    assert (caught.value.content, caught.value.filename, caught.value.errno) == (
        "inner",
        "file",
        errno.ENOSPC,
    )


def test_samples_that_cannot_be_kept_are_printed(tmp_path: Path, capsys, monkeypatch) -> None:
    from hdlm.evaluation.generation import samples

    monkeypatch.setattr(samples._Kept, "_append", _full)
    words = ["sample", "kjv-epsilon-4m", "--num", "2", "--length", "8", "--steps", "1"]
    assert main([*words, "-o", str(tmp_path / "samples.jsonl")]) == 2
    said = capsys.readouterr()
    assert [json.loads(line)["index"] for line in said.out.split("\n") if line] == [0, 1]
    assert said.err == f"hdlm sample: {tmp_path / 'samples.jsonl'}: No space left on device\n"


@pytest.mark.parametrize("verb", ["eval likelihood", "eval generation", "tune"])
def test_a_result_that_cannot_be_written_is_printed(tmp_path: Path, capsys, monkeypatch, verb) -> None:
    """The folder is deleted, or the disk is filled, while the verb is at work."""
    from hdlm.evaluation.records import protocol

    text = tmp_path / "text.txt"
    text.write_text("In the beginning God created the heaven and the earth.\n" * 20)
    options = {
        "eval likelihood": f"--data {text} --limit 64 --length 32 --replicates 1 --steps 2",
        "eval generation": "--num 1 --length 8 --steps 1 --judge none",
        "tune": f"--data {text} --limit 64 --length 16 --steps 2",
    }[verb]
    monkeypatch.setattr(protocol, "write_result", _full)
    words = [*verb.split(), "kjv-epsilon-4m", *options.split(), "--output", str(tmp_path / "out")]
    assert main(words) == 2
    said = capsys.readouterr()
    found = json.loads(said.out)
    document = found[str(text)] if verb == "eval likelihood" else found
    assert document["kind"] in ("likelihood", "generation", "grids")
    assert "No space left on device" in said.err
    assert said.err.count("\n") == 1


def test_the_table_of_curves_is_printed_before_the_picture(tmp_path: Path, capsys, monkeypatch) -> None:
    from matplotlib.figure import Figure

    (tmp_path / "metrics.jsonl").write_text(METRICS)
    monkeypatch.setattr(Figure, "savefig", _full)
    assert main(["plot", str(tmp_path), "--json", "-o", str(tmp_path / "curves.png")]) == 2
    said = capsys.readouterr()
    assert json.loads(said.out)[tmp_path.name]["step"] == 2
    assert said.err == f"hdlm plot: {tmp_path / 'curves.png'}: No space left on device\n"
